"""A scene in place: its loose things have settled, and rays meet what stands there.

MuJoCo settles the things and finds what rays hit. A model per scene would cost more than its rays, so models are
compiled once and their geoms rewritten. Its own bounding volumes are compile-time results; instead, rays are cast in
bundles, each tested only against solids that it could hit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.furniture import walls
from zoo_scenes.scene import BOX, CYLINDER, NO_TURN, PLANE, SPHERE, Array, Field, Part, Scene, Vector

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]
STEP_SECONDS = 0.02
STEPS = 20
FARTHEST = 100.0
FLOOR, WALL, CEILING = -1, -2, -3

BLOCK = 48
_MARGIN = 1e-3  # metres, against rounding
_WIDEST = 20.0  # bundles whose slopes differ more count as unbounded
_ROOM_PARTS = 6
_BELOW, _ABOVE, _BACK, _LEFT, _RIGHT, _FRONT = range(_ROOM_PARTS)

# A solid is an ellipsoid swept along its axes; both parts are optional. By MuJoCo's shape number (plane, height field,
# sphere, capsule, ellipsoid, cylinder, box): the indices of its sizes for the ellipsoid's half axes and for half of
# the sweep (index 3 means 0), and the extents that lead together to the farthest point.
_ROUND = np.array([[3, 3, 3], [3, 3, 3], [0, 0, 0], [0, 0, 0], [0, 1, 2], [0, 0, 3], [3, 3, 3]])
_SWEPT = np.array([[3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 1], [3, 3, 3], [3, 3, 1], [0, 1, 2]])
_CORNERS = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]])

# Each entry of a rotation matrix is 2 * (first + sign * second), or 1 minus that on the diagonal. First and second are
# indices of products of the quaternion's components: ww, wx, ... zz.
_FIRST = np.array([10, 6, 7, 6, 5, 11, 7, 11, 5])
_SECOND = np.array([15, 3, 2, 3, 15, 1, 2, 1, 10])
_SIGNS = np.array([1, -1, 1, 1, 1, -1, -1, 1, 1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Solids:
    """MuJoCo's geom types (g,) and sizes (g, 3), half axes of the ellipsoid and half of its sweep (g, 3), radii of the
    spheres around (g,), centres (g, 3), rotations to the room as quaternions (g, 4) and as row-major matrices (g, 9).

    A plane's extents and radius are 0: MuJoCo's mark of something without bounds.
    """

    kinds: NDArray[np.int32]
    sizes: Array
    rounds: Array
    swept: Array
    radii: Array
    centres: Array
    turns: Array
    frames: Array

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def halves(self) -> Array:
        """Half extents along the own axes (g, 3)."""
        return self.rounds + self.swept

    def reach(self, rows: NDArray[np.intp], directions: Array) -> Array:
        """How far the solids `rows` (n,) reach from their centres in unit directions of the room (n, d, 3): (n, d)."""
        rounds, swept, frames = (array.take(rows, axis=0) for array in (self.rounds, self.swept, self.frames))
        along = np.abs(directions @ frames.reshape(-1, 3, 3))  # of the own axes: the columns
        return (along @ swept[:, :, None] + np.sqrt((along**2) @ (rounds**2)[:, :, None]))[:, :, 0]


def solids(parts: Sequence[Part], outer: Array) -> Solids:
    """The parts as solids, each in an outer frame (g, 7: place and unit quaternion) of the room."""
    kinds = np.array([part.shape for part in parts], np.int32)
    numbers = chain.from_iterable((*part.size, 0.0, *part.at, *part.turn) for part in parts)
    table = np.fromiter(numbers, np.float64, 11 * len(parts)).reshape(-1, 11)
    starts = table.shape[1] * np.arange(len(parts))[:, None]
    rounds, swept = (table.take(indices.take(kinds, axis=0) + starts) for indices in (_ROUND, _SWEPT))
    halves, frames = rounds + swept, _compose_frames(outer, table[:, 4:])
    corners = np.sqrt((halves * halves * _CORNERS.take(kinds, axis=0)).sum(1))
    return Solids(
        kinds=kinds,
        sizes=table[:, :3],
        rounds=rounds,
        swept=swept,
        radii=np.maximum(corners, halves.max(1)),
        centres=frames[:, :3],
        turns=frames[:, 3:],
        frames=matrices(frames[:, 3:]),
    )


def matrices(turns: Array) -> Array:
    """Rotation matrices (n, 9), row-major, of unit quaternions (n, 4)."""
    products = (turns[:, :, None] * turns[:, None, :]).reshape(-1, 16)
    result: Array = 2 * (products.take(_FIRST, axis=1) + _SIGNS * products.take(_SECOND, axis=1))
    result[:, ::4] = 1 - result[:, ::4]
    return result


def _compose_frames(outer: Array, inner: Array) -> Array:
    """Frames (n, 7: place and quaternion) given in other frames (n, 7), in the frame of the latter."""
    turned = matrices(outer[:, 3:]).reshape(-1, 3, 3) @ inner[:, :3, None]
    (w, x, y, z), (a, b, c, d) = outer[:, 3:].T, inner[:, 3:].T
    turns = [
        w * a - x * b - y * c - z * d,
        w * b + x * a + y * d - z * c,
        w * c - x * d + y * a + z * b,
        w * d + x * c - y * b + z * a,
    ]
    return np.concatenate([outer[:, :3] + turned[:, :, 0], np.stack(turns, axis=1)], axis=1)


@lru_cache(maxsize=64)
def compile_model(blocks: int, loose: int, thread: int) -> tuple[Any, Any]:
    """A model of `blocks` x BLOCK geoms that stand, then one geom on a free body per loose thing, and its data.

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
    for _ in range(blocks * BLOCK):
        # a place off the world's frame keeps MuJoCo from taking the geom's frame for the world's
        spec.worldbody.add_geom(type=box, size=[1, 1, 1], pos=[1, 1, 1], quat=[0.5, 0.5, 0.5, 0.5])
    for _ in range(loose):
        body = spec.worldbody.add_body()
        body.add_joint(type=mujoco.mjtJoint.mjJNT_FREE, damping=[0.3, 0, 0])
        body.add_geom(type=box, size=[1, 1, 1], mass=1.0, friction=[0.9, 0.01, 0.002])
    model = spec.compile()
    model.body_bvhadr[:] = -1
    return model, mujoco.MjData(model)


