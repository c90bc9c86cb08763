"""One job of `zoo data make`: a shard of each modality, of neighbouring samples of a source."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.config import Origin, from_mapping
from tokenizers_zoo.data.folder import FileBytes, FolderSamples, FolderSettings, open_folder, read_sample
from tokenizers_zoo.data.shards import SHARD_NAME, WHOLE
from tokenizers_zoo.data.tar import Member, ShardWriter, writing_shard
from tokenizers_zoo.errors import ZooError, passing
from tokenizers_zoo.io import disk_errors
from tokenizers_zoo.pipeline.engines import tick
from tokenizers_zoo.pipeline.results import write_failures
from tokenizers_zoo.source_handle import CheckedSamples

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, SourceHandle, Zoo

Samples = CheckedSamples | FolderSamples


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One job: samples [start, stop) of a split, written for the `modalities` whose shard is missing."""

    root: Path
    source: str
    options: str
    seed: int
    split: str
    count: int
    number: int
    start: int
    stop: int
    modalities: tuple[str, ...]
    pictures: tuple[str, ...]
    """All modalities of the data, written now or before, that show the sample as a picture."""
    names: Mapping[str, str]
    """By modality, these and those of `pictures`, the name under which the source gives it."""
    made_of: Mapping[str, str] = field(default_factory=dict)
    """By modality what files its shard is made of; empty for sources that have none."""
    beside: str = ""
    """The same of all `pictures`, and how they are read, on which it depends which of them are refused."""
    files: tuple[tuple[str, Mapping[str, Member]], ...] = ()
    """The samples where they are files: the key of each, and where its files lie, by modality."""

    def path(self, modality: str) -> Path:
        """Where the modality's shard goes."""
        return self.root / self.split / modality / SHARD_NAME.format(self.number)


def make_shard(zoo: Zoo, job: Shard) -> tuple[Shard, dict[str, tuple[int, dict[str, str]]]]:
    """Write one shard of each modality; returns the samples written and the failures (key to reason) of each.

    A shard in which every sample failed is not written, so that it is tried again. So is one of which a file could not
    be read, for a reason that may pass: the job that is returned does not know what it is made of. One of which a
    picture was refused for what others show is made of them, too.
    """
    sample = _sample_of(zoo, job)
    handles = {name: zoo[name] for name in job.modalities}
    failures: dict[str, dict[str, str]] = {name: {} for name in handles}
    counts = dict.fromkeys(handles, 0)
    made_of = dict(job.made_of)
    with disk_errors(job.root), contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(writing_shard(job.path(name))) for name in handles}
        for index in range(job.start, job.stop):
            tick()
            try:
                key, values = sample(index)
            except ZooError as error:
                for name in handles:
                    failures[name][f"#{index}"] = str(error)
                continue
            found = _read_files(zoo, {name: job.names[name] for name in (*job.modalities, *job.pictures)}, values)
            unsure = {name for name, value in found.items() if isinstance(value, ZooError) and passing(value)}
            problems = _misfits({name: found[name].shape[-2:] for name in job.pictures if _is_array(found.get(name))})
            for name, handle in handles.items():
                if name in found and (reason := problems.get(name) or _write(handle, writers[name], key, found[name])):
                    failures[name][key] = reason
                    if name in unsure or (name in problems and unsure):
                        made_of[name] = ""
                    elif name in problems and made_of.get(name):
                        made_of[name] = job.beside
        for name, writer in writers.items():
            counts[name] = writer.count
            write_failures(job.path(name), failures[name])
            if failures[name] and not writer.count:
                writer.discard()
    return dataclasses.replace(job, made_of=made_of), {name: (counts[name], failures[name]) for name in handles}


def _sample_of(zoo: Zoo, job: Shard) -> Callable[[int], tuple[str, Mapping[str, Any]]]:
    """What gives a sample by its number: the job's own files, else the source."""
    if job.files:
        return lambda index: read_sample(*job.files[index - job.start])
    return samples_of(zoo, job.source, job.split, job.count, job.seed, job.options).__getitem__


def _read_files(zoo: Zoo, names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The sample's values by modality, files among them read; a file that cannot be read is its error.

    `names` are the modalities, each with the name that it has in `values`.
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
    """What is wrong with pictures of one sample that differ in proportions from as many others as they agree with.

    They may have other sizes: a mask at half the height and width fits. But one of another shape would be stretched,
    and would lie beside the picture that it belongs to.
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
    """True where one size (height, width) is the other, scaled and rounded to whole pixels."""
    small, large = sorted((first, second))
    return abs(small[0] / large[0] - small[1] / large[1]) < 1 / large[0] + 1 / large[1]


def _write(handle: ModalityHandle, writer: ShardWriter, key: str, value: Any) -> str:
    """Add one value at the size of the settings; returns why not, or nothing."""
    if isinstance(value, ZooError):
        return str(value)
    try:
        writer.add(key, *handle.write(handle.transform(value, WHOLE)))
    except ZooError as error:
        return str(error)
    return ""


@lru_cache(maxsize=4)
def samples_of(zoo: Zoo, source: str, split: str, count: int, seed: int, options: str) -> CheckedSamples:
    """The samples that a source generates, opened once per process."""
    return zoo.source(source).samples(split, count, seed, json.loads(options))


def open_samples(
    zoo: Zoo, source: SourceHandle, split: str, count: int | None, seed: int, options: Mapping[str, Any], out: Path
) -> Samples:
    """The samples of a split. Files in folders are not values yet, and name their modalities themselves."""
    if source.spec.settings is FolderSettings:
        config = from_mapping(FolderSettings, options, Origin(table=source.name))
        names = {name for handle in zoo.handles() for name in (handle.name, handle.plugin_name)}
        return open_folder(config, split, count, out, names)
    return source.samples(split, count, seed, options)
