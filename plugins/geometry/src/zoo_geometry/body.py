"""The body model: 24 joints in a tree, forward and inverse kinematics, projection into the picture, and rotations.

Joint names, order, tree and rest pose (arms stretched sideways; x to the person's left, y up, z forward) are those of
SMPL (Loper et al., SIGGRAPH Asia 2015). The lengths of the bones are fitted to data.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.records.typed import Interval

Array = NDArray[Any]


def matrices_of(vectors: Array) -> Array:
    """Axis-angle vectors (..., 3), radians, to rotation matrices (..., 3, 3)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*vectors.shape, 3)


def vectors_of(matrices: Array) -> Array:
    """The axis-angle vectors (..., 3), angle in [0, pi], of the rotations nearest to any matrices (..., 3, 3).

    A matrix of zeros becomes some rotation.
    """
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(nearest_rotations(matrices).reshape(-1, 3, 3)).as_rotvec().reshape(matrices.shape[:-1])


def nearest_rotations(matrices: Array) -> Array:
    """The rotations nearest to any matrices (..., 3, 3) in the Frobenius norm (Arun et al., IEEE TPAMI 9(5), 1987)."""
    left, _, right = np.linalg.svd(matrices)
    left[..., :, 2] *= np.linalg.det(left @ right)[..., None]
    return left @ right


