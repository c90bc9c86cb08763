"""Turned squares of a picture: what a network is shown of it, and where in the picture that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MOST_SAMPLES = 4
"""Samples along each side of a pixel that a larger region is averaged from, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A square of a picture, in pixels from its top left corner; the centre of the first pixel is (0.5, 0.5)."""

    x: float
    """Of the centre."""
    y: float
    """Of the centre."""
    side: float
    """Above 0."""
    angle: float = 0.0
    """Radians, clockwise as it is seen."""

    @classmethod
    def whole(cls, picture: Array) -> Region:
        """The smallest upright square around a picture (channels, height, width), both with one centre."""
        height, width = picture.shape[-2:]
        return cls(x=width / 2, y=height / 2, side=float(max(width, height)))

    @property
    def turn(self) -> Array:
        """What takes directions within the region to directions in the picture: (2, 2)."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cos, -sin], [sin, cos]])

    def to_picture(self, places: Array) -> Array:
        """Fractions of the region (..., 2), x and y from its top left corner, as pixels of the picture (..., 2)."""
        return (places - 0.5) * self.side @ self.turn.T + (self.x, self.y)

    def shown(self, picture: Array, size: int, beyond: Literal["black", "edge"]) -> Array:
        """What a picture (channels, height, width) shows here: (size, size, channels), bilinear, shrunk by averaging.

        `beyond` says what is outside of the picture: 0, or its nearest pixel.
        """
        samples = min(max(math.ceil(self.side / size), 1), MOST_SAMPLES)
        steps = (np.arange(size * samples) + 0.5) / (size * samples)
        places = np.stack(np.meshgrid(steps, steps), axis=-1)
        found = sampled(picture, self.to_picture(places), beyond)
        return found.reshape(size, samples, size, samples, -1).mean(axis=(1, 3))


def sampled(picture: Array, pixels: Array, beyond: Literal["black", "edge"]) -> Array:
    """A picture (channels, height, width) between its pixels at `pixels` (..., 2): (..., channels)."""
    height, width = picture.shape[-2:]
    last = np.array([width - 1, height - 1])
    places = np.clip(pixels - 0.5, -1, last + 1)
    low = np.floor(places).astype(np.int64)
    share = places - low
    total = np.zeros((*pixels.shape[:-1], len(picture)))
    for across in (0, 1):
        for down in (0, 1):
            corner = low + np.array([across, down])
            weight = np.abs(1 - across - share[..., 0]) * np.abs(1 - down - share[..., 1])
            if beyond == "black":
                weight = weight * ((corner >= 0) & (corner <= last)).all(axis=-1)
            x, y = np.moveaxis(np.clip(corner, 0, last), -1, 0)
            total += weight[..., None] * np.moveaxis(picture[:, y, x], 0, -1)
    return total
