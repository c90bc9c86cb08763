"""The body model: 24 joints in a tree, forward kinematics, projection into the picture, and rotations.

Joint names, order, tree and rest pose (arms stretched sideways; x to the person's left, y up, z forward) are those of
SMPL (Loper et al., SIGGRAPH Asia 2015). The lengths of the bones are fitted to data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    return Rotation.from_matrix(nearest(matrices).reshape(-1, 3, 3)).as_rotvec().reshape(matrices.shape[:-1])


def nearest(matrices: Array) -> Array:
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
    seen = (directions(joints) - directions(joints[:, :1])) * np.array([1.0, -1.0])
    moved = image - image[:, :1]
    spread = (seen**2).sum(axis=1)
    return np.divide((seen * moved).sum(axis=1), spread, out=np.ones_like(spread), where=spread > 1e-12)


def image_of(joints: Array, pelvis: Array, focal: Array) -> Array:
    """Joints (n, 24, 3) as fractions of width and height (n, 24, 2), with the pelvis at `pelvis` (n, 2)."""
    seen = (directions(joints) - directions(joints[:, :1])) * np.array([1.0, -1.0])
    return pelvis[:, None] + focal[:, None] * seen


def problem_with(rotations: Sequence[Any], joints: Sequence[Any]) -> str | None:
    """Describe an implausible person (wrong units or axes), or return None."""
    turns = np.linalg.norm(np.asarray(rotations, dtype=np.float64), axis=-1)
    if turns.max() > 2 * np.pi + 1e-3:
        return f"joint_rotations: expected axis-angle vectors in radians, got an angle of {turns.max():.4g}"
    depth = -float(joints[0][2])
    if depth <= 0:
        return (
            f"joints_camera: expected the pelvis at z < 0 (axes: x right, y up, z towards the viewer), got {-depth:.4g}"
            "; turn y and z around where yours point down and forward"
        )
    if depth > FARTHEST:
        return f"joints_camera: expected metres, got a pelvis {depth:.4g} away; convert to metres"
    return None
