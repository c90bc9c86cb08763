"""`zoo data derive`: modalities computed from others (pseudo-labels), in the order that they need each other."""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.data.made_of import contents, made_of, note_made_of, read_made_of
from tokenizers_zoo.data.provenance import (
    READ_WITH,
    digest,
    one_writer,
    own_settings,
    read_entry,
    reading_settings,
    record_entry,
    value_identity,
)
from tokenizers_zoo.data.shards import WHOLE, ValueStore, read_value
from tokenizers_zoo.data.tar import TARS, Member, scan_shard, writing_shard
from tokenizers_zoo.errors import DataError, ReadError, ZooError, and_others, passing
from tokenizers_zoo.io import as_json, as_recorded, disk_errors
from tokenizers_zoo.pipeline.engines import run_jobs, tick
from tokenizers_zoo.pipeline.results import (
    Outcome,
    RunResult,
    read_failures,
    remove_shards,
    shards_in,
    write_failures,
)
from tokenizers_zoo.pretrained import PretrainedError, forget_networks, networks_of
from tokenizers_zoo.progress import progress_bar

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo


@dataclass(frozen=True, kw_only=True, slots=True)
class DeriveShard:
    """One job: where the inputs of each sample are, and the shard that takes what is derived from them."""

    modality: str
    path: Path
    made_of: str
    samples: tuple[tuple[str, dict[str, Member]], ...]


def derive_data(
    zoo: Zoo,
    data: Path,
    *,
    modalities: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    workers: int | None = None,
) -> RunResult:
    """Derive what is absent and can be derived (or `modalities`, with what they need) into the data folder.

    A sample that fails is listed with its reason in `<shard>.failed.jsonl` and left out; the run goes on. What was
    derived already is kept, unless the plugin, its settings, its pretrained networks or the values that it is derived
    from have changed since. Networks are fetched from the hub for `modalities` only; one that is not to be had is a
    PretrainedError for those, else a skip. Raises DataError where `modalities` cannot be derived from what is there, or
    a shard that this is not known to have written lies in the folder of one, CheckpointError where another command
    writes the data folder.
    """
    store = ValueStore.of(data, zoo)
    result = RunResult()
    with one_writer(store.root):
        orders = {split: _order(zoo, store, split, modalities, result) for split in splits or store.splits()}
        for split, order in orders.items():  # all are checked before any is changed
            _check_all(store, split, order)
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
    """Derive one split, as `derive_data` says."""
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
            if handle.name not in store.modalities(split):  # else others are derived from what is there
                failed.add(handle.name)


def _order(
    zoo: Zoo, store: ValueStore, split: str, wanted: Sequence[str] | None, result: RunResult
) -> list[ModalityHandle]:
    """What to derive, inputs first. What cannot be is an error if it was asked for, else a skip with the reason."""
    derivable = {handle.name: handle for handle in zoo.handles() if handle.spec.derived_from}
    kept = {name for name in derivable if _is_derived(store, split, name)}  # to be made again where they have changed
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
            if n not in present and (n not in graph or (n in missing and n not in kept))  # else it is there as it is
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
    """The wanted modalities and the derivable ones that they need, however far back."""
    closure: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in closure:
            closure.add(name)
            waiting += graph.get(name, ())
    return closure


def _is_derived(store: ValueStore, split: str, modality: str) -> bool:
    return "derived_from" in (read_entry(store.root, split, modality) or {})


def _check_all(store: ValueStore, split: str, order: Sequence[ModalityHandle]) -> None:
    """`_check_foreign` as far as it can be told before anything is derived: shards are named as those of an input."""
    named: dict[str, set[str]] = {}
    for handle in order:
        first = handle.spec.derived_from[0]
        named[handle.name] = _shard_names(store.folder(split, first)) | named.get(first, set())
        _check_foreign(store, split, handle, named[handle.name])


def _check_foreign(store: ValueStore, split: str, handle: ModalityHandle, planned: Collection[str]) -> None:
    """Raise DataError where the folder holds a shard that is not planned, and of which nothing is noted.

    Where nothing is noted of any, as of data that an older version derived, those named as the first input's are ours.
    """
    folder, first = store.root / split / handle.name, store.folder(split, handle.spec.derived_from[0])
    known = read_made_of(store.root, split, handle.name)
    ours = _shard_names(first) if known is None else known.keys()
    if foreign := sorted(_shard_names(folder) - ours - set(planned)):
        raise DataError(
            f"{folder / foreign[0]}{and_others(len(foreign) - 1)}: is not known to be "
            f"written by `zoo data derive`, which makes {handle.name} there; move it away, or give values of your own "
            "to `zoo data make folder`"
        )


def _shard_names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(TARS)}


def _networks(handle: ModalityHandle, *, download: bool) -> dict[str, Any]:
    """Which pretrained networks make the values, by field of the settings. Raises PretrainedError."""
    return {name: config.record(download=download) for name, config in networks_of(handle.known_settings()).items()}


