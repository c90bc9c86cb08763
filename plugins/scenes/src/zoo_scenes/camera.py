"""The pinhole camera: rays through pixel centres, and what is seen where.

World axes are metric with z up. Camera axes are x right, y up, z towards the viewer, so what is visible has z < 0.
Pitch is the angle of the optical axis above the horizon: negative looks down. There is no roll.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera at `position` (metres) looking along `yaw` (radians from +x to +y) and `pitch` (negative is down).

    `fov` is the vertical field of view in radians; pictures are square.
    """

    position: tuple[float, float, float]
    yaw: float
    pitch: float
    fov: float

    @cached_property
    def axes(self) -> Array:
        """Rows: the camera's x, y, z axes in the world (3, 3)."""
        cos_yaw, sin_yaw = math.cos(self.yaw), math.sin(self.yaw)
        cos_pitch, sin_pitch = math.cos(self.pitch), math.sin(self.pitch)
        return np.array(
            [
                [sin_yaw, -cos_yaw, 0.0],
                [-sin_pitch * cos_yaw, -sin_pitch * sin_yaw, cos_pitch],
                [-cos_pitch * cos_yaw, -cos_pitch * sin_yaw, -sin_pitch],
            ]
        )

    @property
    def scale(self) -> float:
        """Half the picture's height at depth 1."""
        return math.tan(self.fov / 2)

    def rays(self, picture: Array) -> Array:
        """World directions (3, n) through points of the picture (3, n): right and up in [-1, 1], and 1.

        They have length 1 along the optical axis, so that a hit at `t` times the direction is at planar depth t.
        """
        axes = self.axes
        rays: Array = np.stack([axes[0] * self.scale, axes[1] * self.scale, -axes[2]], axis=1) @ picture
        return rays

    def planes(self, lines: Array) -> NDArray[np.float32]:
        """World normals (n, 3) of the planes through the camera that are seen as lines (n, 3) of the picture.

        The product of a normal and a ray is that of the line and the point of the picture (right, up, 1).
        """
        axes = self.axes
        normals: Array = lines @ np.stack([axes[0] / self.scale, axes[1] / self.scale, -axes[2]])
        return normals.astype(np.float32)

    def to_camera(self, points: Array) -> Array:
        """World points (..., 3) in camera axes (..., 3)."""
        turned: Array = (points - np.asarray(self.position)) @ self.axes.T
        return turned

    def project(self, points: Array) -> Array:
        """Points in camera axes (..., 3) to fractions of width and height from the top left (..., 2); z must be < 0."""
        z = np.minimum(points[..., 2], -1e-6) * self.scale
        return np.stack([0.5 - 0.5 * points[..., 0] / z, 0.5 + 0.5 * points[..., 1] / z], axis=-1)
