"""Lets loose things fall and settle by MuJoCo's physics.

Compiling a model per scene would dominate, so scenes are set up in compiled models with enough slots for parts: sizes,
types and places are rewritten per scene.
"""

from __future__ import annotations

import threading
from typing import Any

from zoo_scenes.solids import Solids, shape_ids
from zoo_scenes.things import BOX, CYLINDER, SPHERE, Vector

STEP_SECONDS = 0.02
STEPS = 20

_SLOTS = 48
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
    # bounding volumes are compile-time results
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


def settle(solids: Solids, loose: int) -> None:
    """Let the last `loose` solids (boxes, spheres, cylinders) fall for STEPS * STEP_SECONDS, and move them there."""
    import mujoco

    fixed = len(solids) - loose
    model, data = _models.get(fixed, loose)
    model.body_geomnum[0] = fixed
    model.geom_pos[:fixed], model.geom_quat[:fixed] = solids.places[:fixed], solids.turns[:fixed]
    for slots, values in (
        (model.geom_type, solids.kinds),
        (model.geom_size, solids.sizes),
        (model.geom_rbound, solids.radii),
    ):
        slots[:fixed], slots[-loose:] = values[:fixed], values[fixed:]
    kinds, halves = solids.kinds[fixed:].tolist(), solids.halves[fixed:].tolist()
    # only what rolls needs rolling friction
    model.geom_condim[-loose:] = [3 if kind == shape_ids()[BOX] else 6 for kind in kinds]
    model.body_inertia[1:] = [_inertia(kind, *half) for kind, half in zip(kinds, halves, strict=True)]
    start = model.qpos0.reshape(-1, 7)
    start[:, :3], start[:, 3:] = solids.places[fixed:], solids.turns[fixed:]
    mujoco.mj_setConst(model, data)
    # all that a step reads of the last scene; mj_resetData would clear much more
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = model.qpos0, 0, 0
    mujoco.mj_step(model, data, nstep=STEPS)
    mujoco.mj_kinematics(model, data)
    rest = data.qpos.reshape(-1, 7)
    solids.places[fixed:], solids.turns[fixed:] = rest[:, :3], rest[:, 3:]
    solids.frames[fixed:] = data.geom_xmat[-loose:]


def _inertia(kind: int, a: float, b: float, c: float) -> Vector:
    """Principal moments, in the own axes, of a sphere, cylinder or box of mass 1 with these half extents."""
    shapes = shape_ids()
    if kind == shapes[SPHERE]:
        return (0.4 * a * a, 0.4 * a * a, 0.4 * a * a)
    if kind == shapes[CYLINDER]:
        across = (3 * a * a + 4 * c * c) / 12
        return (across, across, a * a / 2)
    return ((b * b + c * c) / 3, (a * a + c * c) / 3, (a * a + b * b) / 3)