def settle(solids: Solids, loose: int) -> None:
    """Let the last `loose` solids (boxes, spheres, cylinders) fall for STEPS * STEP_SECONDS, and move them there."""
    import mujoco

    fixed = len(solids) - loose
    model, data = compile_model(-(-fixed // BLOCK), loose, threading.get_ident())
    model.body_geomnum[0] = fixed
    model.geom_pos[:fixed], model.geom_quat[:fixed] = solids.centres[:fixed], solids.turns[:fixed]
    for slots, values in (
        (model.geom_type, solids.kinds),
        (model.geom_size, solids.sizes),
        (model.geom_rbound, solids.radii),
    ):
        slots[:fixed], slots[-loose:] = values[:fixed], values[fixed:]
    kinds, halves = solids.kinds[fixed:].tolist(), solids.halves[fixed:].tolist()
    # only what rolls needs rolling friction
    model.geom_condim[-loose:] = [3 if kind == BOX else 6 for kind in kinds]
    model.body_inertia[1:] = [_inertia(kind, *half) for kind, half in zip(kinds, halves, strict=True)]
    start = model.qpos0.reshape(-1, 7)
    start[:, :3], start[:, 3:] = solids.centres[fixed:], solids.turns[fixed:]
    mujoco.mj_setConst(model, data)
    # a step reads no other state of the last scene; mj_resetData would clear much more
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = model.qpos0, 0, 0
    mujoco.mj_step(model, data, nstep=STEPS)
    mujoco.mj_kinematics(model, data)
    rest = data.qpos.reshape(-1, 7)
    solids.centres[fixed:], solids.turns[fixed:] = rest[:, :3], rest[:, 3:]
    solids.frames[fixed:] = data.geom_xmat[-loose:]


def _inertia(kind: int, a: float, b: float, c: float) -> Vector:
    """Principal moments, in the own axes, of a sphere, cylinder or box of mass 1 with these half extents."""
    if kind == SPHERE:
        return (0.4 * a * a, 0.4 * a * a, 0.4 * a * a)
    if kind == CYLINDER:
        across = (3 * a * a + 4 * c * c) / 12
        return (across, across, a * a / 2)
    return ((b * b + c * c) / 3, (a * a + c * c) / 3, (a * a + b * b) / 3)


def bundle_sides(rays: Array, bundles: int) -> Field:
    """Inward normals (4, 3, b) of the sides of a pyramid around each of b equal stretches of rays (3, n) from a point.

    They are 0 where some ray leads back or far aside.
    """
    bundle = rays.reshape(3, bundles, -1).swapaxes(0, 1).astype(np.float32)
    middle = bundle[:, :, 0] + bundle[:, :, -1]
    x, y, z = middle.T / np.maximum(np.sqrt((middle * middle).sum(1)), np.float32(1e-30))
    axes = np.array([[x, y, z], [-y, x, 0 * z], [-x * z, -y * z, x * x + y * y]])  # ahead, aside and up (3, 3, b)
    along = axes.transpose(2, 0, 1) @ bundle
    slopes = np.divide(along.T, np.maximum(along[:, :1], np.float32(1e-30)).T, order="C")  # rays first: reduces faster
    low, high = slopes.min(0), slopes.max(0)
    sides = np.concatenate([axes[1:] - low[1:, None] * axes[0], high[1:, None] * axes[0] - axes[1:]])
    sides *= (high - low).max(0) < _WIDEST
    return sides


def meets(solids: Solids, origin: Vector, sides: Field) -> Mask:
    """Which solids the rays in each of b pyramids from `origin` may meet (b, g): never wrongly false.

    The sides (4, 3, b) are compared with the box around each solid. Single precision is enough for boxes.
    """
    vectors = np.empty((4, len(solids), 3), np.float32)
    vectors[0] = solids.centres - origin
    vectors[1:] = solids.frames.reshape(-1, 3, 3).transpose(2, 0, 1) * solids.halves.T[:, :, None]  # half axes
    inside, *reaches = (vectors.reshape(-1, 3) @ sides).reshape(4, 4, len(solids), -1).swapaxes(0, 1)
    for reach in reaches:
        inside += np.abs(reach, out=reach)
    met: Mask = inside.min(0).T >= -_MARGIN
    return met


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A settled scene: its solids, and for each the index of its thing (or FLOOR, WALL, CEILING) and its part.

    The order is: planes of the room, fixed parts, loose parts.
    """

    scene: Scene
    solids: Solids
    owners: list[int]
    parts: list[Part]

    def cast(self, origin: Vector, rays: Array, sides: Field) -> tuple[Array, Rows, Field]:
        """First hits of rays (3, n) from a point in the room: t, in lengths of the ray, solids, and normals (3, n).

        `sides` (4, 3, b) are the `bundle_sides` of b equal stretches of the rays, which should have close directions.
        """
        reach, rows, facing = self._furnishings(origin, rays, sides, self.solids.radii > 0)
        wall, hits = self._room(origin, rays)
        normals = self.solids.frames[:_ROOM_PARTS, 2::3].T.astype(np.float32).take(hits, axis=1)
        inside = (reach >= 0) & (reach < wall)
        for far, near in ((normals, facing), (wall, reach), (hits, rows)):
            np.copyto(far, near, where=inside, casting="same_kind")
        return wall, hits, normals

    def blocked(self, origin: Vector, rays: Array, bundles: int, slack: float = 0.005) -> Mask:
        """Return which rays (3, n) a shadow caster blocks more than `slack` metres before their end at t = 1."""
        bodies = self.scene.bodies
        casters = np.array([owner >= 0 and bodies[owner].label not in ("lamp", "window") for owner in self.owners])
        reach, _, _ = self._furnishings(origin, rays, bundle_sides(rays, bundles), casters)
        hits = np.flatnonzero((reach >= 0) & (reach < 1))
        ends = rays.take(hits, axis=1)
        stopped = np.zeros(reach.size, bool)
        stopped[hits] = (1 - reach.take(hits)) * np.sqrt(np.einsum("kn,kn->n", ends, ends)) > slack
        return stopped

    def _furnishings(self, origin: Vector, rays: Array, sides: Field, included: Mask) -> tuple[Array, Rows, Array]:
        """As `cast`, of the solids `included` (g,) alone. A ray that hits none has t = -1, no row and no normal."""
        import mujoco

        solids, count, bundles = self.solids, rays.shape[1], sides.shape[2]
        model, data = compile_model(max(-(-len(solids) // BLOCK), 5), 0, threading.get_ident())
        slots = len(model.geom_type)
        met = meets(solids, origin, sides) & included
        near = np.flatnonzero(met) % len(solids)
        geoms = model.geom_type, model.geom_size, data.geom_xpos, data.geom_xmat
        values: tuple[NDArray[Any], ...] = solids.kinds, solids.sizes, solids.centres, solids.frames
        values = tuple(array.take(near, axis=0) for array in values)
        directions, facing = np.array(rays.T, order="C"), np.empty((count, 3))
        reach, hits = np.full(count, -1.0), np.zeros(count, np.int32)
        views = (array.reshape(bundles, -1, 1) for array in (directions, hits, reach, facing))
        firsts, counts, per = model.body_geomadr, model.body_geomnum, count // bundles
        start, stop, written, offset = np.array(origin), 0, 0, 0
        for size, ray, hit, end, normal in zip(met.sum(1).tolist(), *views, strict=True):
            if not size:
                continue
            first, stop = stop, stop + size
            if stop > written:  # fill all slots from this bundle on
                offset, written = first, first + slots
                for slot_values, solid_values in zip(geoms, values, strict=True):
                    part = solid_values[first:written]
                    slot_values[: len(part)] = part
            firsts[0], counts[0] = first - offset, size
            mujoco.mj_multiRay(model, data, start, ray, None, True, -1, hit, end, normal, per, FARTHEST)
            if offset:
                hit += offset
        rows = near.take(hits, mode="clip") if near.size else hits.astype(np.intp)
        return reach, rows, facing.T

    def _room(self, origin: Vector, rays: Array) -> tuple[Array, NDArray[np.intp]]:
        """Where rays (3, n) from a point in the room meet its walls, floor or ceiling: t, and which solid."""
        size, at = (self.scene.width, self.scene.depth, self.scene.height), np.array(origin)[:, None]
        with np.errstate(divide="ignore"):
            inverse = 1 / rays
        x, y, z = np.maximum((np.array(size)[:, None] - at) * inverse, -at * inverse)
        wall = np.minimum(np.minimum(x, y), z)
        right, back, above = (rays > 0).view(np.int8)
        sides = np.add(right, _LEFT, dtype=np.intp)
        np.copyto(sides, _FRONT - (_FRONT - _BACK) * back, where=y == wall)
        np.copyto(sides, above, where=z == wall)
        return wall, sides


def build(scene: Scene) -> Stage:
    """Set the scene up and let its loose things fall: their places in the scene become where they come to rest."""
    loose = [index for index, body in enumerate(scene.bodies) if body.free]
    order = [index for index, body in enumerate(scene.bodies) if not body.free] + loose
    origin = (0.0, 0.0, 0.0)
    parts = [Part(PLANE, origin, origin, scene.floor), Part(PLANE, origin, origin, scene.ceiling)]
    parts += [Part(PLANE, origin, origin, scene.wall)] * 4
    owners = [FLOOR, CEILING, WALL, WALL, WALL, WALL]
    outer: list[tuple[float, ...]] = [origin + NO_TURN, (0.0, 0.0, scene.height, 0.0, 1.0, 0.0, 0.0)]
    outer += [(*wall.middle, 0.0, *wall.turn) for wall in walls(scene)]
    counts = [1] * _ROOM_PARTS
    for index in order:
        body = scene.bodies[index]
        parts += body.parts
        owners += [index] * len(body.parts)
        outer.append(body.at + body.turn)
        counts.append(len(body.parts))
    all_parts = solids(parts, np.repeat(np.array(outer), counts, axis=0))
    if loose:
        settle(all_parts, len(loose))
        centres, turns = all_parts.centres[-len(loose) :].tolist(), all_parts.turns[-len(loose) :].tolist()
        for index, at, turn in zip(loose, centres, turns, strict=True):
            scene.bodies[index].at, scene.bodies[index].turn = tuple(at), tuple(turn)
        for body in scene.bodies:
            if body.free and body.on is not None:  # it may have slid or fallen off
                carrier = scene.bodies[body.on]
                top = carrier.at[2] + (carrier.reach_down() if carrier.free else carrier.top or 0.0)
                away = math.hypot(body.at[0] - carrier.at[0], body.at[1] - carrier.at[1])
                if abs(body.at[2] - body.reach_down() - top) > 0.03 or away > math.hypot(*carrier.half[:2]):
                    body.on = None
    return Stage(scene=scene, solids=all_parts, owners=owners, parts=parts)
