"""One shard of tokens of one modality: an Arrow IPC file and its manifest.

The file has one record batch with the column `tokens`, a row per view of each sample: fixed-size lists of ids for grids
and vectors, lists of ids for sequences, lists of numbers for continuous layouts. Rows of absent samples are null. Ids
are uint16 where the vocabulary fits, otherwise int32.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.data.manifest import REPAIR, FileRecord, Manifest, remove_shard, shard_name, write_manifest
from tokenizers_zoo.errors import DataError, ReadError, first_line
from tokenizers_zoo.io import open_regular, read_error, replacing_file
from tokenizers_zoo.layouts import TokenLayout

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenizers_zoo.handle import ModalityHandle

SUFFIX = "arrow"
MAGIC = b"ARROW1\0\0"
"""The first bytes of an Arrow file, before its messages."""
MAX_OPEN_FILES = 512
"""Files of token shards that the process keeps open; systems allow 1024 by default."""
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
            modality=handle.name, vocabulary=spec.vocabulary, vocab_size=spec.vocab_size, layout=spec.layout,
            fingerprint=handle.fingerprint, distribution=handle.distribution, settings=dict(settings),
            levels=_levels(handle),
        )  # fmt: skip

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


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """The tokens of a shard."""

    writer: TokenMetadata
    crops: int
    """Views per sample."""
    values: str
    """Digest of the values."""
    tokens: int
    longest: int
    """The most tokens of a row."""
    needed_vocab_size: int
    """The largest id plus one; 0 for continuous layouts."""
    present: str
    """Bitmap (hex) of the samples with tokens; empty if all have them."""


@dataclass(frozen=True, kw_only=True)
class TokenManifest(Manifest):
    """The manifest of a shard of tokens."""

    suffix: ClassVar[str] = SUFFIX
    record: TokenRecord


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
    import pyarrow as pa

    present = np.array([row is not None for row in rows], bool)
    views = [np.asarray(view) for row in rows if row is not None for view in row]
    lengths, flat = _flatten_views(metadata, views)
    column = _arrow_column(metadata, flat, lengths, np.repeat(present, crops))
    schema = pa.schema([("tokens", column.type)])
    path = folder / shard_name(shard, SUFFIX)
    remove_shard(folder, shard)
    with replacing_file(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([column], schema=schema))
        files = {SUFFIX: FileRecord.of(temporary)}
    record = TokenRecord(
        writer=metadata, crops=crops, values=values, tokens=int(lengths.sum()), longest=int(lengths.max(initial=0)),
        needed_vocab_size=int(flat.max()) + 1 if flat.size and metadata.vocab_size else 0,
        present="" if present.all() else np.packbits(present).tobytes().hex(),
    )  # fmt: skip
    manifest = TokenManifest(
        rows=len(rows), count=int(present.sum()), keys=keys, inputs=inputs, files=files, dropped=dict(dropped or {}),
        record=record,
    )  # fmt: skip
    write_manifest(folder, shard, manifest)
    return manifest


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


def _is_compressed(message: bytes) -> bool:
    """Return whether an Arrow message, a flatbuffer of Message.fbs, is of a record batch with compressed numbers."""

    def field(table: int, number: int) -> int:
        """Return the position of a table's field, 0 if it has none."""
        vtable = table - int.from_bytes(message[table : table + 4], "little", signed=True)
        entry, size = vtable + 4 + 2 * number, int.from_bytes(message[vtable : vtable + 2], "little")
        offset = int.from_bytes(message[entry : entry + 2], "little") if entry < vtable + size else 0
        return table + offset if offset else 0

    def follow(position: int) -> int:
        return position + int.from_bytes(message[position : position + 4], "little")

    header = field(follow(0), 2)
    return bool(field(follow(header), 3))


