"""Casts rays at solids: MuJoCo finds the hits. Rays are cast in bundles, each tested only against geoms it could hit.

MuJoCo's own bounding volumes are compile-time results, and a model per scene would cost more than all of its rays. So
the solids that bundles may meet are written, bundle by bundle, into the geoms of one compiled model, and each bundle is
shown its stretch of geoms.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.solids import Array, Solids
from zoo_scenes.things import Vector

Field = NDArray[np.float32]

FARTHEST = 100.0

_SLOTS = 256  # more cost time in every call, fewer must be rewritten more often
_MARGIN = 1e-3  # metres, against rounding to single precision
_WIDEST = 20.0  # a bundle with steeper sides counts as unbounded
_UNITS = np.eye(3, dtype=np.float32)[:, None]


class _Workshop(threading.local):
    """What casting reuses, one set per thread since MuJoCo's data are not shared: targets by slots, the last batch."""

    def __init__(self) -> None:
        self.targets: dict[int, _Target] = {}
        self.shape, self.last = (0, 0), _Batch(0, 1)

    def target(self, slots: int) -> _Target:
        if slots not in self.targets:
            self.targets[slots] = _Target(slots)
        return self.targets[slots]

    def batch(self, count: int, bundles: int) -> _Batch:
        if self.shape != (count, bundles):
            self.shape, self.last = (count, bundles), _Batch(count, bundles)
        return self.last


class _Target:
    """A compiled model of `slots` fixed geoms. Rays meet the contents of its arrays."""

    def __init__(self, slots: int) -> None:
        import mujoco

        spec = mujoco.MjSpec()
        spec.memory = 1 << 20
        for _ in range(slots):
            spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[1, 1, 1])
        self.model = spec.compile()
        self.model.body_bvhadr[:] = -1
        self.data = mujoco.MjData(self.model)
        self.kinds, self.sizes = self.model.geom_type, self.model.geom_size
        self.places, self.frames = self.data.geom_xpos, self.data.geom_xmat
        self.firsts, self.numbers = self.model.body_geomadr, self.model.body_geomnum

    def write(self, solids: Solids, rows: NDArray[np.intp]) -> int:
        """Put the first of these solids into the slots: as many as there are slots, which is returned."""
        rows = rows[: len(self.kinds)]
        count = len(rows)
        self.kinds[:count], self.sizes[:count] = solids.kinds.take(rows), solids.sizes.take(rows, axis=0)
        self.places[:count], self.frames[:count] = solids.places.take(rows, axis=0), solids.frames.take(rows, axis=0)
        return len(self.kinds)


class _Batch:
    """Arrays for `count` rays as MuJoCo takes and fills them, and their views for each bundle."""

    def __init__(self, count: int, bundles: int) -> None:
        self.rays, self.normals = np.empty((count, 3)), np.empty((count, 3))
        self.reach, self.found = np.empty(count), np.zeros(count, np.int32)
        vectors = [array.reshape(bundles, array.size // bundles, 1) for array in (self.rays, self.normals)]
        numbers = [array.reshape(bundles, array.size // bundles, 1) for array in (self.found, self.reach)]
        self.views = list(zip(*vectors, *numbers, strict=True))


_workshop = _Workshop()


def cast(
    solids: Solids, origin: Vector, rays: Array, met: NDArray[np.bool_], normals: bool
) -> tuple[Array, NDArray[np.intp], Array]:
    """First hits of rays (3, n) from one point: t, with hit = origin + t * ray, rows of `solids`, and normals (n, 3).

    A ray that hits nothing has t = -1, and neither row nor normal; without `normals` there are none at all. `met`
    (b, g) tells which solids each of b equal stretches of the rays may meet. The arrays are valid until the next cast
    in the same thread.
    """
    import mujoco

    start, multi_ray = np.array(origin), mujoco.mj_multiRay
    bundle, row = np.nonzero(met)
    sizes = np.bincount(bundle, minlength=len(met)).tolist()
    target = _workshop.target(max(_SLOTS, 1 << (max(sizes) - 1).bit_length()))
    model, data, firsts, numbers = target.model, target.data, target.firsts, target.numbers
    count, bundles = rays.shape[1], len(met)
    per, batch = count // bundles, _workshop.batch(count, bundles)
    batch.rays[:] = rays.T
    batch.reach.fill(-1)
    stop = written = offset = 0
    for size, (ray, normal, found, reach) in zip(sizes, batch.views, strict=True):
        if not size:
            continue
        first, stop = stop, stop + size
        if stop > written:
            written = target.write(solids, row[first:]) + first
            offset = first
        firsts[0], numbers[0] = first - offset, size
        multi_ray(model, data, start, ray, None, True, -1, found, reach, normal if normals else None, per, FARTHEST)
        if offset:
            found += offset
    rows = row.take(batch.found, mode="clip") if len(row) else batch.found.astype(np.intp)
    return batch.reach, rows, batch.normals


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
    inside: NDArray[np.bool_] = nearest <= np.float32(_MARGIN)
    return inside
