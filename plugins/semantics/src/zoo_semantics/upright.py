"""Upright boxes: how much of their volume two of them share, exactly.

Seen from above a box is a rectangle in the plane of x to the right and y away from the viewer, turned by its yaw
counter-clockwise. `size` is along the box's front, up, and across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_semantics.matching import Box, over_union, same_labels

Array = npt.NDArray[Any]
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
    places: Array = at[:, None] + (CORNERS * boxes[:, None, [3, 5]]) @ turns
    return places


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
    mean: Array = np.divide(weighed, high - low, out=np.array(bottom), where=high > low)
    return mean


def shares(first: Array, second: Array) -> Array:
    """Volume of intersection over volume of union of boxes `(n, 7)` and `(m, 7)`: `(n, m)`."""
    (bottom, top), (its_bottom, its_top) = (boxes[:, 1] + [[-0.5], [0.5]] * boxes[:, 4] for boxes in (first, second))
    height = np.minimum(top[:, None], its_top) - np.maximum(bottom[:, None], its_bottom)
    shared = shared_areas(first, second) * np.maximum(height, 0.0)
    return over_union(shared, first[:, 3:6].prod(axis=1), second[:, 3:6].prod(axis=1))


def overlaps_3d(first: Sequence[Box], second: Sequence[Box]) -> Array:
    """Intersection over union in 3-D, 0 for boxes of different labels: `(n, m)`."""
    result: Array = shares(numbers_of(first), numbers_of(second)) * same_labels(first, second)
    return result
