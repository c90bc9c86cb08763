"""Looks at a settled scene: one ray per pixel centre gives depth, normals, geom ids and colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.shading import Field, Hits, dot, shade
from zoo_scenes.stage import Array, Stage

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

    `centres` (3, n) are the pixel centres, right and up in [-1, 1] and 1, tile by tile.
    """

    size: int
    high: int
    wide: int
    centres: Array

    @property
    def count(self) -> int:
        return self.size * self.size // (self.high * self.wide)

    def picture(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (..., n) tile by tile as a picture (..., size, size)."""
        cut = values.reshape(-1, self.size // self.high, self.size // self.wide, self.high, self.wide)
        return cut.swapaxes(2, 3).reshape(*values.shape[:-1], self.size, self.size)


@lru_cache(maxsize=8)
def _tiling(size: int) -> _Tiling:
    """Square tiles of up to 16 pixels; single rows where the size has no such divisor from 4 up."""
    edge = max(part for part in range(1, _TILE + 1) if size % part == 0)
    high, wide = (edge, edge) if edge >= 4 else (1, size)
    steps = (np.arange(size) + 0.5) / size * 2 - 1
    up, right = np.meshgrid(-steps, steps, indexing="ij")
    picture = np.stack([right, up, np.ones_like(up)])
    cut = picture.reshape(3, size // high, high, size // wide, wide).swapaxes(2, 3)
    return _Tiling(size=size, high=high, wide=wide, centres=cut.reshape(3, -1))


def render(stage: Stage, size: int, shadows: bool) -> View:
    """Cast one ray per pixel of a `size` x `size` picture and shade what it hits."""
    camera = stage.scene.camera
    tiling = _tiling(size)
    rays = camera.rays(tiling.centres)
    depth, geoms, normals = stage.cast(camera.position, rays, tiling.count)
    points = np.array(camera.position) + depth[:, None] * rays
    lit = _lit(stage, points, tiling.count) if shadows else None
    views = np.array(rays.T, np.float32, order="C")
    views /= -np.sqrt(dot(views, views))
    hits = Hits(
        points=np.array(points.T, np.float32, order="C"),
        normals=np.array(normals.T, np.float32, order="C"),
        views=views,
        depth=depth.astype(np.float32),
        geoms=geoms.astype(np.intp),
        pixel=2 * camera.scale / size,
    )
    return View(
        rgb=tiling.picture(shade(stage, hits, lit)),
        depth=tiling.picture(hits.depth),
        normals=tiling.picture(camera.axes.astype(np.float32) @ hits.normals),
        geoms=tiling.picture(hits.geoms),
    )


def _lit(stage: Stage, points: Array, bundles: int) -> NDArray[np.bool_]:
    """Which points (n, 3) the lamp reaches: rays from the lamp that nothing stops more than 5 mm before the point."""
    rays = points - np.array(stage.scene.lamp)
    reach, _, _ = stage.cast(stage.scene.lamp, rays, bundles, shadows=True)
    length = np.sqrt(np.einsum("nk,nk->n", rays, rays))
    blocked: NDArray[np.bool_] = (reach >= 0) & ((1 - reach) * length > 0.005)
    return ~blocked
