"""The token store: `TOKENS/<split>/<modality>/*.arrow`, a column of tokens for each modality, aligned by key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.data.store_record import StoreRecord
from tokenizers_zoo.data.token_part import PARTS, read_part
from tokenizers_zoo.errors import DataError, UnknownNameError, count_of
from tokenizers_zoo.spec import EmbeddingsLayout, PatchesLayout, TokenLayout
from tokenizers_zoo.validation import fixed_shape, has_fixed_length

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenizers_zoo.registry import ModalityHandle

WHOLE_VIEW = 0
"""The number of a sample's whole picture among its views; the others are its crops."""
HASHED = 4096
"""Samples whose tokens are in memory at a time while they are hashed."""


class TokenColumn:
    """All tokens of one modality of one split, with random access.

    The files are mapped: `take` copies the rows that are asked for, and `lengths` no tokens. Pickles to its paths, so
    worker processes map them anew.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        opened = [read_part(path) for path in self.paths]
        self.parts = [part for part, _ in opened]
        self.batches = [batch for _, batch in opened]
        """The rows of each part, in the mapped file."""
        self.metadata = self.parts[0].metadata
        for part in self.parts[1:]:
            if names := self.metadata.differences(part.metadata):
                first, other = self.metadata.to_json(), part.metadata.to_json()
                shown = "; ".join(f"{name}: {first[name]} and {other[name]}" for name in names)
                raise DataError(
                    f"{part.path} and {self.paths[0].name} were written differently ({shown}); "
                    "tokenize with --overwrite"
                )
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        self._columns = [self._open_column(batch) for batch in self.batches]

    def __reduce__(self) -> tuple[type[TokenColumn], tuple[tuple[Path, ...]]]:
        return TokenColumn, (self.paths,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def layout(self) -> TokenLayout:
        """The layout that the tokens were written with."""
        return self.metadata.layout

    @property
    def vocabulary(self) -> str:
        """The name of the id space."""
        return self.metadata.vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids of the vocabulary when the tokens were written."""
        return self.metadata.vocab_size

    @property
    def fingerprint(self) -> str:
        """The codec that wrote the tokens."""
        return self.metadata.fingerprint

    @property
    def cropped(self) -> bool:
        """Whether the rows of a sample are several crops of it."""
        return int(self.metadata.run.get("crops", 1)) > 1

    @property
    def needed_vocab_size(self) -> int:
        """The largest stored id plus one: the least vocabulary that these tokens need."""
        return max(part.needed_vocab_size for part in self.parts)

    @property
    def dropped(self) -> dict[str, str]:
        """Samples that were not encoded, with the reason."""
        return {key: reason for part in self.parts for key, reason in part.dropped.items()}

    @cached_property
    def keys(self) -> list[str]:
        """The rows' keys, in stored order."""
        return [key for batch in self.batches for key in batch.column("key").to_pylist()]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row number by key."""
        return {key: row for row, key in enumerate(self.keys)}

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens per row, `(rows,)`."""
        if not self._variable:
            return np.full(len(self), self.layout.length, np.int64)
        return np.concatenate([np.diff(offsets) for _, offsets in self._columns]).astype(np.int64)

    @property
    def _variable(self) -> bool:
        return not has_fixed_length(self.layout)

    def _open_column(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The part's numbers, and where each row starts (fixed layouts: their rows as a matrix, and nothing)."""
        column = batch.column("tokens")
        dim = getattr(self.layout, "dim", 1)
        if not self._variable:
            numbers = column.values.to_numpy(zero_copy_only=True)
            return numbers.reshape(batch.num_rows, self.layout.length * dim), np.zeros(0, np.int32)
        inner = column.values.values if isinstance(self.layout, EmbeddingsLayout) else column.values
        numbers = inner.to_numpy(zero_copy_only=True)
        offsets = column.offsets.to_numpy(zero_copy_only=True)
        return (numbers.reshape(-1, dim) if isinstance(self.layout, EmbeddingsLayout) else numbers), offsets

    def take(self, indices: Iterable[int] | npt.NDArray[np.int64]) -> Any:
        """The rows `indices`, copied out of the map.

        Grids `(n, *shape)` and vectors `(n, length)` int64; sequences a list of n 1-D int64 arrays; patches
        `(n, tokens, dim)` float32; embeddings a list of n `(tokens, dim)` float32 arrays.
        """
        wanted = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"{self.metadata.modality}: rows {wanted.min()}..{wanted.max()} of {len(self)}")
        parts = np.searchsorted(self._starts, wanted, side="right") - 1
        local = wanted - self._starts[parts]
        dtype: type = np.float32 if isinstance(self.layout, PatchesLayout | EmbeddingsLayout) else np.int64
        if self._variable:
            places = zip(parts.tolist(), local.tolist(), strict=True)
            return [self._row(part, row).astype(dtype) for part, row in places]
        width = self.layout.length * getattr(self.layout, "dim", 1)
        result: npt.NDArray[Any] = np.empty((len(wanted), width), dtype)
        for part in np.unique(parts):
            here = parts == part
            result[here] = self._columns[part][0][local[here]]
        return result.reshape(len(wanted), *fixed_shape(self.layout))

    def _row(self, part: int, row: int) -> npt.NDArray[Any]:
        numbers, offsets = self._columns[part]
        return numbers[offsets[row] : offsets[row + 1]]

    def add_to(self, digest: hashlib._Hash, rows: npt.NDArray[np.int64]) -> None:
        """Let a digest be of the tokens of `rows`, in this order, and of which of them are -1, for none."""
        digest.update(np.packbits(rows >= 0).tobytes())
        rows = rows[rows >= 0]
        for start in range(0, len(rows), HASHED):
            here = rows[start : start + HASHED]
            digest.update(self.lengths[here].tobytes())
            digest.update(np.concatenate(list(self.take(here))).tobytes())

    def check_codec(self, handle: ModalityHandle) -> None:
        """Raise DataError where `handle`'s tokenizer is not the one that wrote these tokens.

        A grown vocabulary is the same codec for the ids that it had before: its config.json lists the fingerprints and
        lengths that it grew from under "lineage".
        """
        where, needed = self.paths[0].parent, self.needed_vocab_size
        handle.check_tokens_of(where, self.fingerprint, self.layout, needed_vocab_size=needed)


