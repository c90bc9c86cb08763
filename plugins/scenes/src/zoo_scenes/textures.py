"""Procedural textures: weights over a surface's three colours, drawn once, with mip levels against aliasing.

Every texture is a square of EDGE x EDGE texels (a power of two) that repeats in both directions. Level k of the pyramid
has EDGE / 2**k texels per edge (L. Williams, Pyramidal parametrics, SIGGRAPH 1983), down to a single one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.scene import Field

EDGE = 256
LEVELS = 9

_Y, _X = (axis.astype(np.float32) / EDGE for axis in np.mgrid[0:EDGE, 0:EDGE])


def _noise(seed: int, power: float, stretch: float = 1.0) -> Field:
    """Periodic noise with spectrum 1 / f**power, mean 0 and deviation 1; `stretch` > 1 makes streaks along x."""
    white = np.random.default_rng(seed).standard_normal((EDGE, EDGE))
    fy, fx = np.meshgrid(np.fft.fftfreq(EDGE) * EDGE, np.fft.fftfreq(EDGE) * EDGE, indexing="ij")
    frequency = np.hypot(fx * stretch, fy)
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(white) / frequency**power
    spectrum[0, 0] = 0.0
    field = np.fft.ifft2(spectrum).real
    return (field / field.std()).astype(np.float32)


def _cells(seed: int, rows: int, columns: int, shift: float) -> tuple[Field, Field, Field]:
    """A wall bond: a random value per cell, and the distances to the cell's vertical and horizontal edges in tiles."""
    row = np.floor(_Y * rows)
    across = _X + row * shift / columns
    column = np.floor(across * columns) % columns
    values = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)
    value = values[row.astype(int), column.astype(int)]
    inside_x = across * columns - np.floor(across * columns)
    inside_y = _Y * rows - row
    return value, np.minimum(inside_x, 1 - inside_x) / columns, np.minimum(inside_y, 1 - inside_y) / rows


def _blend(second: NDArray[Any], third: NDArray[Any] | bool = False, gain: NDArray[Any] | float = 1.0) -> Field:
    """Weights (EDGE, EDGE, 3): `second` of colour 2 over colour 1, then `third` of colour 3 over both, times `gain`."""
    second, third = (
        np.clip(np.broadcast_to(np.asarray(weight, np.float32), (EDGE, EDGE)), 0, 1) for weight in (second, third)
    )
    weights = np.stack([(1 - second) * (1 - third), second * (1 - third), third], -1)
    return (weights * np.asarray(gain)[..., None]).astype(np.float32)


def _texture_weights() -> dict[str, Field]:
    """Weights (EDGE, EDGE, 3) of all textures by name."""
    x, y = _X, _Y
    zeros = np.zeros_like(x)
    planks, planks_x, planks_y = _cells(8, 8, 2, 0.37)
    along = np.where((np.floor(x * 4) + np.floor(y * 4)) % 2 == 0, x, y) * 16
    strip = np.floor(along)
    parquet = np.random.default_rng(10).random((16, 4, 4))[
        strip.astype(int), np.floor(x * 4).astype(int), np.floor(y * 4).astype(int)
    ]
    _, checks_x, checks_y = _cells(11, 2, 2, 0.0)
    tiles, tiles_x, tiles_y = _cells(13, 3, 3, 0.0)
    bricks, bricks_x, bricks_y = _cells(15, 12, 4, 0.5)
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    diamond, centre = np.abs(x - 0.5) + np.abs(y - 0.5), np.hypot(x - 0.5, y - 0.5)
    band, ring = np.floor(x * 9) % 3, np.floor(centre * 12) % 3
    ridge, ground = 0.5 + 0.12 * np.sin(x * 7 + 0.6) + 0.05 * np.sin(x * 19), 0.28 + 0.04 * np.sin(x * 9 + 2)
    angle, radius = np.arctan2(y - 0.58, x - 0.5), np.hypot(x - 0.5, y - 0.58)
    stem, petals = (np.abs(x - 0.5) < 0.02) & (y < 0.58), radius < 0.17 + 0.09 * np.cos(6 * angle)
    trees = 0.30 + 0.05 * np.sin(x * 15) + 0.03 * np.sin(x * 37 + 1) > y
    return {
        "plain": _blend(zeros, gain=1 + 0.02 * _noise(1, 1.0)),
        "plaster": _blend(zeros, gain=1 + 0.025 * _noise(2, 1.4)),
        "carpet": _blend(0.35 + 0.2 * _noise(3, 0.3), gain=1 + 0.05 * _noise(4, 1.0)),
        "fabric": _blend(
            0.3 + 0.25 * (np.sin(x * 2 * np.pi * 32) * np.sin(y * 2 * np.pi * 32)), gain=1 + 0.04 * _noise(5, 1.2)
        ),
        "grain": _blend(0.4 + 0.28 * _noise(6, 1.3, 10.0), gain=1 + 0.02 * _noise(7, 0.8)),
        "planks": _blend(0.75 * planks + 0.16 * _noise(9, 1.3, 12.0), ((planks_y < 0.004) | (planks_x < 0.003)) * 0.85),
        "parquet": _blend(0.15 + 0.7 * parquet, (np.minimum(along - strip, 1 - along + strip) < 0.07) * 0.7),
        "checker": _blend(
            (np.floor(x * 2) + np.floor(y * 2)) % 2, np.minimum(checks_x, checks_y) < 0.008, 1 + 0.02 * _noise(12, 1.2)
        ),
        "tiles": _blend(0.5 * tiles, np.minimum(tiles_x, tiles_y) < 0.009, 1 + 0.025 * _noise(14, 1.2)),
        "bricks": _blend(bricks, np.minimum(bricks_x, bricks_y) < 0.008, 1 + 0.04 * _noise(16, 0.6)),
        "stripes": _blend(np.floor(x * 8) % 2, gain=1 + 0.015 * _noise(17, 1.0)),
        "bands": _blend(np.floor(y * 4) % 2, gain=1 + 0.015 * _noise(18, 1.0)),
        "dots": _blend(np.hypot((x * 6) % 1 - 0.5, (y * 4) % 1 - 0.5) < 0.3),
        "ribbon": _blend((np.abs(x - 0.5) < 0.09) | (np.abs(y - 0.5) < 0.09)),
        "rug_border": _blend(
            (edge > 0.05) & (edge < 0.13), (diamond < 0.24) & (diamond > 0.1), 1 + 0.05 * _noise(19, 0.4)
        ),
        "rug_stripes": _blend(band == 1, band == 2, 1 + 0.05 * _noise(20, 0.4)),
        "rug_rings": _blend(ring == 1, ring == 2, 1 + 0.05 * _noise(21, 0.4)),
        "landscape": _blend(ridge > y, (ground > y) | (np.hypot(x - 0.72, y - 0.8) < 0.09), 0.85 + 0.2 * y),
        "abstract": _blend((x < 0.4) & (y > 0.45) | (x > 0.75) & (y < 0.7), np.hypot(x - 0.6, y - 0.35) < 0.2),
        "flower": _blend(petals & (radius > 0.08), (stem & ~petals) | (radius < 0.08)),
        # sky over trees behind a cross of bars
        "window": _blend(
            trees, (np.abs(x - 0.5) < 0.025) | (np.abs(y - 0.55) < 0.022), 0.86 + 0.16 * y + 0.05 * _noise(22, 1.8)
        ),
        "door": _door(),
        "books": _books(),
        "leaves": _blend(0.5 + 0.35 * _noise(24, 0.9), gain=1 + 0.08 * _noise(25, 0.6)),
    }


