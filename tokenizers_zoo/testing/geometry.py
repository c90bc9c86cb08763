"""Does a modality crop where all the others do? A marked rectangle has to land where arithmetic says."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.spec import Crop
from tokenizers_zoo.testing.subject import Subject

RECTANGLE = (0.35, 0.35, 0.55, 0.5)
"""Top, left, bottom, right of the marked part, as fractions of the whole picture."""
CROPS = (
    Crop(),
    Crop(top=0.2, left=0.3, height=0.6, width=0.5),
    Crop(top=0.2, left=0.3, height=0.6, width=0.5, flip=True),
    Crop(left=0.25, width=0.5, flip=True),
)
TOLERANCE = 1.5
"""Pixels of the result by which an edge may be off: half for resampling, one for thin structures."""
SMALLEST = 16
"""Pixels below which the tolerance would hide a flip."""


def check_crop_geometry(subject: Subject) -> str | None:
    """Raise AssertionError where the rectangle lands elsewhere; gives the reason where the check does not apply.

    The picture has two of the modality's own pixels (so that unit vectors, class ids and edges stay what they are), one
    outside and one inside the rectangle, and another aspect than the result. A pixel of the result counts as inside
    where it is nearer to what a picture of the inner pixel alone gives under the same crop.
    """
    handle = subject.handle
    if not is_picture(handle):
        return "its values are no pictures that are cropped"
    height, width = subject.values[0].shape[-2:]
    if min(height, width) < SMALLEST:
        return f"{height} x {width} pixels are too few to tell"
    pixels = two_pixels(subject.values)
    if pixels is None:
        return "the sample values are constant"
    outer, inner = (np.broadcast_to(pixel[..., None, None], (*pixel.shape, 2 * height, 3 * width)) for pixel in pixels)
    marked = outer.copy()
    top, left, bottom, right = RECTANGLE
    rows = slice(round(top * 2 * height), round(bottom * 2 * height))
    columns = slice(round(left * 3 * width), round(right * 3 * width))
    marked[..., rows, columns] = inner[..., rows, columns]
    for crop in CROPS:
        seen = [handle.transform(np.ascontiguousarray(picture), crop) for picture in (marked, outer, inner)]
        compare(handle.name, crop, edges_found(*seen), edges_expected(crop, seen[0].shape[-2:]))
    return None


def is_picture(handle: ModalityHandle) -> bool:
    """True where a value's last two axes may be rows and columns, which they are not where tokens lie on one axis, as
    those of a series (channels, time) do."""
    value = handle.spec.value
    flat = value.kind == "array" and len(value.shape) >= 2 and handle.implements("transform")
    return flat and len(handle.spec.places) != 1


def two_pixels(values: list[np.ndarray[Any, Any]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Two pixels of the values that are far apart, `(channels,)` or scalars; None where all are equal."""
    columns = np.concatenate([value.reshape(*value.shape[:-2], -1) for value in values], axis=-1)
    flat = columns.reshape(-1, columns.shape[-1]).astype(np.float64)
    first = np.abs(flat - flat.mean(axis=1, keepdims=True)).sum(axis=0).argmax()
    distance = np.abs(flat - flat[:, first : first + 1]).sum(axis=0)
    if distance.max() == 0:
        return None
    return columns[..., first], columns[..., distance.argmax()]


def edges_expected(crop: Crop, size: tuple[int, int]) -> tuple[float, ...]:
    """Top, left, bottom, right of the rectangle in a crop of `size` pixels."""
    top, left, bottom, right = RECTANGLE
    rows = [(edge - crop.top) / crop.height * size[0] for edge in (top, bottom)]
    columns = [(edge - crop.left) / crop.width for edge in (left, right)]
    if crop.flip:
        columns = [1 - columns[1], 1 - columns[0]]
    return rows[0], columns[0] * size[1], rows[1], columns[1] * size[1]


def edges_found(seen: np.ndarray[Any, Any], outer: np.ndarray[Any, Any], inner: np.ndarray[Any, Any]) -> Any:
    """Top, left, bottom, right of the pixels that are nearer to `inner` than to `outer`, or None without any."""
    height, width = seen.shape[-2:]
    far, near = (np.abs(seen.astype(np.float64) - other).reshape(-1, height, width).sum(0) for other in (outer, inner))
    inside = near < far
    rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
    return (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if len(rows) else None


def compare(name: str, crop: Crop, found: Any, expected: tuple[float, ...]) -> None:
    """Raise AssertionError where an edge is off by more than the tolerance."""
    off = found is None or max(abs(f - e) for f, e in zip(found, expected, strict=True)) > TOLERANCE
    if off:
        wanted = ", ".join(f"{edge:.1f}" for edge in expected)
        got = "nowhere" if found is None else ", ".join(map(str, found))
        raise AssertionError(
            f"{name}: {crop} shows the marked rectangle (top, left, bottom, right) at {got}, expected {wanted} pixels"
        )
