"""`zoo data derive`: modalities computed from others (pseudo-labels), in the order that they need each other."""

from __future__ import annotations

import contextlib
import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.build.outcomes import Outcome, RunResult
from tokenizers_zoo.build.workers import ShardJob, WorkerError, Workers, report, suspects, working_on
from tokenizers_zoo.contract.pretrained import PretrainedError, forget_networks, networks_of, prefer_device
from tokenizers_zoo.contract.spec import WHOLE
from tokenizers_zoo.errors import DataError, ReadError, ZooError, is_transient
from tokenizers_zoo.files.run_folder import locked
from tokenizers_zoo.machine.device import AUTO
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.io import as_json, disk_errors
from tokenizers_zoo.stores.manifest import (
    Manifest,
    Split,
    ValueManifest,
    inputs_digest,
    read_manifest,
    remove_shard,
    up_to_date,
)
from tokenizers_zoo.stores.shards import ValueStore, check_foreign, reading_settings, value_identity, writing_shard

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle, Zoo


@dataclass(frozen=True, kw_only=True, slots=True)
class DeriveShard(ShardJob):
    """One job: the shard of a modality that is derived from the same shard of others."""

    record: Mapping[str, Any]


def derive_data(
    zoo: Zoo,
    data: Path,
    *,
    modalities: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    workers: int | None = None,
    device: str = AUTO,
    dry_run: bool = False,
) -> RunResult:
    """Derive the absent derivable modalities (or `modalities`, with their inputs) into the data folder.

    A sample that fails is dropped, with the reason in the shard's manifest; the run goes on. So is a sample that kills
    or blocks its process, except with `workers` 0, where all work is done in this process; None means one worker
    process per core. A shard is skipped unless the plugin, its settings, its pretrained networks or the shards that it
    is derived from have changed. Networks are fetched from the hub for `modalities` only; an unavailable one is a
    PretrainedError for those, else a skip. They run on `device` unless their settings name another. With `dry_run`
    nothing is downloaded or written, and the result counts the samples to write. Raises DataError if `modalities`
    cannot be derived from the data, their inputs are stored at a smaller size than the settings have now, or a
    modality's folder holds tar files of another program; FolderError if another command writes the data folder;
    WorkerError, after the other modalities, if the samples of a modality kill process after process.
    """
    store, result = ValueStore(data), RunResult(planned=dry_run)
    download = modalities is not None and not dry_run
    with prefer_device(device), disk_errors(store.root), locked(store.root), contextlib.ExitStack() as stack:
        orders = {split: _derivation_order(zoo, store, split, modalities, result) for split in splits or store.splits()}
        for split, order in orders.items():  # all are checked before any is changed
            for handle in order:
                check_foreign(store.root / split / handle.name)
            input_names = {name for handle in order for name in handle.spec.derived_from}
            for name in input_names - {handle.name for handle in order}:
                store.check_size(zoo[name], split)
        shards = max((store.split(split).shards for split in store.splits()), default=0)
        pool = stack.enter_context(Workers(zoo, workers, shards))
        for split, order in orders.items():
            failed = set[str]()
            planned = set[str]() if dry_run else None
            for handle in order:
                if failed_inputs := [name for name in handle.spec.derived_from if name in failed]:
                    result.skipped[handle.name] = f"derived from {', '.join(failed_inputs)}, which was skipped"
                    failed.add(handle.name)
                    continue
                try:
                    outcome = _derive_modality(
                        zoo, store.split(split), handle, pool, download, device, planned, one_on_gpu=workers is None
                    )
                    result.outcomes.append(outcome)
                except WorkerError as error:
                    result.errors.append(error)
                    failed.add(handle.name)
                except PretrainedError as error:
                    if download:
                        raise PretrainedError(f"{handle.name}: {error}") from error
                    result.skipped[handle.name] = str(error)
                    if handle.name not in store.modalities(split):  # if present, dependants use the old values
                        failed.add(handle.name)
    return result.check()


def _derivation_order(
    zoo: Zoo, store: ValueStore, split: str, modalities: Sequence[str] | None, result: RunResult
) -> list[ModalityHandle]:
    """Return the modalities to derive, inputs first. If a modality cannot be derived, raise an error if it was named;
    else skip it."""
    derivable = {handle.name: handle for handle in zoo.handles() if handle.spec.derived_from}
    stored_names = set(store.modalities(split))
    derived_names = {name for name in derivable if name in stored_names and "derived_from" in store.record(split, name)}
    source_names = stored_names - derived_names  # derived values are derived again if inputs changed
    graph = {name: set(handle.spec.derived_from) & set(derivable) for name, handle in sorted(derivable.items())}
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise DataError(f"modalities that are derived from each other: {' -> '.join(error.args[1])}") from None
    missing: dict[str, str] = {}
    for name in order:  # stored values of an input are used if it cannot be derived again
        missing_inputs = [
            input_name
            for input_name in derivable[name].spec.derived_from
            if input_name not in source_names
            and (input_name not in graph or (input_name in missing and input_name not in derived_names))
        ]
        if missing_inputs and name not in source_names:
            missing[name] = f"derived from {', '.join(missing_inputs)}, which {store.root / split} lacks"
    if modalities is None:
        plugin_errors = zoo.problems()
        result.skipped.update(missing | {name: plugin_errors[name] for name in zoo.names() if name in plugin_errors})
        target_names = set(order)
    else:
        for name in modalities:
            if name in missing or name not in derivable:
                not_derived = f"{zoo[name].distribution} does not derive it from other modalities"
                reason = missing.get(name) or not_derived + zoo[name].derive_hint
                raise DataError(f"{name}: {reason}; {split} has {', '.join(store.modalities(split))}")
            if name in source_names:
                result.skipped[name] = "is there, and was not derived"
        target_names = set(modalities)
        for name in reversed(order):
            target_names |= graph[name] if name in target_names else set()
    return [derivable[name] for name in order if name in target_names - source_names - missing.keys()]


