"""Inverse kinematics: rotations of a body's 24 joints from joint positions, in closed form.

Each joint's rotation takes its bones from the rest pose to their observed directions. Positions alone leave the
rotation around a bone open. It is chosen as follows:

- Pelvis and chest (spine3) have three bones each, so nothing is open.
- The rotation of the chest against the pelvis is shared evenly by the three joints of the spine.
- Upper arms and thighs rotate so that elbow and knee are hinges. An elbow brings the forearm to the front of the rest
  pose, a knee brings the shin to its back. The plane of a nearly straight limb is uncertain, so its weight falls from
  `BENT` to `STRAIGHT`. A straight arm is not rotated, and a straight leg follows its foot.
- The head takes the given rotation, and the neck half of it. Without one, both follow the chest.
- Elbows and knees bend around their hinges, with the same weight as the limb's plane.
- Collars, wrists and ankles take the smallest rotation. Hands and feet follow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_geometry import body
from zoo_geometry.body import JOINTS, PARENTS, direction

Array = NDArray[Any]
STRAIGHT, BENT = math.radians(10), math.radians(30)
"""Angles between the two bones of a limb: below the first its plane is not used, above the second only that."""
SHORT = 1e-6
"""Length relative to the whole body below which a bone has no direction."""
CHILDREN = tuple(
    tuple(child for child, parent in enumerate(PARENTS) if parent == joint) for joint in range(len(JOINTS))
)
SPINE = tuple(JOINTS.index(name) for name in ("pelvis", "spine1", "spine2", "spine3"))
NECK, HEAD = JOINTS.index("neck"), JOINTS.index("head")
HINGES = {
    "left_shoulder": (0.0, -1.0, 0.0), "right_shoulder": (0.0, 1.0, 0.0),
    "left_hip": (1.0, 0.0, 0.0), "right_hip": (1.0, 0.0, 0.0),
}  # fmt: skip
"""The joints at the upper ends of limbs, and the axis around which the next joint bends, in the rest pose."""


def rotations_of(joints: Array, bones: Array, head: Array | None = None) -> Array:
    """Axis-angle rotations (24, 3) of joints (24, 3), in camera axes and in any unit, as `body.joints_of` takes them.

    `bones` (24, 3) is the rest skeleton; only its directions matter. `head` (3, 3) is the rotation of the head from the
    rest pose's axes to the camera's. Coincident joints give no direction for the bone between them.
    """
    seen = np.zeros_like(joints)
    for joint, parent in enumerate(PARENTS[1:], 1):
        seen[joint] = joints[joint] - joints[parent]
    least = SHORT * float(np.linalg.norm(seen, axis=1).sum())
    seen[np.linalg.norm(seen, axis=1) <= least] = 0.0
    frames = np.zeros((len(JOINTS), 3, 3))
    first, chest = SPINE[0], SPINE[-1]
    bent: dict[int, Array] = {}
    frames[first], frames[chest] = (
        fitted(bones[list(CHILDREN[at])], seen[list(CHILDREN[at])]) for at in (first, chest)
    )
    for joint, parent in enumerate(PARENTS):
        if joint in (first, chest):
            continue
        base = bent.get(joint, frames[parent])
        if joint in SPINE:
            base = between(frames[first], frames[chest], SPINE.index(joint) / (len(SPINE) - 1))
        elif joint == NECK and head is not None:
            base = between(frames[parent], head, 0.5)
        elif joint == HEAD and head is not None:
            base = head
        frames[joint] = onto_bone(base, joint, bones, seen)
        if JOINTS[joint] in HINGES:
            frames[joint], bent[CHILDREN[joint][0]] = turned_limb(frames[joint], joint, bones, seen)
    own = frames.copy()
    for joint, parent in enumerate(PARENTS[1:], 1):
        own[joint] = frames[parent].T @ frames[joint]
    return body.vectors_of(own)


def fitted(rest: Array, seen: Array) -> Array:
    """The rotation (3, 3) that takes the directions `rest` (n, 3) nearest to `seen` (n, 3) (Kabsch)."""
    return body.nearest(direction(seen).T @ direction(rest))


def between(first: Array, last: Array, share: float) -> Array:
    """The rotation (3, 3) at `share` of the shortest way from one to another."""
    return first @ body.matrices_of(share * body.vectors_of(first.T @ last))


def onto_bone(frame: Array, joint: int, bones: Array, seen: Array) -> Array:
    """The rotation nearest to `frame` that takes the bone to the joint's child to where it is seen; an end has none."""
    if not CHILDREN[joint]:
        return frame
    child = CHILDREN[joint][0]
    return shortest(frame @ bones[child], seen[child]) @ frame


