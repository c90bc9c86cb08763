"""Defaults of the optional hooks: files, metrics, rendering, the constant baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.spec import Metric, ValueSpec
from tokenizers_zoo.validation import array_bytes, array_of, describe, text_of

EXACT = Metric(name="exact", higher_is_better=True, meaning="fraction of values that are equal to their target")
EXTENSIONS = {"array": "npy", "text": "txt", "object": "json"}
MOST_CANDIDATES = 32
MARK = "\ufeff"  # at the start of a file, says that it is UTF-8


def read_value(spec: ValueSpec, data: bytes, extension: str) -> Any:
    """One value from `.npy`, `.txt` (UTF-8) or `.json` bytes, by the kind of the spec. Raises InvalidValueError.

    A line feed at the end of a `.txt`, which editors put there, is not part of the text; lines may end as on Windows.
    """
    expected = EXTENSIONS[spec.kind]
    if extension != expected:
        raise InvalidValueError(f"expected a .{expected} file, got .{extension}")
    try:
        if spec.kind == "array":
            return array_of(data)
        text = text_of(data)
        return text.replace("\r\n", "\n").removesuffix("\n") if spec.kind == "text" else json.loads(text)
    except (ValueError, OSError) as error:
        raise InvalidValueError(f"damaged .{extension} file: {error}") from error


def write_value(spec: ValueSpec, value: Any) -> tuple[bytes, str]:
    """A value as bytes and their extension; `read_value` gives it back.

    Raises InvalidValueError for a text with a carriage return, which reading takes for an end of a line.
    """
    extension = EXTENSIONS[spec.kind]
    if spec.kind == "array":
        return array_bytes(np.asarray(value, order="C")), extension  # also one without an axis stays so
    if spec.kind == "text" and "\r" in value:
        raise InvalidValueError("a text with a carriage return has no file; end its lines with line feeds alone")
    text = f"{value}\n" if spec.kind == "text" else json.dumps(value, ensure_ascii=False, allow_nan=False)
    mark = MARK if text.startswith(MARK) else ""  # so that reading takes off what is not part of it
    return f"{mark}{text}".encode(), extension


def render(spec: ValueSpec, value: Any) -> str:
    """A summary in text."""
    if spec.kind == "array":
        return describe(value)
    return value if spec.kind == "text" else json.dumps(value, ensure_ascii=False, indent=1)


def same(first: Any, second: Any) -> bool:
    """True where two values are equal."""
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    return bool(first == second)


def score(predicted: Sequence[Any], target: Sequence[Any]) -> dict[str, float]:
    """`exact`: the fraction of values that are equal."""
    return {EXACT.name: float(np.mean([same(p, t) for p, t in zip(predicted, target, strict=True)]))}


def constant_baseline(
    values: Sequence[Any], metric: Metric, score: Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]
) -> Any:
    """Of up to 32 of `values`, evenly spaced, the one that scores best against all of them; the first of equals."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_CANDIDATES)).round().astype(int))
    marks = [score([values[i]] * len(values), values)[metric.name] for i in places]
    return values[places[metric.best(marks)]]
