"""Probe: a file that users may have, its outcome, and the numbers and pictures that such files show."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np

from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import array_bytes, bounds, describe
from tokenizers_zoo.errors import InvalidValueError, MachineError, ZooError
from tokenizers_zoo.testing.subject import equal

LONGEST_LINE = 500
"""Maximal characters of a refusal."""
CLOSE = 0.01
"""Maximal mean difference of equal values, as a share of their range."""
STUMBLES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError)
"""Errors of a reader that does not check its input."""
BLOCK = 8
"""Bars end at multiples of this many pixels, so that JPEG keeps them."""
Array = np.ndarray[Any, Any]


class File(NamedTuple):
    """A file's bytes, and its extension without a dot."""

    data: bytes
    extension: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A file, its description, and its possible readings.

    `readings` are plain files with a description: the probe was read like the file whose value it equals.
    """

    description: str
    file: File
    readings: tuple[tuple[str, File], ...] = ()
    _: KW_ONLY
    damaged: bool = False
    """True if the library that opens such files gives the reason of the refusal."""
    must_match: bool = False
    """True if other readings are wrong, because the content would move."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Outcome of a probe: its value and how it was read, or the line that refuses it, or a fault."""

    value: Any = None
    reading: str = ""
    """Description of the reading that gives the same value."""
    line: str = ""
    fault: str = ""

    @property
    def read(self) -> bool:
        """True if the file was read without a fault."""
        return not self.line and not self.fault


def npy(array: Array) -> File:
    return File(array_bytes(array), "npy")


def outcome_of(handle: ModalityHandle, probe: Probe) -> Outcome:
    """Read the probe as the pipeline does, whose handle checks values and names the modality in errors.

    A fault is anything but a value that can be written, or a one-line InvalidValueError. Raises MachineError.
    """
    try:
        raw_value = handle.read(*probe.file)
        value = handle.transform(raw_value, Crop())
    except InvalidValueError as error:
        line = str(error)
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
        handle.write(raw_value)
    except ZooError as error:
        return Outcome(fault=f"it is read as {describe(raw_value)}, which is no value: {error}")
    plain = [(reading, read_or_none(handle, file)) for reading, file in probe.readings]
    for reading, expected in plain:
        if equal(value, expected, CLOSE):
            return Outcome(value=value, reading=reading)
    if probe.must_match and any(expected is not None for _, expected in plain):
        return Outcome(fault=f"it is read, but not as it should be: {' or '.join(reading for reading, _ in plain)}")
    return Outcome(value=value)


def read_or_none(handle: ModalityHandle, file: File) -> Any:
    """Return the value of a file, or None."""
    try:
        return handle.transform(handle.read(*file), Crop())
    except ZooError:
        return None


def span_of(handle: ModalityHandle) -> tuple[float, float]:
    """Return two numbers well within the declared bounds of an array, the lower first."""
    spec = handle.spec.value
    low, high = bounds(spec)
    if np.dtype(spec.dtype).kind in "iub":
        first = 0 if low is None else int(low)
        return (first, first + 1) if high is not None and high - first < 2 else (first + 1, first + 2)
    if low is None or high is None:
        middle = 0.0 if low is high else low + 1.5 if low is not None else (high or 0) - 1.5
        return middle - 0.5, middle + 0.5
    return low + (high - low) / 4, high - (high - low) / 4


def bars(shape: tuple[int, ...], tones: tuple[float, float], dtype: str = "float32") -> Array:
    """Return an array of two numbers in bars along the last two axes, without symmetry.

    An array without axes has one number.
    """
    pattern = np.array([[0, 1], [1, 0], [1, 1]])
    if not shape:
        return np.asarray(tones[0], dtype)
    if len(shape) < 2:
        numbers = np.array(tones)[pattern[_bar(shape[-1], 3), 0]]
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
