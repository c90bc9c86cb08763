"""What covers the land, and how it reflects light in twelve spectral bands."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
GRID = 128
"""Points along each side, whatever the size of the result."""
NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def fractal(rng: np.random.Generator, roughness: float) -> Field:
    """Noise whose power falls as frequency^-`roughness`, mean 0 and deviation 1 (spectral synthesis, Peitgen 1988)."""
    fy, fx = np.fft.fftfreq(2 * GRID)[:, None], np.fft.rfftfreq(2 * GRID)[None]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    noise = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    # A quarter of a period, so that the landscape does not repeat at its borders.
    field = np.fft.irfft2(noise * frequency ** (-roughness / 2))[:GRID, :GRID]
    return (field - field.mean()) / field.std()


def raise_relief(rng: np.random.Generator) -> Field:
    """Metres above the sea at GRID x GRID points of a random landscape: from plains by the sea to mountains."""
    height = math.exp(rng.uniform(math.log(40), math.log(1400)))
    ridges = 1 - np.abs(fractal(rng, 3.8))
    mix = rng.uniform(0, 0.7)
    shape = (1 - mix) * fractal(rng, rng.uniform(3.4, 4.4)) + mix * ridges
    shape = (shape - shape.min()) / np.ptp(shape)
    metres = height * (shape ** rng.uniform(1.0, 1.8) - rng.uniform(-0.3, 0.35))
    for _ in range(2):
        metres -= 0.06 * height * drainage(metres) ** 2
    return metres


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
    for cell in np.argsort(metres, axis=None)[::-1].tolist():  # from the highest point down
        if downhill[cell]:
            amount[target[cell]] += amount[cell]
    return np.log(np.array(amount)).reshape(size, size) / math.log(size * size / 8)


SIGNATURES: dict[str, tuple[float, ...]] = {
    "water": (0.060, 0.055, 0.045, 0.028, 0.022, 0.018, 0.016, 0.014, 0.013, 0.012, 0.008, 0.006),
    "forest": (0.020, 0.025, 0.042, 0.025, 0.070, 0.180, 0.230, 0.250, 0.260, 0.270, 0.120, 0.050),
    "grass": (0.030, 0.042, 0.085, 0.055, 0.120, 0.270, 0.330, 0.360, 0.370, 0.380, 0.230, 0.120),
    "crops": (0.030, 0.035, 0.070, 0.040, 0.110, 0.330, 0.420, 0.460, 0.470, 0.480, 0.200, 0.090),
    "soil": (0.070, 0.090, 0.130, 0.180, 0.200, 0.220, 0.240, 0.260, 0.280, 0.290, 0.360, 0.310),
    "rock": (0.100, 0.120, 0.140, 0.160, 0.170, 0.180, 0.190, 0.200, 0.210, 0.210, 0.250, 0.220),
    "snow": (0.850, 0.880, 0.870, 0.860, 0.850, 0.840, 0.820, 0.800, 0.780, 0.700, 0.120, 0.090),
    "town": (0.120, 0.140, 0.160, 0.180, 0.190, 0.210, 0.220, 0.240, 0.250, 0.250, 0.280, 0.250),
}
"""Reflectance at 443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1610 and 2190 nm, rounded from typical spectra."""
HAZE = np.array([0.012, 0.009, 0.006, 0.004, 0.003, 0.002, 0.002, 0.001, 0.001, 0.001, 0.0, 0.0])
"""Reflectance that the air adds per unit of haze."""
NOISE = 0.002
"""Deviation of the sensor's noise, reflectance."""


def rise(value: Field, middle: float, width: float) -> Field:
    """From 0 far below `middle` to 1 far above it."""
    return 0.5 + 0.5 * np.tanh((value - middle) / width)


