"""The token store: `TOKENS/<split>/<modality>/shard-00000.tokens`, the same samples in the same rows in every modality.

    TOKENS/store.json                              format, folder of the values, splits (samples, shard size, crops)
    TOKENS/<split>/keys/shard-00000.txt            the sample keys, one a line, and their sha256
    TOKENS/<split>/<modality>/shard-00000.tokens   tokens, see token_shard.py
    TOKENS/<split>/<modality>/shard-00000.json     the manifest, written after it
    TOKENS/<split>/<modality>/summary.json         what all shards have in common, written last

A split with `crops` views per sample has the rows of a sample side by side, the whole view first: view `v` of sample
`i` is row `i * crops + v`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.contract.validation import checked_tokens, describe, expected_tokens
from tokenizers_zoo.errors import DataError, UnknownNameError
from tokenizers_zoo.records.io import absolute_place, read_record, read_regular, relative_place, table_text, write_table
from tokenizers_zoo.stores.manifest import (
    KEYS,
    REPAIR,
    DamagedShard,
    Manifest,
    Split,
    manifest_path,
    read_manifest,
    shard_name,
    shards_of,
)
from tokenizers_zoo.stores.token_shard import SUFFIX, TokenManifest, TokenMetadata, TokenShard

if TYPE_CHECKING:
    from tokenizers_zoo.contract.handle import ModalityHandle
    from tokenizers_zoo.stores.shards import ValueStore

STORE, SUMMARY = "store.json", "summary.json"
OPEN_SHARDS = 256
"""Manifests of a modality that are kept in memory."""
UNFINISHED = "`zoo tokenize` did not finish; run it again"


@dataclass(frozen=True)
class TokenSplit(Split):
    """The samples of one split of a token store."""

    manifest_class: ClassVar[type[Manifest]] = TokenManifest
    crops: int = 1
    """Views per sample."""
    seed: int = 0
    """Seed of the random crops."""
    source: str | None = None
    """Identity of the source that made the samples; None if unknown."""

    def __post_init__(self) -> None:
        Split.__post_init__(self)
        if self.crops < 1:
            raise DataError(f"{self.folder}: expected at least one view per sample, got crops {self.crops}")

    @property
    def size(self) -> int:
        """Number of rows: the views of all samples."""
        return self.samples * self.crops

    def check_summary(self, modality: str) -> DamagedShard | None:
        """Return the summary of a modality if it contradicts its shards, or is missing although all are finished."""
        folder, reason = self.folder / modality, ""
        try:
            if (folder / SUMMARY).is_file():
                reason = "" if read_summary(folder) == TokenSummary.of(self, modality) else "contradicts its shards"
            elif 0 < self.shards == len(shards_of(folder)):
                reason = "is missing"
        except DataError as error:
            reason = str(error).removeprefix(f"{folder / SUMMARY}: ")
        path = folder / SUMMARY
        return DamagedShard(modality=modality, number=None, path=path, reason=reason) if reason else None


@dataclass(frozen=True, kw_only=True)
class TokenSplitRecord:
    """The entry of a split in store.json; see `TokenSplit`."""

    samples: int
    shard_size: int
    crops: int = 1
    seed: int = 0
    source: str | None = None

    def open(self, root: Path, name: str) -> TokenSplit:
        """Return the split. Raises DataError, see `Split`."""
        return TokenSplit(
            root, name, self.samples, self.shard_size, crops=self.crops, seed=self.seed, source=self.source
        )


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """The content of store.json."""

    data: str | None = None
    """Folder of the values that the tokens were made of, relative to the store."""
    splits: Mapping[str, TokenSplitRecord]

    @classmethod
    def read(cls, root: Path) -> StoreRecord:
        """Return the splits of a token store; none without the file. Raises DataError if it is damaged."""
        path = root / STORE
        return read_record(path, cls, error=DataError) if path.exists() else cls(splits={})


@dataclass(frozen=True, kw_only=True)
class TokenSummary:
    """All shards of one modality of a split. Written when the last one is finished, so that opening reads no shard."""

    samples: int
    crops: int
    count: int
    """Samples with tokens."""
    longest: int
    """The most tokens of a row."""
    needed_vocab_size: int
    """The largest id plus one; 0 for continuous layouts."""
    keys: str
    """sha256 of the shards' digests of keys."""
    contents: str
    """sha256 of the shards' digests of keys and tokens."""
    writer: TokenMetadata

    @classmethod
    def of(cls, split: TokenSplit, modality: str) -> TokenSummary:
        """Read all manifests. Raises DataError if shards are missing or do not agree."""
        folder, keys, contents = split.folder / modality, hashlib.sha256(), hashlib.sha256()
        writer: TokenMetadata | None = None
        count = longest = needed_vocab_size = 0
        for shard in range(split.shards):
            manifest = _shard_manifest(split, modality, shard)
            record, path = manifest.record, folder / shard_name(shard)
            if manifest.keys != split.keys_digest(shard):
                raise DataError(f"{path}: was written for other sample keys: {UNFINISHED}")
            writer = writer or record.writer
            if record.writer != replace(writer, distribution=record.writer.distribution):
                raise DataError(f"{path}: was written by another tokenizer than the other shards: {UNFINISHED}")
            count, longest = count + manifest.count, max(longest, record.longest)
            needed_vocab_size = max(needed_vocab_size, record.needed_vocab_size)
            keys.update(manifest.keys.encode())
            contents.update(f"{manifest.keys} {manifest.files[SUFFIX].sha256}".encode())
        if writer is None:
            raise DataError(f"{folder}: has no sample")
        return cls(
            samples=split.samples,
            crops=split.crops,
            count=count,
            longest=longest,
            needed_vocab_size=needed_vocab_size,
            keys=keys.hexdigest(),
            contents=contents.hexdigest(),
            writer=writer,
        )

    def write(self, folder: Path) -> None:
        """Write the file into a modality's folder, unless it is unchanged."""
        if read_regular(folder / SUMMARY) != table_text(self).encode():
            write_table(folder / SUMMARY, self)


