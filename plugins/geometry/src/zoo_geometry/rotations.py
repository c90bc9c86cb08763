"""Rotations as axis-angle vectors, matrices, six numbers and in the mirror; any leading axes, by scipy."""

from __future__ import annotations

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
