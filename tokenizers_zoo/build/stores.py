"""`zoo data info`, `verify` and `repair`: value stores and token stores, and their manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.contract.samples import TEST, TRAIN
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.files.run_folder import locked
from tokenizers_zoo.machine.device import AUTO, resolve_device
from tokenizers_zoo.stores.manifest import (
    DATASET,
    KEYS,
    REPEATED_KEY,
    DamagedShard,
    Dataset,
    Split,
    ValueManifest,
    check_shard,
    read_manifest,
    remove_shard,
    shard_name,
    sound_manifest,
    verify,
    write_manifest,
)
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.token_shard import TokenManifest
from tokenizers_zoo.stores.tokens import STORE, StoreRecord, TokenStore

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo

MAX_REASONS = 5
"""Reasons of dropped samples that are listed for each modality."""


@dataclass(kw_only=True, slots=True)
class StoreRow:
    """One modality of one split, as its manifests say."""

    split: str
    modality: str
    made_by: str = ""
    """The source or plugin that made the values."""
    samples: int = 0
    """Values; of tokens, all views."""
    bytes: int = 0
    dropped: int = 0
    """Samples that should be there and could not be written."""
    reasons: list[str] = field(default_factory=list)
    """Why the first of them were dropped."""
    missing: int = 0
    """Shards that are not there, or out of date."""
    tokens: int = 0
    vocabulary: str = ""
    fingerprint: str = ""


@dataclass(kw_only=True, slots=True)
class StoreDescription:
    """A store of values or `tokens`: a row per split and modality, and how many samples have every modality."""

    tokens: bool = False
    rows: list[StoreRow] = field(default_factory=list)
    aligned: dict[str, int] = field(default_factory=dict)
    """Samples of each split that have a value of every modality."""


def describe_data(root: Path) -> StoreDescription:
    """Describe a folder of values or tokens from its manifests alone. Raises DataError if it is neither."""
    store = TokenStore(root) if (root / STORE).is_file() else ValueStore(root)
    result = StoreDescription(tokens=isinstance(store, TokenStore))
    for name in store.splits():
        split, modalities = store.split(name), store.modalities(name)
        digests = [split.sound_keys_digest(shard) for shard in range(split.shards)]
        for modality in modalities:
            row = StoreRow(split=name, modality=modality)
            result.rows.append(row)
            for shard, keys in enumerate(digests):
                manifest = read_manifest(split.folder / modality, shard, split.manifest_class)
                if manifest is None or manifest.keys != keys:
                    row.missing += 1
                    continue
                if isinstance(manifest, TokenManifest):
                    record = manifest.record
                    row.samples += manifest.count * record.crops
                    row.tokens += record.tokens
                    row.vocabulary, row.fingerprint = record.writer.vocabulary, record.writer.fingerprint
                elif isinstance(manifest, ValueManifest):
                    row.made_by = row.made_by or str(manifest.writer)
                    row.samples += manifest.count
                row.bytes += sum(file.size for suffix, file in manifest.files.items() if suffix != "index")
                row.dropped += len(manifest.dropped)
                for index, reason in manifest.dropped.items() if len(row.reasons) < MAX_REASONS else ():
                    row.reasons.append(f"{shard_name(shard)}: {split.keys(shard)[index]}: {reason}")
            del row.reasons[MAX_REASONS:]
        if isinstance(store, ValueStore):
            result.aligned[name] = len(store.rows(name, modalities))
    return result


def verify_store(root: Path) -> Iterator[DamagedShard]:
    """Yield the shards of a store that disagree with their manifests.

    Raises DataError if the folder holds neither values nor tokens.
    """
    for split in _splits(root).values():
        yield from verify(split)


def _splits(root: Path) -> Mapping[str, Split]:
    if records := Dataset.read(root).splits or StoreRecord.read(root).splits:
        return {name: record.open(root, name) for name, record in records.items()}
    raise DataError(f"{root}: expected values ({DATASET}) or tokens ({STORE})")


def repair_store(zoo: Zoo, root: Path, workers: int | None = None, device: str = AUTO) -> Iterator[str]:
    """Make damaged shards again, yielding a line about each step.

    Values are made by the source, and derived, as before; tokens are encoded from the values that the store records.
    Raises DataError, and the errors of the source, if a shard cannot be made again.
    """
    with locked(root):
        splits = _splits(root)
        damaged: dict[str, list[DamagedShard]] = {name: [] for name in splits}
        for name, shard in [(name, shard) for name, split in splits.items() for shard in verify(split)]:
            folder = shard.path.parent
            if shard.number is not None and shard.number >= splits[name].shards:
                remove_shard(folder, shard.number)
                yield f"{shard.path}: {shard.reason}; removed"
                continue
            yield f"{shard.path}: {shard.reason}"
            damaged[name].append(shard)
            if (
                shard.number is not None
                and shard.modality != KEYS
                and (manifest := sound_manifest(folder, shard.number, splits[name].manifest_class))
            ):
                write_manifest(folder, shard.number, replace(manifest, inputs=""))  # made again, now or by its command
        if not any(damaged.values()):
            yield f"{root}: all files agree with their manifests"
        for name, split in splits.items():
            if modalities := {shard.modality for shard in damaged[name] if shard.reason != REPEATED_KEY}:
                yield from _rebuild(zoo, root, name, modalities, workers, device)
                damaged[name] = [shard for shard in damaged[name] if _is_still_damaged(split, shard)]
    if remaining := [f"{shard.path}: {shard.reason}" for shards in damaged.values() for shard in shards]:
        rest = f" (and {len(remaining) - 1} more)" if len(remaining) > 1 else ""
        raise DataError(f"{remaining[0]}{rest}, which cannot be made again here; copy the folder, or make another")


def _is_still_damaged(split: Split, shard: DamagedShard) -> bool:
    """Return whether a shard is still damaged after it could be made again."""
    if shard.number is None:
        return split.check_summary(shard.modality) is not None
    if shard.modality == KEYS:
        return shard.reason == REPEATED_KEY or not split.sound_keys_digest(shard.number)
    return check_shard(split, shard.modality, shard.number) is not None


def _rebuild(zoo: Zoo, root: Path, name: str, modalities: set[str], workers: int | None, device: str) -> Iterator[str]:
    """Make the missing shards of some modalities of a split; yield a summary of each command."""
    if not (root / DATASET).is_file():
        store = TokenStore(root)
        if store.data is None or not store.data.is_dir():
            raise DataError(f"{root}: its values were in {store.data}; run the `zoo tokenize` command again")
        crops, seed = store.split(name).crops, store.split(name).seed
        names = store.modalities(name) if KEYS in modalities else sorted(modalities)
        result = tokenize(
            zoo,
            store.data,
            root,
            modalities=names,
            splits=[name],
            crops=crops,
            seed=seed,
            workers=0 if workers == 0 else 1,
            device=resolve_device(device),
        )
        yield result.summary()
        return
    record = Dataset.read(root).splits[name]
    if source := record.source:
        counts = {split: record.samples if split == name else 0 for split in (TRAIN, TEST)}
        result = make_data(
            zoo,
            source.source,
            root,
            train=counts[TRAIN],
            test=counts[TEST],
            seed=source.seed,
            options=source.options,
            workers=workers,
        )
        yield result.summary()
    if derivable := sorted(modality for modality in modalities if modality in zoo and zoo[modality].spec.derived_from):
        result = derive_data(zoo, root, modalities=derivable, splits=[name], workers=workers, device=device)
        yield result.summary()