def direction(vectors: Array) -> Array:
    """Vectors (..., 3) at length 1; those of no length stay so."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def six_numbers_of(vectors: Array) -> Array:
    """The first two columns (..., 6) of the rotation of axis-angle vectors: no jumps (arXiv 1812.07035, sec. 4.2)."""
    return np.swapaxes(matrices_of(vectors)[..., :2], -1, -2).reshape(*vectors.shape[:-1], 6)


def vectors_of_six(numbers: Array) -> Array:
    """The axis-angle vectors (..., 3) of the rotations whose first two columns are nearest to `numbers` (..., 6)."""
    columns = numbers.reshape(*numbers.shape[:-1], 2, 3)
    third = np.cross(columns[..., 0, :], columns[..., 1, :])
    return vectors_of(np.stack([columns[..., 0, :], columns[..., 1, :], third], axis=-1))


def mirrored(vectors: Array) -> Array:
    """Axis-angle vectors (..., 3) as seen in a mirror that turns x around: M R M with M = diag(-1, 1, 1)."""
    return vectors * np.array([1.0, -1.0, -1.0])


JOINTS = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand", "right_hand",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
OTHER_SIDE = tuple(
    JOINTS.index(name.replace("left", "right") if "left" in name else name.replace("right", "left")) for name in JOINTS
)
"""The joint that each joint becomes in a mirror."""
ADULT = np.array(
    [
        (0, 0, 0), (0.07, -0.09, -0.01), (-0.07, -0.09, -0.01), (0, 0.12, -0.03), (0.03, -0.39, 0), (-0.03, -0.39, 0),
        (0, 0.13, 0.02), (-0.01, -0.41, -0.04), (0.01, -0.41, -0.04), (0, 0.06, 0.02), (0.04, -0.06, 0.12),
        (-0.04, -0.06, 0.12), (0, 0.21, -0.03), (0.08, 0.12, -0.02), (-0.08, 0.12, -0.02), (0, 0.09, 0.05),
        (0.1, 0.04, -0.02), (-0.1, 0.04, -0.02), (0.26, -0.01, -0.02), (-0.26, -0.01, -0.02), (0.25, 0.01, 0),
        (-0.25, 0.01, 0), (0.09, -0.01, -0.01), (-0.09, -0.01, -0.01),
    ]
)  # fmt: skip
"""An adult of 1.7 m in round numbers: where each joint lies from its parent in the rest pose, metres."""
FARTHEST = 100.0  # metres; a pelvis farther away must be in other units
NEAREST = 0.05  # metres; points that are nearer, or behind the camera, are projected from this depth
MIRROR = np.array([-1.0, 1.0, 1.0])


def joints_of(rotations: Array, bones: Array, root: Array) -> Array:
    """Forward kinematics: axis-angle (n, 24, 3), bones (n, 24, 3) from each parent in the rest pose, root (n, 3).

    Gives joints (n, 24, 3) in the axes of the first rotation's result.
    """
    frames = matrices_of(rotations)
    joints = np.repeat(root[:, None], len(JOINTS), axis=1)
    for joint, parent in enumerate(PARENTS[1:], 1):
        joints[:, joint] = joints[:, parent] + np.einsum("nij,nj->ni", frames[:, parent], bones[:, joint])
        frames[:, joint] = frames[:, parent] @ frames[:, joint]
    return joints


def bones_of(rotations: Array, joints: Array) -> Array:
    """Where each joint lies from its parent, (n, 24, 3) in the rest pose: the inverse of `joints_of`; 0 at the root."""
    frames = matrices_of(rotations)
    bones = np.zeros_like(joints)
    for joint, parent in enumerate(PARENTS[1:], 1):
        bones[:, joint] = np.einsum("nij,ni->nj", frames[:, parent], joints[:, joint] - joints[:, parent])
        frames[:, joint] = frames[:, parent] @ frames[:, joint]
    return bones


def total_length(bones: Array) -> Array:
    """Metres of all bones together: (..., 24, 3) to (...)."""
    return np.linalg.norm(bones, axis=-1).sum(axis=-1)


def mean_skeleton(bones: Array) -> Array:
    """The symmetric skeleton (24, 3) of mean size and proportions of people's bones (n, 24, 3).

    People without extent, all of whose joints are in one place, have no proportions; of nobody else, it is an adult's.
    """
    lengths = total_length(bones)
    if not lengths.any():
        return ADULT.copy()
    bones, lengths = bones[lengths > 0], lengths[lengths > 0]
    mean = (bones * (lengths.mean() / lengths)[:, None, None]).mean(axis=0)
    return (mean + mean[list(OTHER_SIDE)] * MIRROR) / 2


def directions(joints: Array) -> Array:
    """Where joints (..., 3) in camera axes are seen, as right and up per metre of depth: (..., 2)."""
    return joints[..., :2] / np.maximum(-joints[..., 2:], NEAREST)


def focal_lengths(joints: Array, image: Array) -> Array:
    """Estimate focal lengths (n, 2) in fractions of width and height from joints (n, 24, 3) and their image (n, 24, 2).

    Least squares about the pelvis, so that the picture's centre may be anywhere: crops have it off the middle.
    """
    projected = (directions(joints) - directions(joints[:, :1])) * np.array([1.0, -1.0])
    moved = image - image[:, :1]
    spread = (projected**2).sum(axis=1)
    return np.divide((projected * moved).sum(axis=1), spread, out=np.ones_like(spread), where=spread > 1e-12)


def image_of(joints: Array, pelvis: Array, focal: Array) -> Array:
    """Joints (n, 24, 3) as fractions of width and height (n, 24, 2), with the pelvis at `pelvis` (n, 2)."""
    projected = (directions(joints) - directions(joints[:, :1])) * np.array([1.0, -1.0])
    return pelvis[:, None] + focal[:, None] * projected


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
    """Inverse kinematics: axis-angle rotations (24, 3) of joints (24, 3), in camera axes and in any unit.

    `bones` (24, 3) is the rest skeleton; only its directions matter. `head` (3, 3) is the rotation of the head from the
    rest pose's axes to the camera's. Coincident joints give no direction for the bone between them. Each joint's
    rotation takes its bones from the rest pose to their observed directions. Positions alone leave the rotation around
    a bone open. It is chosen as follows:

    - Pelvis and chest (spine3) have three bones each, so nothing is open.
    - The rotation of the chest against the pelvis is shared evenly by the three joints of the spine.
    - Upper arms and thighs rotate so that elbow and knee are hinges. An elbow brings the forearm to the front of the
      rest pose, a knee brings the shin to its back. The plane of a nearly straight limb is uncertain, so its weight
      falls from `BENT` to `STRAIGHT`. A straight arm is not rotated, and a straight leg follows its foot.
    - The head takes the given rotation, and the neck half of it. Without one, both follow the chest.
    - Elbows and knees bend around their hinges, with the same weight as the limb's plane.
    - Collars, wrists and ankles take the smallest rotation. Hands and feet follow.
    """
    parents = list(PARENTS[1:])
    observed_bones = np.zeros_like(joints)
    observed_bones[1:] = joints[1:] - joints[parents]
    min_length = SHORT * float(np.linalg.norm(observed_bones, axis=1).sum())
    observed_bones[np.linalg.norm(observed_bones, axis=1) <= min_length] = 0.0
    frames = np.zeros((len(JOINTS), 3, 3))
    first, chest = SPINE[0], SPINE[-1]
    bent: dict[int, Array] = {}
    for joint in (first, chest):
        children = list(CHILDREN[joint])
        frames[joint] = align_directions(bones[children], observed_bones[children])
    for joint, parent in enumerate(PARENTS):
        if joint in (first, chest):
            continue
        base = bent.get(joint, frames[parent])
        if joint in SPINE:
            base = interpolate_rotations(frames[first], frames[chest], SPINE.index(joint) / (len(SPINE) - 1))
        elif joint == NECK and head is not None:
            base = interpolate_rotations(frames[parent], head, 0.5)
        elif joint == HEAD and head is not None:
            base = head
        child = CHILDREN[joint][0] if CHILDREN[joint] else None
        # the rotation nearest to the base that takes the bone to the child to where it is seen
        frames[joint] = base if child is None else shortest_rotation(base @ bones[child], observed_bones[child]) @ base
        if JOINTS[joint] in HINGES:
            frames[joint], bent[CHILDREN[joint][0]] = limb_rotations(frames[joint], joint, bones, observed_bones)
    local_rotations = frames.copy()
    local_rotations[1:] = np.swapaxes(frames[parents], 1, 2) @ frames[1:]
    return vectors_of(local_rotations)


def align_directions(rest: Array, observed: Array) -> Array:
    """The rotation (3, 3) that takes the directions `rest` (n, 3) nearest to `observed` (n, 3) (Kabsch)."""
    return nearest_rotations(direction(observed).T @ direction(rest))


def interpolate_rotations(first: Array, last: Array, share: float) -> Array:
    """The rotation (3, 3) at `share` of the shortest way from one to another."""
    return first @ matrices_of(share * vectors_of(first.T @ last))


def limb_rotations(frame: Array, joint: int, bones: Array, observed_bones: Array) -> tuple[Array, Array]:
    """The upper bone's rotation, turned around that bone so that the next joint is a hinge, and the next joint's."""
    middle = CHILDREN[joint][0]
    lower = CHILDREN[middle][0]
    axis, hinge = direction(observed_bones[middle]), np.array(HINGES[JOINTS[joint]])
    bend = math.acos(float(np.clip(axis @ direction(observed_bones[lower]), -1, 1)))
    weight = float(np.clip((bend - STRAIGHT) / (BENT - STRAIGHT), 0, 1)) if observed_bones[lower].any() else 0.0
    leg, turn, hinged = JOINTS[joint].endswith("hip"), 0.0, np.eye(3)
    if leg:
        foot = CHILDREN[lower][0]
        turn = angle_around(axis, frame @ bones[foot], observed_bones[foot])
    if weight:
        angles = hinge_angles(bones[middle], bones[lower], hinge, bend)
        turned = [frame @ matrices_of(angle * hinge) @ bones[lower] for angle in angles]
        turns = [angle_around(axis, rotated, observed_bones[lower]) for rotated in turned]
        # A knee that seems bent to the front is so by error, and no reason to turn the thigh around.
        side = 1 if leg and abs(turns[0]) > math.pi / 2 else 0
        turn += weight * math.remainder(turns[side] - turn, math.tau)
        hinged = matrices_of(weight * angles[side] * hinge)
    upper = matrices_of(turn * axis) @ frame
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


def shortest_rotation(start: Array, end: Array) -> Array:
    """Return the smallest rotation (3, 3) from one direction to another; the identity if either has no length."""
    from scipy.spatial.transform import Rotation

    if not start.any() or not end.any():
        return np.eye(3)
    return Rotation.align_vectors(end, start)[0].as_matrix()


Degrees = Annotated[float, Interval("(0, 180)")]
FieldOfView = Degrees | tuple[Degrees, Degrees] | None


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


def look_at_rotation(image: Array, half: Array) -> Array:
    """The rotation (3, 3) from the axes of a camera that looks straight at a place of the picture to this camera's."""
    return shortest_rotation(np.array([0.0, 0.0, -1.0]), np.append(rays(image, half), -1.0))


def offset_of(points: Array, image: Array, weights: Array, half: Array) -> Array:
    """Where to move points (n, 3), metres in camera axes, so that they are seen at `image` (n, 2): (3,).

    Weighted least squares of (x + t_x) = right * -(z + t_z), and of the same in y: linear in t.
    """
    slopes = rays(image, half)
    rows = np.zeros((len(points), 2, 3))
    rows[:, 0, 0] = rows[:, 1, 1] = 1.0
    rows[:, :, 2] = slopes
    aims = -points[:, :2] - slopes * points[:, 2:]
    share = np.sqrt(np.maximum(weights, 0))[:, None]
    return np.linalg.lstsq((rows * share[..., None]).reshape(-1, 3), (aims * share).reshape(-1), rcond=None)[0]
