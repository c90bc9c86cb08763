"""What lists of labelled boxes have in common, flat and in space: files, checks, labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.object_tokens import box_overlaps
from tokenizers_zoo.families.text import TextModality, control_character, printable, read_json

Box = dict[str, Any]
Overlaps = Callable[[Sequence[Box], Sequence[Box]], npt.NDArray[Any]]
"""Gives the overlap of each of n boxes with each of m, (n, m), 0 for boxes of different labels."""
ENOUGH = 0.5  # overlap from which on a box counts as found
MOST_VALUES, MOST_CANDIDATES = 256, 512  # of a data set, what the constant baseline is chosen from


def same_labels(first: Sequence[Box], second: Sequence[Box]) -> npt.NDArray[Any]:
    """Which boxes have one label, bool `(n, m)`."""
    labels = [np.array([box["label"] for box in boxes], dtype=object) for boxes in (first, second)]
    same: npt.NDArray[Any] = labels[0][:, None] == labels[1][None, :]
    return same


def overlaps(first: Sequence[Box], second: Sequence[Box]) -> npt.NDArray[Any]:
    """Intersection over union, 0 for boxes of different labels: `(n, m)`."""
    edges = [np.array([box["box"] for box in boxes], dtype=np.float64).reshape(-1, 4) for boxes in (first, second)]
    result: npt.NDArray[Any] = box_overlaps(*edges) * same_labels(first, second)
    return result


def pairs(table: npt.NDArray[Any], enough: float) -> list[tuple[int, int]]:
    """Rows and columns of a table of overlaps that are `enough`, the best pair first, each in one pair at most."""
    table, found = table.copy(), list[tuple[int, int]]()
    while table.size and float(table.max()) >= enough:
        row, column = map(int, np.unravel_index(int(table.argmax()), table.shape))
        found.append((row, column))
        table[row, :] = table[:, column] = -1.0
    return found


def match(predicted: Sequence[Box], target: Sequence[Box]) -> list[float]:
    """Overlaps of the pairs of one label with `ENOUGH` of it, the best pair first, each box in one pair at most."""
    table = overlaps(predicted, target)
    return [float(table[pair]) for pair in pairs(table, ENOUGH)]


def f1_of(found: int, predicted: Sequence[Sequence[Box]], target: Sequence[Sequence[Box]]) -> float:
    """Harmonic mean of precision and recall where `found` boxes of all are right; 1 where there are none at all."""
    total = sum(map(len, predicted)) + sum(map(len, target))
    return 2 * found / total if total else 1.0


def label_f1(predicted: Sequence[Sequence[Box]], target: Sequence[Sequence[Box]]) -> float:
    """F1 of the labels alone, wherever the boxes are."""
    counts = ([Counter(box["label"] for box in boxes) for boxes in side] for side in (predicted, target))
    return f1_of(sum((guess & truth).total() for guess, truth in zip(*counts, strict=True)), predicted, target)


def best_boxes(values: Sequence[Sequence[Box]], overlaps: Overlaps = overlaps, enough: float = ENOUGH) -> list[Box]:
    """Boxes of `values`, added one by one as long as the next raises F1 = 2 * found / (predicted + true) over them all.

    Each next choice finds most of the boxes that are still unmatched.
    """
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_VALUES)).round().astype(int))
    pictures = [list(values[i]) for i in places]
    pool = [box for boxes in pictures for box in boxes]
    pool = pool[:: -(-len(pool) // MOST_CANDIDATES) or 1]
    # free[j][i, k]: candidate i finds true box k of picture j, which no chosen box has taken
    free = [overlaps(pool, boxes) for boxes in pictures if boxes]
    true, found, chosen = sum(map(len, pictures)), 0, list[Box]()
    while pool:
        gains = np.sum([(table >= enough).any(axis=1) for table in free], axis=0)
        best = int(gains.argmax())
        gain = int(gains[best])
        if (found + gain) * (len(chosen) * len(pictures) + true) <= found * ((len(chosen) + 1) * len(pictures) + true):
            break
        found += gain
        chosen.append(pool[best])
        for table in free:
            column = int(table[best].argmax())
            if table[best, column] >= enough:
                table[:, column] = 0.0
    return chosen


LONGEST_LABEL = 100
S = TypeVar("S")


class LabelledBoxes(TextModality[S]):
    """A list of tables with a label each. A subclass implements `problem`."""

    def problem(self, box: Any) -> str | None:
        """Describe the first problem of a box, or return None."""
        raise NotImplementedError

    def checked(self, value: Any) -> list[Box]:
        """The list itself. Raises InvalidValueError, naming the box, where it is no list of such boxes."""
        if not isinstance(value, list):
            raise InvalidValueError(f"expected a list of boxes, got {type(value).__name__}")
        for index, box in enumerate(value):
            if problem := self.problem(box):
                raise InvalidValueError(f"box {index}: {problem}")
        return value

    @hookimpl
    def read_value(self, data: bytes, extension: str) -> list[Box]:
        """A `.json` file with the list."""
        return self.checked(read_json(data, extension))

    @hookimpl
    def write_value(self, value: Any) -> tuple[bytes, str]:
        """The list as JSON."""
        return json.dumps(self.checked(value), ensure_ascii=False, allow_nan=False).encode(), "json"

    @hookimpl
    def vocabulary_texts(self, values: Sequence[list[Box]], settings: Settings) -> Sequence[str]:
        """The labels, as they stand in the tokens."""
        return [label_text(box) for value in values for box in value]


def label_problem(label: Any) -> str | None:
    """Describe a problem with the label of a box, or return None."""
    if not isinstance(label, str) or not label or label != " ".join(label.split()):
        return f"label: expected words with single spaces between them, got {label!r:.80}"
    if len(label) > LONGEST_LABEL or control_character(label):
        return f"label: expected up to {LONGEST_LABEL} printable characters, got {label[:40]!r}"
    return None


def label_of(piece: str) -> str:
    """The label that a piece of text says; empty where it says none."""
    return printable(" ".join(piece.split()))[:LONGEST_LABEL].strip()


def label_text(box: Box) -> str:
    """The label with a space before it, so that it is the same piece as the same word inside a sentence."""
    return f" {box['label']}"