def view_key(key: str, number: int) -> str:
    """The key of one of several views of a sample, `KEY#0`, `KEY#1`, ..., as they are stored."""
    return f"{key}#{number}"


def sample_of(key: str) -> str:
    """The key of the sample that a view is of."""
    return key.rpartition("#")[0]


def whole_samples(keys: Iterable[str], columns: Iterable[TokenColumn]) -> dict[str, str]:
    """By the key of each sample that of its row among `keys`, which the columns share; of crops the whole picture's."""
    if not any(column.cropped for column in columns):
        return {key: key for key in keys}
    return {sample_of(key): key for key in keys if key == view_key(sample_of(key), WHOLE_VIEW)}


def samples_digest(columns: Mapping[str, TokenColumn], only: Iterable[str] | None = None) -> str:
    """sha256 (hex) over the keys of stored samples and the tokens of each, in whatever parts and order they lie.

    `only` are the keys that count, each once, by default all. They are held once, not by column.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    stored = {
        name: pa.chunked_array([batch.column("key") for batch in column.batches], pa.string())
        for name, column in columns.items()
    }
    if only is None:
        chunks = [chunk for column in stored.values() for chunk in column.chunks]
        only = pa.chunked_array(chunks, pa.string()).unique().to_pylist()
    keys = sorted(only)
    digest = hashlib.sha256(json.dumps(keys).encode())
    counted = pa.array(keys, pa.string())
    for name in sorted(columns):
        places = pc.index_in(stored[name], value_set=counted).fill_null(-1).to_numpy()
        rows = np.full(len(keys), -1, np.int64)
        rows[places[places >= 0]] = np.flatnonzero(places >= 0)
        columns[name].add_to(digest, rows)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """Rows of several columns that belong together: `rows[i, j]` is sample i's row in column j, -1 without one."""

    keys: list[str]
    rows: npt.NDArray[np.int64]

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """True for the samples that have every modality, `(samples,)`."""
        return np.asarray((self.rows >= 0).all(axis=1))


