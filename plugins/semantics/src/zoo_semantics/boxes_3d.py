"""Oriented boxes in metres: what stands where around the camera, as text with coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import Array, canvas
from tokenizers_zoo.contract.spec import Crop, Metric, ValueSpec
from tokenizers_zoo.families.object_tokens import shares_of_union
from tokenizers_zoo.records.config import Checked, Settings
from tokenizers_zoo.records.typed import Interval, PositiveInt
from tokenizers_zoo.tokenizers.text_vocab import Piece, Special, coordinate_fraction, coordinate_level
from zoo_semantics.labelled_boxes import (
    GROUND,
    LABEL_F1,
    Box,
    LabelledBoxes,
    are_numbers,
    draw_label,
    key_error,
    label_colour,
)

if TYPE_CHECKING:
    import PIL.Image

KEYS = ("label", "center", "size", "yaw")
TOKEN = "<boxes_3d"
FOUND = 0.25
"""Least overlap (IoU) of a box that counts as found."""
NONE_FOUND = 1.0
"""Metres of `center_error` where there are boxes and none is found."""
FARTHEST = 1000.0
"""Metres along an axis that no centre is beyond; more is another unit."""
LONGEST = 100.0
"""Metres that no side is beyond."""
ROUNDED = 1e-6
"""Radians that a yaw may be beyond half a turn: in single precision pi is 9e-8 more than it is."""
SIZE = 256  # pixels, height and width
BEHIND = 0.45  # metres that are shown behind the camera
GRID, CAMERA = (48, 51, 60), (235, 235, 235)
SHADE = 0.3


Metres = Annotated[float, Interval(f"[-{FARTHEST:g}, {FARTHEST:g}]")]
Span = tuple[Metres, Metres]
Side = Annotated[float, Interval(f"(0, {LONGEST:g}]")]
SPANS = ("x", "y", "z", "size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes3dSettings(Checked):
    """Settings of `boxes_3d`. Raises ValueError, naming the field, for a value out of range.

    Numbers outside their range are clipped. The levels of yaw go once around, so that no two of them mean the same.
    """

    max_length: PositiveInt = 144
    """Most tokens of one picture; the last boxes of the list that do not fit are dropped."""
    max_boxes: PositiveInt = 16
    """Most boxes of one picture; the end of the list is dropped."""
    x: Span = (-4.0, 4.0)
    """Range in metres to the right of the camera, divided into the levels of axis v0: the vocabulary's
    `coordinate_bins` (1000 in 4M)."""
    y: Span = (-2.0, 2.0)
    """Metres above the camera, likewise, of axis v1."""
    z: Span = (-8.0, 0.0)
    """Range in metres from the camera towards the viewer, for axis v2. Visible things are below 0."""
    size: tuple[Side, Side] = (0.05, 4.0)
    """Metres of a side, likewise, with levels that are even in the logarithm."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        for name in SPANS:
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name}: expected [from, to] in metres, from below to; got [{low}, {high}]")

    @property
    def token(self) -> str:
        """The special token before boxes with these levels, so that they always mean the same."""
        ends = ((name, *getattr(self, name)) for name in SPANS)
        return f"{TOKEN} {' '.join(f'{name} {low!r} {high!r}' for name, low, high in ends)} m>"

    def declared(self, token: str) -> Boxes3dSettings:
        """These settings with the ranges that a token declares; other special tokens declare none."""
        if not token.startswith(TOKEN):
            return self
        _, *words, _ = token.split()
        ends = zip(words[::3], words[1::3], words[2::3], strict=True)
        ranges: dict[str, Any] = {name: (float(low), float(high)) for name, low, high in ends}
        return replace(self, **ranges)

    def levels(self, centre: Sequence[float], size: Sequence[float], yaw: float, bins: int) -> list[int]:
        """The nearest level of each number, centre, size and yaw."""
        spans = zip(centre, (self.x, self.y, self.z), strict=True)
        fractions = [(number - low) / (high - low) for number, (low, high) in spans]
        low, high = self.size
        fractions += [math.log(side / low) / math.log(high / low) for side in size]
        yaw_level = round((yaw + math.pi) / (2 * math.pi) * bins) % bins
        return [*(coordinate_level(fraction, bins) for fraction in fractions), yaw_level]

    def numbers(self, levels: Sequence[int], bins: int) -> tuple[list[float], list[float], float]:
        """Return centre, size and yaw in [-pi, pi) of levels."""
        shares = [coordinate_fraction(level, bins) for level in levels[:6]]
        spans = zip(shares[:3], (self.x, self.y, self.z), strict=True)
        centre = [low + share * (high - low) for share, (low, high) in spans]
        low, high = self.size
        size = [min(low * (high / low) ** share, high) for share in shares[3:]]
        return centre, size, -math.pi + 2 * math.pi * (levels[6] % bins) / bins


