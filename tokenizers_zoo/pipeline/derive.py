"""`zoo data derive`: modalities computed from others (pseudo-labels), in the order that they need each other."""

from __future__ import annotations

import contextlib
import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.data.manifest import (
    Manifest,
    Split,
    inputs_digest,
    read_manifest,
    remove_shard,
    shard_name,
    up_to_date,
)
from tokenizers_zoo.data.shards import ValueStore, check_foreign, reading_settings, value_identity, writing_shard
from tokenizers_zoo.device import AUTO
from tokenizers_zoo.errors import DataError, ReadError, ZooError, is_transient
from tokenizers_zoo.io import as_json, disk_errors
from tokenizers_zoo.pipeline.outcomes import Outcome, RunResult
from tokenizers_zoo.pipeline.workers import WorkerError, Workers, report, suspects, working_on
from tokenizers_zoo.pretrained import PretrainedError, forget_networks, networks_of, prefer_device
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.run_folder import locked
from tokenizers_zoo.spec import WHOLE

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo


@dataclass(frozen=True, kw_only=True, slots=True)
class DeriveShard:
    """One job: the shard of a modality that is derived from the same shard of others."""

    split: Split
    modality: str
    shard: int
    inputs: str
    record: Mapping[str, Any]
    device: str

    @property
    def place(self) -> str:
        return f"{self.split.name}/{self.modality}, {shard_name(self.shard)}"


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
        orders = {split: _order(zoo, store, split, modalities, result) for split in splits or store.splits()}
        for split, order in orders.items():  # all are checked before any is changed
            for handle in order:
                check_foreign(store.root / split / handle.name)
            for name in {name for handle in order for name in handle.spec.derived_from} - {one.name for one in order}:
                store.check_size(zoo[name], split)
        shards = max((store.split(split).shards for split in store.splits()), default=0)
        started = stack.enter_context(Workers(zoo, workers, shards))
        for split, order in orders.items():
            failed = set[str]()
            planned = set[str]() if dry_run else None
            for handle in order:
                if lacks := [name for name in handle.spec.derived_from if name in failed]:
                    result.skipped[handle.name] = f"derived from {', '.join(lacks)}, which was skipped"
                    failed.add(handle.name)
                    continue
                try:
                    alone = workers is None
                    outcome = _derive(zoo, store.split(split), handle, started, alone, download, device, planned)
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


def _order(
    zoo: Zoo, store: ValueStore, split: str, wanted: Sequence[str] | None, result: RunResult
) -> list[ModalityHandle]:
    """Return the modalities to derive, inputs first. If a modality cannot be derived, raise an error if it was named;
    else skip it."""
    derivable = {handle.name: handle for handle in zoo.handles() if handle.spec.derived_from}
    there = set(store.modalities(split))
    kept = {name for name in derivable if name in there and "derived_from" in store.record(split, name)}
    present = there - kept  # derived values are derived again if inputs changed
    graph = {name: set(handle.spec.derived_from) & set(derivable) for name, handle in sorted(derivable.items())}
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise DataError(f"modalities that are derived from each other: {' -> '.join(error.args[1])}") from None
    missing: dict[str, str] = {}
    for name in order:
        lacks = [
            n for n in derivable[name].spec.derived_from
            if n not in present and (n not in graph or (n in missing and n not in kept))  # existing values are used
        ]  # fmt: skip
        if lacks and name not in present:
            missing[name] = f"derived from {', '.join(lacks)}, which {store.root / split} lacks"
    if wanted is None:
        problems = zoo.problems()
        result.skipped.update(missing | {name: problems[name] for name in zoo.names() if name in problems})
        needed = set(order)
    else:
        for name in wanted:
            if name in missing or name not in derivable:
                not_derived = f"{zoo[name].distribution} does not derive it from other modalities"
                reason = missing.get(name) or not_derived + zoo[name].derive_hint
                raise DataError(f"{name}: {reason}; {split} has {', '.join(store.modalities(split))}")
            if name in present:
                result.skipped[name] = "is there, and was not derived"
        needed = set(wanted)
        for name in reversed(order):
            needed |= graph[name] if name in needed else set()
    return [derivable[name] for name in order if name in needed and name not in present and name not in missing]


