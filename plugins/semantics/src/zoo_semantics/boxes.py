"""Bounding boxes with labels, as text with coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings, check_counts, check_interval
from tokenizers_zoo.families.object_tokens import box_seen_through
from tokenizers_zoo.families.text import TextTokenizer, whole_groups
from tokenizers_zoo.spec import Crop, Metric, ValueSpec
from tokenizers_zoo.text_vocab import Coordinate, Piece, coordinate_fraction, coordinate_level
from zoo_semantics.labelled_boxes import (
    Box,
    LabelledBoxes,
    best_boxes,
    f1_of,
    label_f1,
    label_of,
    label_problem,
    label_text,
    match,
)
from zoo_semantics.labellers import BoxLabeller

if TYPE_CHECKING:
    import PIL.Image

RENDER_SIZE = 256  # pixels, height and width of the picture that `render` draws
ROUNDED = 1e-6
"""How far an edge may be outside of the picture: x / width + w / width can be above 1 by rounding."""
THIN = 0.05  # of a level: half the width that a box gets whose two edges fall on one level


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxesSettings:
    """Settings of `boxes`. Raises ValueError, naming the field, for a value out of range."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {"max_length": 256, "max_boxes": 64, "order": "corner", "min_visible": 1e-6}
    }

    preset: Literal["4m"] | None = None
    """4m: sequences as the 4M papers have them; a box stays whatever a crop leaves of it."""
    max_length: int = 96
    """Most tokens of one picture; the smallest boxes that do not fit are dropped."""
    max_boxes: int = 16
    """Most boxes of one picture; the smallest are dropped."""
    order: Literal["area", "corner"] = "area"
    """Largest first, or by the distance of the upper left corner from the picture's, as 4M has them."""
    min_visible: float = 0.25
    """Share of a box's area that a crop must leave for the box to stay, in (0, 1]."""
    labeller: BoxLabeller | None = None
    """A network that derives boxes from rgb where no source gives them; absent, they are not derived."""

    def __post_init__(self) -> None:
        check_counts(self, "max_length", "max_boxes")
        check_interval(self, "(0, 1]", "min_visible")


class Boxes(LabelledBoxes[BoxesSettings]):
    """Boxes with labels, each as `v0=xmin v1=ymin v2=xmax v3=ymax label` (4M, arXiv 2312.06647, sec. 2).

    They stand in the order of the setting `order`.

    Edges are exact to half a level. A box thinner than a level decodes to a tenth of one, as a box has to have an area.
    """

    summary = "Labelled boxes around things in the picture"
    aliases = ("det",)
    value = ValueSpec(
        kind="object",
        description='[{"label": str, "box": [xmin, ymin, xmax, ymax]}], fractions of width and height in [0, 1]',
    )
    settings_class = BoxesSettings
    axes = 4
    metrics = (
        Metric(
            name="f1",
            higher_is_better=True,
            meaning="harmonic mean of precision and recall; right is the label with an overlap (IoU) of 0.5 or more",
            bound=0.95,
        ),
        Metric(
            name="mean_iou", higher_is_better=True, meaning="mean overlap (IoU) of the boxes that are right", bound=0.85
        ),
        Metric(name="label_f1", higher_is_better=True, meaning="as f1, of the labels alone, wherever they are"),
    )

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> list[Box]:
        """Boxes that the labeller sees in the sample's rgb picture, best first."""
        labeller = settings.take(BoxesSettings).labeller
        assert labeller is not None  # without one nothing is derived
        return labeller.boxes(sample["rgb"])

    def problem(self, box: Any) -> str | None:
        return box_problem(box)

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """A chair, and boxes of other conventions."""

        def file(*edges: float) -> tuple[bytes, str]:
            return json.dumps([{"label": "chair", "box": edges}]).encode(), "json"

        return {
            "a chair": file(0.1, 0.2, 0.5, 0.9),
            "`[x, y, width, height]` in pixels": file(64, 48, 320, 240),
            "an edge outside the picture": file(-0.1, 0.2, 0.5, 0.9),
            "xmin and xmax exchanged": file(0.5, 0.2, 0.1, 0.9),
            "a box without area": file(0.1, 0.2, 0.1, 0.9),
        }

    def encode_value(self, value: Any, tokenizer: TextTokenizer[BoxesSettings]) -> list[int]:
        boxes = largest_first(self.checked(value))[: tokenizer.settings.max_boxes]
        groups = [tokenizer.vocabulary.encode(box_pieces(box, tokenizer.bins)) for box in boxes]
        if tokenizer.settings.order == "area":
            return whole_groups(groups, tokenizer.settings.max_length)
        kept = [n for n, end in enumerate(accumulate(map(len, groups))) if end <= tokenizer.settings.max_length]
        kept.sort(key=lambda n: boxes[n]["box"][0] ** 2 + boxes[n]["box"][1] ** 2)
        return [index for n in kept for index in groups[n]]

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[BoxesSettings]) -> list[Box]:
        """Every four coordinates in order that a label follows and that enclose an area."""
        boxes, levels = list[Box](), list[int]()
        for piece in pieces:
            if isinstance(piece, Coordinate) and piece.axis in (0, len(levels)):
                levels = [*levels, piece.level] if piece.axis == len(levels) else [piece.level]
                continue
            if isinstance(piece, str) and len(levels) == 4:
                label = label_of(piece)
                box = box_of_levels(levels, tokenizer.bins)
                if label and box:
                    boxes.append({"label": label, "box": box})
            levels = []
        return boxes

    @hookimpl
    def transform(self, value: Any, crop: Crop, settings: Settings) -> list[Box]:
        """Clip boxes to the crop, and drop boxes with too little left."""
        least = settings.take(BoxesSettings).min_visible
        seen = (seen_through(crop, box, least) for box in self.checked(value))
        return [box for box in seen if box is not None]

    @hookimpl
    def render(self, value: list[Box]) -> PIL.Image.Image:
        """The boxes, drawn and named."""
        return draw(value)

    @hookimpl
    def score(self, predicted: Sequence[list[Box]], target: Sequence[list[Box]]) -> dict[str, float]:
        """Over all boxes of all pictures together."""
        overlaps = [iou for p, t in zip(predicted, target, strict=True) for iou in match(p, t)]
        return {
            "f1": f1_of(len(overlaps), predicted, target),
            "mean_iou": float(np.mean(overlaps)) if overlaps else 0.0,
            "label_f1": label_f1(predicted, target),
        }

    @hookimpl
    def constant_baseline(self, values: Sequence[list[Box]]) -> list[Box]:
        """Boxes added one by one, as long as each raises `f1`."""
        return best_boxes(values)


