"""Do the pictures of one sample lie on each other? The shift at which the edges of two modalities agree most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 1
"""Pixels by which edges of one sample may be apart: an edge of a resized picture lies between two pixels."""
WEAK = 0.1
"""Correlation below which two modalities have too few edges in common to tell."""
SATURATION = 3.0
"""An edge counts at most as much as this many mean ones, so that one strong edge does not drown the others."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """By how many pixels of the result the second modality lies lower and further right than the first, how surely."""

    down: int
    right: int
    correlation: float

    def __str__(self) -> str:
        down, right = ("lower" if self.down >= 0 else "higher"), ("right" if self.right >= 0 else "left")
        return f"{abs(self.down)} pixels {down} and {abs(self.right)} further {right}"

    @property
    def told(self) -> bool:
        """True where the two have enough edges in common."""
        return self.correlation >= WEAK

    @property
    def aligned(self) -> bool:
        """True where the edges lie on each other."""
        return max(abs(self.down), abs(self.right)) <= TOLERANCE


def edges(value: Array) -> Array:
    """How much changes at each pixel `(height - 1, width - 1)` of a value `(..., height, width)`, at mean 0.

    For integers: whether an id has another neighbour below or to the right.
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


def shift_between(first: Sequence[Array], second: Sequence[Array]) -> Shift:
    """The shift of `second` against `first`, aligned lists of values of one height and width.

    The peak of the cross-correlation of their edges, summed over all samples: circular, by the Fourier transform, up to
    a quarter of the picture in each direction. Where the edges of all samples lie says nothing, as each kind has parts
    of the picture where it is densest: of several samples the mean is taken off.
    """
    mine, theirs = (np.stack([edges(value) for value in values]) for values in (first, second))
    if len(mine) > 1:
        mine, theirs = mine - mine.mean(axis=0), theirs - theirs.mean(axis=0)
    spectrum = np.conj(np.fft.rfft2(mine)) * np.fft.rfft2(theirs)
    correlation = np.fft.irfft2(spectrum.sum(axis=0), s=mine.shape[-2:])
    energy = float(np.sqrt((mine**2).sum() * (theirs**2).sum()))
    if energy == 0:
        return Shift(down=0, right=0, correlation=0.0)
    height, width = correlation.shape
    rows, columns = (np.r_[0 : size // 4 + 1, size - size // 4 : size] for size in (height, width))
    near = correlation[np.ix_(rows, columns)]
    row, column = np.unravel_index(near.argmax(), near.shape)
    down, right = (int(place) for place in (rows[row], columns[column]))
    return Shift(
        down=down - height if down > height // 2 else down,
        right=right - width if right > width // 2 else right,
        correlation=float(near.max()) / energy,
    )
