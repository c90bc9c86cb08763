"""What lists of labelled boxes have in common, flat and in space: tokens, files, checks, scores, labels."""

from __future__ import annotations

import colorsys
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import Array
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.object_tokens import best_pairs
from tokenizers_zoo.families.text import TextModality, TextTokenizer, control_character, printable, read_json
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.tokenizers.text_vocab import Coordinate, Piece, Special

if TYPE_CHECKING:
    import PIL.ImageDraw

Box = dict[str, Any]
EncodedBox = tuple[Box, list[int]]
"""A box with its tokens."""
LONGEST_LABEL = 100
MOST_VALUES, MOST_CANDIDATES = 256, 512  # of a data set, what the constant baseline is chosen from
GROUND = (28, 30, 36)
"""Colour of pictures where no box is."""
LABEL_F1 = Metric(name="label_f1", higher_is_better=True, meaning="F1 of the labels alone, regardless of place")
"""The third metric."""
S = TypeVar("S")


class LabelledBoxes(TextModality[S]):
    """A list of tables with a label each. A box becomes its coordinates on `token_axes`, then its label."""

    token_axes: ClassVar[tuple[int, ...]]
    """The axis of each coordinate token of a box."""
    enough: ClassVar[float]
    """A box counts as found from this overlap on."""

    def box_error(self, box: Any) -> str | None:
        """Describe the first problem of a box, or return None."""
        raise NotImplementedError

    def rank_boxes(self, boxes: list[Box]) -> list[Box]:
        """The boxes, most important first; the last ones are dropped."""
        return boxes

    def order_boxes(self, encoded_boxes: list[EncodedBox], options: S) -> list[EncodedBox]:
        """The boxes that fit, in the order of the sequence."""
        return encoded_boxes

    def prefix(self, options: S) -> list[Piece]:
        """The pieces before the first box."""
        return []

    def levels(self, box: Box, options: S, bins: int) -> Sequence[int]:
        """The levels of a box on `token_axes`."""
        raise NotImplementedError

    def box_of(self, levels: Sequence[int], prefix: str, options: S, bins: int) -> Box | None:
        """The box, without its label, of levels after the special token `prefix`; None where they are of no box."""
        raise NotImplementedError

    def overlaps(self, first: Sequence[Box], second: Sequence[Box]) -> Array:
        """How much boxes overlap whatever their labels are, in [0, 1]: (n, m)."""
        raise NotImplementedError

    def mean_match(self, pairs: list[tuple[Box, Box, float]], any_true: bool) -> float:
        """The second metric, over pairs of predicted and true boxes and their overlaps."""
        raise NotImplementedError

    # ------------------------------------------------------------------ derived methods

    def validate(self, value: Any) -> list[Box]:
        """The list itself. Raises InvalidValueError, naming the box, where it is no list of such boxes."""
        if not isinstance(value, list):
            raise InvalidValueError(f"expected a list of boxes, got {type(value).__name__}")
        for index, box in enumerate(value):
            if error := self.box_error(box):
                raise InvalidValueError(f"box {index}: {error}")
        return value

    def encode_value(self, value: Any, tokenizer: TextTokenizer[S]) -> list[int]:
        options: Any = tokenizer.settings
        boxes, words = self.rank_boxes(self.validate(value))[: options.max_boxes], tokenizer.vocabulary
        start, encoded_boxes = words.encode(self.prefix(options)), list[EncodedBox]()
        left = options.max_length - len(start)
        for box in boxes:
            levels = zip(self.token_axes, self.levels(box, options, tokenizer.bins), strict=True)
            group = words.encode([*(Coordinate(*level) for level in levels), label_text(box)])
            left -= len(group)
            if left < 0:
                break
            encoded_boxes.append((box, group))
        ids = [index for _, group in self.order_boxes(encoded_boxes, options) for index in group]
        return [*start, *ids] if encoded_boxes else []

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[S]) -> list[Box]:
        """Every run of coordinates in order that a label follows and that is a box."""
        boxes, levels, prefix = list[Box](), list[int](), ""
        for piece in pieces:
            if isinstance(piece, Coordinate):
                if len(levels) < len(self.token_axes) and piece.axis == self.token_axes[len(levels)]:
                    levels.append(piece.level)
                else:
                    levels = [piece.level] if piece.axis == self.token_axes[0] else []
                continue
            if isinstance(piece, Special):
                prefix = piece.name
            elif len(levels) == len(self.token_axes):
                label = printable(" ".join(piece.split()))[:LONGEST_LABEL].strip()
                box = self.box_of(levels, prefix, tokenizer.settings, tokenizer.bins)
                boxes += [{"label": label, **box}] if label and box else []
            levels = []
        return boxes

    @hookimpl
    def read_value(self, data: bytes, extension: str) -> list[Box]:
        """A `.json` file with the list."""
        return self.validate(read_json(data, extension))

    @hookimpl
    def write_value(self, value: Any) -> tuple[bytes, str]:
        """The list as JSON."""
        return json.dumps(self.validate(value), ensure_ascii=False, allow_nan=False).encode(), "json"

    @hookimpl
    def vocabulary_texts(self, values: Sequence[list[Box]], settings: Settings) -> Sequence[str]:
        """The labels, as they stand in the tokens."""
        return [label_text(box) for value in values for box in value]

    def labelled_overlaps(self, first: Sequence[Box], second: Sequence[Box]) -> Array:
        """As `overlaps`, 0 for boxes of different labels."""
        labels = [np.array([box["label"] for box in boxes], dtype=object) for boxes in (first, second)]
        return self.overlaps(first, second) * (labels[0][:, None] == labels[1][None, :])

    def match_boxes(self, predicted: Sequence[Box], target: Sequence[Box]) -> list[tuple[Box, Box, float]]:
        """Pairs of boxes of one label that overlap enough, the best pair first, each box in one pair at most."""
        pairs = best_pairs(self.labelled_overlaps(predicted, target), self.enough)
        return [(predicted[row], target[column], overlap) for row, column, overlap in pairs]

    @hookimpl
    def score(self, predicted: Sequence[list[Box]], target: Sequence[list[Box]]) -> dict[str, float]:
        """Over all boxes of all pictures together."""
        pairs = [pair for p, t in zip(predicted, target, strict=True) for pair in self.match_boxes(p, t)]
        named = [[Counter(box["label"] for box in boxes) for boxes in side] for side in (predicted, target)]
        shared = sum((guess & truth).total() for guess, truth in zip(*named, strict=True))
        true = sum(map(len, target))
        total = sum(map(len, predicted)) + true
        return {
            "f1": 2 * len(pairs) / total if total else 1.0,
            self.metrics[1].name: self.mean_match(pairs, bool(true)),
            LABEL_F1.name: 2 * shared / total if total else 1.0,
        }

    @hookimpl
    def constant_baseline(self, values: Sequence[Sequence[Box]]) -> list[Box]:
        """Boxes of `values`, added one by one as long as the next raises F1 = 2 * found / (predicted + true).

        Each next choice finds most of the boxes that are still unmatched.
        """
        indices = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_VALUES)).round().astype(int))
        pictures = [list(values[i]) for i in indices]
        pool = [box for boxes in pictures for box in boxes]
        pool = pool[:: -(-len(pool) // MOST_CANDIDATES) or 1]
        # free[j][i, k]: candidate i finds true box k of picture j, which no chosen box has taken
        free = [self.labelled_overlaps(pool, boxes) for boxes in pictures if boxes]
        true, true_positives, baseline = sum(map(len, pictures)), 0, list[Box]()
        while pool:
            gains = np.sum([(table >= self.enough).any(axis=1) for table in free], axis=0)
            best, count = int(gains.argmax()), len(baseline) * len(pictures) + true
            gain = int(gains[best])
            if (true_positives + gain) * count <= true_positives * (count + len(pictures)):
                break
            true_positives += gain
            baseline.append(pool[best])
            for table in free:
                column = int(table[best].argmax())
                if table[best, column] >= self.enough:
                    table[:, column] = 0.0
        return baseline


def key_error(box: Any, keys: Sequence[str]) -> str | None:
    """Describe a problem with the keys or the label of a box, or return None."""
    if not isinstance(box, Mapping):
        return f"expected a table with {', '.join(keys)}, got {type(box).__name__}"
    if missing := [key for key in keys if key not in box]:
        return f"lacks {', '.join(missing)}; expected {', '.join(keys)}"
    if unknown := [str(key) for key in box if key not in keys]:
        return f"unknown keys {', '.join(unknown):.80}; expected {', '.join(keys)}"
    label = box["label"]
    if not isinstance(label, str) or not label or label != " ".join(label.split()):
        return f"label: expected words with single spaces between them, got {label!r:.80}"
    if len(label) > LONGEST_LABEL or control_character(label):
        return f"label: expected up to {LONGEST_LABEL} printable characters, got {label[:40]!r}"
    return None


def are_numbers(numbers: Any, count: int, low: float, high: float) -> bool:
    """True for a list of `count` numbers from `low` to `high`."""
    listed = isinstance(numbers, list | tuple) and len(numbers) == count
    return listed and all(isinstance(n, int | float) and type(n) is not bool and low <= n <= high for n in numbers)


def label_text(box: Box) -> str:
    """The label with a space before it, so that it is the same piece as the same word inside a sentence."""
    return f" {box['label']}"


def label_colour(label: str) -> tuple[int, int, int]:
    """A bright colour that is always the same for a label."""
    red, green, blue = colorsys.hls_to_rgb(zlib.crc32(label.encode()) % 360 / 360, 0.65, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_label(pen: PIL.ImageDraw.ImageDraw, label: str, x: float, y: float, size: int) -> None:
    """Write a label on its colour, with its upper left corner at (x, y) or as near as fits in `size` pixels."""
    from PIL import ImageFont

    font = ImageFont.load_default(size=13)
    wide, high = pen.textlength(label, font=font) + 6, 17
    x, y = max(0, min(x, size - wide)), max(0, min(y, size - high))
    pen.rectangle((x, y, x + wide, y + high), fill=label_colour(label))
    pen.text((x + 3, y + 1), label, fill=(0, 0, 0), font=font)
