"""Alignment of a sample's pictures: exact crops, and the shift between the edges of two modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.testing.results import Failed, Skipped

TOLERANCE = 1
"""Tolerance in pixels: an edge of a resized picture lies between two pixels."""
MIN_CORRELATION = 0.1
"""A lower correlation means too few common edges to tell."""
CLEAR = 0.8
"""Edges that correlate within the tolerance at least so well, compared with the peak, are aligned: the peak of smooth
or periodic pictures is broad or one of several, so that its position says little."""
SATURATION = 3.0
"""Limit of an edge's strength, in mean strengths, so that one strong edge does not dominate."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """Shift of the second modality against the first, in pixels of the result."""

    down: int
    right: int

    def __str__(self) -> str:
        down, right = ("lower" if self.down >= 0 else "higher"), ("right" if self.right >= 0 else "left")
        return f"{abs(self.down)} pixels {down} and {abs(self.right)} further {right}"

    @property
    def aligned(self) -> bool:
        """True if the edges align."""
        return max(abs(self.down), abs(self.right)) <= TOLERANCE


def edges(value: Array) -> Array:
    """Return the edge strength at each pixel `(height - 1, width - 1)` of a value `(..., height, width)`, at mean 0.

    For integers, an edge is another id below or to the right.
    """
    planes = value.reshape(-1, *value.shape[-2:])
    if value.dtype.kind in "iub":
        down = (planes[:, 1:, :-1] != planes[:, :-1, :-1]).astype(np.float64)
        right = (planes[:, :-1, 1:] != planes[:, :-1, :-1]).astype(np.float64)
    else:
        planes = planes.astype(np.float64)
        down = np.abs(planes[:, 1:, :-1] - planes[:, :-1, :-1])
        right = np.abs(planes[:, :-1, 1:] - planes[:, :-1, :-1])
    strength = (down + right).sum(axis=0)
    strength = np.minimum(strength, SATURATION * strength.mean())
    return strength - strength.mean()


def shift_between(first: Sequence[Array], second: Sequence[Array]) -> Shift | None:
    """Return the shift of `second` against `first`, aligned lists of values of one height and width.

    None if there are too few common edges to tell.

    It is the peak of the circular cross-correlation of their edges, summed over all samples, up to a quarter of the
    picture in each direction. With several samples the mean edges are subtracted, because their position says nothing
    about alignment.
    """
    first_edges, second_edges = (np.stack([edges(value) for value in values]) for values in (first, second))
    if len(first_edges) > 1:
        first_edges, second_edges = first_edges - first_edges.mean(axis=0), second_edges - second_edges.mean(axis=0)
    spectrum = np.conj(np.fft.rfft2(first_edges)) * np.fft.rfft2(second_edges)
    correlation = np.fft.irfft2(spectrum.sum(axis=0), s=first_edges.shape[-2:])
    rows, columns = (np.r_[0 : size // 4 + 1, -(size // 4) : 0] for size in correlation.shape)
    near = correlation[np.ix_(rows, columns)]
    energy = float(np.sqrt((first_edges**2).sum() * (second_edges**2).sum()))
    if not near.max() >= MIN_CORRELATION * energy > 0:
        return None
    close_rows, close_columns = (np.flatnonzero(np.abs(offsets) <= TOLERANCE) for offsets in (rows, columns))
    if near[np.ix_(close_rows, close_columns)].max() >= CLEAR * near.max():
        return Shift(down=0, right=0)
    row, column = np.unravel_index(near.argmax(), near.shape)
    return Shift(down=int(rows[row]), right=int(columns[column]))


RECTANGLE = (0.35, 0.35, 0.55, 0.5)
"""Top, left, bottom, right of the marked part, as fractions of the picture."""
CROPS = (
    Crop(),
    Crop(top=0.2, left=0.3, height=0.6, width=0.5),
    Crop(top=0.2, left=0.3, height=0.6, width=0.5, flip=True),
    Crop(left=0.25, width=0.5, flip=True),
)
EDGE_TOLERANCE = 1.5
"""Tolerance of an edge in pixels of the result: half for resampling, one for thin structures."""
MIN_SIDE = 16
"""In smaller pictures the tolerance would hide a flip."""


def check_crop_geometry(handle: ModalityHandle, values: list[Array]) -> None:
    """Raise Failed if the rectangle lands elsewhere, and Skipped if the check does not apply.

    The picture consists of two pixels of the modality's values (so that unit vectors, class ids and edges stay valid),
    one outside and one inside the rectangle. Its aspect ratio differs from the result's. A pixel of the result counts
    as inside if it is closer to the same crop of a picture of the inner pixel alone.
    """
    if not is_picture(handle):
        raise Skipped("its values are no pictures that are cropped")
    height, width = values[0].shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise Skipped(f"{height} x {width} pixels are too few to tell")
    pixels = two_pixels(values)
    if pixels is None:
        raise Skipped("the sample values are constant")
    outer, inner = (np.broadcast_to(pixel[..., None, None], (*pixel.shape, 2 * height, 3 * width)) for pixel in pixels)
    marked = outer.copy()
    top, left, bottom, right = RECTANGLE
    rows = slice(round(top * 2 * height), round(bottom * 2 * height))
    columns = slice(round(left * 3 * width), round(right * 3 * width))
    marked[..., rows, columns] = inner[..., rows, columns]
    for crop in CROPS:
        pictures = (handle.transform(np.ascontiguousarray(picture), crop) for picture in (marked, outer, inner))
        cropped, *references = (picture.astype(np.float64) for picture in pictures)
        high, wide = cropped.shape[-2:]
        far, near = (np.abs(cropped - reference).reshape(-1, high, wide).sum(0) for reference in references)
        inside = near < far
        ys, xs = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
        corners = [ys[0], xs[0], ys[-1] + 1, xs[-1] + 1] if len(ys) else []
        ends = [(edge - crop.left) / crop.width for edge in (left, right)]
        ends = [1 - ends[1], 1 - ends[0]] if crop.flip else ends
        first, last = ((edge - crop.top) / crop.height * high for edge in (top, bottom))
        expected = first, ends[0] * wide, last, ends[1] * wide
        if not corners or max(abs(f - e) for f, e in zip(corners, expected, strict=True)) > EDGE_TOLERANCE:
            raise Failed(
                f"{handle.name}: {crop} shows the marked rectangle (top, left, bottom, right) at"
                f" {', '.join(map(str, corners)) or 'nowhere'}, expected"
                f" {', '.join(f'{edge:.1f}' for edge in expected)} pixels",
                "let the hook transform cut crop.top, left, height, width (fractions), then flip",
            )


def is_picture(handle: ModalityHandle) -> bool:
    """True if a value's last two axes may be rows and columns. For tokens along one axis, such as a series (channels,
    time), they are not."""
    value = handle.spec.value
    flat = value.kind == "array" and len(value.shape) >= 2 and handle.implements("transform")
    return flat and len(handle.spec.grid_shape) != 1


def two_pixels(values: list[np.ndarray[Any, Any]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Return two very different pixels of the values, `(channels,)` or scalars; None if all are equal."""
    columns = np.concatenate([value.reshape(*value.shape[:-2], -1) for value in values], axis=-1)
    flat = columns.reshape(-1, columns.shape[-1]).astype(np.float64)
    first = np.abs(flat - flat.mean(axis=1, keepdims=True)).sum(axis=0).argmax()
    distance = np.abs(flat - flat[:, first : first + 1]).sum(axis=0)
    if distance.max() == 0:
        return None
    return columns[..., first], columns[..., distance.argmax()]
