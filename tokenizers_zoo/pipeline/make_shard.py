"""One job of `zoo data make`: a shard of each modality, of neighbouring samples of a source."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.config import Origin, from_mapping
from tokenizers_zoo.data.folder import FileBytes, FolderSamples, FolderSettings, open_folder, read_sample
from tokenizers_zoo.data.manifest import Split
from tokenizers_zoo.data.shards import WHOLE, ShardWriter, writing_shard
from tokenizers_zoo.data.tar import Member, key_problem
from tokenizers_zoo.errors import DataError, ZooError, passing
from tokenizers_zoo.io import disk_errors
from tokenizers_zoo.pipeline.engines import tick
from tokenizers_zoo.source_handle import CheckedSamples

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, SourceHandle, Zoo

Samples = CheckedSamples | FolderSamples
TOKEN_NAMES = "tok_"
"""How ml-4m begins the names of folders that hold a modality's tokens, not its values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeShard:
    """One job: a shard of a split, for the modalities of `inputs`."""

    split: Split
    shard: int
    source: str
    options: str
    seed: int
    inputs: Mapping[str, str]
    """Inputs digest by modality."""
    made_with: Mapping[str, Mapping[str, Any]]
    """Record for the manifest by modality."""
    pictures: tuple[str, ...]
    """All modalities of the data, written now or before, that show the sample as a picture."""
    names: Mapping[str, str]
    """Name at the source of each modality and picture."""
    files: tuple[tuple[str, Mapping[str, Member]], ...] = ()
    """Samples made of files: the key of each, and the location of its files by modality."""


def make_shard(zoo: Zoo, job: MakeShard) -> dict[str, tuple[int, dict[str, str]]]:
    """Write one shard of each modality; returns the samples written and the failures (key to reason) of each.

    A shard in which every sample failed, or one failed for a reason that may pass, is noted without an inputs digest:
    the next run makes it again.
    """
    sample = _sample_of(zoo, job)
    handles = {name: zoo[name] for name in job.inputs}
    failures: dict[str, dict[str, str]] = {name: {} for name in handles}
    again: set[str] = set()
    keys: list[str] = []
    start = job.split.number(job.shard, 0)
    with disk_errors(job.split.root), contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(writing_shard(job.split.folder / name, job.shard)) for name in handles}
        for index in range(start, start + job.split.rows(job.shard)):
            tick()
            try:
                key, values = sample(index)
                if problem := "it comes twice" if key in keys else key_problem(key):
                    raise DataError(f"key {key!r}: {problem}")
            except ZooError as error:
                keys.append(f"sample-{index}")
                for name, writer in writers.items():
                    failures[name][f"#{index}"] = str(error)
                    writer.skip(str(error))
                continue
            keys.append(key)
            found = _read_files(zoo, {name: job.names[name] for name in (*job.inputs, *job.pictures)}, values)
            unsure = {name for name, value in found.items() if isinstance(value, ZooError) and passing(value)}
            problems = _misfits({name: found[name].shape[-2:] for name in job.pictures if _is_array(found.get(name))})
            for name, handle in handles.items():
                if name not in found:
                    writers[name].skip()
                elif reason := problems.get(name) or _write(
                    handle, writers[name], key, found[name], trusted=bool(job.files)
                ):
                    writers[name].skip(reason)
                    failures[name][key] = reason
                    if name in unsure or (name in problems and unsure):
                        again.add(name)
        digest = job.split.write_keys(job.shard, keys)
        for name, writer in writers.items():
            whole = name not in again and (writer.count or not failures[name])
            writer.finish(keys=digest, inputs=job.inputs[name] if whole else "", record=job.made_with[name])
    return {name: (writers[name].count, failures[name]) for name in handles}


def _sample_of(zoo: Zoo, job: MakeShard) -> Callable[[int], tuple[str, Mapping[str, Any]]]:
    """Return a function that gives a sample by its number, from the job's files or the source."""
    if job.files:
        start = job.split.number(job.shard, 0)
        return lambda index: read_sample(*job.files[index - start])
    return samples_of(zoo, job.source, job.split.name, job.split.samples, job.seed, job.options).__getitem__


def _read_files(zoo: Zoo, names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sample's values by modality, reading files; the error replaces a file that cannot be read.

    `names` maps each modality to its name in `values`.
    """
    found: dict[str, Any] = {}
    for name, given in names.items():
        if given not in values:
            continue
        found[name] = values[given]
        if isinstance(found[name], FileBytes):
            try:
                found[name] = zoo[name].read(found[name].data, found[name].extension)
            except ZooError as error:
                found[name] = error
    return found


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim >= 2


def _misfits(sizes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Return a problem for each image of a sample whose aspect ratio differs from at least half of the images.

    Sizes may differ: a mask at half the height and width fits. An image with another aspect ratio would be stretched
    and would no longer match the others.
    """
    problems = {}
    for name, size in sizes.items():
        others = [other for other, its in sizes.items() if not _same_proportions(size, its)]
        if 2 * len(others) >= len(sizes) > 1:
            (height, width), (its_height, its_width) = size, sizes[others[0]]
            problems[name] = (
                f"{name}: {height} x {width} pixels, where {others[0]} has {its_height} x {its_width}: the pictures of "
                "a sample have to show the same, in the same proportions"
            )
    return problems


def _same_proportions(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether one size (height, width) equals the other, scaled and rounded to whole pixels."""
    small, large = sorted((first, second))
    return abs(small[0] / large[0] - small[1] / large[1]) < 1 / large[0] + 1 / large[1]


def _write(handle: ModalityHandle, writer: ShardWriter, key: str, value: Any, *, trusted: bool) -> str:
    """Add one value at the configured size; return the problem, or "". Values read from files are `trusted`."""
    if isinstance(value, ZooError):
        return str(value)
    try:
        seen = handle.transform(value, WHOLE, trusted=trusted)
        writer.add(key, *handle.write(seen, trusted=True))
    except ZooError as error:
        return str(error)
    return ""


@lru_cache(maxsize=4)
def samples_of(zoo: Zoo, source: str, split: str, count: int, seed: int, options: str) -> CheckedSamples:
    """Return the samples that a source generates, opened once per process."""
    return zoo.source(source).samples(split, count, seed, json.loads(options))


def open_samples(
    zoo: Zoo, source: SourceHandle, split: str, count: int | None, seed: int, options: Mapping[str, Any], out: Path
) -> Samples:
    """Return the samples of a split. Files in folders are not values yet, and name their modalities themselves."""
    if source.spec.settings is FolderSettings:
        config = from_mapping(FolderSettings, options, Origin(table=source.name))
        return open_folder(config, split, count, out, _folder_names(zoo))
    return source.samples(split, count, seed, options)


def _folder_names(zoo: Zoo) -> dict[str, str]:
    """Map each folder name of an enabled modality to the modality's name at the source.

    A modality's own name is never another's alias. Instances of a plugin share its name and aliases; the instance of
    the plugin's own name has the aliases, else the first.
    """
    handles = sorted(zoo.handles(), key=lambda handle: handle.name != handle.plugin_name)
    names = {name: name for handle in handles for name in (handle.name, handle.plugin_name)}
    for handle in handles:
        for alias in handle.spec.aliases:
            if not alias.startswith(TOKEN_NAMES):
                names.setdefault(alias, handle.name)
    return names
