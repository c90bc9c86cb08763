"""Mountains and valleys: fractal noise that water has run over."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
GRID = 128
"""Points along each side, whatever the size of the result."""
NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Relief:
    """A landscape of GRID x GRID points."""

    metres: Field
    """Above the sea; negative where the sea is."""
    water: Field
    """log of how many points drain through each: 0 for its own alone, 1 for an eighth of all; rivers are near 1."""
    slope: Field
    """Degrees."""


def fractal(rng: np.random.Generator, roughness: float) -> Field:
    """Noise whose power falls as frequency^-`roughness`, mean 0 and deviation 1 (spectral synthesis, Peitgen 1988)."""
    fy, fx = np.fft.fftfreq(2 * GRID)[:, None], np.fft.rfftfreq(2 * GRID)[None]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    noise = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    # A quarter of a period, so that the landscape does not repeat at its borders.
    field = np.fft.irfft2(noise * frequency ** (-roughness / 2))[:GRID, :GRID]
    return (field - field.mean()) / field.std()


def raise_relief(rng: np.random.Generator, extent: float) -> Relief:
    """A random landscape `extent` metres wide: from plains by the sea to mountains."""
    height = math.exp(rng.uniform(math.log(40), math.log(1400)))
    ridges = 1 - np.abs(fractal(rng, 3.8))
    mix = rng.uniform(0, 0.7)
    shape = (1 - mix) * fractal(rng, rng.uniform(3.4, 4.4)) + mix * ridges
    shape = (shape - shape.min()) / np.ptp(shape)
    metres = height * (shape ** rng.uniform(1.0, 1.8) - rng.uniform(-0.3, 0.35))
    for _ in range(2):
        metres -= 0.06 * height * drainage(metres) ** 2
    spacing = extent / GRID
    south, east = np.gradient(metres, spacing)
    slope = np.degrees(np.arctan(np.hypot(south, east)))
    return Relief(metres=metres, water=drainage(metres), slope=slope)


def drainage(metres: Field) -> Field:
    """log of the points that drain through each one along the steepest way down: 0 for itself, 1 for an eighth of all.

    The D8 method (O'Callaghan and Mark 1984); hollows keep their water.
    """
    size = metres.shape[0]
    padded = np.pad(metres, 1, constant_values=np.inf)
    drops = np.stack(
        [
            (metres - padded[1 + dy : size + 1 + dy, 1 + dx : size + 1 + dx]) / math.hypot(dy, dx)
            for dy, dx in NEIGHBOURS
        ]
    )
    steps = np.array([dy * size + dx for dy, dx in NEIGHBOURS])
    target = (np.arange(size * size) + steps[drops.argmax(axis=0).ravel()]).tolist()
    downhill = (drops.max(axis=0) > 0).ravel().tolist()
    amount = [1.0] * (size * size)
    for place in np.argsort(metres, axis=None)[::-1].tolist():  # from the highest point down
        if downhill[place]:
            amount[target[place]] += amount[place]
    return np.log(np.array(amount)).reshape(size, size) / math.log(size * size / 8)
