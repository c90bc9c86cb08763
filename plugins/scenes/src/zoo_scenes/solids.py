"""A scene's parts as arrays, one row each: MuJoCo shape and size, extent, position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.things import BOX, CAPSULE, CYLINDER, ELLIPSOID, PLANE, SPHERE, Part

Array = NDArray[np.float64]
Ids = NDArray[np.int32]

# By MuJoCo's shape number (plane, height field, sphere, capsule, ellipsoid, cylinder, box): the indices of the sizes
# that are half extents along x, y and z, and the extents that lead together to the farthest point.
_AXES = np.array([[0, 1, 2], [0, 1, 2], [0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 0, 1], [0, 1, 2]])
_CORNERS = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]])
# A solid is an ellipsoid swept along its axes; both parts are optional. By shape: the indices of MuJoCo's sizes for the
# ellipsoid's half axes and for half of the sweep. Index 3 means 0.
_ROUND = np.array([[3, 3, 3], [3, 3, 3], [0, 0, 0], [0, 0, 0], [0, 1, 2], [0, 0, 3], [3, 3, 3]])
_SWEPT = np.array([[3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 1], [3, 3, 3], [3, 3, 1], [0, 1, 2]])


def _rotation_products() -> Array:
    """A rotation matrix (9,), row-major, as sums of a unit quaternion's products w w, w x, .. z z: (16, 9)."""
    table = np.zeros((4, 4, 3, 3))
    w, x, y, z = range(4)
    for axis in range(3):
        table[w, w, axis, axis] = 1
        for part in (x, y, z):
            table[part, part, axis, axis] = 1 if part == axis + 1 else -1
    for i, j, k in ((x, y, z), (y, z, x), (z, x, y)):
        table[min(i, j), max(i, j), [i - 1, j - 1], [j - 1, i - 1]] = 2
        table[w, k, [i - 1, j - 1], [j - 1, i - 1]] = -2, 2
    return table.reshape(16, 9)


def _quaternion_products() -> Array:
    """A product of two quaternions (4,) as sums of the products of their components: (16, 4)."""
    table = np.zeros((4, 4, 4))
    w, x, y, z = range(4)
    table[w, w, w] = 1
    for i, j, k in ((x, y, z), (y, z, x), (z, x, y)):
        table[w, i, i] = table[i, w, i] = table[i, j, k] = 1
        table[i, i, w] = table[j, i, k] = -1
    return table.reshape(16, 4)


_ROTATION, _PRODUCT = _rotation_products(), _quaternion_products()
_NEXT, _LAST = np.array([1, 2, 0]), np.array([2, 0, 1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Solids:
    """MuJoCo's geom types (g,) and sizes (g, 3), half extents along the own axes (g, 3), radii of the spheres around
    (g,), centres (g, 3), rotations to the room as quaternions (g, 4) and as row-major matrices (g, 9).

    A plane's extents and radius are 0: MuJoCo's mark of something without bounds.
    """

    kinds: Ids
    sizes: Array
    halves: Array
    radii: Array
    places: Array
    turns: Array
    frames: Array

    def __len__(self) -> int:
        return len(self.kinds)

    def reach(self, rows: NDArray[np.intp], directions: Array) -> Array:
        """How far the solids `rows` (n,) reach from their centres in unit directions of the room (n, d, 3): (n, d)."""
        sizes, places = np.zeros((len(rows), 4)), 4 * np.arange(len(rows))[:, None]
        sizes[:, :3] = self.sizes.take(rows, axis=0)
        tables = (table.take(self.kinds.take(rows), axis=0) + places for table in (_ROUND, _SWEPT))
        half_axes, swept = (sizes.reshape(-1).take(table) for table in tables)
        along = np.abs(directions @ self.frames.take(rows, axis=0).reshape(-1, 3, 3))  # of the own axes: the columns
        reach: Array = (along @ swept[:, :, None] + np.sqrt((along**2) @ (half_axes**2)[:, :, None]))[:, :, 0]
        return reach

    def after(self, first: int) -> Solids:
        """The solids from row `first` on."""
        return Solids(
            kinds=self.kinds[first:],
            sizes=self.sizes[first:],
            halves=self.halves[first:],
            radii=self.radii[first:],
            places=self.places[first:],
            turns=self.turns[first:],
            frames=self.frames[first:],
        )


def solids(parts: Sequence[Part], outer: Array) -> Solids:
    """The parts as solids, each in an outer frame (g, 7: place and unit quaternion) of the room."""
    shapes = shape_ids()
    kinds = np.fromiter((shapes[part.shape] for part in parts), np.int32, len(parts))
    numbers = chain.from_iterable(part.size + part.at + part.turn for part in parts)
    table = np.fromiter(numbers, np.float64, 10 * len(parts)).reshape(-1, 10)
    sizes = table[:, :3]
    halves = table.reshape(-1).take(_AXES.take(kinds, axis=0) + 10 * np.arange(len(parts))[:, None])
    halves[:, 2] += sizes[:, 0] * (kinds == shapes[CAPSULE])
    corners = np.sqrt((halves * halves * _CORNERS.take(kinds, axis=0)).sum(1))
    frames = _chained(outer, table[:, 3:])
    return Solids(
        kinds=kinds,
        sizes=sizes,
        halves=halves,
        radii=np.maximum(corners, halves.max(1)),
        places=frames[:, :3],
        turns=frames[:, 3:],
        frames=matrices(frames[:, 3:]),
    )


@lru_cache(maxsize=1)
def shape_ids() -> dict[str, int]:
    """MuJoCo's number of each shape."""
    import mujoco

    kinds = mujoco.mjtGeom
    shapes = {PLANE: kinds.mjGEOM_PLANE, SPHERE: kinds.mjGEOM_SPHERE, CAPSULE: kinds.mjGEOM_CAPSULE}
    shapes |= {ELLIPSOID: kinds.mjGEOM_ELLIPSOID, CYLINDER: kinds.mjGEOM_CYLINDER, BOX: kinds.mjGEOM_BOX}
    return {name: int(kind) for name, kind in shapes.items()}


def matrices(turns: Array) -> Array:
    """Rotation matrices (n, 9), row-major, of unit quaternions (n, 4)."""
    result: Array = (turns[:, :, None] * turns[:, None, :]).reshape(-1, 16) @ _ROTATION
    return result


def _chained(outer: Array, inner: Array) -> Array:
    """Frames (n, 7: place and quaternion) given in other frames (n, 7), in the frame of the latter."""
    frames = np.empty_like(inner)
    places, at = frames[:, :3], inner[:, :3]
    w, axis = outer[:, 3:4], outer[:, 4:]
    after, before = axis.take(_NEXT, axis=1), axis.take(_LAST, axis=1)
    # v + 2 w (u x v) + 2 u x (u x v) turns v by the quaternion (w, u)
    cross = 2 * (after * at.take(_LAST, axis=1) - before * at.take(_NEXT, axis=1))
    np.add(outer[:, :3], at, out=places)
    places += w * cross
    places += after * cross.take(_LAST, axis=1)
    places -= before * cross.take(_NEXT, axis=1)
    np.matmul((outer[:, 3:, None] * inner[:, None, 3:]).reshape(-1, 16), _PRODUCT, out=frames[:, 3:])
    return frames