def cover(metres: Field, extent: float, rng: np.random.Generator) -> dict[str, Field]:
    """The share of each kind of land at each point; shares add up to 1. Earlier classes cover later ones."""
    water, slope = drainage(metres), np.degrees(np.arctan(np.hypot(*np.gradient(metres, extent / GRID))))
    damp = fractal(rng, 3.0) + 2.0 * (water - 0.3)
    snow_line, tree_line = rng.uniform(250, 1600), rng.uniform(200, 1200)
    fields, field_kind = patchwork(rng, int(rng.integers(30, 120)))
    flat = 1 - rise(slope, 8, 3)
    low = 1 - rise(metres, tree_line * 0.6, 60)
    farmed = rng.uniform(0.3, 1.0) * flat * low * rise(damp, -1.2, 0.3)
    layers = {
        "water": np.maximum(1 - rise(metres, 0.0, 1.5), rise(water, 0.66, 0.03)),
        "snow": rise(metres + 60 * damp, snow_line, 80) * (1 - 0.7 * rise(slope, 45, 6)),
        "rock": np.maximum(rise(slope, 36, 5), 0.8 * rise(metres, tree_line * 1.5, 150)),
        "town": flat * low * rise(fractal(rng, 2.2), rng.uniform(1.5, 3.0), 0.1) * (field_kind < 0.9),
        "crops": farmed * (field_kind > 0.45),
        "soil": farmed * (field_kind < 0.3) + 0.5 * rise(-damp, 1.0, 0.3),
        "forest": rise(damp, rng.uniform(-0.5, 1.2), 0.1) * (1 - rise(metres, tree_line, 80)),
        "grass": np.ones((GRID, GRID)),
    }
    left, shares = np.ones((GRID, GRID)), {}
    for name, layer in layers.items():
        shares[name] = left * np.clip(layer, 0, 1)
        left = left - shares[name]
    shares["crops"] = shares["crops"] * (0.75 + 0.25 * fields)
    shares["soil"] = 1 - sum(share for name, share in shares.items() if name != "soil")  # between the rows of a field
    return shares


def patchwork(rng: np.random.Generator, count: int) -> tuple[Field, Field]:
    """Fields with straight borders: two random numbers in [0, 1], the same all over a field."""
    centres = rng.random((count, 2)) * GRID
    tilt = rng.uniform(0, math.pi)
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]]) * [[1.0], [0.6]]
    points = np.stack(np.meshgrid(np.arange(GRID), np.arange(GRID), indexing="ij"), axis=-1).reshape(-1, 2)
    points, centres = ((array @ turn.T).astype(np.float32) for array in (points, centres))
    nearest = np.maximum(*(np.abs(points[:, None, axis] - centres[:, axis]) for axis in (0, 1))).argmin(axis=1)
    kinds = rng.random((2, count))
    first, second = (kind[nearest].reshape(GRID, GRID) for kind in kinds)
    return first, second


def reflectance(metres: Field, extent: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(12, GRID, GRID): spectra mixed by the shares of the land, under a sun that leaves slopes in the shade."""
    shares = cover(metres, extent, rng)
    spectra = np.tensordot(np.array([SIGNATURES[name] for name in shares]).T, np.stack(list(shares.values())), 1)
    grain = 1 + 0.06 * fractal(rng, 1.2) * (1 - shares["water"])
    azimuth, elevation = rng.uniform(math.radians(100), math.radians(220)), math.radians(rng.uniform(35, 65))
    sun = np.array([math.sin(azimuth) * math.cos(elevation), math.cos(azimuth) * math.cos(elevation)])
    south, east = np.gradient(np.maximum(metres, 0), extent / GRID)
    facing = (-east * sun[0] + south * sun[1] + math.sin(elevation)) / np.sqrt(1 + east**2 + south**2)
    light = 0.25 + 0.75 * np.clip(facing, 0, None) / math.sin(elevation)
    haze = rng.uniform(0, 1.5) * HAZE[:, None, None]
    observed = spectra * grain * light + haze
    return np.clip(observed + NOISE * rng.standard_normal(observed.shape), 0, 2)
