"""One shard of tokens of one modality: an Arrow IPC file and its manifest.

The file has one record batch with the column `tokens`, a row per view of each sample: fixed-size lists of ids for grids
and vectors, lists of ids for sequences, lists of numbers for continuous layouts. Rows of absent samples are null. Ids
are uint16 where the vocabulary fits, otherwise int32.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.data.manifest import FileRecord, Manifest, remove_shard, shard_name, write_manifest
from tokenizers_zoo.errors import DataError, ReadError
from tokenizers_zoo.io import as_json, not_read, replacing_file
from tokenizers_zoo.spec import EmbeddingsLayout, PatchesLayout, TokenLayout, layout_from_json, layout_to_json
from tokenizers_zoo.validation import has_fixed_length

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenizers_zoo.registry import ModalityHandle

SUFFIX = "arrow"
MOST_OPEN = 256
"""Files of token shards that the process keeps open."""
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

    @classmethod
    def of(cls, handle: ModalityHandle, settings: Mapping[str, Any]) -> TokenMetadata:
        """Return the metadata of tokens that this handle's tokenizer writes now."""
        spec = handle.spec
        return cls(
            modality=handle.name, vocabulary=spec.vocabulary, vocab_size=spec.vocab_size, layout=spec.layout,
            fingerprint=handle.fingerprint, distribution=handle.distribution, settings=dict(settings),
        )  # fmt: skip

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> TokenMetadata:
        """Return the metadata that `to_json` wrote."""
        return cls(**{**table, "layout": layout_from_json(table["layout"])})

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return as_json({**fields, "layout": layout_to_json(self.layout)})

    @property
    def dim(self) -> int:
        """Numbers per token."""
        return int(getattr(self.layout, "dim", 1))

    @property
    def stored_as(self) -> np.dtype[Any]:
        """The type of the stored numbers."""
        if isinstance(self.layout, PatchesLayout | EmbeddingsLayout):
            return np.dtype(self.layout.dtype)
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.int32)

    def number_problem(self, row: Array) -> str | None:
        """Return why the numbers of a continuous layout cannot be stored; None where they can."""
        if not isinstance(self.layout, PatchesLayout | EmbeddingsLayout):
            return None
        if not np.isfinite(row).all():
            return "some numbers are not finite"
        with np.errstate(over="ignore"):
            fits = bool(np.isfinite(row.astype(self.stored_as)).all())
        return None if fits else f'numbers up to {np.abs(row).max():g} exceed {self.stored_as}; set dtype = "float32"'


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
) -> Manifest:
    """Write a shard and then its manifest, in place of an earlier shard.

    `rows` has an item per sample: the tokens of its `crops` views, or None. `keys` is the digest of the shard's keys,
    `inputs` the inputs digest, and `values` the digest of the value shard. Raises DataError where tokens do not fit the
    layout or vocabulary.
    """
    import pyarrow as pa

    present = np.array([row is not None for row in rows], bool)
    views = [np.asarray(view) for row in rows if row is not None for view in row]
    lengths, flat = _checked(metadata, views)
    column = _arrow_column(metadata, flat, lengths, np.repeat(present, crops))
    schema = pa.schema([("tokens", column.type)])
    path = folder / shard_name(shard, SUFFIX)
    remove_shard(folder, shard)
    with replacing_file(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([column], schema=schema))
        files = {SUFFIX: FileRecord.of(temporary)}
    record = {
        "writer": metadata.to_json(), "crops": crops, "values": values, "tokens": int(lengths.sum()),
        "longest": int(lengths.max(initial=0)),
        "needed_vocab_size": int(flat.max()) + 1 if flat.size and metadata.vocab_size else 0,
        "present": "" if present.all() else np.packbits(present).tobytes().hex(),
    }  # fmt: skip
    manifest = Manifest(
        rows=len(rows), count=int(present.sum()), keys=keys, inputs=inputs, files=files, dropped=dict(dropped or {}),
        record=record,
    )  # fmt: skip
    write_manifest(folder, shard, manifest)
    return manifest


