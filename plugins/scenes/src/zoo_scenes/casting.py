"""Casts rays at solids: MuJoCo finds the hits. Rays are cast in bundles, each tested only against geoms it could hit.

MuJoCo's own bounding volumes are compile-time results, and a model per scene would cost more than all of its rays. So
the solids that a bundle may meet are written into the geoms of one compiled model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.things import CAPSULE, Array, Part, Vector

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]
STEP_SECONDS = 0.02

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

    kinds: NDArray[np.int32]
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


def solids(parts: Sequence[Part], outer: Array) -> Solids:
    """The parts as solids, each in an outer frame (g, 7: place and unit quaternion) of the room."""
    kinds = np.array([part.shape for part in parts], np.int32)
    numbers = chain.from_iterable(part.size + part.at + part.turn for part in parts)
    table = np.fromiter(numbers, np.float64, 10 * len(parts)).reshape(-1, 10)
    sizes = table[:, :3]
    halves = table.reshape(-1).take(_AXES.take(kinds, axis=0) + 10 * np.arange(len(parts))[:, None])
    halves[:, 2] += sizes[:, 0] * (kinds == CAPSULE)
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


FARTHEST = 100.0

_SLOTS = 48
_MARGIN = 1e-3  # radians, against rounding


@lru_cache(maxsize=64)
def compiled(fixed: int, loose: int, thread: int) -> tuple[Any, Any]:
    """A model of `fixed` or more geoms that stand, then one geom on a free body per loose thing, and its data.

    All sizes are placeholders. Threads do not share data.
    """
    import mujoco

    spec = mujoco.MjSpec()
    spec.memory = 1 << 22
    spec.option.timestep = STEP_SECONDS
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.iterations = 15
    # bounding volumes are compile-time results
    spec.option.disableflags = mujoco.mjtDisableBit.mjDSBL_MIDPHASE
    box = mujoco.mjtGeom.mjGEOM_BOX
    for _ in range(fixed):
        # a place off the world's frame keeps MuJoCo from taking the geom's frame for the world's
        spec.worldbody.add_geom(type=box, size=[1, 1, 1], pos=[1, 1, 1], quat=[0.5, 0.5, 0.5, 0.5])
    for _ in range(loose):
        body = spec.worldbody.add_body()
        body.add_joint(type=mujoco.mjtJoint.mjJNT_FREE, damping=[0.3, 0, 0])
        body.add_geom(type=box, size=[1, 1, 1], mass=1.0, friction=[0.9, 0.01, 0.002])
    model = spec.compile()
    model.body_bvhadr[:] = -1
    return model, mujoco.MjData(model)


def reusable(fixed: int, loose: int) -> tuple[Any, Any]:
    """A compiled model of this thread with room for that many geoms, of which the world holds the fixed ones."""
    model, data = compiled(-(-fixed // _SLOTS) * _SLOTS, loose, threading.get_ident())
    model.body_geomnum[0] = fixed
    return model, data


def cast(solids: Solids, origin: Vector, rays: Array, bundles: int, shown: Mask) -> tuple[Array, Rows, Array]:
    """First hits of rays (3, n) from one point: t, with hit = origin + t * ray, rows of `solids`, and normals (3, n).

    A ray that hits nothing has t = -1, and neither row nor normal. Only the solids `shown` (g,) are met. Rays of each
    of b equal stretches should have close directions.
    """
    import mujoco

    model, data = reusable(len(solids), 0)
    geoms = model.geom_type, model.geom_size, data.geom_xpos, data.geom_xmat
    values: tuple[NDArray[Any], ...] = solids.kinds, solids.sizes, solids.places, solids.frames
    count, bundle = rays.shape[1], rays.shape[1] // bundles
    directions, facing = rays.T.reshape(-1), np.empty(3 * count)
    reach, hits, rows = np.full(count, -1.0), np.zeros(count, np.int32), np.zeros(count, np.intp)
    start, sizes = np.array(origin), model.body_geomnum
    for first, seen in zip(range(0, count, bundle), meets(solids, origin, rays, bundles) & shown, strict=True):
        near, part, three = np.flatnonzero(seen), slice(first, first + bundle), slice(3 * first, 3 * (first + bundle))
        if near.size:
            for slots, own in zip(geoms, values, strict=True):
                slots[: near.size] = own.take(near, axis=0)
            sizes[0] = near.size
            mujoco.mj_multiRay(
                model, data, start, directions[three], None, True, -1, hits[part], reach[part], facing[three], bundle,
                FARTHEST,
            )  # fmt: skip
            rows[part] = near.take(hits[part], mode="clip")
    return reach, rows, facing.reshape(count, 3).T


def meets(solids: Solids, origin: Vector, rays: Array, bundles: int) -> Mask:
    """Which solids each of b equal stretches of rays (3, n) from `origin` may meet (b, g): never wrongly false.

    A cone around each bundle is compared with the sphere around each solid.
    """
    directions = (rays / np.sqrt((rays * rays).sum(0))).reshape(3, bundles, -1)
    axes = directions[:, :, directions.shape[2] // 2]
    width = np.arccos(np.clip((directions * axes[:, :, None]).sum(0), -1, 1).min(1))
    away = solids.places - np.array(origin)
    distance = np.sqrt((away * away).sum(1))
    inside = distance <= solids.radii
    around = np.where(inside, np.pi, np.arcsin(np.where(inside, 0, solids.radii) / np.maximum(distance, 1e-9)))
    apart = np.arccos(np.clip(axes.T @ (away.T / np.maximum(distance, 1e-9)), -1, 1))
    met: Mask = apart <= width[:, None] + around + _MARGIN
    return met
