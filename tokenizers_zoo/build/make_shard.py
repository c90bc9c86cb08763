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

from tokenizers_zoo.build.workers import report, suspects, working_on
from tokenizers_zoo.contract.file_samples import FileSamples, read_sample
from tokenizers_zoo.contract.registry import modality_names
from tokenizers_zoo.contract.source import FileBytes, Sample
from tokenizers_zoo.contract.source_handle import CheckedSamples
from tokenizers_zoo.contract.spec import WHOLE
from tokenizers_zoo.errors import DataError, ZooError, is_transient, size_text
from tokenizers_zoo.files.tar import Member
from tokenizers_zoo.records.io import disk_errors
from tokenizers_zoo.records.limits import limited
from tokenizers_zoo.stores.folder import FolderSettings, open_folder
from tokenizers_zoo.stores.manifest import Manifest, Split, shard_name
from tokenizers_zoo.stores.shards import writing_shard

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import SourceHandle, Zoo

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
    """Write one shard of each modality; return its number, and the manifest of each.

    The next run makes a shard again in which every sample failed, or one failed for a reason that may pass.
    """
    handles = {name: zoo[name] for name in job.inputs}
    retry: set[str] = set()
    keys: list[str] = []
    split, start = job.split, job.split.number(job.shard, 0)
    samples = None if job.files else cached_samples(zoo, job.source, split.name, split.samples, job.seed, job.options)

    def read_row(row: int) -> Sample:
        with working_on((row, job.source)):
            return read_sample(*job.files[row]) if samples is None else samples[start + row]

    with disk_errors(job.split.root), limited(zoo.limits), contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(writing_shard(job.split.folder / name, job.shard)) for name in handles}
        for row in suspects():
            with contextlib.suppress(ZooError):
                list(_value_files(zoo, job, row, read_row(row)[1]))
        for row in range(job.split.rows(job.shard)):
            report(1)
            try:
                key, values = read_row(row)
                if key in keys:
                    raise DataError(f"key {key!r}: it comes twice")
            except ZooError as error:
                keys.append(f"/sample-{start + row}")  # no sample has such a key
                retry.update(handles if is_transient(error) else ())
                for writer in writers.values():
                    writer.skip(str(error))
                continue
            keys.append(key)
            for name, file, may_pass in _value_files(zoo, job, row, values):
                try:
                    if isinstance(file, ZooError):
                        raise file
                    writers[name].add(key, *file) if file else writers[name].skip()
                except ZooError as error:
                    writers[name].skip(str(error))
                    retry.update([name] if may_pass else [])
        digest = job.split.write_keys(job.shard, keys)
        for name, writer in writers.items():
            writer.finish(keys=digest, inputs=job.inputs[name], record=job.made_with[name], retry=name in retry)
    return job.shard, {name: writer.manifest for name, writer in writers.items()}


def _value_files(
    zoo: Zoo, job: MakeShard, row: int, values: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[bytes, str] | ZooError | None, bool]]:
    """Yield each modality of a sample with its file (bytes and extension), or the error that drops it, or None if the
    sample lacks it; and whether the error may pass. All are cropped as the first picture that could be read."""
    read = _read_files(zoo, row, {name: job.names[name] for name in (*job.inputs, *job.pictures)}, values)
    unsettled = any(isinstance(value, ZooError) and is_transient(value) for value in read.values())
    sizes = {name: read[name].shape[-2:] for name in job.pictures if getattr(read.get(name), "ndim", 0) >= 2}
    misfits = _aspect_errors(sizes)
    pictures = [name for name in job.pictures if isinstance(read.get(name), np.ndarray) and name not in misfits]
    crop = zoo[pictures[0]].middle(read[pictures[0]]) if pictures and job.crop == "middle" else WHOLE
    for name in job.inputs:
        if name not in read:
            yield name, None, False
            continue
        try:
            if isinstance(read[name], ZooError):
                raise read[name]
            if name in misfits:
                raise DataError(misfits[name])
            checked = isinstance(values[job.names[name]], FileBytes)
            with working_on((row, name)):
                file = zoo[name].write(zoo[name].transform(read[name], crop, trusted=checked), trusted=True)
            yield name, file, False
        except ZooError as error:
            yield name, error, is_transient(error) or (name in misfits and unsettled)


def _read_files(zoo: Zoo, row: int, names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sample's values by modality, reading files; the error replaces a file that cannot be read.

    `names` maps each modality to its name in `values`.
    """
    values_by_modality = {name: values[source_name] for name, source_name in names.items() if source_name in values}
    for name, value in values_by_modality.items():
        if isinstance(value, FileBytes):
            try:
                with working_on((row, name)):
                    values_by_modality[name] = zoo[name].read(value.data, value.extension)
            except ZooError as error:
                values_by_modality[name] = error
    return values_by_modality


def _aspect_errors(sizes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Return an error for each image of a sample whose aspect ratio differs from at least half of the images.

    Sizes may differ: a mask at half the height and width fits. An image with another aspect ratio would be stretched
    and would no longer match the others.
    """
    reasons = {}
    for name, size in sizes.items():
        differing = [second for second, second_size in sizes.items() if not _same_proportions(size, second_size)]
        if 2 * len(differing) >= len(sizes) > 1:
            second = differing[0]
            reasons[name] = (
                f"{name}: {size_text(size)} pixels, where {second} has {size_text(sizes[second])}: "
                "the pictures of a sample have to show the same, in the same proportions"
            )
    return reasons


def _same_proportions(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether one size (height, width) equals the other, scaled and rounded to whole pixels."""
    small, large = sorted((first, second))
    return abs(small[0] / large[0] - small[1] / large[1]) < 1 / large[0] + 1 / large[1]


@lru_cache(maxsize=4)
def cached_samples(zoo: Zoo, source: str, split: str, count: int, seed: int, options: str) -> Samples:
    """Return the samples that a source generates, opened once per process."""
    return zoo.source(source).samples(split, count, seed, json.loads(options))


def open_samples(
    zoo: Zoo, source: SourceHandle, split: str, count: int | None, seed: int, options: Mapping[str, Any], out: Path
) -> Samples:
    """Return the samples of a split. Files in folders are not values yet, and name their modalities themselves."""
    if source.spec.settings is not FolderSettings:
        return source.samples(split, count, seed, options)
    return open_folder(source.settings_with(options), split, count, out, modality_names(zoo.handles()))
