"""`zoo data info`: what a data folder and a token store hold, how much of it is aligned, and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.data.manifest import read_manifest, shards_of
from tokenizers_zoo.data.provenance import read_entries
from tokenizers_zoo.data.shards import ModalityIndex, ValueStore
from tokenizers_zoo.data.tar import shown_key
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.pipeline.results import FAILED, read_failures, shards_in

if TYPE_CHECKING:
    from tokenizers_zoo.registry import Zoo


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRow:
    """One modality of one split: its samples, the bytes of its values, and what is not there though it should be."""

    split: str
    modality: str
    samples: int
    bytes: int
    made_by: str
    reasons: Sequence[str]
    """Why each sample is left out that is."""

    @property
    def dropped(self) -> int:
        """Samples that are left out."""
        return len(self.reasons)


@dataclass(kw_only=True, slots=True)
class DataDescription:
    """A data folder: a row per split and modality, and how many samples of a split have every modality."""

    rows: list[DataRow] = field(default_factory=list)
    aligned: dict[str, int] = field(default_factory=dict)

    @property
    def reasons(self) -> list[str]:
        """Why samples are left out, of all rows, each with its place."""
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


def describe_data(zoo: Zoo, data: Path) -> DataDescription:
    """Count what a data folder holds. Raises DataError where there is none."""
    store = ValueStore.of(data, zoo)
    entries = read_entries(store.root)
    result = DataDescription()
    for split in store.splits():
        modalities = store.modalities(split)
        holding = {store.folder(split, name).name for name in modalities}
        failed = {path.parent.name for path in (store.root / split).glob(f"*/[!.]*{FAILED}")} - holding
        for name in sorted({*modalities, *failed}):
            index = ModalityIndex(()) if name in failed else store.index(split, name)
            reasons = [f"{item.shard}: {item.key or 'unknown member'}: {item.reason}" for item in index.dropped]
            for shard in sorted(shards_in(store.folder(split, name))):
                reasons += [f"{shard.name}: {shown_key(key)}: {reason}" for key, reason in read_failures(shard).items()]
            result.rows.append(
                DataRow(
                    split=split,
                    modality=name,
                    samples=len(index.members),
                    bytes=index.bytes,
                    made_by=_made_by(entries.get(split, {}).get(name)),
                    reasons=reasons,
                )
            )
        result.aligned[split] = 0 if failed else len(store.aligned_keys(split, modalities))
    return result


def _made_by(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not recorded"
    if "source" in entry:
        return f"{entry['source']} of {entry['distribution']}, seed {entry['seed']}"
    return f"{entry['distribution']}, from {', '.join(entry['derived_from'])}"


def describe_tokens(tokens: Path) -> list[TokenRow]:
    """Count what a token store holds, from its manifests. Raises DataError where there is no folder."""
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