def box_problem(box: Any) -> str | None:
    """Describe the first problem of a box, or return None."""
    if not isinstance(box, Mapping) or set(box) != {"label", "box"}:
        got = f"keys {', '.join(map(str, box)):.80}" if isinstance(box, Mapping) else type(box).__name__
        return f'expected a table {{"label": ..., "box": ...}}, got {got}'
    if problem := label_problem(box["label"]):
        return problem
    edges = box["box"]
    if not isinstance(edges, list | tuple) or len(edges) != 4 or not all(map(is_fraction, edges)):
        return f"box: expected [xmin, ymin, xmax, ymax], fractions of width and height in [0, 1], got {edges!r:.80}"
    if edges[2] <= edges[0] or edges[3] <= edges[1]:
        return f"box: expected xmin < xmax and ymin < ymax, got {edges!r}"
    return None


def is_fraction(number: Any) -> bool:
    """True for a number in [0, 1], give or take ROUNDED."""
    return isinstance(number, int | float) and not isinstance(number, bool) and -ROUNDED <= number <= 1 + ROUNDED


def area(edges: Sequence[float]) -> float:
    """Area of `[xmin, ymin, xmax, ymax]`, 0 where it is turned inside out."""
    return max(0.0, edges[2] - edges[0]) * max(0.0, edges[3] - edges[1])


def largest_first(boxes: Sequence[Box]) -> list[Box]:
    """By falling area; equal ones by their place and label."""
    return sorted(boxes, key=lambda box: (-area(box["box"]), *box["box"], box["label"]))


def box_pieces(box: Box, bins: int) -> list[Piece]:
    """Four coordinates and the label."""
    edges = [Coordinate(axis, coordinate_level(edge, bins)) for axis, edge in enumerate(box["box"])]
    return [*edges, label_text(box)]


def box_of_levels(levels: Sequence[int], bins: int) -> list[float] | None:
    """Edges in [0, 1]; None where a lower edge is beyond the upper one."""
    edges = [coordinate_fraction(level, bins) for level in levels]
    for low, high in ((0, 2), (1, 3)):
        if levels[low] > levels[high]:
            return None
        if levels[low] == levels[high]:
            edges[low] = max(0.0, edges[low] - THIN / (bins - 1))
            edges[high] = min(1.0, edges[high] + THIN / (bins - 1))
    return edges


def seen_through(crop: Crop, box: Box, least: float) -> Box | None:
    """A box in the frame of the crop; None where less than the share `least` of it is inside."""
    edges = box_seen_through(crop, box["box"], least)
    return {"label": box["label"], "box": edges} if edges else None


def label_colour(label: str) -> tuple[int, int, int]:
    """A bright colour that is always the same for a label."""
    import colorsys
    import zlib

    red, green, blue = colorsys.hls_to_rgb(zlib.crc32(label.encode()) % 360 / 360, 0.65, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(boxes: Sequence[Box]) -> PIL.Image.Image:
    """The boxes on a dark ground, largest first, each with its label inside its upper left corner."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (RENDER_SIZE, RENDER_SIZE), (28, 30, 36))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    for box in largest_first(boxes):
        colour = label_colour(box["label"])
        left, top, right, bottom = (round(edge * (RENDER_SIZE - 1)) for edge in box["box"])
        pen.rectangle((left, top, right, bottom), outline=colour, width=2)
        width = math.ceil(pen.textlength(box["label"], font=font)) + 6
        x = max(0, min(left, RENDER_SIZE - width))
        y = max(0, min(top, RENDER_SIZE - 17))
        pen.rectangle((x, y, x + width, y + 17), fill=colour)
        pen.text((x + 3, y + 1), box["label"], fill=(0, 0, 0), font=font)
    return picture


plugin = Boxes()