def _derivation_record(zoo: Zoo, handle: ModalityHandle, networks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of derived values except other values: plugin and version, settings, networks."""
    inputs = {name: zoo[name] for name in handle.spec.derived_from}
    read_with = {name: {**reading_settings(item), "classes": item.spec.value.classes} for name, item in inputs.items()}
    return as_json(
        {
            "derived_from": list(inputs),
            "distribution": handle.distribution,
            "plugin": handle.plugin_name,
            "settings": reading_settings(handle),
            "value": value_identity(handle),
            "networks": networks,
            **zoo.limits.identity(),
            "read_with": read_with,
        }
    )


def _derive_modality(
    zoo: Zoo,
    split: Split,
    handle: ModalityHandle,
    workers: Workers,
    download: bool,
    device: str,
    planned: set[str] | None,
    *,
    one_on_gpu: bool,
) -> Outcome:
    """Derive the missing and outdated shards of one modality of one split. Raises PretrainedError and WorkerError.

    Networks on a GPU run in one process if `one_on_gpu`. With `planned`, the modalities that a dry run would derive,
    the shards are only counted.
    """
    networks = networks_of(handle.known_settings())
    network_records = {name: config.record(download=download) for name, config in networks.items()}
    record = _derivation_record(zoo, handle, network_records)
    record_digest = inputs_digest(**record)
    outcome = Outcome(split=split.name, modality=handle.name)
    folder = split.folder / handle.name
    todo: dict[int, str] = {}
    inputs_planned = planned is not None and bool(planned & set(handle.spec.derived_from))
    for shard in range(split.shards):
        if inputs_planned:  # for shards that a dry run does not write
            outcome.written += split.rows(shard)
            continue
        input_manifests = [
            read_manifest(split.folder / name, shard, ValueManifest) for name in handle.spec.derived_from
        ]
        keys = split.keys_digest(shard)
        if any(manifest is None or manifest.keys != keys for manifest in input_manifests):
            if planned is None:
                remove_shard(folder, shard)
            continue
        value_digests = [manifest.files["tar"].sha256 for manifest in input_manifests if manifest]
        inputs = inputs_digest(made_with=record_digest, keys=keys, given=value_digests)
        if (finished := up_to_date(folder, shard, inputs, keys)) is not None:
            outcome.add(split, shard, finished, unchanged=True)
        else:
            todo[shard] = inputs
    if planned is not None:
        outcome.written += sum(map(split.rows, todo))
        planned.update([handle.name] if outcome.written else [])
        return outcome
    jobs = (
        DeriveShard(split=split, modality=handle.name, shard=shard, inputs=inputs, record=record, device=device)
        for shard, inputs in todo.items()
    )
    on_gpu = bool(todo) and any(network.torch_device.startswith("cuda") for network in networks.values())
    max_processes = 1 if one_on_gpu and on_gpu else None  # each process would load a copy
    with progress_bar(f"derive {split.name}/{handle.name}", sum(map(split.rows, todo))) as advance:
        for shard, manifest in workers.run(derive_shard, jobs, advance, max_processes=max_processes):
            outcome.add(split, shard, manifest)
    forget_networks()
    return outcome


_loaded_modality = ""
"""The modality whose networks this process has loaded."""


def derive_shard(zoo: Zoo, job: DeriveShard) -> tuple[int, Manifest]:
    """Derive and write one shard; return its number and manifest.

    The next run makes a shard again in which every sample failed, or one failed for a reason that may pass.
    """
    global _loaded_modality
    if _loaded_modality != job.modality:
        forget_networks()
        _loaded_modality = job.modality
    handle, store = zoo[job.modality], ValueStore(job.split.root)
    inputs = {name: zoo[name] for name in handle.spec.derived_from}
    split, shard = job.split.name, job.shard
    has_inputs = np.all([store.present(split, name, shard) for name in inputs], axis=0)
    retry = False

    def derive_row(row: int) -> tuple[bytes, str]:
        with working_on((row, job.modality)):
            sample = {name: store.read(inputs[name], split, shard, row) for name in inputs}
            value = handle.transform(handle.derive(sample), WHOLE, trusted=True)
            return handle.write(value, trusted=True)

    with (
        prefer_device(job.device),
        disk_errors(job.split.folder),
        writing_shard(job.split.folder / job.modality, shard) as writer,
    ):
        for row in suspects():
            with contextlib.suppress(ZooError):
                derive_row(row)
        for row, key in enumerate(job.split.keys(shard)):
            report(1)
            if not has_inputs[row]:
                writer.skip()
                continue
            try:
                writer.add(key, *derive_row(row))
            except (PretrainedError, ReadError):
                raise  # no sample is to blame
            except ZooError as error:
                writer.skip(str(error))
                retry = retry or is_transient(error)
        writer.finish(keys=job.split.keys_digest(shard), inputs=job.inputs, record=job.record, retry=retry)
    return shard, writer.manifest