class Boxes3d(LabelledBoxes[Boxes3dSettings]):
    """Oriented boxes, each as `v0=x v1=y v2=z v0=length v1=height v2=width v3=yaw label`, in the list's order.

    Axes are the camera's without its pitch and roll: the origin is the camera, x points right, y up against gravity,
    and z towards the viewer. With the pitch removed, whatever stands upright is upright: one angle says how it is
    turned, and the floor is at one height, as in the boxes of SUN RGB-D and ARKitScenes. `yaw` turns a box about the
    vertical, counter-clockwise seen from above: at 0 its front looks to the right, at -pi / 2 to the viewer. `length`
    is measured along the front's direction, `width` across it.

    Numbers are exact to half a level. A special token before the first box names where the levels begin and end.
    """

    summary = "Oriented boxes around things, in metres from the camera"
    value = ValueSpec(
        kind="object",
        items="table",
        description='[{"label": str, "center": [x, y, z], "size": [length, height, width], "yaw": radians}], metres',
        fields=(
            ("label", "what it is: up to 100 characters, words with single spaces between them"),
            ("center", "metres from the camera, axes levelled by gravity: x right, y up, z towards the viewer"),
            ("size", "metres: length along the direction in which the front looks, height, width across"),
            (
                "yaw",
                "radians in [-pi, pi] of that direction, counter-clockwise seen from above: 0 is to the right, pi / 2 "
                "away from the viewer; what has no front shows the viewer one",
            ),
        ),
    )
    settings_class = Boxes3dSettings
    token_space = "levels of x, y, z, yaw and of the sides' logarithm"
    axes = 4
    token_axes = (0, 1, 2, 0, 1, 2, 3)  # the centre, the size, and yaw
    enough = FOUND
    metrics = (
        Metric(
            name="f1",
            higher_is_better=True,
            meaning="harmonic mean of precision and recall; right is the label with an overlap (IoU of the volumes) of "
            f"{FOUND:g} or more",
        ),
        Metric(
            name="center_error",
            unit="m",
            higher_is_better=False,
            meaning="mean distance of the centres of the boxes that are right; "
            f"{NONE_FOUND:g} m where there are boxes and none is",
        ),
        LABEL_F1,
    )

    @hookimpl
    def vocabulary_tokens(self, settings: Settings) -> Sequence[str]:
        """The token that declares the ranges of the levels."""
        return (settings.take(Boxes3dSettings).token,)

    def box_error(self, box: Any) -> str | None:
        if error := key_error(box, KEYS):
            return error
        if not are_numbers(box["center"], 3, -FARTHEST, FARTHEST):
            return f"center: expected [x, y, z] in metres, up to {FARTHEST:g} along each, got {box['center']!r:.80}"
        if not are_numbers(box["size"], 3, 0, LONGEST) or 0 in box["size"]:
            size_text = f"{box['size']!r:.80}"
            return f"size: expected [length, height, width] in metres, above 0 and up to {LONGEST:g}, got {size_text}"
        if not are_numbers([box["yaw"]], 1, -math.pi - ROUNDED, math.pi + ROUNDED):
            return f"yaw: expected radians in [-pi, pi], got {box['yaw']!r:.40}"
        return None

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """A chair in front of the camera, and one with its yaw in degrees."""
        chair = {"label": "chair", "center": [0.5, -0.6, -2.5], "size": [0.5, 0.9, 0.5]}
        yaws = {"a chair": 1.57, "`yaw` in degrees": 90}
        return {name: (json.dumps([{**chair, "yaw": yaw}]).encode(), "json") for name, yaw in yaws.items()}

    def prefix(self, options: Boxes3dSettings) -> list[Piece]:
        return [Special(options.token)]

    def levels(self, box: Box, options: Boxes3dSettings, bins: int) -> list[int]:
        return options.levels(box["center"], box["size"], box["yaw"], bins)

    def box_of(self, levels: Sequence[int], prefix: str, options: Boxes3dSettings, bins: int) -> Box | None:
        """The box of levels that `prefix` declares, or the settings."""
        centre, size, yaw = options.declared(prefix).numbers(levels, bins)
        return {"center": centre, "size": size, "yaw": yaw}

    def overlaps(self, first: Sequence[Box], second: Sequence[Box]) -> Array:
        """Intersection over union of the volumes."""
        tables = numbers_of(first), numbers_of(second)
        (bottom, top), (its_bottom, its_top) = (boxes[:, 1] + [[-0.5], [0.5]] * boxes[:, 4] for boxes in tables)
        height = np.minimum(top[:, None], its_top) - np.maximum(bottom[:, None], its_bottom)
        shared = shared_areas(*tables) * np.maximum(height, 0.0)
        return shares_of_union(shared, *(boxes[:, 3:6].prod(axis=1) for boxes in tables))

    def mean_match(self, pairs: list[tuple[Box, Box, float]], any_true: bool) -> float:
        errors = [math.dist(guess["center"], truth["center"]) for guess, truth, _ in pairs]
        return float(np.mean(errors)) if errors else NONE_FOUND if any_true else 0.0

    @hookimpl
    def transform(self, value: Any, crop: Crop) -> list[Box]:
        """A flip mirrors left and right. A crop drops nothing, and leaves camera and metres as they are.

        Where a box lies in the picture depends on the camera's field of view and pitch, which the value does not know.
        """
        boxes = self.validate(value)
        if not crop.flip:
            return boxes
        centres = ([-x, y, z] for x, y, z in (box["center"] for box in boxes))
        yaws = (wrap_angle(math.pi - box["yaw"]) for box in boxes)
        return [{**box, "center": at, "yaw": yaw} for box, at, yaw in zip(boxes, centres, yaws, strict=True)]

    @hookimpl
    def render(self, value: list[Box], settings: Settings) -> PIL.Image.Image:
        """The boxes from above: the camera at the bottom looks up, a line each metre, each box's front has a tick.

        Shown are at least the metres `x` and `z`, as far as they are ahead; higher boxes lie over lower ones.
        """
        options = settings.take(Boxes3dSettings)
        depth = max(-options.z[0], 0.0) + BEHIND
        width = max(options.x[1] - options.x[0], depth)
        left, far = (sum(options.x) - width) / 2, width - BEHIND
        scale = SIZE / width

        def pixel_of(right: float, ahead: float) -> tuple[float, float]:
            """The pixel of a point, metres to the right and ahead."""
            return (right - left) * scale, (far - ahead) * scale

        picture, pen = canvas((SIZE, SIZE), GROUND)
        for metre in range(math.ceil(left), math.floor(left + width) + 1):
            pen.line((*pixel_of(metre, -BEHIND), *pixel_of(metre, far)), fill=GRID)
        for metre in range(math.floor(far) + 1):
            pen.line((*pixel_of(left, metre), *pixel_of(left + width, metre)), fill=GRID)
        table = numbers_of(value)
        outlines = [[pixel_of(*corner) for corner in box] for box in corners(table).tolist()]
        for n in sorted(range(len(value)), key=lambda n: (table[n, 1] + table[n, 4] / 2, n)):
            colour = label_colour(value[n]["label"])
            fill = tuple(round(SHADE * c + (1 - SHADE) * g) for c, g in zip(colour, GROUND, strict=True))
            pen.polygon(outlines[n], fill=fill, outline=colour)
            front = np.mean([outlines[n][0], outlines[n][3]], axis=0)
            beyond = 0.12 * scale * np.array([math.cos(table[n, 6]), -math.sin(table[n, 6])])
            pen.line((*pixel_of(table[n, 0], -table[n, 2]), *(front + beyond)), fill=colour, width=2)
            left_edge, top = np.array(outlines[n]).min(axis=0)
            draw_label(pen, value[n]["label"], left_edge, top - 18, SIZE)
        pen.polygon([pixel_of(0.0, 0.0), pixel_of(-0.3, 0.5), pixel_of(0.3, 0.5)], outline=CAMERA)
        return picture


