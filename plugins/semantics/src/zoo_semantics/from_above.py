"""A picture of oriented boxes from above."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo_semantics.boxes import label_colour
from zoo_semantics.matching import Box
from zoo_semantics.upright import corners, numbers_of

if TYPE_CHECKING:
    import PIL.Image

SIZE = 256  # pixels, height and width
FINER = 4  # lines are drawn so many times larger, and then made small
BEHIND = 0.45  # metres that are shown behind the camera
GROUND, GRID, EACH_FIFTH = (28, 30, 36), (48, 51, 60), (74, 78, 90)
CAMERA, SHADE = (235, 235, 235), 0.3
WEDGE = math.radians(30)  # half the angle that the camera's lines open to; the value does not say how much it sees
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def draw(boxes: Sequence[Box], x: tuple[float, float], z: tuple[float, float]) -> PIL.Image.Image:
    """The boxes from above: the camera at the bottom looks up, a line each metre, each box's front has a tick.

    Shown are at least the metres `x` and `z`, as far as they are ahead; higher boxes lie over lower ones.
    """
    from PIL import Image, ImageDraw

    depth = max(-z[0], 0.0) + BEHIND
    width = max(x[1] - x[0], depth)
    left, far = (x[0] + x[1] - width) / 2, -(width - BEHIND)
    scale = SIZE * FINER / width

    def place(right: float, ahead: float) -> tuple[float, float]:
        """The pixel of a point, metres to the right and ahead."""
        return (right - left) * scale, (-far - ahead) * scale

    picture = Image.new("RGB", (SIZE * FINER, SIZE * FINER), GROUND)
    pen = ImageDraw.Draw(picture)
    draw_grid(pen, place, left, width, far)
    table = numbers_of(boxes)
    drawn = sorted(range(len(boxes)), key=lambda n: (table[n, 1] + table[n, 4] / 2, n))
    for n in drawn:
        colour = label_colour(boxes[n]["label"])
        outline = [place(*corner) for corner in corners(table[n : n + 1])[0].tolist()]
        fill = tuple(round(SHADE * c + (1 - SHADE) * g) for c, g in zip(colour, GROUND, strict=True))
        pen.polygon(outline, fill=fill, outline=colour, width=6)
        middle, front = place(table[n, 0], -table[n, 2]), np.mean([outline[0], outline[3]], axis=0)
        beyond = 0.12 * scale * np.array([math.cos(table[n, 6]), -math.sin(table[n, 6])])
        pen.line((*middle, *(front + beyond)), fill=colour, width=6)
    draw_camera(pen, place)
    picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    outlines = (np.array([place(*corner) for corner in corners(table[n : n + 1])[0].tolist()]) / FINER for n in drawn)
    rectangles = [(*outline.min(axis=0).tolist(), *outline.max(axis=0).tolist()) for outline in outlines]
    write_labels(picture, [boxes[n]["label"] for n in drawn], rectangles)
    return picture


def draw_grid(pen: Any, place: Any, left: float, width: float, far: float) -> None:
    """A line each metre to the right and ahead of the camera, a brighter one each fifth."""
    for metre in range(math.ceil(left), math.floor(left + width) + 1):
        line = GRID if metre % 5 else EACH_FIFTH
        pen.line((*place(metre, -BEHIND), *place(metre, -far)), fill=line, width=FINER)
    for metre in range(math.floor(-far) + 1):
        line = GRID if metre % 5 else EACH_FIFTH
        pen.line((*place(left, metre), *place(left + width, metre)), fill=line, width=FINER)


def draw_camera(pen: Any, place: Any) -> None:
    """A wedge at the camera's place, open to where it looks."""
    tip = place(0.0, 0.0)
    for side in (-1, 1):
        pen.line((*tip, *place(0.9 * side * math.sin(WEDGE), 0.9 * math.cos(WEDGE))), fill=CAMERA, width=5)
    pen.ellipse((tip[0] - 14, tip[1] - 14, tip[0] + 14, tip[1] + 14), fill=CAMERA)


def write_labels(picture: PIL.Image.Image, labels: Sequence[str], boxes: Sequence[Rectangle]) -> None:
    """Each label beside its box, of the places around it where it covers fewest other labels, then fewest boxes."""
    from PIL import ImageDraw, ImageFont

    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=10)
    taken = list[Rectangle]()
    for label, box in zip(labels, boxes, strict=True):

        def covered(spot: Rectangle) -> tuple[int, int]:
            return sum(crossing(spot, other) for other in taken), sum(crossing(spot, other) for other in boxes)

        taken.append(min(around(box, pen.textlength(label, font=font), 10.0), key=covered))
        pen.text(taken[-1][:2], label, fill=label_colour(label), font=font, stroke_width=1, stroke_fill=GROUND)


def around(box: Rectangle, wide: float, high: float) -> Iterator[Rectangle]:
    """Places for a label of this size inside the picture: above, below, right and left of a box, and in its middle."""
    left, top, right, bottom = box
    middle, level = (left + right - wide) / 2, (top + bottom - high) / 2
    for x, y in (
        (middle, top - high - 3), (middle, bottom), (right + 3, level), (left - wide - 3, level),
        (right + 3, top - high), (left - wide - 3, top - high), (right + 3, bottom), (left - wide - 3, bottom),
        (middle, level),
    ):  # fmt: skip
        x, y = min(max(x, 2.0), SIZE - wide - 2), min(max(y, 1.0), SIZE - high - 3)
        yield x, y, x + wide, y + high


def crossing(first: Rectangle, second: Rectangle) -> bool:
    """True where two rectangles have a point in common."""
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
