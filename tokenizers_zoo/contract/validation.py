"""Validation of values and tokens against a modality's spec, and reading and writing of plain files."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import threading
import tokenize
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.contract.spec import ITEMS, ModalitySpec, ValueSpec
from tokenizers_zoo.errors import (
    LONE_SURROGATE,
    InvalidValueError,
    UnknownNameError,
    first_line,
    is_of_the_machine,
    size_text,
)
from tokenizers_zoo.records.io import too_deep
from tokenizers_zoo.records.limits import limits

if TYPE_CHECKING:
    import torch

EMPTY = "it is empty"
JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A JSON string, perhaps cut off; possessive, so that the time is linear."""
MOST_READS, MOST_READS_OF_BMP = 500_000, 5_000_000
"""Reads of a file besides one per 100 bytes: seconds. Frames, pixels and sounds take fewer, but Pillow reads compressed
.bmp files byte by byte."""
_NPY_LOCK = threading.Lock()
NO_ORDER_IN_TORCH = ("uint16", "uint32", "uint64")
"""Types whose minimum torch cannot compute."""


def expected_value(spec: ValueSpec) -> str:
    """Return the expected form of a value, for a message: `float32 (1, height, width) metres in [0, 100]`."""
    if spec.kind != "array":
        json_type = f"a list of {spec.items}s" if spec.items else "a dict of JSON types"
        expected = "str" if spec.kind == "text" else json_type
        return f"{expected} ({spec.description})" if spec.description else expected
    low, high = bounds(spec)
    return str(dataclasses.replace(spec, low=low, high=high))


def bounds(spec: ValueSpec) -> tuple[float | None, float | None]:
    """Return the inclusive bounds of an array's numbers: the declared ones, or the range of class ids."""
    if spec.classes and spec.low is None and spec.high is None:
        return 0, len(spec.classes) - 1
    return spec.low, spec.high


def describe(value: Any) -> str:
    """Describe a value for a message: `uint8 (1, 64, 64) 0..255`, `str 'a cat'`."""
    array = as_array(value)
    if isinstance(array, np.ndarray | np.number):
        return f"{str(value.dtype).removeprefix('torch.')} {_shape(value.shape)}{_span(np.asarray(array))}"
    try:
        text = repr(value)
    except RecursionError:
        text = "nested too deeply to be shown"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _shape(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _span(array: np.ndarray[Any, Any]) -> str:
    if array.size == 0 or array.dtype.kind not in "iufb":
        return ""
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    if finite.size == 0:
        return " without a finite number"
    suffix = f" with {array.size - finite.size} not finite" if finite.size < array.size else ""
    return f" {finite.min():.6g}..{finite.max():.6g}{suffix}" if array.dtype.kind != "b" else ""


def as_array(value: Any) -> Any:
    """Return a tensor as a numpy array, types that numpy lacks, such as bfloat16, as float32; other values as they
    are."""
    if not hasattr(value, "detach"):
        return value
    try:
        return value.numpy(force=True)
    except TypeError:
        return value.float().numpy(force=True)


def value_problem(spec: ValueSpec, value: Any, *, any_size: bool = False) -> str | None:
    """Return the problem of one value, or None.

    With `any_size` the last two axes of an array may have another size than declared, as on disk before `transform`.
    """
    if spec.kind == "text":
        if not isinstance(value, str):
            return "give a str"
        if spec.classes and value not in spec.classes:
            return str(UnknownNameError.of("class", value, spec.classes))
        return "it cannot be written as UTF-8" if LONE_SURROGATE.search(value) else None
    if spec.kind == "object":
        return (
            _json_problem(value)
            if isinstance(value, list if spec.items else dict)
            else f"give a {'list' if spec.items else 'dict'}"
        )
    if not isinstance(value, np.ndarray | np.generic):  # of no axes both are the same
        return "give a numpy array"
    shape: tuple[int | str, ...] = spec.shape
    if any_size and len(shape) >= 2:
        shape = (*shape[:-2], "height", "width")
    return _array_problem(spec, value, shape)


def is_object(spec: ValueSpec, value: Any) -> bool:
    """Return whether a value has the declared type of objects: a dict, or a list of the declared items."""
    if not spec.items:
        return isinstance(value, dict)
    return isinstance(value, list) and all(isinstance(item, ITEMS[spec.items]) for item in value)


def batch_problem(spec: ValueSpec, values: torch.Tensor | np.ndarray[Any, Any]) -> str | None:
    """Return the problem of a batch `(batch, *shape)` of array values, or None."""
    if not isinstance(values, np.ndarray):
        values = values.detach()
        values = values.cpu().numpy() if spec.dtype in NO_ORDER_IN_TORCH else values
    return _array_problem(spec, values, ("batch", *spec.shape))


def _array_problem(spec: ValueSpec, array: Any, shape: tuple[int | str, ...]) -> str | None:
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        return f"convert it to {spec.dtype}{f' {spec.unit}' if spec.unit else ''} first"
    actual = tuple(array.shape)
    if len(actual) != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, actual, strict=True)):
        return f"the shape is not {_shape(shape)}"
    if math.prod(actual) == 0:
        return EMPTY
    low, high = bounds(spec)
    number = np.dtype(spec.dtype)
    if number.kind == "b":
        return None
    if number.kind == "f":  # round the bound to the dtype: 0.01 is a little less in float32
        with np.errstate(over="ignore"):
            low, high = (bound if bound is None else float(number.type(bound)) for bound in (low, high))
    minimum, maximum = float(array.min()), float(array.max())  # NaN anywhere makes both NaN, in numpy and in torch
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        return "every number has to be finite: fill the others first"
    if (low is not None and minimum < low) or (high is not None and maximum > high):
        return (
            f"numbers lie outside the range: {'map them to classes' if spec.classes else 'convert or clip them'} first"
        )
    return None


