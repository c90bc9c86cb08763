"""A scene in place: its loose things have settled, and rays meet what stands there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo_scenes import casting
from zoo_scenes.casting import Mask, Solids, reusable, solids
from zoo_scenes.furniture import walls
from zoo_scenes.things import BOX, CYLINDER, NO_TURN, PLANE, SPHERE, Array, Field, Part, Scene, Vector

STEPS = 20


def settle(solids: Solids, loose: int) -> None:
    """Let the last `loose` solids (boxes, spheres, cylinders) fall for STEPS * STEP_SECONDS, and move them there."""
    import mujoco

    fixed = len(solids) - loose
    model, data = reusable(fixed, loose)
    model.geom_pos[:fixed], model.geom_quat[:fixed] = solids.places[:fixed], solids.turns[:fixed]
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
    start[:, :3], start[:, 3:] = solids.places[fixed:], solids.turns[fixed:]
    mujoco.mj_setConst(model, data)
    # a step reads no other state of the last scene; mj_resetData would clear much more
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = model.qpos0, 0, 0
    mujoco.mj_step(model, data, nstep=STEPS)
    mujoco.mj_kinematics(model, data)
    rest = data.qpos.reshape(-1, 7)
    solids.places[fixed:], solids.turns[fixed:] = rest[:, :3], rest[:, 3:]
    solids.frames[fixed:] = data.geom_xmat[-loose:]


def _inertia(kind: int, a: float, b: float, c: float) -> Vector:
    """Principal moments, in the own axes, of a sphere, cylinder or box of mass 1 with these half extents."""
    if kind == SPHERE:
        return (0.4 * a * a, 0.4 * a * a, 0.4 * a * a)
    if kind == CYLINDER:
        across = (3 * a * a + 4 * c * c) / 12
        return (across, across, a * a / 2)
    return ((b * b + c * c) / 3, (a * a + c * c) / 3, (a * a + b * b) / 3)


FLOOR, WALL, CEILING = -1, -2, -3

_ROOM_PARTS = 6
_BELOW, _ABOVE, _BACK, _LEFT, _RIGHT, _FRONT = range(_ROOM_PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A settled scene: its solids, and for each the index of its thing (or FLOOR, WALL, CEILING) and its part.

    The order is: planes of the room, fixed parts, loose parts. `casters` marks the solids that cast shadows.
    """

    scene: Scene
    solids: Solids
    owners: list[int]
    parts: list[Part]
    casters: Mask

    def cast(self, origin: Vector, rays: Array, bundles: int) -> tuple[Array, NDArray[np.intp], Field]:
        """First hits of rays (3, n) from a point in the room: t, in lengths of the ray, solids, and normals (3, n)."""
        reach, rows, facing = casting.cast(self.solids, origin, rays, bundles, self.solids.radii > 0)
        wall, sides = self._room(origin, rays)
        normals = self.solids.frames[:_ROOM_PARTS, 2::3].T.astype(np.float32).take(sides, axis=1)
        inside = (reach >= 0) & (reach < wall)
        for far, near in ((normals, facing), (wall, reach), (sides, rows)):
            np.copyto(far, near, where=inside, casting="same_kind")
        return wall, sides, normals

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

    def blocked(self, origin: Vector, rays: Array, bundles: int, slack: float = 0.005) -> Mask:
        """Return which rays (3, n) a shadow caster blocks more than `slack` metres before their end at t = 1."""
        reach, _, _ = casting.cast(self.solids, origin, rays, bundles, self.casters)
        hits = np.flatnonzero((reach >= 0) & (reach < 1))
        ends = rays.take(hits, axis=1)
        stopped = np.zeros(reach.size, bool)
        stopped[hits] = (1 - reach.take(hits)) * np.sqrt(np.einsum("kn,kn->n", ends, ends)) > slack
        return stopped


def build(scene: Scene) -> Stage:
    """Set the scene up and let its loose things fall: their places in the scene become where they come to rest."""
    loose = [index for index, thing in enumerate(scene.things) if thing.free]
    order = [index for index, thing in enumerate(scene.things) if not thing.free] + loose
    here = (0.0, 0.0, 0.0)
    parts = [Part(PLANE, here, here, scene.floor), Part(PLANE, here, here, scene.ceiling)]
    parts += [Part(PLANE, here, here, scene.wall)] * 4
    owners = [FLOOR, CEILING, WALL, WALL, WALL, WALL]
    outer: list[tuple[float, ...]] = [here + NO_TURN, (0.0, 0.0, scene.height, 0.0, 1.0, 0.0, 0.0)]
    outer += [(*wall.middle, 0.0, *wall.turn) for wall in walls(scene)]
    counts = [1] * _ROOM_PARTS
    for index in order:
        thing = scene.things[index]
        parts += thing.parts
        owners += [index] * len(thing.parts)
        outer.append(thing.at + thing.turn)
        counts.append(len(thing.parts))
    all_parts = solids(parts, np.repeat(np.array(outer), counts, axis=0))
    if loose:
        settle(all_parts, len(loose))
        places, turns = all_parts.places[-len(loose) :].tolist(), all_parts.turns[-len(loose) :].tolist()
        for index, at, turn in zip(loose, places, turns, strict=True):
            scene.things[index].at, scene.things[index].turn = tuple(at), tuple(turn)
        for thing in scene.things:
            if thing.free and thing.on is not None:  # it may have slid or fallen off
                carrier = scene.things[thing.on]
                top = carrier.at[2] + (carrier.reach_down() if carrier.free else carrier.top or 0.0)
                away = math.hypot(thing.at[0] - carrier.at[0], thing.at[1] - carrier.at[1])
                if abs(thing.at[2] - thing.reach_down() - top) > 0.03 or away > math.hypot(*carrier.half[:2]):
                    thing.on = None
    casters = np.array([owner >= 0 and scene.things[owner].label not in ("lamp", "window") for owner in owners])
    return Stage(scene=scene, solids=all_parts, owners=owners, parts=parts, casters=casters)
