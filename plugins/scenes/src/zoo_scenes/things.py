"""The vocabulary of a scene: surfaces, parts (one geom each), things (one body each), and the scene itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.palette import Colour
from zoo_scenes.skeleton import Pose

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

        The dot product of a normal and a ray equals the product of the line and the image point (right, up, 1).
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


PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = "plane", "sphere", "capsule", "ellipsoid", "cylinder", "box"

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
NO_TURN: Quaternion = (1.0, 0.0, 0.0, 0.0)


def about_z(yaw: float) -> Quaternion:
    """A turn about the vertical, radians."""
    return (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))


def yaw_of(turn: Quaternion) -> float:
    """The angle of a turn about the vertical, radians: the inverse of `about_z`, up to whole turns."""
    return 2 * math.atan2(turn[3], turn[0])


class Surface(NamedTuple):
    """How a part looks.

    `texture` names weights over the three `colours` (sRGB). `tile` is the texture's edge in metres; 0 stretches it once
    over the part. `shine` in [0, 1] is the strength of the highlight; `glow` the share of light that is its own.
    """

    texture: str
    colours: tuple[Colour, Colour, Colour]
    tile: float = 1.0
    shine: float = 0.0
    glow: float = 0.0


class Part(NamedTuple):
    """One geom in the frame of its thing; `size` in metres as MuJoCo defines it for the shape (radii, half lengths)."""

    shape: str
    size: Vector
    at: Vector
    surface: Surface
    turn: Quaternion = NO_TURN


def capsule(radius: float, start: Vector, stop: Vector, surface: Surface) -> Part:
    """A capsule of `radius` around the segment from `start` to `stop`, which must not be the same point."""
    x, y, z = stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]
    length = math.sqrt(x * x + y * y + z * z)
    at = ((start[0] + stop[0]) / 2, (start[1] + stop[1]) / 2, (start[2] + stop[2]) / 2)
    # the shortest turn from z to the segment's direction: (1 + z . d, z x d), normalised
    w = length + z
    if w < 1e-9 * length:
        return Part(CAPSULE, (radius, length / 2, 0.0), at, surface, (0.0, 1.0, 0.0, 0.0))
    norm = math.sqrt(w * w + x * x + y * y)
    return Part(CAPSULE, (radius, length / 2, 0.0), at, surface, (w / norm, -y / norm, x / norm, 0.0))


@dataclass(slots=True)
class Thing:
    """An object: its name, parts, and position.

    `half` is half the extent along the thing's own axes (x front, y left, z up). `at` is its origin in the room: on the
    ground for furniture and people, at the centre for things that are `free` to fall. `seat` and `top` are heights
    above the origin where something can sit or lie. `on` is the index of the thing that carries it, if any.
    """

    label: str
    noun: str
    colour: str
    parts: list[Part]
    half: Vector
    at: Vector = (0.0, 0.0, 0.0)
    turn: Quaternion = NO_TURN
    free: bool = False
    top: float | None = None
    seat: float | None = None
    on: int | None = None
    pose: Pose | None = None

    def reach_down(self) -> float:
        """How far a free thing (one box, sphere or cylinder), as it is turned, reaches below its centre in metres."""
        w, x, y, z = self.turn
        row = (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
        shape = self.parts[0].shape
        if shape == SPHERE:
            return self.half[0]
        if shape == CYLINDER:
            return abs(row[2]) * self.half[2] + math.sqrt(max(1 - row[2] ** 2, 0.0)) * self.half[0]
        return sum(abs(share) * half for share, half in zip(row, self.half, strict=True))


@dataclass(slots=True, kw_only=True)
class Scene:
    """A furnished room with a camera. The room spans x in [0, width], y in [0, depth], z in [0, height] metres."""

    width: float
    depth: float
    height: float
    wall_colour: str
    wall_kind: str
    floor_kind: str
    floor: Surface
    wall: Surface
    ceiling: Surface
    camera: Camera
    lamp: Vector
    exposure: float
    daylight: tuple[Vector, Vector] | None = None
    things: list[Thing] = field(default_factory=list)
