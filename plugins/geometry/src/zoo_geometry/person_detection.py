"""People in a picture, as the person detector of MediaPipe's pose networks tells them (BlazePose, arXiv 2006.10204).

The network says for each of 2,254 anchors how likely somebody is there, the box of the face, and four points: the
middle of the hips, one on the circle around the whole body, and the same of the shoulders and the upper body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_geometry.people import overlaps
from zoo_geometry.picture_regions import Region
from zoo_geometry.pose_landmarks import sigmoid

Array = NDArray[Any]
SIZE = 224
"""Pixels of the network's input along each side."""
GRIDS = ((8, 2), (16, 2), (32, 6))
"""Pixels between anchors, and how many anchors share a place, in the order of the network's answers."""
NUMBERS = 12
"""Of each anchor: x, y of the box's centre, its width and height, and x, y of four points, all in pixels."""
SAME_PERSON = 0.3
"""Overlap (IoU) of two boxes of faces from which on they are one person's."""
MARGIN = 1.25
"""Side of the region that the landmark network is shown, over the diameter of the circle around the body."""


@dataclass(frozen=True, slots=True)
class Detection:
    """Somebody: how likely, in (0, 1), the face's box (4) as xmin, ymin, xmax, ymax, and four points (4, 2)."""

    score: float
    box: Array
    points: Array

    def region(self, whole: Region) -> Region:
        """The square of the picture around this body, upright for the body: hips in the middle, head up.

        Box and points are fractions of `whole`.
        """
        hips, rim = whole.to_picture(self.points[:2])
        right, down = (rim - hips).tolist()
        side = 2 * MARGIN * max(math.hypot(right, down), 1.0)
        return Region(x=float(hips[0]), y=float(hips[1]), side=side, angle=math.atan2(right, -down))


def anchors() -> Array:
    """The places of the anchors, fractions of the input (2254, 2): row by row of each grid of `GRIDS`."""
    places = []
    for stride, count in GRIDS:
        steps = (np.arange(SIZE // stride) + 0.5) * stride / SIZE
        places.append(np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2).repeat(count, axis=0))
    return np.concatenate(places)


def detections(numbers: Array, logits: Array, threshold: float) -> list[Detection]:
    """The people that the network's answers (2254, 12) and logits (2254) tell, the likeliest first.

    `threshold` is the least score, in (0, 1).
    """
    scores = sigmoid(logits.astype(np.float64))
    used = scores >= threshold
    places, found = anchors()[used], numbers[used].astype(np.float64) / SIZE
    centre, half = places + found[:, :2], found[:, 2:4] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    points = places[:, None] + found[:, 4:].reshape(-1, 4, 2)
    return merged(scores[used], boxes, points)


def merged(scores: Array, boxes: Array, points: Array) -> list[Detection]:
    """One detection of each group of boxes (n, 4) that overlap its best one: their mean, weighted by score.

    The weighted non-maximum suppression of BlazeFace (arXiv 1907.05047, post-processing); points (n, 4, 2) go with the
    boxes.
    """
    people = []
    left = np.argsort(-scores, kind="stable")
    table = overlaps(boxes, boxes)
    while len(left):
        same = (table[left[0], left] > SAME_PERSON) | (left == left[0])
        group = left[same]
        weights = scores[group] / scores[group].sum()
        box, four = (np.tensordot(weights, values[group], axes=1) for values in (boxes, points))
        people.append(Detection(float(scores[left[0]]), box, four))
        left = left[~same]
    return people
