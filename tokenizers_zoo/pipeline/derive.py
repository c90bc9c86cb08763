"""`zoo data derive`: modalities computed from others (pseudo-labels), in the order that they need each other."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.data.manifest import (
    Split,
    inputs_digest,
    is_finished,
    read_manifest,
    remove_shard,
)
from tokenizers_zoo.data.provenance import one_writer, own_settings, reading_settings, value_identity
from tokenizers_zoo.data.shards import WHOLE, ValueStore, check_foreign, writing_shard
from tokenizers_zoo.errors import DataError, ReadError, ZooError, passing
from tokenizers_zoo.io import as_json, disk_errors
from tokenizers_zoo.pipeline.engines import run_jobs, tick
from tokenizers_zoo.pipeline.results import Outcome, RunResult
from tokenizers_zoo.pretrained import PretrainedError, forget_networks, networks_of
from tokenizers_zoo.progress import progress_bar

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


def derive_data(
    zoo: Zoo,
    data: Path,
    *,
    modalities: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    workers: int | None = None,
) -> RunResult:
    """Derive the absent derivable modalities (or `modalities`, with their inputs) into the data folder.

    A sample that fails is dropped, with the reason in the shard's manifest; the run goes on. A shard is skipped unless
    the plugin, its settings, its pretrained networks or the shards that it is derived from have changed. Networks are
    fetched from the hub for `modalities` only; an unavailable one is a PretrainedError for those, else a skip. Raises
    DataError if `modalities` cannot be derived from the data, or a modality's folder holds tar files of another
    program; CheckpointError if another command writes the data folder.
    """
    store = ValueStore(data)
    result = RunResult()
    with one_writer(store.root):
        orders = {split: _order(zoo, store, split, modalities, result) for split in splits or store.splits()}
        for split, order in orders.items():  # all are checked before any is changed
            for handle in order:
                check_foreign(store.root / split / handle.name)
        for split, order in orders.items():
            _derive_split(zoo, store, split, order, workers, result, download=modalities is not None)
    return result.check()


def _derive_split(
    zoo: Zoo,
    store: ValueStore,
    split: str,
    order: Sequence[ModalityHandle],
    workers: int | None,
    result: RunResult,
    *,
    download: bool,
) -> None:
    """Derive one split; see `derive_data`."""
    failed: set[str] = set()
    for handle in order:
        if lacks := [name for name in handle.spec.derived_from if name in failed]:
            result.skipped[handle.name] = f"derived from {', '.join(lacks)}, which was skipped"
            failed.add(handle.name)
            continue
        try:
            with disk_errors(store.root):
                networks = _networks(handle, download=download)
                _derive_modality(zoo, store, split, handle, networks, workers, result)
        except PretrainedError as error:
            if download:
                raise PretrainedError(f"{handle.name}: {error}") from error
            result.skipped[handle.name] = str(error)
            if handle.name not in store.modalities(split):  # if present, dependants use the old values
                failed.add(handle.name)


def _order(
    zoo: Zoo, store: ValueStore, split: str, wanted: Sequence[str] | None, result: RunResult
) -> list[ModalityHandle]:
    """Return the modalities to derive, inputs first. If a modality cannot be derived, raise an error if it was named;
    else skip it."""
    derivable = {handle.name: handle for handle in zoo.handles() if handle.spec.derived_from}
    kept = {name for name in derivable if _is_derived(store, split, name)}  # derived again if inputs changed
    present = set(store.modalities(split)) - kept
    graph = {name: set(handle.spec.derived_from) & set(derivable) for name, handle in derivable.items()}
    try:
        order = list(graphlib.TopologicalSorter(dict(sorted(graph.items()))).static_order())
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
        chosen = [name for name in order if name not in present and name not in missing]
        problems = zoo.problems()
        result.skipped.update(missing | {name: problems[name] for name in zoo.names() if name in problems})
    else:
        for name in wanted:
            if name in missing or name not in derivable:
                not_derived = f"{zoo[name].distribution} does not derive it from other modalities"
                reason = missing.get(name) or not_derived + zoo[name].derive_hint
                raise DataError(f"{name}: {reason}; {split} has {', '.join(store.modalities(split))}")
            if name in present:
                result.skipped[name] = "is there, and was not derived"
        needed = _with_inputs(wanted, graph) - present - set(missing)
        chosen = [name for name in order if name in needed]
    return [derivable[name] for name in chosen]


def _with_inputs(wanted: Iterable[str], graph: dict[str, set[str]]) -> set[str]:
    """Return the wanted modalities and all derivable modalities that they need."""
    closure: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in closure:
            closure.add(name)
            waiting += graph.get(name, ())
    return closure


def _is_derived(store: ValueStore, split: str, modality: str) -> bool:
    return modality in store.modalities(split) and "derived_from" in store.record(split, modality)


def _networks(handle: ModalityHandle, *, download: bool) -> dict[str, Any]:
    """Return the pretrained networks of the values, by settings field. Raises PretrainedError."""
    return {name: config.record(download=download) for name, config in networks_of(handle.known_settings()).items()}


def _record(zoo: Zoo, handle: ModalityHandle, networks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of derived values except other values: plugin and version, settings, networks."""
    return as_json(
        {
            "derived_from": list(handle.spec.derived_from),
            "distribution": handle.distribution,
            "plugin": handle.plugin_name,
            "settings": {**_shared_settings(handle), **own_settings(handle)},
            "image_size": handle.settings.shared.get("image_size"),
            "value": value_identity(handle),
            **({"networks": networks} if networks else {}),
            "read_with": {name: _read_with(zoo[name]) for name in handle.spec.derived_from},
        }
    )


