"""Capsule people: a skeleton in a sampled pose, and the parts of a clothed body along its bones."""

from __future__ import annotations

import math
import random

from zoo_scenes.palette import CLOTHES, COLOURS, HAIR, SKIN, TROUSERS, darker
from zoo_scenes.skeleton import JOINTS, TO_THING, Array, Pose, joint_positions, sample_pose
from zoo_scenes.things import ELLIPSOID, SPHERE, Part, Surface, Thing, Vector, capsule

_FEET = [JOINTS.index(name) for name in ("left_foot", "right_foot", "left_ankle", "right_ankle")]

# (radius, joint, joint, cloth) of the capsules; a hand is a sphere.
_LIMBS = (
    (0.115, "left_hip", "right_hip", "trousers"),
    (0.125, "spine1", "spine2", "shirt"),
    (0.095, "left_collar", "right_collar", "shirt"),
    (0.055, "neck", "head", "skin"),
    (0.078, "left_hip", "left_knee", "trousers"),
    (0.078, "right_hip", "right_knee", "trousers"),
    (0.056, "left_knee", "left_ankle", "trousers"),
    (0.056, "right_knee", "right_ankle", "trousers"),
    (0.046, "left_ankle", "left_foot", "shoes"),
    (0.046, "right_ankle", "right_foot", "shoes"),
    (0.052, "left_shoulder", "left_elbow", "shirt"),
    (0.052, "right_shoulder", "right_elbow", "shirt"),
    (0.040, "left_elbow", "left_wrist", "skin"),
    (0.040, "right_elbow", "right_wrist", "skin"),
)


def person(rng: random.Random, pose: str, seat: float | None = None) -> Thing:
    """A clothed person in the named pose, origin on the ground; on a seat of height `seat` metres if given."""
    scale = rng.uniform(0.92, 1.1)
    rotations = sample_pose(rng, pose)
    joints = joint_positions(rotations, scale) @ TO_THING.T
    lowest = joints[_FEET, 2].min()
    joints[:, 2] += 0.046 * scale - lowest if seat is None else seat + 0.12 * scale
    shirt = rng.choice(CLOTHES)
    trousers = rng.choice(TROUSERS)
    parts = _body(rng, joints, rotations, scale, shirt, trousers)
    low, high = joints.min(0).tolist(), joints.max(0).tolist()
    half = (max(high[0], -low[0]) + 0.06, max(high[1], -low[1]) + 0.06, (high[2] + 0.2) / 2)
    return Thing("person", pose, shirt, parts, half, pose=Pose(rotations, joints))


def _body(rng: random.Random, joints: Array, rotations: Array, scale: float, shirt: str, trousers: str) -> list[Part]:
    """Capsules along the bones, a head with hair, and hands."""
    skin, hair = rng.choice(SKIN), rng.choice(HAIR)
    cloth = {"shirt": COLOURS[shirt], "trousers": COLOURS[trousers], "skin": skin, "shoes": (0.16, 0.13, 0.12)}
    pattern = rng.choice(("plain", "plain", "fabric"))
    surfaces = {
        name: Surface(pattern if name == "shirt" else "plain", (colour, darker(colour, 0.72), colour), 0.25, 0.05)
        for name, colour in cloth.items()
    }
    at: dict[str, Vector] = dict(zip(JOINTS, map(tuple, joints.tolist()), strict=True))
    parts = [capsule(radius * scale, at[start], at[stop], surfaces[name]) for radius, start, stop, name in _LIMBS]
    parts += [Part(SPHERE, (0.055 * scale,) * 3, at[f"{side}_hand"], surfaces["skin"]) for side in ("left", "right")]
    turn = float(rotations[JOINTS.index("head"), 1] + rotations[JOINTS.index("spine2"), 1])
    quaternion = (math.cos(turn / 2), 0.0, 0.0, math.sin(turn / 2))
    x, y, z = at["head"]
    head, back = (x, y, z + 0.07 * scale), 0.032 * scale
    top = (x - back * math.cos(turn), y - back * math.sin(turn), head[2] + 0.035 * scale)
    skull, cap = (0.095 * scale, 0.078 * scale, 0.118 * scale), (0.09 * scale, 0.086 * scale, 0.102 * scale)
    parts.append(Part(ELLIPSOID, skull, head, surfaces["skin"], quaternion))
    parts.append(Part(ELLIPSOID, cap, top, Surface("plain", (hair, hair, hair), 0.3, 0.15), quaternion))
    return parts
