"""The vocabulary of a scene: settings, colours, surfaces, parts (geoms), things (bodies), and the scene itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval

Colour = tuple[float, float, float]

CLASSES = (
    "void",
    "floor",
    "wall",
    "ceiling",
    "window",
    "door",
    "picture",
    "rug",
    "table",
    "chair",
    "sofa",
    "shelf",
    "books",
    "box",
    "ball",
    "cylinder",
    "lamp",
    "plant",
    "person",
)
CLASS_IDS = {name: index for index, name in enumerate(CLASSES)}

# sRGB in [0, 1]. The names are the words that captions use.
COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.14, 0.12),
    "orange": (0.94, 0.50, 0.10),
    "yellow": (0.95, 0.82, 0.18),
    "green": (0.18, 0.56, 0.22),
    "teal": (0.10, 0.56, 0.56),
    "blue": (0.15, 0.33, 0.78),
    "purple": (0.50, 0.22, 0.62),
    "pink": (0.94, 0.54, 0.68),
    "brown": (0.46, 0.28, 0.15),
    "white": (0.92, 0.92, 0.90),
    "grey": (0.52, 0.53, 0.54),
    "black": (0.11, 0.11, 0.12),
}
VIVID = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
CLOTHES = ("red", "yellow", "green", "teal", "blue", "purple", "pink", "white", "grey", "orange")
TROUSERS = ("black", "blue", "brown", "grey")

WALLS: dict[str, Colour] = {
    "white": (0.90, 0.90, 0.88),
    "cream": (0.93, 0.87, 0.72),
    "pale blue": (0.66, 0.78, 0.88),
    "pale green": (0.70, 0.82, 0.68),
    "pale pink": (0.90, 0.74, 0.74),
    "grey": (0.68, 0.69, 0.70),
    "yellow": (0.93, 0.82, 0.48),
    "lilac": (0.76, 0.70, 0.86),
}
WOODS: dict[str, tuple[Colour, Colour, Colour]] = {
    "light wooden": ((0.80, 0.64, 0.42), (0.70, 0.53, 0.33), (0.45, 0.32, 0.18)),
    "wooden": ((0.60, 0.40, 0.22), (0.50, 0.32, 0.17), (0.27, 0.16, 0.08)),
    "dark wooden": ((0.36, 0.22, 0.13), (0.28, 0.16, 0.09), (0.13, 0.07, 0.04)),
}
SKIN: tuple[Colour, ...] = ((0.93, 0.76, 0.65), (0.82, 0.62, 0.48), (0.60, 0.42, 0.30), (0.40, 0.27, 0.19))
HAIR: tuple[Colour, ...] = ((0.10, 0.08, 0.07), (0.30, 0.18, 0.10), (0.62, 0.46, 0.22), (0.55, 0.54, 0.53))


def blend(colour: Colour, tint: Colour, share: float) -> Colour:
    """`colour` with `share` in [0, 1] of `tint`."""
    return (
        colour[0] + share * (tint[0] - colour[0]),
        colour[1] + share * (tint[1] - colour[1]),
        colour[2] + share * (tint[2] - colour[2]),
    )


def darken(colour: Colour, factor: float) -> Colour:
    """`colour` times `factor`."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


Array = NDArray[np.float64]
Field = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSettings(Checked):
    """Settings of the `scenes` source. Raises ValueError, naming the field, for a value out of range."""

    image_size: Annotated[int, Interval("[8, 2048]")] = 64
    """Height and width of every picture in pixels, 8 to 2048."""
    people: Annotated[int, Interval("[0, 4]")] = 2
    """Most people in one room, 0 to 4."""
    clutter: Annotated[int, Interval("[0, 12]")] = 6
    """Most loose things (boxes, balls, cylinders) that are dropped into one room, 0 to 12."""
    min_fov: Annotated[float, Interval("[30, 110]")] = 62.0
    """Least vertical field of view of the camera in degrees, 30 to 110. Distances can only be inferred if the lens is
    known: with any lens allowed, the same picture shows a near or a far thing."""
    max_fov: Annotated[float, Interval("[30, 110]")] = 68.0
    """Greatest one, `min_fov` to 110."""
    shadows: bool = True
    """Whether the lamp casts shadows, by a second ray per pixel."""
    max_boxes: Annotated[int, Interval("[1, 64]")] = 8
    """Most bounding boxes per picture, the largest things first, 1 to 64."""
    min_visible: Annotated[float, Interval("[0, 1]")] = 0.003
    """Share of the picture that a thing must cover to be in captions, boxes, poses and numbers of things, 0 to 1."""
    captions: Literal["sentences", "layout"] = "sentences"
    """sentences: some of the things and their rough places, in up to four sentences. layout: every thing with a box,
    largest first, and its extent in seven steps across and down. That is about 120 tokens with eight boxes, so
    `caption` and the backbone's input budget need room for it (`max_length = 128`), and it is true of the whole picture
    alone: take it without crops."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.min_fov > self.max_fov:
            raise ValueError(f"min_fov: expected up to max_fov ({self.max_fov:g}), got {self.min_fov:g}")


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
        return np.stack([axes[0] * self.scale, axes[1] * self.scale, -axes[2]], axis=1) @ picture

    def planes(self, lines: Field) -> Field:
        """World normals (..., 3, n) of the planes through the camera that the picture shows as lines (..., 3, n)."""
        axes = self.axes
        turn = np.stack([axes[0] / self.scale, axes[1] / self.scale, -axes[2]], axis=1)
        return turn.astype(np.float32) @ lines

    def to_camera(self, points: Array) -> Array:
        """World points (..., 3) in camera axes (..., 3)."""
        return (points - np.asarray(self.position)) @ self.axes.T

    def project(self, points: Array) -> Array:
        """Points in camera axes (..., 3) to fractions of width and height from the top left (..., 2); z must be < 0."""
        z = np.minimum(points[..., 2], -1e-6) * self.scale
        return np.stack([0.5 - 0.5 * points[..., 0] / z, 0.5 + 0.5 * points[..., 1] / z], axis=-1)


PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = 0, 2, 3, 4, 5, 6
"""MuJoCo's numbers of shapes."""

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

    shape: int
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


class Pose(NamedTuple):
    """Joint rotations (24, 3), axis-angle relative to the parent's frame, and joints (24, 3) in the thing's axes."""

    rotations: Array
    joints: Array


@dataclass(slots=True)
class Body:
    """A thing in the room: its name, parts, and position.

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
    bodies: list[Body] = field(default_factory=list)
