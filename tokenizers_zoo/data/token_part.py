"""One part of a token store: a memory-mapped Arrow IPC file that names the codec which wrote it.

Columns are `key` and `tokens`: fixed-size lists of int32 for grids and vectors, lists of int32 for sequences, float16
or float32 for continuous layouts. A part is one record batch, so that a column is one stretch of memory.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.errors import DataError, ReadError
from tokenizers_zoo.io import as_recorded, difference, not_read, replacing_file
from tokenizers_zoo.spec import EmbeddingsLayout, PatchesLayout, TokenLayout, layout_from_json, layout_to_json
from tokenizers_zoo.validation import has_fixed_length

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenizers_zoo.registry import ModalityHandle

PART_NAME = "part-{:05d}.arrow"
PARTS = "[!.]*.arrow"
"""A folder's parts, as `TARS`."""
SETTINGS = "settings"
"""Of a run: what the modality read and encoded values with. Parts of older versions lack it, and agree with any."""
METADATA_KEY = b"tokenizers_zoo"
NO_DAMAGE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE)
"""What the system says of a part that it does not open now, whatever is in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMetadata:
    """What every part of one modality says about its tokens; the parts agree on all of it."""

    modality: str
    vocabulary: str
    vocab_size: int
    layout: TokenLayout
    fingerprint: str
    distribution: str
    run: Mapping[str, Any]
    """What was encoded: the data's identity, settings, the number of crops and their seed (JSON types)."""

    @classmethod
    def of(cls, handle: ModalityHandle, run: Mapping[str, Any]) -> TokenMetadata:
        """The metadata of tokens that this handle's tokenizer writes now."""
        spec = handle.spec
        return cls(
            modality=handle.name, vocabulary=spec.vocabulary, vocab_size=spec.vocab_size, layout=spec.layout,
            fingerprint=handle.fingerprint, distribution=handle.distribution, run=dict(run),
        )  # fmt: skip

    def number_problem(self, row: npt.NDArray[Any]) -> str | None:
        """Why the numbers of a continuous layout cannot be stored; None where they can."""
        if not isinstance(self.layout, PatchesLayout | EmbeddingsLayout):
            return None
        if _finite(row, np.dtype(self.layout.dtype)):
            return None
        if self.layout.dtype == "float16" and _finite(row, np.float32):
            return f'numbers up to {np.abs(row).max():g} exceed float16; set dtype = "float32"'
        return f"some numbers are not finite as {self.layout.dtype}"

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "layout": layout_to_json(self.layout), "run": dict(self.run)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenMetadata:
        """What `to_json` wrote."""
        return cls(**{**data, "layout": layout_from_json(data["layout"])})

    def differences(self, other: TokenMetadata) -> list[str]:
        """The names of the fields in which two parts differ; a plugin's version is not the codec's identity."""
        mine, theirs = self.to_json(), other.to_json()
        mine["run"], theirs["run"] = self._run_beside(other), other._run_beside(self)
        return [name for name in mine if name != "distribution" and mine[name] != theirs[name]]

    def run_difference(self, other: TokenMetadata) -> str:
        """The first thing in which what was encoded here is not what another part is of, in words."""
        return difference(self._run_beside(other), other._run_beside(self))

    def _run_beside(self, other: TokenMetadata) -> dict[str, Any]:
        return as_recorded(other.run, self.run, SETTINGS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part file: its metadata, the largest id in it plus one, and the samples that could not be encoded."""

    path: Path
    metadata: TokenMetadata
    needed_vocab_size: int
    dropped: Mapping[str, str]
    made_of: str | None = None
    """What values the tokens are of, by the contents of their shards; None where that was not recorded."""


def write_part(path: Path, metadata: TokenMetadata, keys: Sequence[str], rows: Sequence[npt.NDArray[Any]],
               dropped: Mapping[str, str], made_of: str | None = None) -> None:  # fmt: skip
    """Write one part whole or not at all: a row per key, the dropped keys with their reasons, and what it is made of.

    `rows` hold int ids of any shape with the layout's number of tokens, 1-D ids for sequences, and floats
    `(tokens, dim)` for continuous layouts. Raises DataError where a row does not fit the layout or vocabulary.
    """
    import pyarrow as pa

    column, needed = _column(metadata, keys, rows)
    extra = {**metadata.to_json(), "needed_vocab_size": needed, "dropped": dict(dropped)}
    if made_of is not None:
        extra["made_of"] = made_of
    schema = pa.schema(
        [("key", pa.string()), ("tokens", column.type)],
        metadata={METADATA_KEY: json.dumps(extra, ensure_ascii=False).encode()},
    )
    batch = pa.record_batch([pa.array(keys, pa.string()), column], schema=schema)
    with (
        replacing_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(batch)


def _column(metadata: TokenMetadata, keys: Sequence[str], rows: Sequence[npt.NDArray[Any]]) -> tuple[pa.Array, int]:
    """The rows as an Arrow array, and the vocabulary length that they need."""
    import pyarrow as pa

    layout = metadata.layout
    dim = getattr(layout, "dim", 1)
    variable = not has_fixed_length(layout)
    dtype: Any = np.int32 if not isinstance(layout, PatchesLayout | EmbeddingsLayout) else np.dtype(layout.dtype)
    for key, row in zip(keys, rows, strict=True):
        most = layout.length * dim
        if row.size % dim or row.size > most or (row.size < most and not variable):
            expected = f"{'up to ' if variable else ''}{layout.length} tokens" + (f" of {dim}" if dim > 1 else "")
            raise DataError(f"{metadata.modality}: key {key!r}: expected {expected}, got an array of shape {row.shape}")
    flat = np.concatenate([np.ravel(row) for row in rows]) if rows else np.zeros(0, dtype)
    needed = 0
    if dtype == np.int32 and flat.size:
        low, needed = int(flat.min()), int(flat.max()) + 1
        if low < 0 or needed > metadata.vocab_size:
            raise DataError(f"{metadata.modality}: ids {low}..{needed - 1}, expected 0..{metadata.vocab_size - 1}")
    elif flat.size and not _finite(flat, dtype):
        raise DataError(f"{metadata.modality}: some numbers are not finite as {layout_to_json(layout)['dtype']}")
    values = pa.array(flat.astype(dtype))
    if not variable:
        return pa.FixedSizeListArray.from_arrays(values, layout.length * dim), needed
    offsets = np.concatenate([[0], np.cumsum([row.size // dim for row in rows])]).astype(np.int32)
    vectors = pa.FixedSizeListArray.from_arrays(values, dim) if isinstance(layout, EmbeddingsLayout) else values
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), vectors), needed


def _finite(numbers: npt.NDArray[Any], dtype: Any) -> bool:
    """True where no number is, or becomes in this dtype, infinite or NaN."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(numbers.astype(dtype)).all())


def read_part(path: Path) -> tuple[Part, pa.RecordBatch]:
    """Open one part memory-mapped. Raises DataError where it is damaged, ReadError where it cannot be opened now."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path), "r") as source:
            reader = pa.ipc.open_file(source)
            data = json.loads(reader.schema.metadata[METADATA_KEY])
            needed, dropped = data.pop("needed_vocab_size"), data.pop("dropped")
            made_of = data.pop("made_of", None)
            metadata = TokenMetadata.from_json(data)
            batch = reader.get_batch(0)
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and (code := _not_to_blame(error)):
            raise _not_opened(path, code) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a sound part of a token store ({reason}); delete it and tokenize again") from None
    return Part(path=path, metadata=metadata, needed_vocab_size=needed, dropped=dropped, made_of=made_of), batch


def _not_to_blame(error: OSError) -> int | None:
    """The number of an error of which the file is innocent; Arrow gives that of a failed mapping in words alone."""
    return next((code for code in NO_DAMAGE if error.errno == code or os.strerror(code) in str(error)), None)


def _not_opened(path: Path, code: int) -> ReadError:
    """The error that says so of a part."""
    if code != errno.ENOMEM:
        return not_read(path, OSError(code, os.strerror(code)))
    return ReadError(
        f"{path}: cannot be mapped: the limit of mappings or memory is reached, and a part of a modality takes one "
        "mapping; raise the limit (sysctl vm.max_map_count), or name fewer modalities"
    )
