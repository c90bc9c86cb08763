"""Where a camera sees a body whose shape is known: its place in metres, from a field of view."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_geometry.inverse_kinematics import shortest

Array = NDArray[Any]
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