class TokenStore:
    """The tokens in a folder, by split and modality. Raises DataError where the folder is not there."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; `zoo tokenize DATA --out {self.root}` makes one")

    @property
    def record(self) -> StoreRecord:
        """What is noted of the store. Raises CheckpointError where it is damaged."""
        return StoreRecord.read(self.root)

    @property
    def data(self) -> Path | None:
        """The folder of the values that the tokens were made of; None where it was not recorded."""
        return self.record.data

    def unfinished(
        self, split: str, names: Collection[str] | None = None, opened: Mapping[str, TokenColumn] | None = None
    ) -> dict[str, str]:
        """The modalities, of `names` or all, with fewer rows than they are to have, as a killed tokenize leaves them.

        Each with what is wrong. Stores of older versions do not say how many rows there are to be. Columns that are
        `opened` are not mapped again.
        """
        found = {}
        for name, count in self.record.rows.get(split, {}).items():
            if not count or (names is not None and name not in names):
                continue
            column = (opened or {}).get(name)
            if column is None and (parts := sorted((self.root / split / name).glob(PARTS))):
                column = TokenColumn(parts)
            if column is None:
                found[name] = (
                    f"is not there, and is to have {count_of(count, 'sample')}; tokenize it, or name the modalities "
                    "to use"
                )
            elif (rows := len(column) + len(column.dropped)) < count:
                found[name] = f"holds {rows} of {count} samples: `zoo tokenize` did not come to its end; run it again"
        return found

    def check_whole(
        self, split: str, names: Collection[str] | None = None, opened: Mapping[str, TokenColumn] | None = None
    ) -> None:
        """Raise DataError for the first of the `unfinished`."""
        for name, problem in self.unfinished(split, names, opened).items():
            raise DataError(f"{self.root / split / name}: {problem}")

    def splits(self) -> list[str]:
        """The splits that hold at least one part."""
        return sorted(path.name for path in self.root.iterdir() if any(path.glob(f"*/{PARTS}")))

    def modalities(self, split: str) -> list[str]:
        """The modalities of a split. Raises DataError for a split that is not there."""
        found = sorted({path.parent.name for path in (self.root / split).glob(f"*/{PARTS}")})
        if not found:
            known = ", ".join(self.splits()) or "none: it has no <split>/<modality>/*.arrow; `zoo tokenize` writes them"
            raise DataError(f"{self.root}: no tokens of a split {split!r}; splits here: {known}")
        return found

    def open(self, split: str, modality: str) -> TokenColumn:
        """One modality's tokens. Raises DataError where there are none, or the parts were written differently."""
        known = self.modalities(split)
        if modality not in known:
            raise DataError(str(UnknownNameError.of(f"modality in {self.root / split}:", modality, known)))
        return TokenColumn(sorted((self.root / split / modality).glob(PARTS)))

    def align(self, columns: Mapping[str, TokenColumn]) -> Alignment:
        """Match the rows of several columns by key, in the order in which keys are first met.

        Keys are kept once, not by column.
        """
        import pyarrow as pa

        batches = [batch.column("key") for column in columns.values() for batch in column.batches]
        # Each key as its number in the order in which they are met, one dictionary for all. Arrow drops empty batches.
        met = pa.chunked_array(batches, pa.string()).dictionary_encode().unify_dictionaries()
        keys = met.chunk(0).dictionary.to_pylist() if met.num_chunks else []
        numbers = np.concatenate([np.zeros(0, np.int32), *(chunk.indices.to_numpy() for chunk in met.chunks)])
        table = np.full((len(keys), len(columns)), -1, np.int64)
        start = 0
        for position, column in enumerate(columns.values()):
            table[numbers[start : start + len(column)], position] = np.arange(len(column))
            start += len(column)
        return Alignment(keys=keys, rows=table)
