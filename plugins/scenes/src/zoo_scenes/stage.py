"""MuJoCo: lets a scene's loose things fall and settle, and casts rays.

Compiling a model per scene would dominate, so scenes are set up in compiled models with enough slots for parts: sizes,
types and places are rewritten per scene. Bounding-volume trees are compile-time results, so they are switched off, and
rays are culled here instead, in bundles: bounding spheres of parts against the cone around each bundle.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.room import walls
from zoo_scenes.things import BOX, CAPSULE, CYLINDER, ELLIPSOID, NO_TURN, PLANE, SPHERE, Part, Scene, Thing, Vector

Array = NDArray[np.float64]
Ids = NDArray[np.int32]

STEP_SECONDS = 0.02
STEPS = 20
FARTHEST = 100.0
FLOOR, WALL, CEILING = -1, -2, -3

_SLOTS = 48
_ROOM_PARTS = 6
_GROUPS = np.array([[1], [0], [0], [0], [0], [0]], np.uint8)
_MASS = 1.0


class _Models(threading.local):
    """Compiled models by (slots for fixed parts, loose things), one set per thread: MuJoCo's data are not shared."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], tuple[Any, Any]] = {}

    def get(self, parts: int, loose: int) -> tuple[Any, Any]:
        key = (-(-parts // _SLOTS) * _SLOTS, loose)
        if key not in self.known:
            self.known[key] = _compile(*key)
        return self.known[key]


_models = _Models()


def _compile(slots: int, loose: int) -> tuple[Any, Any]:
    """A model with `slots` fixed geoms, then one geom on a free body per loose thing; all sizes are placeholders."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.memory = 1 << 22
    spec.option.timestep = STEP_SECONDS
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.iterations = 15
    spec.option.disableflags = mujoco.mjtDisableBit.mjDSBL_MIDPHASE
    box = mujoco.mjtGeom.mjGEOM_BOX
    for _ in range(slots):
        # a place off the world's frame keeps MuJoCo from taking the geom's frame for the world's
        spec.worldbody.add_geom(type=box, size=[1, 1, 1], pos=[1, 1, 1], quat=[0.5, 0.5, 0.5, 0.5])
    for _ in range(loose):
        body = spec.worldbody.add_body()
        body.add_joint(type=mujoco.mjtJoint.mjJNT_FREE, damping=[0.3, 0, 0])
        body.add_geom(type=box, size=[1, 1, 1], mass=_MASS, friction=[0.9, 0.01, 0.002])
    model = spec.compile()
    model.body_bvhadr[:] = -1
    return model, mujoco.MjData(model)


@lru_cache(maxsize=1)
def _shape_ids() -> dict[str, int]:
    import mujoco

    kinds = mujoco.mjtGeom
    shapes = {PLANE: kinds.mjGEOM_PLANE, SPHERE: kinds.mjGEOM_SPHERE, CAPSULE: kinds.mjGEOM_CAPSULE}
    shapes |= {ELLIPSOID: kinds.mjGEOM_ELLIPSOID, CYLINDER: kinds.mjGEOM_CYLINDER, BOX: kinds.mjGEOM_BOX}
    return {name: int(kind) for name, kind in shapes.items()}


def _inertia(part: Part) -> Vector:
    """Principal moments of a solid part of mass 1, in its own axes."""
    a, b, c = part.size
    if part.shape == SPHERE:
        return (0.4 * a * a, 0.4 * a * a, 0.4 * a * a)
    if part.shape == CYLINDER:
        across = (3 * a * a + 4 * b * b) / 12
        return (across, across, a * a / 2)
    return ((b * b + c * c) / 3, (a * a + c * c) / 3, (a * a + b * b) / 3)


@dataclass(slots=True, kw_only=True)
class Stage:
    """A settled scene in MuJoCo, valid until the next one is built in the same thread.

    Per geom: the index of its thing (or FLOOR, WALL, CEILING) and its part. Slots without a part come between fixed and
    loose ones, with owner and part of the last fixed one; neither rays nor contacts meet them.
    """

    scene: Scene
    model: Any
    data: Any
    owners: list[int]
    parts: list[Part]
    lets_light_pass: NDArray[np.bool_]

    @property
    def places(self) -> Array:
        """Centres of the geoms in the room (g, 3)."""
        return self.data.geom_xpos  # type: ignore[no-any-return]

    @property
    def frames(self) -> Array:
        """Rotations of the geoms (g, 9), row-major, from geom to room."""
        return self.data.geom_xmat  # type: ignore[no-any-return]

    def cast(self, origin: Vector, rays: Array, bundles: int = 1, shadows: bool = False) -> tuple[Array, Ids, Array]:
        """First hits of rays (n, 3) from one point: t, with hit = origin + t * ray, geom ids, and normals (n, 3).

        A ray that hits nothing has t = -1, geom -1 and normal 0. With `shadows` only what casts shadows is met, and no
        normals are computed. `bundles` must divide n: rays of one bundle should have close directions.
        """
        import mujoco

        count = len(rays)
        reach = np.full((count, 1), -1.0)
        geoms = np.full((count, 1), -1, np.int32)
        normals = np.zeros((0 if shadows else 3 * count, 1))
        start = np.array(origin)
        flat = rays.reshape(-1, 1)
        skip = self._culled(start, rays.reshape(bundles, -1, 3))
        if shadows:
            skip |= self.lets_light_pass
        nothing: list[bool] = [bool(row.all()) for row in skip]
        per = count // bundles
        groups = self.model.geom_group
        for bundle in range(bundles):
            if nothing[bundle]:
                continue
            groups[:] = skip[bundle]
            part = slice(bundle * per, (bundle + 1) * per)
            three = slice(3 * part.start, 3 * part.stop)
            normal = None if shadows else normals[three]
            seen = geoms[part], reach[part], normal
            mujoco.mj_multiRay(self.model, self.data, start, flat[three], _GROUPS, True, -1, *seen, per, FARTHEST)
        return reach[:, 0], geoms[:, 0], normals.reshape(-1, 3)

    def _culled(self, origin: Array, rays: Array) -> NDArray[np.bool_]:
        """Per bundle and geom, whether no ray (bundles, n, 3) from `origin` can hit the geom: never wrongly true.

        A bundle is bounded by five planes through the origin: four sides and one across. A box around a geom that lies
        wholly outside one of them is missed. A plane is missed by rays that lead away from it.
        """
        axis = rays[:, 0] + rays[:, -1]
        x, y, z = axis.T
        x = x + 1e-6 * (np.abs(x) + np.abs(y) < 1e-6)  # any side will do for a bundle straight up or down
        side = np.stack([-y, x, np.zeros_like(x)], axis=1)
        up = np.stack([x * z, y * z, -x * x - y * y], axis=1)
        ahead, along, across = (np.stack([axis, side, up], axis=1) @ rays.transpose(0, 2, 1)).swapaxes(0, 1)
        along, across = along / ahead, across / ahead
        planes = np.stack(
            [
                axis,
                side - along.min(1)[:, None] * axis,
                along.max(1)[:, None] * axis - side,
                up - across.min(1)[:, None] * axis,
                across.max(1)[:, None] * axis - up,
            ]
        )
        planes *= (ahead > 0).all(1)[:, None]
        centre = planes @ (self.places - origin).T
        # the columns of a geom's frame are its axes
        axes = self.frames.reshape(-1, 3, 3).transpose(2, 1, 0) * self.model.geom_aabb[:, 3:].T[:, None, :]
        reach = np.abs(planes @ axes[0]) + np.abs(planes @ axes[1]) + np.abs(planes @ axes[2])
        culled: NDArray[np.bool_] = (centre < -reach * 1.001 - 1e-9).any(axis=0)
        inward = self.frames[:_ROOM_PARTS, [2, 5, 8]].T
        culled[:, :_ROOM_PARTS] = (inward.T @ rays.transpose(0, 2, 1)).min(2) > 0
        return culled


def build(scene: Scene) -> Stage:
    """Set the scene up and let its loose things fall: their places in the scene become where they come to rest."""
    import mujoco

    parts, owners, frames = _fixed_parts(scene)
    loose = [index for index, thing in enumerate(scene.things) if thing.free]
    fixed = len(parts)
    model, data = _models.get(fixed, len(loose))
    slots = model.ngeom - len(loose)
    parts += [parts[-1]] * (slots - fixed) + [scene.things[index].parts[0] for index in loose]
    owners += [owners[-1]] * (slots - fixed) + loose
    _write(model, parts, frames)
    passes = np.array([owner < 0 or scene.things[owner].label in ("lamp", "window") for owner in owners])
    passes[fixed:slots] = True
    mujoco.mj_resetData(model, data)
    if loose:
        _settle(model, data, [scene.things[index] for index in loose])
        _check_carried(scene)
    mujoco.mj_kinematics(model, data)
    return Stage(scene=scene, model=model, data=data, owners=owners, parts=parts, lets_light_pass=passes)


def _fixed_parts(scene: Scene) -> tuple[list[Part], list[int], Array]:
    """Parts, owners and frames (n, 7: place and quaternion) of all that does not fall, the room's planes first."""
    here = (0.0, 0.0, 0.0)
    parts = [Part(PLANE, here, here, scene.floor), Part(PLANE, here, here, scene.ceiling)]
    parts += [Part(PLANE, here, here, scene.wall)] * 4
    owners = [FLOOR, CEILING, WALL, WALL, WALL, WALL]
    outer = [(*here, *NO_TURN), (0.0, 0.0, scene.height, 0.0, 1.0, 0.0, 0.0)]
    outer += [(*wall.middle, 0.0, *wall.turn) for wall in walls(scene)]
    counts = [1] * len(outer)
    for index, thing in enumerate(scene.things):
        if not thing.free:
            outer.append(thing.at + thing.turn)
            counts.append(len(thing.parts))
            parts += thing.parts
            owners += [index] * len(thing.parts)
    inner = np.array([part.at + part.turn for part in parts])
    return parts, owners, _chained(np.repeat(np.array(outer), counts, axis=0), inner)


def _chained(outer: Array, inner: Array) -> Array:
    """Frames (n, 7) given in other frames (n, 7), in the frame of the latter."""
    px, py, pz, w, x, y, z = outer.T
    ax, ay, az, a, b, c, d = inner.T
    # v + 2 w (u x v) + 2 u x (u x v) turns v by the quaternion (w, u)
    cx, cy, cz = 2 * (y * az - z * ay), 2 * (z * ax - x * az), 2 * (x * ay - y * ax)
    columns = [
        px + ax + w * cx + y * cz - z * cy,
        py + ay + w * cy + z * cx - x * cz,
        pz + az + w * cz + x * cy - y * cx,
        w * a - x * b - y * c - z * d,
        w * b + x * a + y * d - z * c,
        w * c - x * d + y * a + z * b,
        w * d + x * c - y * b + z * a,
    ]
    return np.stack(columns, axis=1)


def _write(model: Any, parts: list[Part], frames: Array) -> None:
    """Put the parts into the model's slots; the frames are those of the fixed ones."""
    shapes = _shape_ids()
    kinds = np.array([shapes[part.shape] for part in parts])
    sizes = np.array([part.size for part in parts])
    box, sphere, capsule, cylinder = (kinds == shapes[name] for name in (BOX, SPHERE, CAPSULE, CYLINDER))
    half = sizes.copy()
    along = capsule | cylinder
    half[along | sphere, 1] = sizes[along | sphere, 0]
    half[along, 2] = sizes[along, 1] + sizes[along, 0] * capsule[along]
    half[sphere, 2] = sizes[sphere, 0]
    bound = half.max(1)  # a plane's is 0: MuJoCo's mark of something without bounds
    bound[box] = np.sqrt((half[box] ** 2).sum(1))
    bound[cylinder] = np.hypot(sizes[cylinder, 0], sizes[cylinder, 1])
    model.geom_type[:] = kinds
    model.geom_size[:] = sizes
    model.geom_rbound[:] = bound
    model.geom_aabb[:, 3:] = half
    fixed = len(frames)
    model.geom_pos[:fixed] = frames[:, :3]
    model.geom_quat[:fixed] = frames[:, 3:]
    model.body_geomnum[0] = fixed


def _settle(model: Any, data: Any, loose: list[Thing]) -> None:
    """Let the loose things fall for STEPS * STEP_SECONDS, and note where they are then."""
    import mujoco

    # only what rolls needs rolling friction
    model.geom_condim[-len(loose) :] = [3 if thing.parts[0].shape == BOX else 6 for thing in loose]
    model.body_inertia[1:] = [_inertia(thing.parts[0]) for thing in loose]
    model.qpos0[:] = np.ravel([thing.at + thing.turn for thing in loose])
    mujoco.mj_setConst(model, data)
    mujoco.mj_resetData(model, data)
    mujoco.mj_step(model, data, nstep=STEPS)
    for thing, rest in zip(loose, data.qpos.reshape(-1, 7).tolist(), strict=True):
        thing.at, thing.turn = (rest[0], rest[1], rest[2]), (rest[3], rest[4], rest[5], rest[6])


def _check_carried(scene: Scene) -> None:
    """Forget the carrier of what has slid or fallen off it."""
    for thing in scene.things:
        if thing.free and thing.on is not None:
            carrier = scene.things[thing.on]
            top = carrier.at[2] + (carrier.reach_down() if carrier.free else carrier.top or 0.0)
            away = math.hypot(thing.at[0] - carrier.at[0], thing.at[1] - carrier.at[1])
            if abs(thing.at[2] - thing.reach_down() - top) > 0.03 or away > math.hypot(*carrier.half[:2]):
                thing.on = None
