"""One job of `zoo data make`: a shard of each modality, of neighbouring samples of a source."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.data.files import FileSamples, read_sample
from tokenizers_zoo.data.folder import FolderSettings, open_folder
from tokenizers_zoo.data.manifest import Manifest, Split, shard_name
from tokenizers_zoo.data.shards import writing_shard
from tokenizers_zoo.data.tar import Member, key_problem
from tokenizers_zoo.errors import DataError, ZooError, is_transient
from tokenizers_zoo.io import disk_errors
from tokenizers_zoo.limits import limited
from tokenizers_zoo.pipeline.workers import report, suspects, working_on
from tokenizers_zoo.source import FileBytes, Sample
from tokenizers_zoo.source_handle import CheckedSamples, modality_names
from tokenizers_zoo.spec import WHOLE, Crop

if TYPE_CHECKING:
    from tokenizers_zoo.registry import SourceHandle, Zoo

Samples = CheckedSamples | FileSamples


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
    crop: str = "whole"
    """See `OwnData`."""
    files: tuple[tuple[str, Mapping[str, Member]], ...] = ()
    """Samples made of files: the key of each, and the location of its files by modality."""

    @property
    def place(self) -> str:
        return f"{self.split.name}, {shard_name(self.shard)}"


def make_shard(zoo: Zoo, job: MakeShard) -> tuple[int, dict[str, Manifest]]:
    """Write one shard of each modality; returns its number, and the manifest of each.

    A shard in which every sample failed, or one failed for a reason that may pass, is noted without an inputs digest:
    the next run makes it again.
    """
    handles = {name: zoo[name] for name in job.inputs}
    again: set[str] = set()
    keys: list[str] = []
    split, start = job.split, job.split.number(job.shard, 0)
    samples = None if job.files else samples_of(zoo, job.source, split.name, split.samples, job.seed, job.options)

    def sample_of(row: int) -> Sample:
        with working_on((row, job.source)):
            return read_sample(*job.files[row]) if samples is None else samples[start + row]

    with disk_errors(job.split.root), limited(zoo.limits), contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(writing_shard(job.split.folder / name, job.shard)) for name in handles}
        for row in suspects():
            with contextlib.suppress(ZooError):
                list(_made(zoo, job, row, sample_of(row)[1]))
        for row in range(job.split.rows(job.shard)):
            report(1)
            try:
                key, values = sample_of(row)
                if problem := "it comes twice" if key in keys else key_problem(key):
                    raise DataError(f"key {key!r}: {problem}")
            except ZooError as error:
                keys.append(f"/sample-{start + row}")  # no sample has such a key
                again.update(handles if is_transient(error) else ())
                for writer in writers.values():
                    writer.skip(str(error))
                continue
            keys.append(key)
            for name, made, passes in _made(zoo, job, row, values):
                try:
                    if isinstance(made, ZooError):
                        raise made
                    writers[name].add(key, *made) if made else writers[name].skip()
                except ZooError as error:
                    writers[name].skip(str(error))
                    again.update([name] if passes else [])
        digest = job.split.write_keys(job.shard, keys)
        for name, writer in writers.items():
            whole = name not in again and (writer.count or not writer.dropped)
            writer.finish(keys=digest, inputs=job.inputs[name] if whole else "", record=job.made_with[name])
    return job.shard, {name: writer.manifest for name, writer in writers.items()}


def _made(
    zoo: Zoo, job: MakeShard, row: int, values: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[bytes, str] | ZooError | None, bool]]:
    """Yield each modality of a sample with its file (bytes and extension), or the error that drops it, or None if the
    sample lacks it; and whether the error may pass."""
    found = _read_files(zoo, row, {name: job.names[name] for name in (*job.inputs, *job.pictures)}, values)
    unsure = any(isinstance(value, ZooError) and is_transient(value) for value in found.values())
    problems = _misfits(
        {name: found[name].shape[-2:] for name in job.pictures if getattr(found.get(name), "ndim", 0) >= 2}
    )
    crop = _shared_crop(zoo, job, {name: found[name] for name in found if name not in problems})
    for name in job.inputs:
        if name not in found:
            yield name, None, False
            continue
        try:
            if isinstance(found[name], ZooError):
                raise found[name]
            if name in problems:
                raise DataError(problems[name])
            checked = isinstance(values[job.names[name]], FileBytes)
            with working_on((row, name)):
                made = zoo[name].write(zoo[name].transform(found[name], crop, trusted=checked), trusted=True)
            yield name, made, False
        except ZooError as error:
            yield name, error, is_transient(error) or (name in problems and unsure)


def _read_files(zoo: Zoo, row: int, names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sample's values by modality, reading files; the error replaces a file that cannot be read.

    `names` maps each modality to its name in `values`.
    """
    found = {name: values[given] for name, given in names.items() if given in values}
    for name, value in found.items():
        if isinstance(value, FileBytes):
            try:
                with working_on((row, name)):
                    found[name] = zoo[name].read(value.data, value.extension)
            except ZooError as error:
                found[name] = error
    return found


def _shared_crop(zoo: Zoo, job: MakeShard, found: Mapping[str, Any]) -> Crop:
    """Return the crop of a sample: the middle of its first picture that could be read, or the whole."""
    pictures = [name for name in job.pictures if isinstance(found.get(name), np.ndarray)]
    return zoo[pictures[0]].middle(found[pictures[0]]) if pictures and job.crop == "middle" else WHOLE


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


@lru_cache(maxsize=4)
def samples_of(zoo: Zoo, source: str, split: str, count: int, seed: int, options: str) -> CheckedSamples | FileSamples:
    """Return the samples that a source generates, opened once per process."""
    return zoo.source(source).samples(split, count, seed, json.loads(options))


def open_samples(
    zoo: Zoo, source: SourceHandle, split: str, count: int | None, seed: int, options: Mapping[str, Any], out: Path
) -> Samples:
    """Return the samples of a split. Files in folders are not values yet, and name their modalities themselves."""
    if source.spec.settings is not FolderSettings:
        return source.samples(split, count, seed, options)
    return open_folder(source.settings_with(options), split, count, out, modality_names(zoo.handles()))
