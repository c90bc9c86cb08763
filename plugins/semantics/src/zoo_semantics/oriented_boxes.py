"""Upright boxes: how much of their volume two of them share, exactly.

Seen from above a box is a rectangle in the plane of x to the right and y away from the viewer, turned by its yaw
counter-clockwise. `size` is along the box's front, up, and across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tokenizers_zoo.families.object_tokens import shares_of_union
from zoo_semantics.labelled_boxes import GROUND, Array, Box, draw_label, label_colour

if TYPE_CHECKING:
    import PIL.Image


CORNERS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2  # counter-clockwise; of the sides along and across

VERTICAL = 1e-12  # metres; an edge that spans less of x has nothing below it


def wrapped(angle: float) -> float:
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
    places = (corners(first)[:, None] - at[None, :, None]) @ turns  # first, second, corner, 2
    half = second[:, [3, 5]] / 2
    (x0, y0), (x1, y1) = (np.moveaxis(ends, 3, 0) for ends in (places, np.roll(places, -1, axis=2)))
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


def shares(first: Array, second: Array) -> Array:
    """Volume of intersection over volume of union of boxes `(n, 7)` and `(m, 7)`: `(n, m)`."""
    (bottom, top), (its_bottom, its_top) = (boxes[:, 1] + [[-0.5], [0.5]] * boxes[:, 4] for boxes in (first, second))
    height = np.minimum(top[:, None], its_top) - np.maximum(bottom[:, None], its_bottom)
    shared = shared_areas(first, second) * np.maximum(height, 0.0)
    return shares_of_union(shared, first[:, 3:6].prod(axis=1), second[:, 3:6].prod(axis=1))


SIZE = 256  # pixels, height and width
FINER = 4  # lines are drawn so many times larger, and then made small
BEHIND = 0.45  # metres that are shown behind the camera
GRID, CAMERA = (48, 51, 60), (235, 235, 235)
SHADE = 0.3


def draw(boxes: Sequence[Box], x: tuple[float, float], z: tuple[float, float]) -> PIL.Image.Image:
    """The boxes from above: the camera at the bottom looks up, a line each metre, each box's front has a tick.

    Shown are at least the metres `x` and `z`, as far as they are ahead; higher boxes lie over lower ones.
    """
    from PIL import Image, ImageDraw

    depth = max(-z[0], 0.0) + BEHIND
    width = max(x[1] - x[0], depth)
    left, far = (x[0] + x[1] - width) / 2, width - BEHIND
    scale = SIZE * FINER / width

    def place(right: float, ahead: float) -> tuple[float, float]:
        """The pixel of a point, metres to the right and ahead."""
        return (right - left) * scale, (far - ahead) * scale

    picture = Image.new("RGB", (SIZE * FINER, SIZE * FINER), GROUND)
    pen = ImageDraw.Draw(picture)
    for metre in range(math.ceil(left), math.floor(left + width) + 1):
        pen.line((*place(metre, -BEHIND), *place(metre, far)), fill=GRID, width=FINER)
    for metre in range(math.floor(far) + 1):
        pen.line((*place(left, metre), *place(left + width, metre)), fill=GRID, width=FINER)
    table = numbers_of(boxes)
    drawn = sorted(range(len(boxes)), key=lambda n: (table[n, 1] + table[n, 4] / 2, n))
    outlines = [[place(*corner) for corner in box] for box in corners(table).tolist()]
    for n in drawn:
        colour = label_colour(boxes[n]["label"])
        fill = tuple(round(SHADE * c + (1 - SHADE) * g) for c, g in zip(colour, GROUND, strict=True))
        pen.polygon(outlines[n], fill=fill, outline=colour, width=6)
        front = np.mean([outlines[n][0], outlines[n][3]], axis=0)
        beyond = 0.12 * scale * np.array([math.cos(table[n, 6]), -math.sin(table[n, 6])])
        pen.line((*place(table[n, 0], -table[n, 2]), *(front + beyond)), fill=colour, width=6)
    pen.polygon([place(0.0, 0.0), place(-0.3, 0.5), place(0.3, 0.5)], outline=CAMERA, width=5)
    picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    pen = ImageDraw.Draw(picture)
    for n in drawn:
        left, top = np.array(outlines[n]).min(axis=0) / FINER
        draw_label(pen, boxes[n]["label"], left, top - 18, SIZE)
    return picture
