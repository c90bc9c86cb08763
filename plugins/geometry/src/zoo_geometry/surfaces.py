"""Surface normals of a depth map."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.errors import DataError

Array = NDArray[Any]


def normals_of_depth(depth: Array, fov: float, fov_across: float | None = None) -> Array:
    """Unit normals float32 (3, height, width), x right, y up, z towards the viewer, of planar depth (height, width).

    `fov` is the camera's vertical field of view, `fov_across` the horizontal one, degrees; absent, pixels are square.
    A pixel looks along the ray (x, y, 1). On a plane n . (x, y, 1) z = c inverse depth q = 1 / z is linear in x and y,
    so that n ~ (-q_x, -q_y, q - x q_x - y q_y) holds exactly there ("Three-Filters-to-Normal", arXiv 2005.08165).
    Raises DataError for maps of fewer than 3 pixels along a side.
    """
    height, width = depth.shape
    if min(height, width) < 3:
        raise DataError(f"normals need depth of at least 3 x 3 pixels, got {height} x {width}")
    top = np.tan(np.radians(fov) / 2)
    side = top * width / height if fov_across is None else np.tan(np.radians(fov_across) / 2)
    x = ((np.arange(width) + 0.5) / width * 2 - 1) * side
    y = (1 - (np.arange(height) + 0.5) / height * 2)[:, None] * top
    inverse = 1 / depth.astype(np.float64)
    along_x = slopes(inverse, axis=1) * width / (2 * side)
    along_y = slopes(inverse, axis=0) * -height / (2 * top)  # rows count downwards
    normals = np.stack([-along_x, -along_y, inverse - x * along_x - y * along_y])
    return (normals / np.linalg.norm(normals, axis=0)).astype(np.float32)


def slopes(values: Array, axis: int) -> Array:
    """Change per pixel along `axis`, measured on the side where three pixels are closest to a line.

    Of the differences around, ahead and behind, the one whose three pixels bend least is taken, so that pixels beside
    an edge do not see across it. At least 3 pixels.
    """
    moved = np.moveaxis(values, axis, -1)
    step = np.diff(moved, axis=-1)
    bend = np.abs(np.diff(step, axis=-1))
    bends = np.full((3, *moved.shape), np.inf)
    found = np.zeros((3, *moved.shape))
    bends[0, ..., 1:-1], found[0, ..., 1:-1] = bend, (step[..., 1:] + step[..., :-1]) / 2
    bends[1, ..., :-2], found[1, ..., :-1] = bend, step
    bends[2, ..., 2:], found[2, ..., 1:] = bend, step
    best = np.take_along_axis(found, bends.argmin(axis=0)[None], axis=0)[0]
    return np.moveaxis(best, -1, axis)
