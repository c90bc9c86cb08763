"""Casts rays at solids: MuJoCo finds the hits. Rays are cast in bundles, each tested only against geoms it could hit.

MuJoCo's own bounding volumes are compile-time results, and a model per scene would cost more than all of its rays. So
the solids that bundles may meet are written, bundle by bundle, into the geoms of one compiled model, and each bundle is
shown its stretch of geoms.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.things import BOX, CAPSULE, CYLINDER, ELLIPSOID, PLANE, SPHERE, Part, Vector

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
        return (along @ swept[:, :, None] + np.sqrt((along**2) @ (half_axes**2)[:, :, None]))[:, :, 0]

    def after(self, first: int) -> Solids:
        """The solids from row `first` on."""
        return Solids(**{field.name: getattr(self, field.name)[first:] for field in fields(self)})


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

    names = (PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX)
    return {name: int(getattr(mujoco.mjtGeom, f"mjGEOM_{name.upper()}")) for name in names}


def matrices(turns: Array) -> Array:
    """Rotation matrices (n, 9), row-major, of unit quaternions (n, 4)."""
    w, x, y, z = turns.T
    xx, yy, zz = x * x, y * y, z * z
    rows = [
        1 - 2 * (yy + zz), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (xx + zz), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (xx + yy),
    ]  # fmt: skip
    return np.stack(rows, axis=1)


def _chained(outer: Array, inner: Array) -> Array:
    """Frames (n, 7: place and quaternion) given in other frames (n, 7), in the frame of the latter."""
    turned = matrices(outer[:, 3:]).reshape(-1, 3, 3) @ inner[:, :3, None]
    (w, x, y, z), (a, b, c, d) = outer[:, 3:].T, inner[:, 3:].T
    turns = [
        w * a - x * b - y * c - z * d, w * b + x * a + y * d - z * c, w * c - x * d + y * a + z * b,
        w * d + x * c - y * b + z * a,
    ]  # fmt: skip
    return np.concatenate([outer[:, :3] + turned[:, :, 0], np.stack(turns, axis=1)], axis=1)


Field = NDArray[np.float32]

FARTHEST = 100.0

_SLOTS = 256  # more cost time in every call, fewer must be rewritten more often
_MARGIN = 1e-3  # metres, against rounding to single precision
_WIDEST = 20.0  # a bundle with steeper sides counts as unbounded
_UNITS = np.eye(3, dtype=np.float32)[:, None]


@lru_cache(maxsize=64)
def _target(slots: int, thread: int) -> tuple[Any, Any]:
    """A compiled model of `slots` fixed geoms, and its data, which threads do not share. Rays meet their arrays."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.memory = 1 << 20
    for _ in range(slots):
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[1, 1, 1])
    model = spec.compile()
    model.body_bvhadr[:] = -1
    return model, mujoco.MjData(model)


def cast(
    solids: Solids, origin: Vector, rays: Array, met: NDArray[np.bool_], normals: bool
) -> tuple[Array, NDArray[np.intp], Array]:
    """First hits of rays (3, n) from one point: t, with hit = origin + t * ray, rows of `solids`, and normals (n, 3).

    A ray that hits nothing has t = -1, and neither row nor normal; without `normals` there are none at all. `met`
    (b, g) tells which solids each of b equal stretches of the rays may meet.
    """
    import mujoco

    bundle, row = np.nonzero(met)
    sizes = np.bincount(bundle, minlength=len(met)).tolist()
    slots = max(_SLOTS, 1 << (max(sizes) - 1).bit_length())
    model, data = _target(slots, threading.get_ident())
    table = (
        (model.geom_type, solids.kinds), (model.geom_size, solids.sizes), (data.geom_xpos, solids.places),
        (data.geom_xmat, solids.frames),
    )  # fmt: skip
    firsts, numbers, start, count = model.body_geomadr, model.body_geomnum, np.array(origin), rays.shape[1]
    directions, facing = np.array(rays.T, order="C"), np.empty((count, 3))
    reach, found = np.full(count, -1.0), np.zeros(count, np.int32)
    views = (array.reshape(len(met), -1, 1) for array in (directions, facing, found, reach))
    stop = written = offset = 0
    for size, ray, normal, geoms, ends in zip(sizes, *views, strict=True):
        if not size:
            continue
        first, stop = stop, stop + size
        if stop > written:
            offset, written = first, first + slots
            rows = row[first:written]
            for geom_values, values in table:
                geom_values[: len(rows)] = values.take(rows, axis=0)
        firsts[0], numbers[0] = first - offset, size
        mujoco.mj_multiRay(
            model, data, start, ray, None, True, -1, geoms, ends, normal if normals else None, len(ends), FARTHEST
        )
        if offset:
            geoms += offset
    return reach, row.take(found, mode="clip") if len(row) else found.astype(np.intp), facing


def meets(solids: Solids, origin: Vector, rays: Array, bundles: int) -> NDArray[np.bool_]:
    """Which solids each of b equal stretches of rays (3, n) from `origin` may meet (b, g): never wrongly false.

    Rays of one bundle should have close directions: a bundle too wide may meet all.
    """
    sides = reached(solids, origin, _cones(rays, bundles).reshape(-1, 3))
    inside: NDArray[np.bool_] = np.logical_and.reduce(sides.reshape(len(solids), 6, bundles), axis=1)
    return np.array(inside.T, order="C")


def _cones(rays: Array, bundles: int) -> Field:
    """Inward normals (6, b, 3) of planes around each of b equal stretches of rays (3, n); 0 where they are too wide.

    With the bundle's axis a, each coordinate of r / (r . a) has a least and a greatest value among the rays r. Each
    side is a plane through the origin.
    """
    turned = np.array(rays.reshape(3, bundles, -1).swapaxes(0, 1), np.float32, order="C")
    axis = turned[:, :, 0] + turned[:, :, -1]
    ahead = axis[:, None] @ turned
    slopes = turned / np.maximum(ahead, np.float32(1e-6))
    low, high = slopes.min(2), slopes.max(2)
    planes = np.empty((2, 3, bundles, 3), np.float32)
    np.multiply(low.T[:, :, None], -axis, out=planes[0])
    np.multiply(high.T[:, :, None], axis, out=planes[1])
    planes[0] += _UNITS
    planes[1] -= _UNITS
    planes[:, :, ((high - low).max(1) > _WIDEST) | (ahead.min(2)[:, 0] <= 0)] = 0
    return planes.reshape(6, bundles, 3)


def reached(solids: Solids, origin: Vector, normals: Field) -> NDArray[np.bool_]:
    """Whether some part of each solid lies on the inner side of planes through `origin` (g, m): never wrongly false.

    The planes are given by their inward normals (m, 3). The solids have bounds. Single precision will do, as they are
    taken for their boxes, and those a little larger.
    """
    count = len(solids)
    vectors = np.empty((4, count, 3), np.float32)
    vectors[0] = np.array(origin) - solids.places
    # the columns of a solid's frame are its axes
    np.multiply(solids.frames.reshape(-1, 3, 3).transpose(2, 0, 1), solids.halves.T[:, :, None], out=vectors[1:])
    products = (vectors.reshape(-1, 3) @ normals.T).reshape(4, count, -1)
    spreads = np.abs(products[1:], out=products[1:])
    nearest = products[0]
    nearest -= spreads[0]
    nearest -= spreads[1]
    nearest -= spreads[2]
    return nearest <= np.float32(_MARGIN)
