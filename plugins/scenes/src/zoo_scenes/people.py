"""Capsule people: a skeleton in a sampled pose, and the parts of a clothed body along its bones.

Joint names, order and the rest pose (arms stretched sideways; x to the person's left, y up, z forward) are those of
SMPL (Loper et al., SMPL: A skinned multi-person linear model, SIGGRAPH Asia 2015); the proportions are our own.
"""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.scene import (
    CLOTHES,
    COLOURS,
    ELLIPSOID,
    HAIR,
    SKIN,
    SPHERE,
    TROUSERS,
    Body,
    Part,
    Pose,
    Surface,
    Vector,
    capsule,
    darken,
)

Array = NDArray[np.float64]

# name: (parent, offset from the parent in the rest pose in metres, for a person of 1.70 m)
_BONES: dict[str, tuple[str | None, tuple[float, float, float]]] = {
    "pelvis": (None, (0.0, 0.0, 0.0)),
    "left_hip": ("pelvis", (0.09, -0.07, 0.0)),
    "right_hip": ("pelvis", (-0.09, -0.07, 0.0)),
    "spine1": ("pelvis", (0.0, 0.11, 0.0)),
    "left_knee": ("left_hip", (0.01, -0.40, 0.01)),
    "right_knee": ("right_hip", (-0.01, -0.40, 0.01)),
    "spine2": ("spine1", (0.0, 0.13, 0.0)),
    "left_ankle": ("left_knee", (0.0, -0.41, -0.02)),
    "right_ankle": ("right_knee", (0.0, -0.41, -0.02)),
    "spine3": ("spine2", (0.0, 0.06, 0.0)),
    "left_foot": ("left_ankle", (0.01, -0.05, 0.13)),
    "right_foot": ("right_ankle", (-0.01, -0.05, 0.13)),
    "neck": ("spine3", (0.0, 0.21, -0.01)),
    "left_collar": ("spine3", (0.07, 0.13, -0.01)),
    "right_collar": ("spine3", (-0.07, 0.13, -0.01)),
    "head": ("neck", (0.0, 0.09, 0.02)),
    "left_shoulder": ("left_collar", (0.11, 0.03, 0.0)),
    "right_shoulder": ("right_collar", (-0.11, 0.03, 0.0)),
    "left_elbow": ("left_shoulder", (0.27, -0.01, 0.0)),
    "right_elbow": ("right_shoulder", (-0.27, -0.01, 0.0)),
    "left_wrist": ("left_elbow", (0.25, 0.0, 0.0)),
    "right_wrist": ("right_elbow", (-0.25, 0.0, 0.0)),
    "left_hand": ("left_wrist", (0.08, 0.0, 0.0)),
    "right_hand": ("right_wrist", (-0.08, 0.0, 0.0)),
}
JOINTS = tuple(_BONES)
PARENTS = tuple(-1 if parent is None else JOINTS.index(parent) for parent, _ in _BONES.values())
OFFSETS = np.array([offset for _, offset in _BONES.values()])

# A vector times this is the matrix, row by row, of its cross product.
_CROSS = np.zeros((3, 9))
_CROSS[[0, 1, 2], [7, 2, 3]], _CROSS[[0, 1, 2], [5, 6, 1]] = 1, -1

# Person axes (x left, y up, z forward) to a thing's axes (x front, y left, z up).
TO_BODY = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def rotation_matrices(vectors: Array) -> Array:
    """Axis-angle vectors (n, 3) to matrices (n, 3, 3), by Rodrigues' formula."""
    angle = np.sqrt(np.add.reduce(vectors * vectors, axis=1))
    axes = vectors / np.maximum(angle, 1e-12)[:, None]
    cos = np.cos(angle)[:, None]
    matrix: Array = axes[:, :, None] * axes[:, None, :] * (1 - cos[:, :, None])
    flat = matrix.reshape(-1, 9)
    flat += (axes @ _CROSS) * np.sin(angle)[:, None]
    flat[:, ::4] += cos
    return matrix


def axis_angle(matrix: Array) -> Array:
    """A rotation matrix (3, 3) to its axis-angle vector (3,), of angle in [0, pi]."""
    quaternion = np.empty(4)
    import mujoco

    mujoco.mju_mat2Quat(quaternion, matrix.reshape(9))
    vector = np.empty(3)
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def joint_positions(rotations: Array, scale: float = 1.0) -> Array:
    """Forward kinematics: axis-angle (24, 3) to joints (24, 3) in person axes, the pelvis at the origin."""
    frames, joints = list(rotation_matrices(rotations)), list(OFFSETS * scale)
    for joint, parent in enumerate(PARENTS[1:], 1):
        joints[joint] = joints[parent] + frames[parent] @ joints[joint]
        frames[joint] = frames[parent] @ frames[joint]
    return np.array(joints)