def _checked(metadata: TokenMetadata, views: Sequence[Array]) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the number of tokens of each row, and all numbers one after the other. Raises DataError."""
    layout, dim = metadata.layout, metadata.dim
    least = layout.length * dim if has_fixed_length(layout) else 0
    for view in views:
        if view.size % dim or not least <= view.size <= layout.length * dim:
            limit = "" if least else "up to "
            expected = f"{limit}{layout.length} tokens" + (f" of {dim} numbers" if dim > 1 else "")
            raise DataError(f"{metadata.modality}: expected {expected}, got an array of shape {view.shape}")
    flat = np.concatenate([np.ravel(view) for view in views]) if views else np.zeros(0, metadata.stored_as)
    if problem := metadata.number_problem(flat):
        raise DataError(f"{metadata.modality}: {problem}")
    if metadata.vocab_size and flat.size and not 0 <= flat.min() <= flat.max() < metadata.vocab_size:
        raise DataError(f"{metadata.modality}: ids {flat.min()}..{flat.max()}, expected 0..{metadata.vocab_size - 1}")
    return np.array([view.size // dim for view in views], np.int64), flat


def _arrow_column(
    metadata: TokenMetadata, flat: Array, lengths: npt.NDArray[np.int64], present: npt.NDArray[np.bool_]
) -> pa.Array:
    """Return the tokens of the present rows as an Arrow array, with nulls for the others."""
    import pyarrow as pa

    absent = pa.array(~present)
    if has_fixed_length(metadata.layout):
        width = metadata.layout.length * metadata.dim
        numbers = np.zeros((len(present), width), metadata.stored_as)
        numbers[present] = flat.reshape(-1, width)
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), width, mask=absent)
    offsets = np.zeros(len(present) + 1, np.int32)
    offsets[1:][present] = lengths
    content = pa.array(flat.astype(metadata.stored_as))
    if metadata.dim > 1 or isinstance(metadata.layout, EmbeddingsLayout):
        content = pa.FixedSizeListArray.from_arrays(content, metadata.dim)
    return pa.ListArray.from_arrays(pa.array(np.cumsum(offsets, dtype=np.int32)), content, mask=absent)


def present_samples(manifest: Manifest) -> npt.NDArray[np.bool_]:
    """Return for each sample of a shard whether it has tokens, `(rows,)`. Raises DataError."""
    if not manifest.record["present"]:
        return np.ones(manifest.rows, bool)
    bits = np.frombuffer(bytes.fromhex(manifest.record["present"]), np.uint8)
    if len(bits) != -(-manifest.rows // 8):
        raise DataError("its manifest has a bitmap of another length")
    return np.unpackbits(bits, count=manifest.rows).astype(bool)


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Place:
    """Offsets in the file of a verified shard, and the file's stamp."""

    numbers: int
    offsets: int
    stamp: tuple[int, int, int]


