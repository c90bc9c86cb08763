"""Predicted boxes against true ones: overlap, matching, and the constant answer that matches best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Box = dict[str, Any]
ENOUGH = 0.5  # overlap from which on a box counts as found
MOST_VALUES, MOST_CANDIDATES = 256, 512  # of a data set, what the constant answer is chosen from


def intersection_over_union(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Area of intersection over area of union, `(n, 4)` and `(m, 4)` to `(n, m)`; edges as xmin, ymin, xmax, ymax."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    ratio: npt.NDArray[Any] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def overlaps(first: Sequence[Box], second: Sequence[Box]) -> npt.NDArray[Any]:
    """As `intersection_over_union`, 0 for boxes of different labels."""
    edges = [np.array([box["box"] for box in boxes], dtype=np.float64).reshape(-1, 4) for boxes in (first, second)]
    labels = [np.array([box["label"] for box in boxes], dtype=object) for boxes in (first, second)]
    result: npt.NDArray[Any] = intersection_over_union(*edges) * (labels[0][:, None] == labels[1][None, :])
    return result


def match(predicted: Sequence[Box], target: Sequence[Box]) -> list[float]:
    """Overlaps of the pairs of one label with `ENOUGH` of it, the best pair first, each box in one pair at most."""
    if not predicted or not target:
        return []
    table = overlaps(predicted, target)
    found = list[float]()
    while (best := float(table.max())) >= ENOUGH:
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        found.append(best)
        table[row, :] = table[:, column] = -1.0
    return found


def best_boxes(values: Sequence[Sequence[Box]]) -> list[Box]:
    """Boxes of `values`, added one by one as long as the next raises F1 = 2 * found / (predicted + true) over them all.

    The next is the one that finds most of the boxes that those before it leave.
    """
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_VALUES)).round().astype(int))
    pictures = [list(values[i]) for i in places]
    pool = [box for boxes in pictures for box in boxes]
    pool = pool[:: -(-len(pool) // MOST_CANDIDATES) or 1]
    # free[j][i, k]: candidate i finds true box k of picture j, which no chosen box has taken
    free = [overlaps(pool, boxes) for boxes in pictures if boxes]
    true, found, chosen = sum(map(len, pictures)), 0, list[Box]()
    while pool:
        gains = np.sum([(table >= ENOUGH).any(axis=1) for table in free], axis=0)
        best = int(gains.argmax())
        gain = int(gains[best])
        if (found + gain) * (len(chosen) * len(pictures) + true) <= found * ((len(chosen) + 1) * len(pictures) + true):
            break
        found += gain
        chosen.append(pool[best])
        for table in free:
            column = int(table[best].argmax())
            if table[best, column] >= ENOUGH:
                table[:, column] = 0.0
    return chosen