_STAND: dict[str, Vector] = {
    "left_shoulder": (0, 0, -75),
    "right_shoulder": (0, 0, 75),
    "left_elbow": (0, -12, 0),
    "right_elbow": (0, 12, 0),
}
_POSES: dict[str, dict[str, Vector]] = {
    "standing": _STAND,
    "walking": {
        **_STAND,
        "left_hip": (-28, 0, 0),
        "left_knee": (14, 0, 0),
        "right_hip": (22, 0, 0),
        "right_knee": (28, 0, 0),
        "left_shoulder": (22, 0, -74),
        "right_shoulder": (-22, 0, 74),
        "left_elbow": (0, -30, 0),
        "right_elbow": (0, 30, 0),
    },
    "raising both arms": {"left_shoulder": (0, 0, 62), "right_shoulder": (0, 0, -62), "left_elbow": (0, 0, 12)},
    "waving": {**_STAND, "right_shoulder": (0, 0, -12), "right_elbow": (0, 0, -72)},
    "stretching out the arms": {"left_shoulder": (0, 0, 3), "right_shoulder": (0, 0, -3)},
    "pointing": {**_STAND, "right_shoulder": (0, 84, 8), "head": (6, 0, 0)},
    "sitting": {
        "left_hip": (-86, 0, 6),
        "right_hip": (-86, 0, -6),
        "left_knee": (84, 0, 0),
        "right_knee": (84, 0, 0),
        "left_shoulder": (-24, 0, -70),
        "right_shoulder": (-24, 0, 70),
        "left_elbow": (0, -52, 0),
        "right_elbow": (0, 52, 0),
    },
}
"""By name, the rotations of joints, degrees; the others are 0."""
UPRIGHT_POSES = tuple(name for name in _POSES if name != "sitting")


def sample_pose(rng: random.Random, name: str) -> Array:
    """Axis-angle rotations (24, 3) of the named pose with some variation."""
    rotations = np.zeros((len(JOINTS), 3))
    for joint, degrees in _POSES[name].items():
        rotations[JOINTS.index(joint)] = [math.radians(angle + rng.gauss(0, 5)) for angle in degrees]
    rotations[JOINTS.index("head"), 1] += math.radians(rng.uniform(-35, 35))
    rotations[JOINTS.index("spine2"), 0] += math.radians(rng.uniform(-4, 8))
    rotations[JOINTS.index("spine2"), 1] += math.radians(rng.uniform(-12, 12))
    return rotations


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


def person(rng: random.Random, pose: str, seat: float | None = None) -> Body:
    """A clothed person in the named pose, origin on the ground; on a seat of height `seat` metres if given."""
    scale = rng.uniform(0.92, 1.1)
    rotations = sample_pose(rng, pose)
    joints = joint_positions(rotations, scale) @ TO_BODY.T
    lowest = joints[_FEET, 2].min()
    joints[:, 2] += 0.046 * scale - lowest if seat is None else seat + 0.12 * scale
    shirt = rng.choice(CLOTHES)
    trousers = rng.choice(TROUSERS)
    parts = _body(rng, joints, rotations, scale, shirt, trousers)
    low, high = joints.min(0).tolist(), joints.max(0).tolist()
    half = (max(high[0], -low[0]) + 0.06, max(high[1], -low[1]) + 0.06, (high[2] + 0.2) / 2)
    return Body("person", pose, shirt, parts, half, pose=Pose(rotations, joints))


def _body(rng: random.Random, joints: Array, rotations: Array, scale: float, shirt: str, trousers: str) -> list[Part]:
    """Capsules along the bones, a head with hair, and hands."""
    skin, hair = rng.choice(SKIN), rng.choice(HAIR)
    cloth = {"shirt": COLOURS[shirt], "trousers": COLOURS[trousers], "skin": skin, "shoes": (0.16, 0.13, 0.12)}
    pattern = rng.choice(("plain", "plain", "fabric"))
    surfaces = {
        name: Surface(pattern if name == "shirt" else "plain", (colour, darken(colour, 0.72), colour), 0.25, 0.05)
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