class ShardFile:
    """Reads rows of one shard. The whole file is verified when the first row is read."""

    __slots__ = ("_place", "crops", "manifest", "path", "writer")

    def __init__(self, path: Path, manifest: Manifest, writer: TokenMetadata, crops: int) -> None:
        self.path, self.manifest, self.writer, self.crops = path, manifest, writer, crops
        self._place: Place | None = None

    def read_fixed(self, row: int, into: memoryview) -> None:
        """Fill `into`, of one or more whole rows, with the rows from `row` on."""
        file, place = self._opened()
        width = self.writer.layout.length * self.writer.dim * self.writer.stored_as.itemsize
        self._fill(file, place.numbers + row * width, into)

    def read_lists(self, row: int, count: int) -> Iterator[Array]:
        """Yield the tokens of `count` rows from `row` on: `(tokens,)`, or `(tokens, dim)` for embeddings."""
        file, place = self._opened()
        ends = np.empty(count + 1, np.int32)
        self._fill(file, place.offsets + 4 * row, ends.view(np.uint8).data)
        start, dim = int(ends[0]), self.writer.dim
        numbers = np.empty((int(ends[-1]) - start) * dim, self.writer.stored_as)
        self._fill(file, place.numbers + start * dim * numbers.itemsize, numbers.view(np.uint8).data)
        if isinstance(self.writer.layout, EmbeddingsLayout):
            numbers = numbers.reshape(-1, dim)
        yield from (numbers[ends[i] - start : ends[i + 1] - start] for i in range(count))

    def _fill(self, file: _OpenFile, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            try:
                got = os.preadv(file.descriptor, [into[done:]], offset + done)
            except OSError as error:
                raise not_read(self.path, error) from None
            if not got:
                raise ReadError(f"{self.path}: was cut off since it was opened; run the same command again")
            done += got

    def _opened(self) -> tuple[_OpenFile, Place]:
        file = _open(self.path, fresh=self._place is None)
        if self._place is None:
            self._place = self._verify(file)
        elif self._place.stamp != file.stamp:
            raise ReadError(f"{self.path}: was replaced or changed since it was opened; run the same command again")
        return file, self._place

    def _verify(self, file: _OpenFile) -> Place:
        """Return where the numbers are. Raises DataError unless bytes, rows and ids agree with the manifest."""
        import pyarrow as pa

        try:
            expected = self.manifest.files[SUFFIX]
            if file.stamp[1] != expected.size:
                raise ValueError("it has another size than its manifest says")
            data = bytearray(expected.size)
            self._fill(file, 0, memoryview(data))
            if hashlib.sha256(data).hexdigest() != expected.sha256:
                raise ValueError("it has another checksum than its manifest says")
            batch = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
            batch.validate(full=True)
            return self._place_in(batch.column("tokens"), np.frombuffer(data, np.uint8), file.stamp)
        except ReadError:
            raise
        except (pa.ArrowException, KeyError, ValueError, TypeError, AttributeError, DataError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> DataError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DataError(f"{self.path}: not a sound shard of tokens: {reason}; run `zoo tokenize` again")

    def _place_in(self, column: pa.Array, data: npt.NDArray[np.uint8], stamp: tuple[int, int, int]) -> Place:
        present = np.repeat(present_samples(self.manifest), self.crops)
        if len(column) != len(present) or not np.array_equal(column.is_valid().to_numpy(zero_copy_only=False), present):
            raise ValueError("its rows are not those of its manifest")
        fixed, dim = has_fixed_length(self.writer.layout), self.writer.dim
        content = column.values
        if isinstance(self.writer.layout, EmbeddingsLayout):
            content = content.values
        numbers = content.to_numpy(zero_copy_only=True)
        width = self.writer.layout.length * dim
        if numbers.dtype != self.writer.stored_as or (fixed and numbers.size != len(present) * width):
            raise ValueError("its layout is not that of its manifest")
        offsets = np.zeros(0, np.int32) if fixed else column.offsets.to_numpy(zero_copy_only=True)
        if len(offsets) and int(np.diff(offsets).max(initial=0)) > self.writer.layout.length:
            raise ValueError("it has a longer sequence than its layout")
        if numbers.dtype.kind in "iu" and numbers.size:
            needed = int(self.manifest.record["needed_vocab_size"])
            if not (0 <= int(numbers.min()) <= int(numbers.max()) < max(needed, 1) <= max(self.writer.vocab_size, 1)):
                raise ValueError(f"it has ids {numbers.min()}..{numbers.max()}, expected 0..{needed - 1}")
        base = data.__array_interface__["data"][0]
        starts = [array.__array_interface__["data"][0] - base if array.size else 0 for array in (numbers, offsets)]
        return Place(numbers=starts[0], offsets=starts[1], stamp=stamp)


class _OpenFile:
    """An open file, which closes when nobody uses it any more. A file that replaces it has another `stamp`."""

    __slots__ = ("descriptor", "stamp")

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; run `zoo tokenize` again") from None
        except OSError as error:
            raise not_read(path, error) from None
        status = os.fstat(self.descriptor)
        self.stamp = status.st_ino, status.st_size, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: expected a regular file; run `zoo tokenize` again")

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it did not open
            os.close(self.descriptor)


_recent: OrderedDict[Path, _OpenFile] = OrderedDict()
"""The files that were used last, at most MOST_OPEN."""
_recent_lock = threading.Lock()


def _open(path: Path, *, fresh: bool) -> _OpenFile:
    """Return an open file; `fresh` opens it again. Raises DataError, ReadError."""
    with _recent_lock:
        if not fresh and (found := _recent.get(path)):
            _recent.move_to_end(path)
            return found
    file = _OpenFile(path)
    with _recent_lock:
        _recent[path] = file
        _recent.move_to_end(path)
        while len(_recent) > MOST_OPEN:
            _recent.popitem(last=False)
    return file