def _door() -> Field:
    """Two rows of two inset panels, and a handle."""
    inset = np.zeros_like(_X)
    for low, high in ((0.08, 0.45), (0.55, 0.93)):
        for left in (0.12, 0.55):
            dx, dy = np.abs(_X - left - 0.165) - 0.165, np.abs(_Y - (low + high) / 2) - (high - low) / 2
            inset[np.maximum(dx, dy * 2) < 0] = 0.25
            inset[np.abs(np.maximum(dx, dy * 2)) < 0.014] = 1.0
    return _blend(inset, np.hypot(_X - 0.93, (_Y - 0.48) * 2) < 0.035)


def _books() -> Field:
    """Spines of varied width and height on one board; above them the shelf's shade."""
    rng = np.random.default_rng(23)
    edges = np.cumsum(rng.uniform(0.02, 0.05, 40))
    spine = np.searchsorted(edges, _X[0])
    height = rng.uniform(0.68, 1.0, 41)[spine]
    kind = rng.integers(0, 3, 41)[spine]
    gap = np.r_[True, spine[1:] != spine[:-1]]
    gain = np.where(gap[None] | (height[None] < _Y), 0.12, 1.0)
    gain = np.where((np.abs(_Y - 0.2) < 0.025) & (spine % 2 == 0)[None], gain * 0.6, gain)
    return _blend((kind == 1)[None], (kind == 2)[None], gain)


# Texels of one texture before level k, and all texels of one texture.
_BEFORE = np.cumsum([0] + [(EDGE >> level) ** 2 for level in range(LEVELS)]).astype(np.int32)


@lru_cache(maxsize=1)
def pyramids() -> tuple[dict[str, int], Field, Field, Field]:
    """The number of each texture, and the weights of all textures and levels, one flat array per colour."""
    texels = []
    weights = _texture_weights()
    for level in weights.values():
        for _ in range(LEVELS):
            texels.append(level.reshape(-1, 3))
            edge = max(level.shape[0] // 2, 1)
            level = level.reshape(edge, -1, edge, level.shape[1] // edge, 3).mean((1, 3))
    first, second, third = np.ascontiguousarray(np.concatenate(texels).T)
    return dict(zip(weights, range(len(weights)), strict=True)), first, second, third


def look_up(texture: NDArray[np.int32], u: Field, v: Field, texels: Field) -> tuple[Field, Field, Field]:
    """Weights of the three colours at (u, v) of `texture`, each (n,); one unit of u or v is one texture.

    `texels` is how many texels of the finest level one pixel covers: it picks the level.
    """
    # the exponent in the number's bits is floor(log2) + 127; a pixel of up to 1.4 texels reads the finest level
    exponent = (texels * np.float32(0.7071)).view(np.int32) >> 23
    level = np.minimum(np.maximum(exponent - 126, 0), LEVELS - 1)
    column = (np.floor(u * EDGE).astype(np.int32) & (EDGE - 1)) >> level
    row = (np.floor(v * EDGE).astype(np.int32) & (EDGE - 1)) >> level
    index = texture * _BEFORE[-1] + _BEFORE.take(level)
    index += row << (LEVELS - 1 - level)
    index += column
    indices = index.astype(np.intp)
    _, first, second, third = pyramids()
    return first.take(indices), second.take(indices), third.take(indices)
