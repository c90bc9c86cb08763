"""Probe: a file that users may have, its outcome, and the numbers and pictures that such files show."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from tokenizers_zoo.errors import InvalidValueError, MachineError, ZooError
from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.spec import Crop
from tokenizers_zoo.validation import array_bytes, bounds, describe

LONGEST_LINE = 500
"""Maximal characters of a refusal."""
CLOSE = 0.01
"""Maximal mean difference of equal values, as a share of their range."""
STUMBLES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError)
"""Errors of a reader that does not check its input."""
BLOCK = 8
"""Bars end at multiples of this many pixels, so that JPEG keeps them."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class File:
    """A file's bytes, and its extension without a dot."""

    data: bytes
    extension: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A file, its description, and its possible readings.

    `readings` are plain files with a description: the probe was read like the file whose value it equals.
    """

    what: str
    file: File
    readings: tuple[tuple[str, File], ...] = ()
    _: KW_ONLY
    numbers: Array | None = None
    """The numbers in the file, if a value may be a multiple of them; for the documentation."""
    damaged: bool = False
    """True if the library that opens such files gives the reason of the refusal."""
    must_match: bool = False
    """True if other readings are wrong, because the content would move."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Outcome of a probe: its value and how it was read, or the line that refuses it, or a fault."""

    value: Any = None
    how: str = ""
    """Description of the reading that gives the same value."""
    as_read: Any = None
    """The value before `transform`, if no reading gives it."""
    line: str = ""
    fault: str = ""

    @property
    def read(self) -> bool:
        """True if the file was read without a fault."""
        return not self.line and not self.fault


def npy(array: Array) -> File:
    """Return an array as a .npy file."""
    return File(array_bytes(array), "npy")


def outcome_of(handle: ModalityHandle, probe: Probe) -> Outcome:
    """Read the probe as the pipeline does: read, transform, check.

    A fault is anything but a valid value, or a one-line InvalidValueError that begins with the modality's name. Raises
    MachineError.
    """
    try:
        as_read = handle.read(probe.file.data, probe.file.extension)
        value = handle.transform(as_read, Crop())
    except InvalidValueError as error:
        line = str(error)
        if not line.startswith(f"{handle.name}: "):
            return Outcome(fault=f"it is refused by a line that does not begin with the modality: {line[:200]!r}")
        if "\n" in line or len(line) >= LONGEST_LINE:
            return Outcome(fault=f"it is refused in {len(line)} characters, expected one line below {LONGEST_LINE}")
        if isinstance(error.__cause__, STUMBLES):
            return Outcome(fault=f"read_value stumbles over it, and cannot say what is wrong: {line[:200]!r}")
        return Outcome(line=line)
    except MachineError:
        raise
    except Exception as error:
        return Outcome(fault=f"it is met with {type(error).__name__}: {str(error)[:200]}")
    try:
        handle.check(value)
        handle.write(as_read)
    except ZooError as error:
        return Outcome(fault=f"it is read as {describe(as_read)}, which is no value: {error}")
    for how, file in probe.readings:
        if alike(value, plainly_read(handle, file)):
            return Outcome(value=value, how=how)
    if probe.must_match and any(plainly_read(handle, file) is not None for _, file in probe.readings):
        hows = " or ".join(how for how, _ in probe.readings)
        return Outcome(fault=f"it is read, but not as it should be: {hows}")
    return Outcome(value=value, as_read=as_read)


def plainly_read(handle: ModalityHandle, file: File) -> Any:
    """Return the value of a file, or None."""
    try:
        return handle.transform(handle.read(file.data, file.extension), Crop())
    except ZooError:
        return None


def alike(first: Any, second: Any) -> bool:
    """True if two values are equal, arrays up to compression."""
    if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
        return type(first) is type(second) and bool(first == second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    a, b = first.astype(np.float64), second.astype(np.float64)
    return float(np.abs(a - b).mean()) <= CLOSE * (float(np.ptp(b)) or 1.0)


def span_of(handle: ModalityHandle) -> tuple[float, float]:
    """Return two numbers well within the declared bounds of an array, the lower first."""
    spec = handle.spec.value
    low, high = bounds(spec)
    if np.dtype(spec.dtype).kind in "iub":
        first = 0 if low is None else int(low)
        return (first, first + 1) if high is not None and high - first < 2 else (first + 1, first + 2)
    if low is None and high is None:
        return -1.0, 1.0
    if low is None:
        return (high or 0) - 2, (high or 0) - 1
    if high is None:
        return low + 1, low + 2
    return low + (high - low) / 4, high - (high - low) / 4


def bars(shape: tuple[int, ...], tones: tuple[float, float], dtype: str = "float32") -> Array:
    """Return an array of two numbers in bars along the last two axes, without symmetry.

    An array without axes has one number.
    """
    pattern = np.array([[0, 1], [1, 0], [1, 1]])
    if not shape:
        return np.asarray(tones[0], dtype)
    if len(shape) < 2:
        numbers = np.array(tones)[pattern[:, 0]].repeat(-(-shape[-1] // 3))[: shape[-1]]
    else:
        numbers = np.array(tones)[pattern[_bar(shape[-2], 3)][:, _bar(shape[-1], 2)]]
    return np.ascontiguousarray(np.broadcast_to(numbers, shape).astype(dtype))


def _bar(size: int, count: int) -> Array:
    """Return the number of the bar, of `count`, for each of `size` positions."""
    block = BLOCK if size >= BLOCK * count else 1
    return np.minimum(np.arange(size) // block * block * count // size, count - 1)


def fits(number: float, dtype: np.dtype[Any]) -> bool:
    """True if a dtype can hold a number."""
    if dtype.kind == "f":
        return abs(number) <= float(np.finfo(dtype).max)
    return dtype.kind in "iu" and bool(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max)
