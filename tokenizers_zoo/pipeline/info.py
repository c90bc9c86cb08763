"""`zoo data info`: samples, sizes and dropped samples of a data folder or a token store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers_zoo.data.manifest import read_manifest, shard_name, shards_of
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tar import shown_key
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import count_of

SHOWN_REASONS = 20
"""Reasons of dropped samples that are listed for each modality."""


@dataclass(kw_only=True, slots=True)
class DataRow:
    """One modality of one split, as its manifests say."""

    split: str
    modality: str
    made_by: str
    samples: int = 0
    bytes: int = 0
    dropped: int = 0
    """Samples that should have a value and could not be written."""
    reasons: list[str] = field(default_factory=list)
    """Why the first of them were dropped."""
    missing: int = 0
    """Shards that are not there, or out of date."""

    @property
    def problem(self) -> str:
        """What to do about missing shards; empty without any."""
        what = "are" if self.missing > 1 else "is"
        shards = count_of(self.missing, "shard")
        return f"{shards} {what} missing or out of date; run what made it again" if self.missing else ""


@dataclass(kw_only=True, slots=True)
class DataDescription:
    """A data folder: a row per split and modality, and how many samples of a split have every modality."""

    rows: list[DataRow] = field(default_factory=list)
    aligned: dict[str, int] = field(default_factory=dict)

    @property
    def reasons(self) -> list[str]:
        """The first reasons why samples were dropped, of all rows, each with its place."""
        return [f"{row.split}/{row.modality}/{reason}" for row in self.rows for reason in row.reasons]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One modality of one split of a token store."""

    split: str
    modality: str
    samples: int
    tokens: int
    bytes: int
    dropped: Mapping[str, str]
    """The samples without tokens, with reasons."""
    vocabulary: str
    fingerprint: str


def describe_data(data: Path) -> DataDescription:
    """Count samples of a data folder from its manifests alone. Raises DataError if there is none."""
    store = ValueStore(data)
    result = DataDescription()
    for name in store.splits():
        split = store.split(name)
        modalities = split.modalities()
        digests = [split.keys_digest(shard) for shard in range(split.shards)]
        for modality in modalities:
            row = DataRow(split=name, modality=modality, made_by=_made_by(store.record(name, modality)))
            result.rows.append(row)
            for shard, keys in enumerate(digests):
                manifest = read_manifest(split.folder / modality, shard)
                if manifest is None or manifest.keys != keys:
                    row.missing += 1
                    continue
                row.samples += manifest.count
                row.bytes += manifest.files["tar"].size
                row.dropped += len(manifest.dropped)
                for place, reason in manifest.dropped.items() if len(row.reasons) < SHOWN_REASONS else ():
                    key = shown_key(split.keys(shard)[place])
                    row.reasons.append(f"{shard_name(shard, 'tar')}: {key}: {reason}")
            del row.reasons[SHOWN_REASONS:]
        result.aligned[name] = len(store.rows(name, modalities))
    return result


def _made_by(record: Mapping[str, Any]) -> str:
    if "source" in record:
        return f"{record['source']} of {record['distribution']}, seed {record['seed']}"
    if "derived_from" in record:
        return f"{record['distribution']}, from {', '.join(record['derived_from'])}"
    return "not recorded"


def describe_tokens(tokens: Path) -> list[TokenRow]:
    """Return the contents of a token store from its manifests. Raises DataError if there is no folder."""
    store = TokenStore(tokens)
    rows = []
    for split in store.splits():
        keys = store.split(split).keys
        for name in store.modalities(split):
            folder = store.root / split / name
            found = {shard: item for shard in shards_of(folder) if (item := read_manifest(folder, shard)) is not None}
            dropped = {keys(shard)[row]: why for shard, item in found.items() for row, why in item.dropped.items()}
            metadata: dict[str, Any] = next((item.record["writer"] for item in found.values()), {})
            rows.append(
                TokenRow(
                    split=split,
                    modality=name,
                    samples=sum(item.count for item in found.values()) * store.split(split).crops,
                    tokens=sum(item.record["tokens"] for item in found.values()),
                    bytes=sum(file.size for item in found.values() for file in item.files.values()),
                    dropped=dropped,
                    vocabulary=metadata.get("vocabulary", ""),
                    fingerprint=metadata.get("fingerprint", ""),
                )
            )
    return rows


def unfinished_tokens(tokens: Path) -> dict[str, str]:
    """Return "<split>/<modality>" and the problem of each modality whose shards are not all there."""
    store = TokenStore(tokens)
    return {f"{split}/{name}": problem for split in store.splits() for name, problem in store.unfinished(split).items()}