def _entry(
    zoo: Zoo, store: ValueStore, split: str, handle: ModalityHandle, networks: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the derived values: plugin and version, settings, networks, and the data that it is given."""
    inputs = {name: digest(read_entry(store.root, split, name)) for name in handle.spec.derived_from}
    return as_json(
        {
            "derived_from": inputs,
            "distribution": handle.distribution,
            "plugin": handle.plugin_name,
            "settings": {**_shared_settings(handle), **own_settings(handle)},
            "image_size": handle.settings.shared.get("image_size"),
            "value": value_identity(handle),
            **({"networks": networks} if networks else {}),
            READ_WITH: {name: _read_with(zoo[name]) for name in handle.spec.derived_from},
        }
    )


def _shared_settings(handle: ModalityHandle) -> dict[str, Any]:
    """What decides the derived values of what `[zoo]` shares; networks and the size of pictures are recorded apart."""
    apart = {"image_size", *networks_of(handle.known_settings())}
    return {
        key: item
        for key, item in reading_settings(handle).items()
        if key in handle.settings.shared and key not in apart
    }


def _read_with(handle: ModalityHandle) -> dict[str, Any]:
    """What decides what a stored value means to whoever derives from it: settings, and the names of its classes."""
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
    """Derive one modality of one split, as far as it is not there."""
    folder = store.root / split / handle.name
    entry, before = _entry(zoo, store, split, handle, networks), read_entry(store.root, split, handle.name)
    planned = _plan(store, split, handle, folder)
    _check_foreign(store, split, handle, {job.path.name for job in planned})
    changed = before is None or before != as_recorded(before, entry, READ_WITH)
    remove_shards(shards_in(folder) - (set() if changed else {job.path for job in planned}))
    if before != entry:
        record_entry(store.root, split, handle.name, entry)
    outcome = Outcome(split=split, modality=handle.name)
    jobs = []
    known = read_made_of(store.root, split, handle.name)
    kept = {}
    for job in planned:
        if _is_complete(job) and (known is None or known.get(job.path.name) == job.made_of):
            outcome.kept_shards += 1
            kept[job.path.name] = job.made_of
        else:
            jobs.append(job)
    begun = {job.path.name: "" for job in jobs}  # known as ours from before they are written
    note_made_of(store.root, split, handle.name, {**kept, **begun}, alone=True)
    result.outcomes.append(outcome)
    workers = _processes(handle, workers) if jobs else workers
    with progress_bar(f"derive {split}/{handle.name}", sum(len(job.samples) for job in jobs)) as advance:
        for job, written, failures in run_jobs(zoo, derive_shard, jobs, workers, advance, of=len(planned)):
            outcome.add(written, failures)
            note_made_of(store.root, split, handle.name, {job.path.name: job.made_of})
    store.forget(split, handle.name)
    forget_networks()


def _processes(handle: ModalityHandle, workers: int | None) -> int | None:
    """`workers`; where that is left open, one process for networks on a GPU, as each would load a copy of them there.

    Raises PretrainedError where a network is asked for on a GPU that is not there.
    """
    networks = networks_of(handle.known_settings()).values()
    return 1 if workers is None and any(network.torch_device == "cuda" for network in networks) else workers


def _plan(store: ValueStore, split: str, handle: ModalityHandle, folder: Path) -> list[DeriveShard]:
    """One job per shard of the first input, over the samples that have all inputs, found by key."""
    inputs = handle.spec.derived_from
    members = {name: store.index(split, name).members for name in inputs}
    found_in = {shard: digest for name in inputs for shard, digest in contents(store, split, name).items()}
    by_shard: dict[str, list[tuple[str, dict[str, Member]]]] = {}
    for key in store.aligned_keys(split, inputs):
        found = {name: members[name][key] for name in inputs}
        by_shard.setdefault(found[inputs[0]].shard.name, []).append((key, found))
    return [
        DeriveShard(
            modality=handle.name,
            path=folder / name,
            made_of=made_of(found_in, (member for _, found in samples for member in found.values())),
            samples=tuple(samples),
        )
        for name, samples in by_shard.items()
    ]


def _is_complete(job: DeriveShard) -> bool:
    """True where the shard is there and accounts for every sample."""
    if not job.path.exists():
        return False
    try:
        done = {*scan_shard(job.path).members, *read_failures(job.path)}
    except DataError:  # damaged: it is ours, so it is derived again
        return False
    return done == {key for key, _ in job.samples}


def derive_shard(zoo: Zoo, job: DeriveShard) -> tuple[DeriveShard, int, dict[str, str]]:
    """Derive and write one shard; returns with the job how many samples were written, and failures (key to reason).

    Where a sample failed for a reason that may pass, the job that is returned does not know what the shard is made of,
    so that it is derived again.
    """
    handle = zoo[job.modality]
    inputs = {name: zoo[name] for name in handle.spec.derived_from}
    failures: dict[str, str] = {}
    with disk_errors(job.path.parent), writing_shard(job.path) as writer:
        for key, members in job.samples:
            tick()
            try:
                sample = {name: read_value(inputs[name], member) for name, member in members.items()}
                value = handle.transform(handle.derive(sample), WHOLE)
                writer.add(key, *handle.write(value))
            except (PretrainedError, ReadError):
                raise  # no sample is to blame
            except ZooError as error:
                failures[key] = str(error)
                if passing(error):
                    job = dataclasses.replace(job, made_of="")
        write_failures(job.path, failures)
        if failures and not writer.count:
            writer.discard()
    return job, writer.count, failures