def turned_limb(frame: Array, joint: int, bones: Array, seen: Array) -> tuple[Array, Array]:
    """The upper bone's rotation, turned around that bone so that the next joint is a hinge, and the next joint's."""
    middle = CHILDREN[joint][0]
    lower = CHILDREN[middle][0]
    axis, hinge = direction(seen[middle]), np.array(HINGES[JOINTS[joint]])
    bend = math.acos(float(np.clip(axis @ direction(seen[lower]), -1, 1)))
    known = float(np.clip((bend - STRAIGHT) / (BENT - STRAIGHT), 0, 1)) if seen[lower].any() else 0.0
    leg, turn, hinged = JOINTS[joint].endswith("hip"), 0.0, np.eye(3)
    if leg:
        foot = CHILDREN[lower][0]
        turn = angle_around(axis, frame @ bones[foot], seen[foot])
    if known:
        angles = hinge_angles(bones[middle], bones[lower], hinge, bend)
        turned = [frame @ body.matrices_of(angle * hinge) @ bones[lower] for angle in angles]
        turns = [angle_around(axis, place, seen[lower]) for place in turned]
        # A knee that seems bent to the front is so by error, and no reason to turn the thigh around.
        side = 1 if leg and abs(turns[0]) > math.pi / 2 else 0
        turn += known * math.remainder(turns[side] - turn, math.tau)
        hinged = body.matrices_of(known * angles[side] * hinge)
    upper = body.matrices_of(turn * axis) @ frame
    return upper, upper @ hinged


def hinge_angles(upper: Array, lower: Array, hinge: Array, bend: float) -> tuple[float, float]:
    """The two turns of the lower bone around the hinge, the greater one first, that put it at `bend` to the upper one.

    With unit vectors u, l, h this solves u . R(h, angle) l = cos(bend) by Rodrigues' formula. If there is no solution,
    both are the nearest turn.
    """
    u, low = direction(upper), direction(lower)
    even = float(u @ hinge) * float(hinge @ low)
    along, across = float(u @ low) - even, float(u @ np.cross(hinge, low))
    middle, reach = math.atan2(across, along), math.hypot(along, across)
    half = math.acos(float(np.clip((math.cos(bend) - even) / max(reach, 1e-12), -1, 1)))
    return middle + half, middle - half


def angle_around(axis: Array, start: Array, end: Array) -> float:
    """The turn around a unit axis that brings `start` over `end`, in [-pi, pi]; 0 if either is parallel to it."""
    flat = [vector - axis * float(axis @ vector) for vector in (direction(start), direction(end))]
    if min(float(np.linalg.norm(vector)) for vector in flat) < math.sin(STRAIGHT):
        return 0.0
    return math.atan2(float(axis @ np.cross(flat[0], flat[1])), float(flat[0] @ flat[1]))


def shortest(start: Array, end: Array) -> Array:
    """Return the smallest rotation (3, 3) from one direction to another; the identity if either has no length."""
    first, last = direction(start), direction(end)
    if not first.any() or not last.any():
        return np.eye(3)
    axis, cosine = np.cross(first, last), float(first @ last)
    sine = float(np.linalg.norm(axis))
    if sine < 1e-9 and cosine < 0:  # opposite: any axis across
        axis, sine = np.cross(first, np.eye(3)[int(np.abs(first).argmin())]), 0.0
    return body.matrices_of(direction(axis) * math.atan2(sine, cosine))


FieldOfView = float | tuple[float, float] | None


def half_sizes(fov: FieldOfView, height: int, width: int) -> Array:
    """Half the picture's width and height at depth 1: (2,).

    `fov` is in degrees: the vertical one, of square pixels, or (vertical, horizontal). None supposes a focal length of
    the picture's diagonal, as CLIFF does (arXiv 2208.00571): 53 degrees from corner to corner.
    """
    if fov is None:
        return np.array([width, height]) / (2 * math.hypot(width, height))
    if isinstance(fov, tuple):
        return np.array([math.tan(math.radians(fov[1]) / 2), math.tan(math.radians(fov[0]) / 2)])
    return np.array([width / height, 1.0]) * math.tan(math.radians(fov) / 2)


def rays(image: Array, half: Array) -> Array:
    """Right and up per metre of depth (..., 2) of places (..., 2), fractions of width and height."""
    return (2 * image - 1) * half * np.array([1.0, -1.0])


def looking_at(image: Array, half: Array) -> Array:
    """The rotation (3, 3) from the axes of a camera that looks straight at a place of the picture to this camera's."""
    return shortest(np.array([0.0, 0.0, -1.0]), np.append(rays(image, half), -1.0))


def offset_of(points: Array, image: Array, weights: Array, half: Array) -> Array:
    """Where to move points (n, 3), metres in camera axes, so that they are seen at `image` (n, 2): (3,).

    Weighted least squares of (x + t_x) = right * -(z + t_z), and of the same in y: linear in t.
    """
    seen = rays(image, half)
    rows = np.zeros((len(points), 2, 3))
    rows[:, 0, 0] = rows[:, 1, 1] = 1.0
    rows[:, :, 2] = seen
    aims = -points[:, :2] - seen * points[:, 2:]
    share = np.sqrt(np.maximum(weights, 0))[:, None]
    return np.linalg.lstsq((rows * share[..., None]).reshape(-1, 3), (aims * share).reshape(-1), rcond=None)[0]
