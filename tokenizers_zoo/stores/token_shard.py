"""One shard of tokens of one modality: a file of blocks, and its manifest.

A block has the tokens of up to 256 neighbouring samples, absent ones left out: first, for sequences and embeddings, the
number of tokens of each view (uint32), then the numbers of all views. The manifest has the size, the sha256 and the
present samples of each block, so that a reader verifies the blocks that it reads, and nothing else. Numbers are
little-endian: ids uint16 where the vocabulary fits, otherwise int32; continuous layouts as their settings say.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache, cached

from tokenizers_zoo.contract.layouts import TokenLayout
from tokenizers_zoo.errors import DataError, ReadError
from tokenizers_zoo.records.io import open_regular, read_error, read_record, replacing_file
from tokenizers_zoo.stores.manifest import REPAIR, FileRecord, Manifest, remove_shard, shard_name, write_manifest

if TYPE_CHECKING:
    from tokenizers_zoo.contract.handle import ModalityHandle

SUFFIX = "tokens"
BLOCK_SAMPLES, BLOCK_BYTES = 256, 1 << 20
"""A block has so many samples, or a half, a quarter, ... of them where they have more bytes."""
CACHE_BYTES = 512 << 20
"""Blocks that the process keeps in memory."""
LENGTH = np.dtype("<u4")
ABSENT = np.iinfo(np.int64).max - 1
"""An index that no array has."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMetadata:
    """What all shards of a modality have in common: the tokenizer that wrote them, and its settings."""

    modality: str
    vocabulary: str
    vocab_size: int
    layout: TokenLayout
    fingerprint: str
    distribution: str
    settings: Mapping[str, Any]
    """Settings that values were read with (JSON types)."""
    levels: tuple[tuple[int, float, float], ...] = ()
    """For patches stored as uint8: runs of numbers with one range, as (length, number at 0, number at 255)."""

    @classmethod
    def of(cls, handle: ModalityHandle, settings: Mapping[str, Any]) -> TokenMetadata:
        """Return the metadata of tokens that this handle's tokenizer writes now."""
        spec = handle.spec
        return cls(
            modality=handle.name,
            vocabulary=spec.vocabulary,
            vocab_size=spec.vocab_size,
            layout=spec.layout,
            fingerprint=handle.fingerprint,
            distribution=handle.distribution,
            settings=dict(settings),
            levels=_levels(handle),
        )

    def __post_init__(self) -> None:
        limit = float(np.finfo(np.float32).max)
        valid = all(0 < run <= self.dim and abs(low) <= limit and abs(high) <= limit for run, low, high in self.levels)
        if not valid or (self.levels and sum(run for run, _, _ in self.levels) != self.dim):
            raise ValueError(f"expected levels of {self.dim} numbers, all finite in float32")

    @property
    def dim(self) -> int:
        """Numbers per token."""
        return self.layout.numbers_per_token

    @property
    def stored_as(self) -> np.dtype[Any]:
        """The type of the stored numbers."""
        return np.dtype(self.layout.stored_as(self.vocab_size))

    def number_problem(self, row: Array) -> str | None:
        """Return why the numbers of a continuous layout cannot be stored, or None."""
        if not self.layout.continuous:
            return None
        if not np.isfinite(row).all():
            return "some numbers are not finite"
        with np.errstate(over="ignore", invalid="ignore"):
            if self.levels and row.dtype != self.stored_as:
                numbers = self._as_levels(row)
                fits = bool((numbers > -0.5).all() and (numbers < 255.5).all())
            else:
                fits = bool(np.isfinite(row.astype(self.stored_as)).all())
        return None if fits else f'numbers up to {np.abs(row).max():g} exceed {self.stored_as}; set dtype = "float32"'

    def to_stored(self, row: Array) -> Array:
        """Return numbers in their stored form and the same shape; stored numbers are unchanged."""
        if not self.levels or row.dtype == self.stored_as:
            return row.astype(self.stored_as)
        return np.clip(np.rint(self._as_levels(row)), 0, 255).astype(np.uint8).reshape(row.shape)

    def from_stored(self, row: Array) -> Array:
        """Return stored numbers in the model's types: ids as int64, numbers of continuous layouts as float32."""
        if not self.levels:
            return row.astype(np.float32 if self.stored_as.kind == "f" else np.int64)
        low, step = self._scale()
        return (row.reshape(-1, self.dim) * step + low).reshape(row.shape)

    def _scale(self) -> tuple[Array, Array]:
        """Return offset and step of the 256 levels of each number of a patch, `(dim,)` each."""
        runs, low, high = (np.array(column, np.float32) for column in zip(*self.levels, strict=True))
        return np.repeat(low, runs.astype(int)), np.repeat((high - low) / np.float32(255), runs.astype(int))

    def _as_levels(self, row: Array) -> Array:
        low, step = self._scale()
        return np.asarray((row.reshape(-1, self.dim) - low) / step)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockRecord:
    """One block of a shard."""

    size: int
    """Bytes."""
    sha256: str
    tokens: int
    count: int
    """Samples with tokens."""
    present: str
    """Bitmap (hex) of the samples with tokens; empty if all have them."""

    def present_samples(self, samples: int) -> npt.NDArray[np.bool_]:
        """Return whether each of `samples` samples, of the block has tokens. Raises ValueError for a bad bitmap."""
        if not self.present:
            return np.full(samples, self.count == samples)
        bits = np.frombuffer(bytes.fromhex(self.present), np.uint8)
        present = np.unpackbits(bits, count=samples).astype(bool)
        if len(bits) != -(-samples // 8) or int(present.sum()) != self.count:
            raise ValueError("has a bitmap of other samples")
        return present


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """The tokens of a shard."""

    writer: TokenMetadata
    crops: int
    """Views per sample."""
    values: str
    """Digest of the values."""
    longest: int
    """The most tokens of a row."""
    needed_vocab_size: int
    """The largest id plus one; 0 for continuous layouts."""
    block_samples: int
    """Samples of a block; the last one may have fewer."""
    blocks: tuple[BlockRecord, ...]

    @property
    def tokens(self) -> int:
        return sum(block.tokens for block in self.blocks)


@dataclass(frozen=True, kw_only=True)
class TokenManifest(Manifest):
    """The manifest of a shard of tokens. Raises ValueError for blocks of other samples."""

    suffix: ClassVar[str] = SUFFIX
    record: TokenRecord

    def __post_init__(self) -> None:
        Manifest.__post_init__(self)
        record = self.record
        if record.block_samples < 1 or len(record.blocks) != -(-self.rows // record.block_samples):
            raise ValueError("blocks: expected one for each block_samples samples")
        if self.count != sum(block.count for block in record.blocks) or any(block.size < 0 for block in record.blocks):
            raise ValueError("blocks: count or size")

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether each sample of the shard has tokens, `(rows,)`. Raises ValueError for a wrong bitmap."""
        starts, size = range(0, self.rows, self.record.block_samples), self.record.block_samples
        parts = [
            block.present_samples(min(size, self.rows - start))
            for start, block in zip(starts, self.record.blocks, strict=True)
        ]
        return np.concatenate([np.zeros(0, bool), *parts])


def _levels(handle: ModalityHandle) -> tuple[tuple[int, float, float], ...]:
    """Return `TokenMetadata.levels`: the numbers that the least and the greatest value are encoded as."""
    spec = handle.spec
    if spec.layout.stored_as(spec.vocab_size) != "uint8":
        return ()
    shape = tuple(int(size) for size in spec.value.shape)
    bounds = [np.full(shape, bound, spec.value.dtype) for bound in (spec.value.low, spec.value.high)]
    low, high = (np.asarray(tokens)[0] for tokens in handle.encode(bounds))
    changes = np.flatnonzero((np.diff(low) != 0) | (np.diff(high) != 0)) + 1
    edges = [0, *changes.tolist(), len(low)]
    return tuple((end - first, float(low[first]), float(high[first])) for first, end in itertools.pairwise(edges))


def write_token_shard(
    folder: Path,
    shard: int,
    metadata: TokenMetadata,
    rows: Sequence[Sequence[Array] | None],
    *,
    keys: str,
    crops: int = 1,
    dropped: Mapping[int, str] | None = None,
    inputs: str = "",
    values: str = "",
) -> TokenManifest:
    """Write a shard and then its manifest, in place of an earlier shard.

    `rows` has an item per sample: the tokens of its `crops` views, or None. `keys` is the digest of the shard's keys,
    `inputs` the inputs digest, and `values` the digest of the value shard. Raises DataError if tokens do not fit the
    layout or vocabulary.
    """
    size = _samples_of_block(metadata, crops)
    encoded = [_encode_block(metadata, rows[start : start + size]) for start in range(0, len(rows), size)]
    views = [np.asarray(view) for row in rows if row is not None for view in row]
    remove_shard(folder, shard)
    with replacing_file(folder / shard_name(shard, SUFFIX)) as temporary:
        temporary.write_bytes(b"".join(data for data, _ in encoded))
        files = {SUFFIX: FileRecord.of(temporary)}
    longest = max((view.size for view in views), default=0) // metadata.dim
    last_id = max((int(view.max()) for view in views if view.size and metadata.vocab_size), default=-1)
    record = TokenRecord(
        writer=metadata,
        crops=crops,
        values=values,
        longest=longest,
        needed_vocab_size=last_id + 1,
        block_samples=size,
        blocks=tuple(block for _, block in encoded),
    )
    manifest = TokenManifest(
        rows=len(rows),
        count=sum(block.count for block in record.blocks),
        keys=keys,
        inputs=inputs,
        files=files,
        dropped=dict(dropped or {}),
        record=record,
    )
    write_manifest(folder, shard, manifest)
    return manifest


def _samples_of_block(metadata: TokenMetadata, crops: int) -> int:
    size = BLOCK_SAMPLES
    while size > 1 and size * crops * metadata.layout.length * metadata.dim * metadata.stored_as.itemsize > BLOCK_BYTES:
        size //= 2
    return size


def _encode_block(metadata: TokenMetadata, rows: Sequence[Sequence[Array] | None]) -> tuple[bytes, BlockRecord]:
    """Return the bytes of a block, and its record. Raises DataError."""
    present = np.array([row is not None for row in rows], bool)
    views = [np.asarray(view) for row in rows if row is not None for view in row]
    lengths, flat = _flatten_views(metadata, views)
    data = flat.astype(metadata.stored_as.newbyteorder("<")).tobytes()
    if metadata.layout.variable:
        data = lengths.astype(LENGTH).tobytes() + data
    record = BlockRecord(
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        tokens=int(lengths.sum()),
        count=int(present.sum()),
        present="" if present.all() or not present.any() else np.packbits(present).tobytes().hex(),
    )
    return data, record


def _flatten_views(metadata: TokenMetadata, views: Sequence[Array]) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the number of tokens of each row, and the concatenated numbers of all rows. Raises DataError."""
    layout, dim = metadata.layout, metadata.dim
    least = 0 if layout.variable else layout.length * dim
    for view in views:
        if view.size % dim or not least <= view.size <= layout.length * dim:
            expected = f"{'' if least else 'up to '}{layout.length} tokens of {dim} numbers"
            raise DataError(f"{metadata.modality}: expected {expected}, got an array of shape {view.shape}")
    flat = np.concatenate([np.ravel(view) for view in views]) if views else np.zeros(0, metadata.stored_as)
    if reason := metadata.number_problem(flat):
        raise DataError(f"{metadata.modality}: {reason}")
    if metadata.vocab_size and flat.size and not 0 <= flat.min() <= flat.max() < metadata.vocab_size:
        raise DataError(f"{metadata.modality}: ids {flat.min()}..{flat.max()}, expected 0..{metadata.vocab_size - 1}")
    return np.array([view.size // dim for view in views], np.int64), metadata.to_stored(flat)


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """The tokens of a block, as stored."""

    numbers: Array
    """The numbers of all views: a row per view, or of variable length a row per token."""
    starts: npt.NDArray[np.int64]
    """The first token of each view, and the number of all tokens."""
    ranks: npt.NDArray[np.int64]
    """The number of each view among the views with tokens; ABSENT if it has none."""

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.starts.nbytes + self.ranks.nbytes


class TokenShard:
    """Reads one shard, block by block. A block is verified when it is read, and then kept for a while.

    Nothing is mapped into memory: a mapped file that another process cuts off would end this process.
    """

    def __init__(self, path: Path, manifest: TokenManifest, writer: TokenMetadata) -> None:
        self.path, self.manifest, self.writer = path, manifest, writer
        self._offsets = [0, *itertools.accumulate(block.size for block in manifest.record.blocks)]

    def take(self, rows: npt.NDArray[np.int64]) -> Iterator[Array]:
        """Yield the tokens of sorted rows (sample * crops + view), as stored.

        For layouts of variable length an array per row, for fixed ones an array per block, `(rows, numbers)`. Raises
        DataError for a damaged block and for rows without tokens, and ReadError.
        """
        record, variable = self.manifest.record, self.writer.layout.variable
        blocks, in_block = np.divmod(rows, record.block_samples * record.crops)
        edges = [*np.flatnonzero(np.diff(blocks, prepend=-1)).tolist(), len(rows)]
        try:
            for first, end in itertools.pairwise(edges):
                block = read_block(self, int(blocks[first]))
                views = block.ranks[in_block[first:end]]
                if not variable:
                    yield block.numbers[views]
                    continue
                for start, stop in zip(block.starts[views].tolist(), block.starts[views + 1].tolist(), strict=True):
                    yield block.numbers[start:stop]
        except IndexError:
            raise DataError(f"{self.path}: a sample has no tokens") from None

    def _bytes(self, number: int) -> bytes:
        """Return the bytes of a block. Raises ValueError if the file is cut off, DataError if it is not there."""
        start, size = self._offsets[number], self.manifest.record.blocks[number].size
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file; run `zoo tokenize` again")
        with open_regular(self.path) as file:
            try:
                if start + size > os.fstat(file.fileno()).st_size:
                    raise ValueError("is cut off")
                return os.pread(file.fileno(), size, start)
            except OSError as error:
                raise read_error(self.path, error) from None

    def _decode(self, number: int, data: bytes) -> Block:
        """Return the block of some bytes. Raises ValueError where they contradict manifest or layout."""
        record, layout, stored_as = self.manifest.record, self.writer.layout, self.writer.stored_as
        block = record.blocks[number]
        if hashlib.sha256(data).hexdigest() != block.sha256:
            raise ValueError("has another checksum than its manifest says")
        present = block.present_samples(min(record.block_samples, self.manifest.rows - number * record.block_samples))
        views, width = block.count * record.crops, layout.length * self.writer.dim
        body = views * LENGTH.itemsize if layout.variable else 0
        if len(data) < body or not (layout.variable or len(data) == views * width * stored_as.itemsize):
            raise ValueError("has another size than its samples")
        lengths = np.frombuffer(data, LENGTH, views) if layout.variable else np.full(views, layout.length)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        numbers = np.frombuffer(data, stored_as.newbyteorder("<"), offset=body).astype(stored_as, copy=False)
        if lengths.max(initial=0) > min(record.longest, layout.length) or starts[-1] != block.tokens:
            raise ValueError("has longer sequences than its manifest says, or another number of tokens")
        if block.tokens * self.writer.dim != numbers.size:
            raise ValueError("has numbers of no sample")
        if layout.continuous:
            if not np.isfinite(numbers).all():
                raise ValueError("has numbers that are not finite")
        elif numbers.size and not (
            0 <= numbers.min() <= numbers.max() < max(record.needed_vocab_size, 1) <= max(self.writer.vocab_size, 1)
        ):
            raise ValueError(f"has ids {numbers.min()}..{numbers.max()}, expected 0..{record.needed_vocab_size - 1}")
        rows = numbers.reshape(-1, *layout.token_shape[1:]) if layout.variable else numbers.reshape(views, width)
        present = np.repeat(present, record.crops)
        return Block(rows, starts, np.where(present, np.cumsum(present) - 1, ABSENT))


@cached(LRUCache(CACHE_BYTES, getsizeof=lambda block: block.nbytes), lock=threading.Lock())
def read_block(shard: TokenShard, number: int) -> Block:
    """Return a block of a shard. Raises DataError if it is damaged, ReadError if the shard was replaced meanwhile."""
    try:
        return shard._decode(number, shard._bytes(number))
    except ValueError as error:
        advice = f"{REPAIR}, or `zoo tokenize --overwrite`"
        damage = DataError(f"{shard.path}: block {number} {error}; {advice}")
    manifest = read_record(shard.path.with_suffix(".json"), TokenManifest, error=DataError)
    if manifest != shard.manifest:
        raise ReadError(f"{shard.path}: was replaced since it was opened; run the same command again")
    raise damage
