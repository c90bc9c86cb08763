"""Bounding boxes with labels, as text with coordinates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import Array, canvas
from tokenizers_zoo.contract.spec import Crop, Metric, ValueSpec
from tokenizers_zoo.families.object_tokens import box_overlaps, box_seen_through, by_area
from tokenizers_zoo.records.config import Checked, Settings
from tokenizers_zoo.records.typed import Interval, PositiveInt
from tokenizers_zoo.tokenizers.text_vocab import coordinate_fraction, coordinate_level
from zoo_semantics.labelled_boxes import (
    GROUND,
    LABEL_F1,
    Box,
    EncodedBox,
    LabelledBoxes,
    are_numbers,
    draw_label,
    key_error,
    label_colour,
)
from zoo_semantics.labellers import BoxLabeller

if TYPE_CHECKING:
    import PIL.Image

RENDER_SIZE = 256  # pixels, height and width of the picture that `render` draws
ROUNDED = 1e-6
"""How far an edge may be outside of the picture: x / width + w / width can be above 1 by rounding."""
THIN = 0.05  # of a level: half the width that a box gets whose two edges fall on one level


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxesSettings(Checked):
    """Settings of `boxes`. Raises ValueError, naming the field, for a value out of range."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {"max_length": 256, "max_boxes": 64, "order": "corner", "min_visible": 1e-6}
    }

    preset: Literal["4m"] | None = None
    """4m: sequences as the 4M papers have them; a box stays whatever a crop leaves of it."""
    max_length: PositiveInt = 96
    """Most tokens of one picture; the smallest boxes that do not fit are dropped."""
    max_boxes: PositiveInt = 16
    """Most boxes of one picture; the smallest are dropped."""
    order: Literal["area", "corner"] = "area"
    """Largest first, or by the distance of the upper left corner from the picture's, as 4M has them."""
    min_visible: Annotated[float, Interval("(0, 1]")] = 0.25
    """Share of a box's area that a crop must leave for the box to stay, in (0, 1]."""
    labeller: BoxLabeller | None = None
    """A network that derives boxes from rgb where no source gives them; absent, they are not derived."""


class Boxes(LabelledBoxes[BoxesSettings]):
    """Boxes with labels, each as `v0=xmin v1=ymin v2=xmax v3=ymax label` (4M, arXiv 2312.06647, sec. 2).

    They stand in the order of the setting `order`.

    Edges are exact to half a level. A box thinner than a level decodes to a tenth of one, as a box has to have an area.
    """

    summary = "Labelled boxes around things in the picture"
    aliases = ("det",)
    labelled_from = ("rgb",)
    value = ValueSpec(
        kind="object",
        items="table",
        description='[{"label": str, "box": [xmin, ymin, xmax, ymax]}], fractions of width and height in [0, 1]',
    )
    settings_class = BoxesSettings
    axes = 4
    token_axes = (0, 1, 2, 3)
    enough = 0.5
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
        LABEL_F1,
    )

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> list[Box]:
        """Boxes that the labeller sees in the sample's rgb picture, best first."""
        return self.options(settings).labeller.boxes(sample["rgb"])

    def box_error(self, box: Any) -> str | None:
        if error := key_error(box, ("label", "box")):
            return error
        edges = box["box"]
        if not are_numbers(edges, 4, -ROUNDED, 1 + ROUNDED):
            return f"box: expected [xmin, ymin, xmax, ymax], fractions of width and height in [0, 1], got {edges!r:.80}"
        if edges[2] <= edges[0] or edges[3] <= edges[1]:
            return f"box: expected xmin < xmax and ymin < ymax, got {edges!r}"
        return None

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """A chair, and a box of another convention."""
        edges = {"a chair": (0.1, 0.2, 0.5, 0.9), "`[x, y, width, height]` in pixels": (64, 48, 320, 240)}
        return {name: (json.dumps([{"label": "chair", "box": box}]).encode(), "json") for name, box in edges.items()}

    def rank_boxes(self, boxes: list[Box]) -> list[Box]:
        """By falling area; equal ones by their place and label."""
        return sorted(boxes, key=lambda box: (by_area(box["box"]), box["label"]))

    def order_boxes(self, encoded_boxes: list[EncodedBox], options: BoxesSettings) -> list[EncodedBox]:
        def corner_distance(encoded: EncodedBox) -> float:
            left, top, *_ = encoded[0]["box"]
            return left**2 + top**2

        return sorted(encoded_boxes, key=corner_distance) if options.order == "corner" else encoded_boxes

    def levels(self, box: Box, options: BoxesSettings, bins: int) -> list[int]:
        return [coordinate_level(edge, bins) for edge in box["box"]]

    def box_of(self, levels: Sequence[int], prefix: str, options: BoxesSettings, bins: int) -> Box | None:
        """Edges in [0, 1]; None where a lower edge is beyond the upper one."""
        edges = [coordinate_fraction(level, bins) for level in levels]
        for low, high in ((0, 2), (1, 3)):
            if levels[low] > levels[high]:
                return None
            if levels[low] == levels[high]:
                edges[low] = max(0.0, edges[low] - THIN / (bins - 1))
                edges[high] = min(1.0, edges[high] + THIN / (bins - 1))
        return {"box": edges}

    def overlaps(self, first: Sequence[Box], second: Sequence[Box]) -> Array:
        """Intersection over union."""
        tables = (np.array([box["box"] for box in boxes], dtype=np.float64).reshape(-1, 4) for boxes in (first, second))
        return box_overlaps(*tables)

    def mean_match(self, pairs: list[tuple[Box, Box, float]], any_true: bool) -> float:
        return float(np.mean([overlap for *_, overlap in pairs])) if pairs else 0.0

    @hookimpl
    def transform(self, value: Any, crop: Crop, settings: Settings) -> list[Box]:
        """Clip boxes to the crop, and drop boxes with too little left."""
        least = settings.take(BoxesSettings).min_visible
        cropped = ((box["label"], box_seen_through(crop, box["box"], least)) for box in self.validate(value))
        return [{"label": label, "box": edges} for label, edges in cropped if edges]

    @hookimpl
    def render(self, value: list[Box]) -> PIL.Image.Image:
        """The boxes on a dark ground, largest first, each with its label inside its upper left corner."""
        picture, pen = canvas((RENDER_SIZE, RENDER_SIZE), GROUND)
        for box in self.rank_boxes(value):
            left, top, right, bottom = (round(edge * (RENDER_SIZE - 1)) for edge in box["box"])
            pen.rectangle((left, top, right, bottom), outline=label_colour(box["label"]), width=2)
            draw_label(pen, box["label"], left, top, RENDER_SIZE)
        return picture


plugin = Boxes()
