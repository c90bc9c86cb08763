"""Small value stores for tests: aligned shards of values given as bytes, and tar files as other programs write them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers_zoo.stores.manifest import Dataset, SourceRecord, Split, SplitRecord
from tokenizers_zoo.stores.shards import ValueStore, writing_shard

Values = Mapping[str, tuple[bytes, str]]
"""Map each key to the bytes of its value and their file extension."""


def write_values(root: Path, split: str, modalities: Mapping[str, Values], shard_size: int = 500) -> None:
    """Write modalities of a split and keep the existing ones. The samples are all keys in order of first appearance."""
    values_by_modality: dict[str, dict[str, tuple[bytes, str]]] = {}
    records = Dataset.read(root).splits
    splits = {name: record.open(root, name) for name, record in records.items()}
    if split in splits and splits[split].modalities():
        store = ValueStore(root)
        for name in store.modalities(split):
            rows = store.rows(split, [name])
            values_by_modality[name] = {rows.key(row): store.read_bytes(split, name, *row) for row in rows}
        before = [key for shard in range(splits[split].shards) for key in splits[split].keys(shard)]
    else:
        before = []
    values_by_modality |= {name: dict(values) for name, values in modalities.items()}
    keys = list(dict.fromkeys([*before, *(key for values in values_by_modality.values() for key in values)]))
    samples = Split(root, split, len(keys), shard_size)
    root.mkdir(parents=True, exist_ok=True)
    source = records[split].source if split in records else None
    record = SplitRecord(samples=len(keys), shard_size=shard_size, source=source)
    Dataset(splits={**records, split: record}).write(root)
    for shard in range(samples.shards):
        in_shard = keys[shard * shard_size : (shard + 1) * shard_size]
        digest = samples.write_keys(shard, in_shard)
        for name, values in values_by_modality.items() if keys != before else modalities.items():
            with writing_shard(root / split / name, shard) as writer:
                for key in in_shard:
                    if key in values:
                        writer.add(key, *values[key])
                    else:
                        writer.skip()
                writer.finish(keys=digest, inputs="given", record={})


class Adder:
    """Collects values; see `writing_values`."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[bytes, str]] = {}

    def add(self, key: str, data: bytes, extension: str) -> None:
        """Add a value's bytes."""
        self.values[key] = data, extension


@contextlib.contextmanager
def writing_values(
    root: Path, split: str, modality: str, shard_size: int = 500, *, more: bool = False
) -> Iterator[Adder]:
    """Yield a writer for all values of a modality of a split, or for `more` of them."""
    adder = Adder()
    if more:
        store = ValueStore(root)
        rows = store.rows(split, [modality])
        adder.values = {rows.key(row): store.read_bytes(split, modality, *row) for row in rows}
    yield adder
    write_values(root, split, {modality: adder.values}, shard_size)


def of_source(root: Path, split: str, seed: int) -> None:
    """Record that a source with this seed made a split."""
    records, source = Dataset.read(root).splits, SourceRecord(source="pairs", seed=seed, options={})
    Dataset(splits={**records, split: dataclasses.replace(records[split], source=source)}).write(root)


def write_tar(path: Path, members: Mapping[str, bytes], **info: Any) -> Path:
    """Write a tar file as another program might write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            for key, value in info.items():
                setattr(header, key, value)
            tar.addfile(header, io.BytesIO(data))
    return path
