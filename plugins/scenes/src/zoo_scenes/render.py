"""Looks at a settled scene: one ray per pixel centre gives depth, normals, geom ids and colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.casting import reached
from zoo_scenes.shading import Field, Hits, dot, shade
from zoo_scenes.solids import Array
from zoo_scenes.stage import Stage

_TILE = 16


@dataclass(slots=True, kw_only=True)
class View:
    """A square picture: rgb (3, h, w) in [0, 1], planar depth (h, w) in metres, normals (3, h, w) in camera axes
    (x right, y up, z towards the viewer), and geom ids (h, w)."""

    rgb: Field
    depth: Field
    normals: Field
    geoms: NDArray[np.intp]


@dataclass(slots=True, kw_only=True)
class _Tiling:
    """How a picture of `size` pixels is cut into tiles whose rays are cast together.

    `centres` (3, n) are the pixel centres, right and up in [-1, 1] and 1, tile by tile. `edges` (m, 3) are lines
    through the first and last centres of the columns of tiles, then of the rows. A point's product with a line is
    negative outside. The last line is the half space ahead. `pixels` (size, size) tells where each pixel is, tile by
    tile.
    """

    size: int
    high: int
    wide: int
    centres: Array
    edges: Array
    pixels: NDArray[np.intp]

    @property
    def rows(self) -> int:
        """How many tiles are above each other."""
        return self.size // self.high

    @property
    def columns(self) -> int:
        """How many tiles are side by side."""
        return self.size // self.wide

    def met(self, stage: Stage) -> NDArray[np.bool_]:
        """Return which furnishings the rays of each tile may meet: bool (tiles, g)."""
        camera, ends = stage.scene.camera, 2 * self.columns
        inside = reached(stage.furnishings, camera.position, camera.planes(self.edges))
        columns = inside[:, : self.columns] & inside[:, self.columns : ends]
        rows = inside[:, ends : ends + self.rows] & inside[:, ends + self.rows : -1] & inside[:, -1:]
        return (rows.T[:, None] & columns.T).reshape(-1, len(inside))

    def picture(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (..., n) tile by tile as a picture (..., size, size)."""
        return values.take(self.pixels, axis=-1)


@lru_cache(maxsize=8)
def _tiling(size: int) -> _Tiling:
    """Square tiles of up to 16 pixels, some 8 x 8 of them up to 128; rows where no divisor of the size is 4 or more."""
    most = min(_TILE, max(size // 8, 8))
    edge = max(part for part in range(1, most + 1) if size % part == 0)
    high, wide = (edge, edge) if edge >= 4 else (1, size)
    steps = (np.arange(size) + 0.5) / size * 2 - 1
    up, right = np.meshgrid(-steps, steps, indexing="ij")
    tiled = np.arange(size * size).reshape(size // high, high, size // wide, wide).swapaxes(1, 2).reshape(-1)
    picture = np.stack([right, up, np.ones_like(up)]).reshape(3, -1)
    lines = [(1.0, 0.0, -x) for x in steps[::wide]] + [(-1.0, 0.0, x) for x in steps[wide - 1 :: wide]]
    lines += [(0.0, -1.0, -y) for y in steps[::high]] + [(0.0, 1.0, y) for y in steps[high - 1 :: high]]
    return _Tiling(
        size=size,
        high=high,
        wide=wide,
        centres=picture.take(tiled, axis=1),
        edges=np.array([*lines, (0.0, 0.0, 1.0)]),
        pixels=np.argsort(tiled).reshape(size, size),
    )


def render(stage: Stage, size: int, shadows: bool) -> View:
    """Cast one ray per pixel of a `size` x `size` picture and shade the hits."""
    camera = stage.scene.camera
    tiling = _tiling(size)
    rays = camera.rays(tiling.centres)
    depth, geoms, normals = stage.cast(camera.position, rays, tiling.met(stage))
    points = np.array(camera.position)[:, None] + depth * rays
    lit = _lit(stage, points, tiling.rows * tiling.columns) if shadows else None
    views = rays.astype(np.float32)
    views /= -np.sqrt(dot(views, views))
    hits = Hits(
        points=points.astype(np.float32),
        normals=normals,
        views=views,
        depth=depth.astype(np.float32),
        geoms=geoms,
        pixel=2 * camera.scale / size,
    )
    # After rotation in single precision, an axis-aligned vector may be one unit in the last place too long.
    facing = np.clip(camera.axes.astype(np.float32) @ hits.normals, -1, 1)
    return View(
        rgb=tiling.picture(shade(stage, hits, lit)),
        depth=tiling.picture(hits.depth),
        normals=tiling.picture(facing),
        geoms=tiling.picture(hits.geoms),
    )


def _lit(stage: Stage, points: Array, bundles: int) -> NDArray[np.bool_]:
    """Which points (3, n) the lamp reaches: rays from the lamp that nothing stops more than 5 mm before the point."""
    lamp = stage.scene.lamp
    return ~stage.blocked(lamp, points - np.array(lamp)[:, None], bundles)