def _record(zoo: Zoo, handle: ModalityHandle, networks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of derived values except other values: plugin and version, settings, networks."""
    inputs = [zoo[name] for name in handle.spec.derived_from]
    return as_json(
        {
            "derived_from": list(handle.spec.derived_from),
            "distribution": handle.distribution,
            "plugin": handle.plugin_name,
            "settings": reading_settings(handle),
            "value": value_identity(handle),
            "networks": networks,
            **zoo.limits.identity(),
            "read_with": {one.name: {**reading_settings(one), "classes": one.spec.value.classes} for one in inputs},
        }
    )


def _derive(
    zoo: Zoo,
    split: Split,
    handle: ModalityHandle,
    workers: Workers,
    alone: bool,
    download: bool,
    device: str,
    planned: set[str] | None,
) -> Outcome:
    """Derive the missing and outdated shards of one modality of one split. Raises PretrainedError and WorkerError.

    A network on a GPU runs in one process if `alone`. With `planned`, the modalities that a dry run has found to be
    derived, the shards are only counted.
    """
    networks = networks_of(handle.known_settings())
    record = _record(zoo, handle, {name: config.record(download=download) for name, config in networks.items()})
    made_with = inputs_digest(**record)
    outcome = Outcome(split=split.name, modality=handle.name)
    folder = split.folder / handle.name
    todo: dict[int, str] = {}
    waits = planned is not None and bool(planned & set(handle.spec.derived_from))
    for shard in range(split.shards):
        if waits:  # for shards that a dry run does not write
            outcome.written += split.rows(shard)
            continue
        given = [read_manifest(split.folder / name, shard, "tar") for name in handle.spec.derived_from]
        keys = split.keys_digest(shard)
        if any(one is None or one.keys != keys for one in given):
            if planned is None:
                remove_shard(folder, shard)
            continue
        inputs = inputs_digest(made_with=made_with, keys=keys, given=[one.files["tar"].sha256 for one in given if one])
        if (manifest := up_to_date(folder, shard, inputs, keys)) is not None:
            outcome.add(split, shard, manifest, kept=True)
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
    most = 1 if alone and on_gpu else None  # each process would load a copy
    with progress_bar(f"derive {split.name}/{handle.name}", sum(map(split.rows, todo))) as advance:
        for shard, manifest in workers.run(derive_shard, jobs, advance, most=most):
            outcome.add(split, shard, manifest)
    forget_networks()
    return outcome


_networks_of = ""
"""The modality whose networks this process has loaded."""


def derive_shard(zoo: Zoo, job: DeriveShard) -> tuple[int, Manifest]:
    """Derive and write one shard; returns its number and manifest.

    A shard in which every sample failed, or one failed for a reason that may pass, is noted without an inputs digest:
    the next run makes it again.
    """
    global _networks_of
    if _networks_of != job.modality:
        forget_networks()
        _networks_of = job.modality
    handle, store = zoo[job.modality], ValueStore(job.split.root)
    inputs = {name: zoo[name] for name in handle.spec.derived_from}
    split, shard = job.split.name, job.shard
    there = np.all([store.present(split, name, shard) for name in inputs], axis=0)
    again = False

    def derived(row: int) -> tuple[bytes, str]:
        with working_on((row, job.modality)):
            sample = {name: store.read(inputs[name], split, shard, row) for name in inputs}
            value = handle.transform(handle.derive(sample), WHOLE, trusted=True)
            return handle.write(value, trusted=True)

    with (
        prefer_device(job.device), disk_errors(job.split.folder),
        writing_shard(job.split.folder / job.modality, shard) as writer,
    ):  # fmt: skip
        for row in suspects():
            with contextlib.suppress(ZooError):
                derived(row)
        for row, key in enumerate(job.split.keys(shard)):
            report(1)
            if not there[row]:
                writer.skip()
                continue
            try:
                writer.add(key, *derived(row))
            except (PretrainedError, ReadError):
                raise  # no sample is to blame
            except ZooError as error:
                writer.skip(str(error))
                again = again or is_transient(error)
        whole = not again and (writer.count or not writer.dropped)
        writer.finish(keys=job.split.keys_digest(shard), inputs=job.inputs if whole else "", record=job.record)
    return shard, writer.manifest