CORNERS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2  # counter-clockwise; of the sides along and across

VERTICAL = 1e-12  # metres; an edge that spans less of x has nothing below it


def wrap_angle(angle: float) -> float:
    """The same direction in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def numbers_of(boxes: Sequence[Box]) -> Array:
    """Centre, size and yaw of each box: float64 `(n, 7)`."""
    return np.array([[*box["center"], *box["size"], box["yaw"]] for box in boxes], dtype=np.float64).reshape(-1, 7)


def corners(boxes: Array) -> Array:
    """Where corners of boxes `(n, 7)` are, seen from above: `(n, 4, 2)`, counter-clockwise, left of the front first."""
    at, yaw = boxes[:, [0, 2]] * (1, -1), boxes[:, 6]
    turns = np.stack([np.cos(yaw), np.sin(yaw), -np.sin(yaw), np.cos(yaw)], axis=1).reshape(-1, 2, 2)
    return at[:, None] + (CORNERS * boxes[:, None, [3, 5]]) @ turns


def shared_areas(first: Array, second: Array) -> Array:
    """Area that the footprints of boxes `(n, 7)` and `(m, 7)` share, `(n, m)`, in square metres.

    In the frame of the second box, the shared polygon is the first rectangle with its height above each point clipped
    to the second's sides: the sum over the first's edges of the integral of the clipped edge.
    """
    at, yaw = second[:, [0, 2]] * (1, -1), second[:, 6]
    turns = np.stack([np.cos(yaw), -np.sin(yaw), np.sin(yaw), np.cos(yaw)], axis=1).reshape(-1, 2, 2)
    points = (corners(first)[:, None] - at[None, :, None]) @ turns  # first, second, corner, 2
    half = second[:, [3, 5]] / 2
    (x0, y0), (x1, y1) = (np.moveaxis(ends, 3, 0) for ends in (points, np.roll(points, -1, axis=2)))
    left, right = (np.clip(x, -half[:, None, 0], half[:, None, 0]) for x in (x0, x1))
    slope = np.divide(y1 - y0, x1 - x0, out=np.zeros_like(x0), where=np.abs(x1 - x0) > VERTICAL)
    y0, y1 = y0 + slope * (left - x0), y0 + slope * (right - x0)
    area: Array = -((right - left) * mean_clipped(y0, y1, half[:, None, 1])).sum(axis=2)
    return np.maximum(area, 0.0)


def mean_clipped(start: Array, stop: Array, limit: Array) -> Array:
    """Mean over a stretch of numbers, evenly from `start` to `stop`, of the number clipped to [-limit, limit]."""
    low, high = np.minimum(start, stop), np.maximum(start, stop)
    bottom, top = np.clip(low, -limit, limit), np.clip(high, -limit, limit)
    below, above = np.minimum(high, -limit) - low, high - np.maximum(low, limit)
    weighed = (top - bottom) * (top + bottom) / 2 + limit * (np.maximum(above, 0) - np.maximum(below, 0))
    return np.divide(weighed, high - low, out=np.array(bottom), where=high > low)


plugin = Boxes3d()