def _json_problem(value: Any) -> str | None:
    depth_error = f"it is nested too deeply: {limits().json_depth} levels at most"
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        round_trips = bool(json.loads(text) == value)
    except RecursionError:
        return depth_error
    except (TypeError, ValueError) as error:
        return str(error)
    if too_deep(value, limits().json_depth):
        return depth_error
    if LONE_SURROGATE.search(text):
        return "it cannot be written as UTF-8"
    return None if round_trips else "JSON changes it: it has tuples, or keys that are no text"


def in_declared_width(spec: ValueSpec, value: Any) -> Any:
    """Convert floats, and integers that fit, from a file's width to the declared dtype."""
    if spec.kind != "array" or not isinstance(value, np.ndarray) or not value.size:
        return value
    dtype = np.dtype(spec.dtype)
    if dtype.kind == value.dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large numbers become infinite and are refused
            return value.astype(dtype, copy=False)
    if dtype.kind in "iu" and value.dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return value.astype(dtype, copy=False) if low <= value.min() and value.max() <= high else value
    return value


def text_of(data: bytes) -> str:
    """Decode UTF-8 without a byte order mark. Raises InvalidValueError, also above the limit `text_bytes`."""
    limits().check("text_bytes", len(data), f"a text of {len(data):,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"not UTF-8 at byte {error.start}; save the text as UTF-8") from None


def json_of(data: bytes) -> Any:
    """Return the value of a JSON file (RFC 8259: without NaN). Raises ValueError, and InvalidValueError above limits.

    Nesting and items are counted before the file is parsed: a comma separates two items, and a bracket may hold one.
    """
    text = text_of(data)
    marks = np.frombuffer(JSON_STRING.sub(b"", data), np.uint8)
    opening = (marks == ord("[")) | (marks == ord("{"))
    closing = (marks == ord("]")) | (marks == ord("}"))
    items = int(opening.sum()) + int((marks == ord(",")).sum())
    depth = int((opening.view(np.int8) - closing.view(np.int8)).cumsum(dtype=np.int32).max(initial=0))
    limits().check("json_elements", items, f"JSON of {items:,} items")
    limits().check("json_depth", depth, f"JSON of {depth:,} levels")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def array_of(data: bytes) -> np.ndarray[Any, Any]:
    """Return the array of an .npy file. Raises ValueError, and InvalidValueError for Python objects and above limits.

    numpy parses the header with Python's parser, which sometimes fails in Python 3.11 while another thread parses ("AST
    constructor recursion depth mismatch"): one thread does it at a time.
    """
    file = io.BytesIO(data)
    try:
        with _NPY_LOCK:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
    except (ValueError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"its header cannot be read: {first_line(error)}") from None
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {size_text(shape)}")
    if dtype.hasobject:  # numpy would advise to unpickle it
        raise InvalidValueError("the .npy file holds Python objects; save it as numbers (.astype(np.float32))")
    count, available_bytes = math.prod(shape), len(data) - file.tell()
    limits().check("array_elements", count, f"an array of {size_text(shape)} numbers")
    if available_bytes < count * dtype.itemsize:  # numpy would allocate the whole array first
        raise ValueError(f"cut off: it has {available_bytes} of {count * dtype.itemsize} bytes")
    flat = np.frombuffer(data, dtype, count, file.tell())
    return flat.reshape(shape, order="F" if fortran else "C").copy(order="K")


class CountedReads(io.BytesIO):
    """A file in memory for a library that reads it part by part. Raises InvalidValueError if its parts are so many
    that most are empty, or that reading them takes too long."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = (MOST_READS_OF_BMP if data[:2] == b"BM" else MOST_READS) + len(data) // 100

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise InvalidValueError("its parts are too many; save it again")
        return super().read(size)


def array_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """Return an array as an .npy file; `array_of` reads it back."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def values_equal(first: Any, second: Any) -> bool:
    """Return whether two values are equal."""
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    return bool(first == second)


def commonest_classes(maps: np.ndarray[Any, Any], unscored: Sequence[int] = ()) -> np.ndarray[Any, Any]:
    """Return the most frequent class id of each position `(count, ...)` of maps `(...)`, the lowest of equals.

    Ids in `unscored` are never returned: a position with no other id gets the most frequent id of all positions, or
    else the lowest scored id.
    """
    ids = np.setdiff1d(maps, unscored)
    if not len(ids):
        ids = np.setdiff1d(np.arange(len(unscored) + 1), unscored)[:1]
    counts = np.stack([(maps == number).sum(axis=0) for number in ids])
    overall = counts.reshape(len(ids), -1).sum(axis=1).argmax()
    indices = np.where(counts.any(axis=0), counts.argmax(axis=0), overall)
    return ids[indices].astype(maps.dtype)


def is_batched(spec: ValueSpec) -> bool:
    """Return whether plugins get batches as one tensor, that is, arrays of fixed shape."""
    return spec.kind == "array" and all(isinstance(size, int) for size in spec.shape)


def values_in(spec: ValueSpec, item: Any) -> list[Any]:
    """Return the values in a list or array of them, or in one item; they are not checked."""
    is_single = spec.kind == "object" and is_object(spec, item)  # a value may be a list itself
    is_batch = (isinstance(item, list | tuple) and not is_single) or (
        is_batched(spec) and getattr(item, "ndim", 0) == len(spec.shape) + 1
    )
    return list(item) if is_batch else [item]


def token_value(spec: ModalitySpec) -> ValueSpec:
    """Return the type, shape and bounds of one sample's tokens."""
    layout = spec.layout
    shape: tuple[int | str, ...] = layout.token_shape
    if layout.variable:
        shape = ("tokens", *shape[1:])
    if spec.continuous:
        return ValueSpec(shape=shape, dtype="float32")
    return ValueSpec(shape=shape, dtype="int64", low=0, high=spec.vocab_size - 1)


def expected_tokens(spec: ModalitySpec) -> str:
    """Return the expected form of a batch of tokens, for a message."""
    layout, value = spec.layout, token_value(spec)
    if not layout.variable:
        return str(dataclasses.replace(value, shape=("batch", *value.shape)))
    without = ""
    if layout.special:
        end, first, count = layout.special.values()
        without = f" without end ({end}) and sentinels ({first} to {first + count - 1})"
    return f"a list of {value} of up to {layout.length} tokens{without}"


def checked_tokens(spec: ModalitySpec, batch: Any, *, trusted: bool = False) -> tuple[Any, str | None]:
    """Return a batch of tokens in the form that plugins get, and its problem or None.

    The form is a tensor for layouts of fixed length, and a list of numpy arrays for the others. `trusted` tokens were
    checked before and are only brought into this form.
    """
    import torch

    try:
        if not spec.layout.variable:
            listed = isinstance(batch, list | tuple)
            tokens = torch.stack([_tensor(item) for item in batch]) if listed else _tensor(batch)
            return tokens, None if trusted else _token_problem(spec, tokens.detach())
        items = [item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item) for item in batch]
    except (TypeError, ValueError, RuntimeError) as error:
        if is_of_the_machine(error):
            raise
        return batch, str(error)
    for index, item in enumerate(() if trusted else items):
        if invalid := _token_problem(spec, item):
            return items, f"item {index} is {describe(item)}: {invalid}"
    return items, None if items else EMPTY


