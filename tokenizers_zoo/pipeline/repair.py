"""`zoo data verify` and `zoo data repair`: value and token stores against their manifests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.data.manifest import DATASET, Split, Wrong, read_record, read_splits, remove_shard, verify
from tokenizers_zoo.data.provenance import one_writer
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.tokens import STORE
from tokenizers_zoo.errors import DataError, count_of
from tokenizers_zoo.pipeline.derive import derive_data
from tokenizers_zoo.pipeline.make import make_data

if TYPE_CHECKING:
    from tokenizers_zoo.registry import Zoo


def store_splits(root: Path) -> dict[str, Split]:
    """Return the splits of a value store or a token store. Raises DataError if the folder is neither."""
    for record in (DATASET, STORE):
        if splits := read_splits(root / record):
            return splits
    raise DataError(f"{root}: expected values ({DATASET}) or tokens ({STORE})")


def verify_store(root: Path) -> Iterator[Wrong]:
    """Yield the shards of a store that disagree with their manifests. Every file is read once."""
    for split in store_splits(root).values():
        yield from verify(split)


def repair_store(zoo: Zoo, root: Path, workers: int | None = None) -> Iterator[str]:
    """Remove damaged shards and make them again, yielding a line about each step.

    Values are made by the source and derived as before. Damaged tokens are only removed.
    """
    damaged: dict[str, set[str]] = {}
    found = 0
    with one_writer(root):
        for split in store_splits(root).values():
            for wrong in verify(split):
                found += 1
                damaged.setdefault(split.name, set()).add(wrong.modality)
                remove_shard(split.folder / wrong.modality, wrong.shard)
                yield f"{wrong.path}: {wrong.problem}; removed"
    if not found:
        yield f"{root}: all files agree with their manifests"
    elif not (root / DATASET).is_file():
        yield f"{count_of(found, 'shard')} removed; run the `zoo tokenize` command that wrote {root} again"
    else:
        yield from _make_again(zoo, root, damaged, workers)


def _make_again(zoo: Zoo, root: Path, damaged: dict[str, set[str]], workers: int | None) -> Iterator[str]:
    """Run `zoo data make` as dataset.json says, and `zoo data derive`, for the splits with damaged modalities."""
    record = read_record(root / DATASET)["splits"]
    for split, modalities in damaged.items():
        if source := record[split].get("source"):
            counts = {one: record[split]["samples"] if one == split else 0 for one in (TRAIN, TEST)}
            made = make_data(
                zoo, source["source"], root, train=counts[TRAIN], test=counts[TEST], seed=source["seed"],
                options=source["options"], workers=workers, shard_size=record[split]["shard_size"],
            )  # fmt: skip
            yield made.summary()
        if derivable := sorted(name for name in modalities if name in zoo and zoo[name].spec.derived_from):
            yield derive_data(zoo, root, modalities=derivable, splits=[split], workers=workers).summary()