def read_summary(folder: Path) -> TokenSummary:
    """Return the summary of a modality. Raises DataError if it is missing or damaged."""
    return read_record(folder / SUMMARY, TokenSummary, remedy=REPAIR, error=DataError)


def _shard_manifest(split: TokenSplit, modality: str, shard: int) -> TokenManifest:
    """Return the manifest of a shard of tokens. Raises DataError if it is missing or of other samples."""
    folder = split.folder / modality
    manifest, path = read_manifest(folder, shard, TokenManifest), folder / shard_name(shard)
    if manifest is None:
        raise DataError(f"{folder}: has {len(shards_of(folder))} of {split.shards} shards: {UNFINISHED}")
    if manifest.rows != split.rows(shard) or manifest.record.crops != split.crops:
        raise DataError(f"{path}: is of other samples than the store: {UNFINISHED}")
    return manifest


class TokenColumn:
    """The tokens of one modality of one split, by row. Shards are opened when their rows are read.

    Raises DataError if the modality is unfinished, or of other samples than the split. Threads may read at once.
    """

    def __init__(self, split: TokenSplit, modality: str) -> None:
        self.split, self.modality = split, modality
        self.folder = split.folder / modality
        if not (self.folder / SUMMARY).is_file():
            shards = f"{len(shards_of(self.folder))} of {split.shards} shards and no {SUMMARY}"
            raise DataError(f"{self.folder}: has {shards}: {UNFINISHED}")
        self.summary = read_summary(self.folder)
        self.metadata = self.summary.writer
        if (self.summary.samples, self.summary.crops) != (split.samples, split.crops):
            raise DataError(f"{self.folder}: is of other samples than the store: {UNFINISHED}")
        self._open_shard = lru_cache(OPEN_SHARDS)(self._shard)

    def __len__(self) -> int:
        return self.split.size

    @property
    def count(self) -> int:
        """Number of rows that have tokens."""
        return self.summary.count * self.split.crops

    @property
    def is_complete(self) -> bool:
        """Whether all samples have tokens."""
        return self.summary.count == self.split.samples

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer that wrote the tokens."""
        return self.metadata.fingerprint

    def _shard(self, shard: int) -> TokenShard:
        manifest, path = _shard_manifest(self.split, self.modality, shard), self.folder / shard_name(shard, SUFFIX)
        record, summary = manifest.record, self.summary
        if record.writer != replace(self.metadata, distribution=record.writer.distribution):
            raise DataError(f"{path}: was written by another tokenizer than the other shards; {REPAIR}")
        if record.longest > summary.longest or record.needed_vocab_size > summary.needed_vocab_size:
            raise DataError(f"{path}: has more tokens or ids than {self.folder / SUMMARY} says; {REPAIR}")
        return TokenShard(path, manifest, self.metadata)

    def keys(self, shard: int) -> tuple[str, ...]:
        """Return the sample keys of a shard. Raises DataError if its tokens were written for others."""
        if self._open_shard(shard).manifest.keys != self.split.keys_digest(shard):
            raise DataError(f"{self.folder / shard_name(shard)}: was written for other sample keys; {REPAIR}")
        return self.split.keys(shard)

    def present_in(self, shard: int) -> npt.NDArray[np.bool_]:
        """Return for each sample of a shard whether it has tokens."""
        if self.is_complete:
            return np.ones(self.split.rows(shard), bool)
        try:
            return self._open_shard(shard).manifest.present
        except ValueError as error:
            raise DataError(f"{manifest_path(self.folder, shard)}: damaged: {error}; {REPAIR}") from None

    def present(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for each of `rows` whether it has tokens."""
        present = np.ones(len(rows), bool)
        if self.is_complete:
            return present
        shards, samples = np.divmod(rows // self.split.crops, self.split.shard_size)
        for shard in np.unique(shards).tolist():
            in_shard = shards == shard
            present[in_shard] = self.present_in(shard)[samples[in_shard]]
        return present

    def take(self, rows: Iterable[int] | npt.NDArray[np.int64]) -> Any:
        """Return the tokens of `rows`. Every row must have tokens.

        Grids `(n, *shape)` and vectors `(n, length)` int64; sequences a list of n 1-D int64 arrays; patches
        `(n, tokens, dim)` float32; embeddings a list of n `(tokens, dim)` float32 arrays.
        """
        indices = np.asarray(rows if isinstance(rows, np.ndarray) else list(rows), np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"{self.modality}: rows {indices.min()}..{indices.max()} of {len(self)}")
        layout, metadata = self.metadata.layout, self.metadata
        order = np.argsort(indices, kind="stable")
        shards, within = np.divmod(indices[order], self.split.shard_size * self.split.crops)
        starts = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()
        parts = [
            part
            for first, end in pairwise([*starts, len(indices)])
            for part in self._open_shard(int(shards[first])).take(within[first:end])
        ]
        positions = np.argsort(order)
        if layout.variable:
            return [metadata.from_stored(parts[position]) for position in positions.tolist()]
        numbers = np.concatenate(parts or [np.zeros((0, layout.length * metadata.dim), metadata.stored_as)])
        return metadata.from_stored(numbers[positions]).reshape(len(indices), *layout.token_shape)

    def check_tokenizer(self, handle: ModalityHandle) -> None:
        """Raise DataError unless `handle`'s tokenizer wrote these tokens, or its vocabulary grew from theirs."""
        size = self.summary.needed_vocab_size
        handle.check_tokens_of(self.folder, self.fingerprint, self.metadata.layout, needed_vocab_size=size)


class TokenStore:
    """The tokens in a folder, by split and modality. Raises DataError if the folder is not there."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; `zoo tokenize DATA --out {shlex.quote(str(self.root))}` makes one"
            )
        self._record = StoreRecord.read(self.root)

    @property
    def data(self) -> Path | None:
        """The folder of the values that the tokens were made of; None where it is not recorded."""
        return absolute_place(self._record.data, self.root) if self._record.data else None

    def splits(self) -> list[str]:
        """Return the splits that hold tokens."""
        return [name for name in sorted(self._record.splits) if self._names(name)]

    def _names(self, split: str) -> list[str]:
        folder = self.root / split
        names = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
        return sorted(name for name in names if name != KEYS and not name.startswith("."))

    def split(self, name: str) -> TokenSplit:
        """Return a split. Raises DataError for an unknown name."""
        record = self._record.splits.get(name)
        if record is None:
            available = ", ".join(self.splits()) or "none; `zoo tokenize` writes them"
            raise DataError(f"{self.root}: no tokens of a split {name!r}; splits here: {available}")
        return record.open(self.root, name)

    def modalities(self, split: str) -> list[str]:
        """Return the modalities of a split, unfinished ones included. Raises DataError for an unknown split."""
        if not (names := self._names(self.split(split).name)):
            raise DataError(f"{self.root}: no tokens of a split {split!r}; splits here: {', '.join(self.splits())}")
        return names

    def open(self, split: str, modality: str) -> TokenColumn:
        """Return one modality's tokens. Raises DataError if they are missing, unfinished or damaged."""
        names = self.modalities(split)
        if modality not in names:
            raise DataError(str(UnknownNameError.of(f"modality in {self.root / split}:", modality, names)))
        return TokenColumn(self.split(split), modality)

    def check_same_samples(self, values: ValueStore, split: str) -> None:
        """Raise DataError if `values` are known to be of other samples than these tokens.

        Their keys may be the same, so that keys alone would not tell.
        """
        recorded, source = self._record.splits.get(split), values.source(split)
        if recorded and recorded.source and source and recorded.source != source:
            raise DataError(
                f"{values.root}: its samples of the split {split} are others than those that the tokens in {self.root} "
                f"were made of, {self.data}; give that folder, or tokens of {values.root}"
            )


def write_store(root: Path, data: Path | None, splits: Iterable[TokenSplit]) -> None:
    """Write store.json; recorded splits that are not in `splits` are kept."""
    old, fields = StoreRecord.read(root), dataclasses.fields(TokenSplitRecord)
    changed = {
        split.name: TokenSplitRecord(**{field.name: getattr(split, field.name) for field in fields}) for split in splits
    }
    record = StoreRecord(data=relative_place(data.resolve(), root) if data else None, splits={**old.splits, **changed})
    if record != old:
        write_table(root / STORE, record)


def check_same_keys(columns: Iterable[TokenColumn]) -> None:
    """Raise DataError if modalities of one split were written for other sample keys."""
    first, *following = columns
    for column in following:
        if column.summary.keys != first.summary.keys:
            raise DataError(f"{column.folder}: was written for other sample keys than {first.folder}: {UNFINISHED}")


def whole_samples(columns: Sequence[TokenColumn]) -> Iterator[tuple[str, int]]:
    """Yield key and row of each sample that all `columns` of a split have; of several views the row of the whole."""
    check_same_keys(columns)
    split = columns[0].split
    for shard in range(split.shards):
        present = np.logical_and.reduce([column.present_in(shard) for column in columns])
        keys = columns[0].keys(shard) if present.any() else ()
        for row in np.flatnonzero(present).tolist():
            yield keys[row], split.number(shard, row) * split.crops


def samples_digest(columns: Mapping[str, TokenColumn], keys: Iterable[str] | None = None) -> str:
    """Return the sha256 (hex) of the columns' samples and tokens, and of the chosen `keys` where they are given."""
    contents = {name: column.summary.contents for name, column in columns.items()}
    sorted_keys = None if keys is None else sorted(keys)
    return hashlib.sha256(json.dumps([contents, sorted_keys], sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------- the tokens of one value as a JSON file


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A file with the tokens of one value."""

    modality: str
    fingerprint: str
    """The tokenizer's."""
    tokens: list[Any]


TOKEN_KEYS = tuple(field.name for field in dataclasses.fields(TokenFile))


def token_text(handle: ModalityHandle, tokens: Any) -> str:
    """Return the record of one value's tokens, in one line."""
    record = TokenFile(modality=handle.name, fingerprint=handle.fingerprint, tokens=np.asarray(tokens).tolist())
    return table_text(record, indent=None)


def is_token_file(data: bytes) -> bool:
    """Return True if these bytes are a token file, perhaps a damaged one."""
    return all(f'"{key}"'.encode() in data for key in TOKEN_KEYS)


def read_tokens(handle: ModalityHandle, file: Path) -> np.ndarray[Any, Any]:
    """Return the tokens of one value.

    Raises DataError for another kind of file, modality or tokenizer, and for tokens that do not fit the modality.
    """
    remedy = f"expected the JSON that `zoo encode` writes ({', '.join(TOKEN_KEYS)})"
    record = read_record(file, TokenFile, remedy=remedy, error=DataError)
    if record.modality != handle.name:
        raise DataError(f"{file}: holds tokens of {record.modality}, not of {handle.name}")
    handle.check_tokens_of(file, record.fingerprint, remedy="encode again, or use the old checkpoint")
    kinds, dtype = ((int, float), np.float32) if handle.spec.continuous else ((int,), np.int64)
    tokens: np.ndarray[Any, Any] | None = None
    with contextlib.suppress(ValueError, OverflowError, RecursionError), np.errstate(over="ignore"):
        tokens = np.asarray(record.tokens, dtype) if _consists_of(kinds, record.tokens) else None
    if tokens is None:
        expected = "numbers" if handle.spec.continuous else "ids"
        raise DataError(f"{file}: tokens: expected lists of {expected}, got {describe(record.tokens)}; encode again")
    _, error = checked_tokens(handle.spec, [tokens])
    if error is not None:
        expected = f"expected {expected_tokens(handle.spec)}, got {describe(tokens)}"
        raise DataError(f"{file}: {handle.name}: {expected}: {error}; encode again")
    return tokens


def _consists_of(kinds: tuple[type, ...], tokens: Any) -> bool:
    """Return True for (nested) lists of exactly these types: True and False are no ids."""
    return all(_consists_of(kinds, item) for item in tokens) if isinstance(tokens, list) else type(tokens) in kinds
