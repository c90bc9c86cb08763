"""Procedural textures: weights over a surface's three colours, drawn once, with mip levels against aliasing.

Every texture is a square of EDGE x EDGE texels (a power of two) that repeats in both directions. Level k of the pyramid
has EDGE / 2**k texels per edge (L. Williams, Pyramidal parametrics, SIGGRAPH 1983), down to a single one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

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
    normal: Field = (field / field.std()).astype(np.float32)
    return normal


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


def _blend(second: Field, third: Field | NDArray[np.bool_] | bool = False, gain: Field | float = 1.0) -> Field:
    """Weights (EDGE, EDGE, 3): `second` of colour 2 over colour 1, then `third` of colour 3 over both, times `gain`."""
    second = np.clip(np.broadcast_to(second, (EDGE, EDGE)), 0, 1)
    third = np.clip(np.broadcast_to(np.asarray(third, np.float32), (EDGE, EDGE)), 0, 1)
    weights = np.stack([(1 - second) * (1 - third), second * (1 - third), third], -1)
    scaled: Field = (weights * np.asarray(gain)[..., None]).astype(np.float32)
    return scaled


def _plain() -> Field:
    return _blend(np.zeros_like(_X), gain=1 + 0.02 * _noise(1, 1.0))


def _plaster() -> Field:
    return _blend(np.zeros_like(_X), gain=1 + 0.025 * _noise(2, 1.4))


def _carpet() -> Field:
    return _blend(0.35 + 0.2 * _noise(3, 0.3), gain=1 + 0.05 * _noise(4, 1.0))


def _fabric() -> Field:
    weave = np.sin(_X * 2 * np.pi * 32) * np.sin(_Y * 2 * np.pi * 32)
    return _blend(0.3 + 0.25 * weave, gain=1 + 0.04 * _noise(5, 1.2))


def _grain() -> Field:
    return _blend(0.4 + 0.28 * _noise(6, 1.3, 10.0), gain=1 + 0.02 * _noise(7, 0.8))


def _planks() -> Field:
    value, edge_x, edge_y = _cells(8, 8, 2, 0.37)
    gap = (edge_y < 0.004) | (edge_x < 0.003)
    return _blend(0.75 * value + 0.16 * _noise(9, 1.3, 12.0), gap * 0.85)


def _parquet() -> Field:
    cell = np.floor(_X * 4) + np.floor(_Y * 4)
    along = np.where(cell % 2 == 0, _X, _Y)
    strip = np.floor(along * 16)
    value = np.random.default_rng(10).random((16, 4, 4))[
        strip.astype(int), np.floor(_X * 4).astype(int), np.floor(_Y * 4).astype(int)
    ]
    inside = along * 16 - strip
    gap = (np.minimum(inside, 1 - inside) < 0.07) * 0.7
    return _blend((0.15 + 0.7 * value).astype(np.float32), gap.astype(np.float32))


def _checker() -> Field:
    odd = (np.floor(_X * 2) + np.floor(_Y * 2)) % 2
    _, edge_x, edge_y = _cells(11, 2, 2, 0.0)
    return _blend(odd, np.minimum(edge_x, edge_y) < 0.008, 1 + 0.02 * _noise(12, 1.2))


def _tiles() -> Field:
    value, edge_x, edge_y = _cells(13, 3, 3, 0.0)
    return _blend(0.5 * value, np.minimum(edge_x, edge_y) < 0.009, 1 + 0.025 * _noise(14, 1.2))


def _bricks() -> Field:
    value, edge_x, edge_y = _cells(15, 12, 4, 0.5)
    return _blend(value, np.minimum(edge_x, edge_y) < 0.008, 1 + 0.04 * _noise(16, 0.6))


def _stripes() -> Field:
    return _blend((np.floor(_X * 8) % 2).astype(np.float32), gain=1 + 0.015 * _noise(17, 1.0))


def _bands() -> Field:
    return _blend((np.floor(_Y * 4) % 2).astype(np.float32), gain=1 + 0.015 * _noise(18, 1.0))


def _dots() -> Field:
    distance = np.hypot((_X * 6) % 1 - 0.5, (_Y * 4) % 1 - 0.5)
    return _blend((distance < 0.3).astype(np.float32))


def _ribbon() -> Field:
    return _blend(((np.abs(_X - 0.5) < 0.09) | (np.abs(_Y - 0.5) < 0.09)).astype(np.float32))


def _rug_border() -> Field:
    edge = np.minimum(np.minimum(_X, 1 - _X), np.minimum(_Y, 1 - _Y))
    border = ((edge > 0.05) & (edge < 0.13)).astype(np.float32)
    diamond = np.abs(_X - 0.5) + np.abs(_Y - 0.5)
    motif = ((diamond < 0.24) & (diamond > 0.1)).astype(np.float32)
    return _blend(border, motif, 1 + 0.05 * _noise(19, 0.4))


def _rug_stripes() -> Field:
    band = np.floor(_X * 9) % 3
    return _blend((band == 1).astype(np.float32), band == 2, 1 + 0.05 * _noise(20, 0.4))


def _rug_rings() -> Field:
    ring = np.floor(np.hypot(_X - 0.5, _Y - 0.5) * 12) % 3
    return _blend((ring == 1).astype(np.float32), ring == 2, 1 + 0.05 * _noise(21, 0.4))


def _landscape() -> Field:
    ridge = 0.5 + 0.12 * np.sin(_X * 7 + 0.6) + 0.05 * np.sin(_X * 19)
    ground = 0.28 + 0.04 * np.sin(_X * 9 + 2)
    sun = np.hypot(_X - 0.72, _Y - 0.8) < 0.09
    return _blend((ridge > _Y).astype(np.float32), (ground > _Y) | sun, 0.85 + 0.2 * _Y)


def _abstract() -> Field:
    second = (_X < 0.4) & (_Y > 0.45) | (_X > 0.75) & (_Y < 0.7)
    return _blend(second.astype(np.float32), np.hypot(_X - 0.6, _Y - 0.35) < 0.2)


def _flower() -> Field:
    angle, radius = np.arctan2(_Y - 0.58, _X - 0.5), np.hypot(_X - 0.5, _Y - 0.58)
    stem = (np.abs(_X - 0.5) < 0.02) & (_Y < 0.58)
    petals = radius < 0.17 + 0.09 * np.cos(6 * angle)
    return _blend((petals & (radius > 0.08)).astype(np.float32), (stem & ~petals) | (radius < 0.08))


def _window() -> Field:
    """Sky over trees behind a cross of bars."""
    trees = 0.30 + 0.05 * np.sin(_X * 15) + 0.03 * np.sin(_X * 37 + 1) > _Y
    bars = (np.abs(_X - 0.5) < 0.025) | (np.abs(_Y - 0.55) < 0.022)
    return _blend(trees.astype(np.float32), bars, 0.86 + 0.16 * _Y + 0.05 * _noise(22, 1.8))


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
    return _blend(np.broadcast_to(kind == 1, _X.shape).astype(np.float32), (kind == 2)[None], gain)


def _leaves() -> Field:
    return _blend(0.5 + 0.35 * _noise(24, 0.9), gain=1 + 0.08 * _noise(25, 0.6))


_DRAWN: dict[str, Callable[[], Field]] = {
    "plain": _plain,
    "plaster": _plaster,
    "carpet": _carpet,
    "fabric": _fabric,
    "grain": _grain,
    "planks": _planks,
    "parquet": _parquet,
    "checker": _checker,
    "tiles": _tiles,
    "bricks": _bricks,
    "stripes": _stripes,
    "bands": _bands,
    "dots": _dots,
    "ribbon": _ribbon,
    "rug_border": _rug_border,
    "rug_stripes": _rug_stripes,
    "rug_rings": _rug_rings,
    "landscape": _landscape,
    "abstract": _abstract,
    "flower": _flower,
    "window": _window,
    "door": _door,
    "books": _books,
    "leaves": _leaves,
}
TEXTURES = {name: index for index, name in enumerate(_DRAWN)}

# Texels of one texture before level k, and all texels of one texture.
_BEFORE = np.cumsum([0] + [(EDGE >> level) ** 2 for level in range(LEVELS)]).astype(np.int32)


@lru_cache(maxsize=1)
def _pyramids() -> tuple[Field, Field, Field]:
    """The weights of all textures and levels, one flat array per colour."""
    texels = []
    for draw in _DRAWN.values():
        level = draw()
        for _ in range(LEVELS):
            texels.append(level.reshape(-1, 3))
            edge = max(level.shape[0] // 2, 1)
            level = level.reshape(edge, -1, edge, level.shape[1] // edge, 3).mean((1, 3))
    first, second, third = np.ascontiguousarray(np.concatenate(texels).T)
    return first, second, third


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
    places = index.astype(np.intp)
    first, second, third = _pyramids()
    return first.take(places), second.take(places), third.take(places)