def token_batch(spec: ModalitySpec, item: Any) -> Any:
    """Return the tokens of one sample, or of several in a list or array, as a batch; None for values.

    An array is tokens if it has their type and shape, and is not a value of the modality.
    """
    is_list = isinstance(item, list)
    arrays = item if is_list else [item]
    if not all(hasattr(array, "dtype") and value_problem(spec.value, as_array(array)) for array in arrays):
        return None
    for batch in (item,) if is_list else ([item], item):
        tokens, error = checked_tokens(spec, batch)
        if not error:
            return tokens
    return None


def _tensor(tokens: Any) -> torch.Tensor:
    """Return tokens as a tensor. Numpy arrays are copied: torch takes no mirrored arrays and warns of read-only
    ones."""
    import torch

    if isinstance(tokens, np.ndarray):
        return torch.from_numpy(np.array(tokens, order="C"))
    return torch.as_tensor(tokens)


def _token_problem(spec: ModalitySpec, tokens: Any) -> str | None:
    """Return the problem of a batch of tokens of fixed length, or of one item of variable length; None without any."""
    layout, value = spec.layout, token_value(spec)
    if layout.variable and len(tokens) > layout.length:
        return f"it is longer than {layout.length}"
    error = _array_problem(value, tokens, value.shape if layout.variable else ("batch", *value.shape))
    if error == EMPTY and layout.variable:
        return None
    if error is None and layout.special and layout.is_special(tokens).any():
        return "it holds the end or a sentinel, which only the backbone adds"
    return error