def _arrow_column(
    metadata: TokenMetadata, flat: Array, lengths: npt.NDArray[np.int64], present: npt.NDArray[np.bool_]
) -> pa.Array:
    """Return the tokens of the present rows as an Arrow array, with nulls for the others."""
    import pyarrow as pa

    absent = pa.array(~present)
    if not metadata.layout.variable:
        width = metadata.layout.length * metadata.dim
        numbers = np.zeros((len(present), width), metadata.stored_as)
        numbers[present] = flat.reshape(-1, width)
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), width, mask=absent)
    offsets = np.zeros(len(present) + 1, np.int32)
    offsets[1:][present] = lengths
    content = pa.array(flat.astype(metadata.stored_as))
    if metadata.layout.continuous:
        content = pa.FixedSizeListArray.from_arrays(content, metadata.dim)
    return pa.ListArray.from_arrays(pa.array(np.cumsum(offsets, dtype=np.int32)), content, mask=absent)


def present_samples(manifest: TokenManifest) -> npt.NDArray[np.bool_]:
    """Return for each sample of a shard whether it has tokens, `(rows,)`. Raises DataError."""
    if not manifest.record.present:
        return np.ones(manifest.rows, bool)
    try:
        bits = np.frombuffer(bytes.fromhex(manifest.record.present), np.uint8)
    except ValueError:
        bits = np.zeros(0, np.uint8)
    if len(bits) != -(-manifest.rows // 8):
        raise DataError("its manifest has a bitmap of another length")
    return np.unpackbits(bits, count=manifest.rows).astype(bool)


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class OpenShard:
    """An open file and the positions of its numbers; the file is closed when no thread reads it any more."""

    file: int
    start: int
    """Position of the first number in the file."""
    offsets: npt.NDArray[np.int32]
    """Of layouts of variable length: the first token of each row, and the number of all tokens."""


class ShardFile:
    """Reads rows of one shard. Its bytes, rows and ids are verified when the first row is read.

    Nothing is mapped into memory: a mapped file that another process cuts off would end this process.
    """

    def __init__(self, path: Path, manifest: TokenManifest, writer: TokenMetadata, crops: int) -> None:
        self.path, self.manifest, self.writer, self.crops = path, manifest, writer, crops
        self._verified: tuple[tuple[int, int, int], int, int] | None = None
        """Inode, size and time of the verified file, to notice a replacement; positions of numbers and offsets."""

    def verify(self) -> None:
        """Verify the file, unless it was. Raises DataError, ReadError."""
        _open_cached(self)

    def read_fixed(self, rows: npt.NDArray[np.int64], out: Array) -> None:
        """Write rows of a fixed layout as stored into `out`, `(len(rows), width)`."""
        opened, size = _open_cached(self), out.shape[1] * out.itemsize
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        for first, end in itertools.pairwise([*starts, len(rows)]):
            self._read(opened, out[first:end], int(rows[first]) * size)

    def read_lists(self, rows: npt.NDArray[np.int64]) -> Iterator[Array]:
        """Yield the tokens of rows of a layout of variable length, as stored."""
        opened, writer = _open_cached(self), self.writer
        inner = writer.layout.token_shape[1:]
        size = writer.dim * writer.stored_as.itemsize
        for first, end in zip(opened.offsets[rows].tolist(), opened.offsets[rows + 1].tolist(), strict=True):
            tokens = np.empty((end - first, *inner), writer.stored_as)
            self._read(opened, tokens, first * size)
            yield tokens

    def _read(self, opened: OpenShard, out: Array, offset: int) -> None:
        """Fill a contiguous array from the file's numbers. Raises ReadError."""
        try:
            remaining = memoryview(out.reshape(-1).view(np.uint8).data)
            position = opened.start + offset
            while remaining and (count := os.preadv(opened.file, [remaining], position)):
                remaining, position = remaining[count:], position + count
        except OSError as error:
            raise read_error(self.path, error) from None
        if remaining:
            raise ReadError(f"{self.path}: was cut off while it was open; run the same command again")

    def open(self) -> OpenShard:
        """Open the file, and verify it at the first time. Raises DataError, ReadError."""
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file; run `zoo tokenize` again")
        with open_regular(self.path) as file:
            status = os.fstat(file.fileno())
            stamp = status.st_ino, status.st_size, status.st_mtime_ns
            if self._verified is None:
                self._verified = (stamp, *self._verify(file))
            verified, start, offsets_start = self._verified
            if verified != stamp:
                raise ReadError(f"{self.path}: was replaced since it was opened; run the same command again")
            rows = self.manifest.rows * self.crops + 1 if self.writer.layout.variable else 0
            opened = OpenShard(os.dup(file.fileno()), start, np.zeros(rows, np.int32))
        weakref.finalize(opened, os.close, opened.file)
        self._read(opened, opened.offsets, offsets_start - start)
        return opened

    def _verify(self, file: BufferedReader) -> tuple[int, int]:
        """Check the whole file; return the positions of its numbers and of its list offsets. Raises DataError."""
        import pyarrow as pa

        expected = self.manifest.files.get(SUFFIX)
        data = file.read() if expected and os.fstat(file.fileno()).st_size == expected.size else b""
        try:
            if not data or not expected or hashlib.sha256(data).hexdigest() != expected.sha256:
                raise ValueError("it has another size or checksum than its manifest says")
            buffer = pa.py_buffer(data)
            messages = list(itertools.islice(pa.ipc.MessageReader.open_stream(buffer.slice(len(MAGIC))), 2))
            if len(messages) != 2:
                raise ValueError("it has no rows")
            schema, content = pa.ipc.read_schema(messages[0]), messages[1]
            empty = np.zeros(0, np.int64)
            column = _arrow_column(self.writer, empty.astype(self.writer.stored_as), empty, empty.astype(bool))
            if schema != pa.schema([("tokens", column.type)]):
                raise ValueError(f"it has other columns than tokens of {column.type}")
            is_new = content.metadata_version == pa.ipc.MetadataVersion.V5  # older ones compress in another way
            if not is_new or _is_compressed(content.metadata.to_pybytes()):
                raise ValueError("its numbers are compressed")
            batch = pa.ipc.read_record_batch(content, schema)
            batch.validate(full=True)
            arrays = self._checked_arrays(batch.column("tokens"))
            starts = [array.__array_interface__["data"][0] - buffer.address if array.size else 0 for array in arrays]
            if any(not 0 <= start <= len(data) - array.nbytes for start, array in zip(starts, arrays, strict=True)):
                raise ValueError("its numbers are outside of the file")
        except (AttributeError, DataError, LookupError, OSError, TypeError, ValueError, pa.ArrowException) as error:
            reason = first_line(error)
            advice = f"{REPAIR}, or `zoo tokenize --overwrite`"
            raise DataError(f"{self.path}: not a sound shard of tokens: {reason}; {advice}") from None
        return starts[0], starts[1]

    def _checked_arrays(self, column: pa.Array) -> tuple[Array, Array]:
        """Return all numbers and the list offsets. Raises ValueError if they do not fit manifest and layout."""
        layout, dim = self.writer.layout, self.writer.dim
        present = np.repeat(present_samples(self.manifest), self.crops)
        if not np.array_equal(column.is_valid().to_numpy(zero_copy_only=False), present):
            raise ValueError("its rows are not those of its manifest")
        content = column.values
        if layout.variable and layout.continuous:
            content = content.values
        if content.null_count:
            raise ValueError("it has tokens without a number")
        values = content.to_numpy(zero_copy_only=True)
        if values.dtype != self.writer.stored_as:
            raise ValueError(f"it holds {values.dtype}, expected {self.writer.stored_as}")
        if layout.continuous:
            if not np.isfinite(values).all():
                raise ValueError("it has numbers that are not finite")
        elif values.size:
            vocab_size = self.manifest.record.needed_vocab_size
            if not (0 <= values.min() <= values.max() < max(vocab_size, 1) <= max(self.writer.vocab_size, 1)):
                raise ValueError(f"it has ids {values.min()}..{values.max()}, expected 0..{vocab_size - 1}")
        if not layout.variable:
            return values.reshape(len(present), layout.length * dim), np.zeros(0, np.int32)
        offsets = column.offsets.to_numpy(zero_copy_only=True)
        if int(np.diff(offsets).max(initial=0)) > layout.length or offsets[0] or offsets[-1] * dim != values.size:
            raise ValueError("it has a longer sequence than its layout, or tokens of no row")
        return values, offsets


_open_cached = functools.lru_cache(MAX_OPEN_FILES)(ShardFile.open)
