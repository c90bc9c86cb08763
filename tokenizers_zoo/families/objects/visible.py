"""What a crop leaves of an object's box."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers_zoo.spec import Crop


def box_seen_through(crop: Crop, box: Sequence[float], least: float) -> list[float] | None:
    """A box [xmin, ymin, xmax, ymax], fractions of the picture, in the frame of the crop and clipped to it.

    None where less than the share `least` of its area is inside, or nothing.
    """
    if crop.is_whole:
        return list(box)
    xs = [(x - crop.left) / crop.width for x in (box[0], box[2])]
    ys = [(y - crop.top) / crop.height for y in (box[1], box[3])]
    left, right = (min(1.0, max(0.0, x)) for x in xs)
    top, bottom = (min(1.0, max(0.0, y)) for y in ys)
    inside, whole = (right - left) * (bottom - top), (xs[1] - xs[0]) * (ys[1] - ys[0])
    if inside <= 0 or inside < least * whole * (1 - 1e-9):
        return None
    return [1 - right, top, 1 - left, bottom] if crop.flip else [left, top, right, bottom]