def _shared_settings(handle: ModalityHandle) -> dict[str, Any]:
    """Return the `[zoo]` settings that affect derived values, except networks and image size, recorded apart."""
    apart = {"image_size", *networks_of(handle.known_settings())}
    return {
        key: item
        for key, item in reading_settings(handle).items()
        if key in handle.settings.shared and key not in apart
    }


def _read_with(handle: ModalityHandle) -> dict[str, Any]:
    """Return the settings and class names that decide the meaning of an input value."""
    classes = {"classes": handle.spec.value.classes} if handle.spec.value.classes else {}
    return {**reading_settings(handle), **classes}


def _derive_modality(
    zoo: Zoo,
    store: ValueStore,
    split: str,
    handle: ModalityHandle,
    networks: Mapping[str, Any],
    workers: int | None,
    result: RunResult,
) -> None:
    """Derive the missing and outdated shards of one modality of one split."""
    samples = store.split(split)
    record = _record(zoo, handle, networks)
    made_with = inputs_digest(**record)
    outcome = Outcome(split=split, modality=handle.name)
    result.outcomes.append(outcome)
    todo: dict[int, str] = {}
    for shard in range(samples.shards):
        given = [read_manifest(samples.folder / name, shard) for name in handle.spec.derived_from]
        keys = samples.keys_digest(shard)
        if any(one is None or one.keys != keys for one in given):
            remove_shard(samples.folder / handle.name, shard)
            continue
        inputs = inputs_digest(made_with=made_with, keys=keys, given=[one.files["tar"].sha256 for one in given if one])
        if is_finished(samples.folder / handle.name, shard, inputs, keys):
            outcome.kept_shards += 1
        else:
            todo[shard] = inputs
    jobs = (
        DeriveShard(split=samples, modality=handle.name, shard=shard, inputs=inputs, record=record)
        for shard, inputs in todo.items()
    )
    workers = _processes(handle, workers) if todo else workers
    with progress_bar(f"derive {split}/{handle.name}", sum(map(samples.rows, todo))) as advance:
        for written, failures in run_jobs(
            zoo, derive_shard, jobs, workers, advance, count=len(todo), of=samples.shards
        ):
            outcome.add(written, failures)
    forget_networks()


def _processes(handle: ModalityHandle, workers: int | None) -> int | None:
    """Return `workers`; if it is None, 1 for networks on a GPU, because each process would load a copy.

    Raises PretrainedError if a network needs a GPU that is missing.
    """
    networks = networks_of(handle.known_settings()).values()
    return 1 if workers is None and any(network.torch_device == "cuda" for network in networks) else workers


def derive_shard(zoo: Zoo, job: DeriveShard) -> tuple[int, dict[str, str]]:
    """Derive and write one shard; returns how many samples were written, and failures (key to reason).

    A shard in which every sample failed, or one failed for a reason that may pass, is noted without an inputs digest:
    the next run makes it again.
    """
    handle, store = zoo[job.modality], ValueStore(job.split.root)
    inputs = {name: zoo[name] for name in handle.spec.derived_from}
    split, shard = job.split.name, job.shard
    there = np.all([store.present(split, name, shard) for name in inputs], axis=0)
    failures: dict[str, str] = {}
    again = False
    with disk_errors(job.split.folder), writing_shard(job.split.folder / job.modality, shard) as writer:
        for row, key in enumerate(job.split.keys(shard)):
            tick()
            if not there[row]:
                writer.skip()
                continue
            try:
                sample = {name: store.read(inputs[name], split, shard, row) for name in inputs}
                value = handle.transform(handle.derive(sample), WHOLE, trusted=True)
                writer.add(key, *handle.write(value, trusted=True))
            except (PretrainedError, ReadError):
                raise  # no sample is to blame
            except ZooError as error:
                failures[key] = str(error)
                writer.skip(str(error))
                again = again or passing(error)
        whole = not again and (writer.count or not failures)
        writer.finish(keys=job.split.keys_digest(shard), inputs=job.inputs if whole else "", record=job.record)
    return writer.count, failures
