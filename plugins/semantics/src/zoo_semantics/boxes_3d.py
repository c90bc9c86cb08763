"""Oriented boxes in metres: what stands where around the camera, as text with coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings, check_counts
from tokenizers_zoo.families.text import TextTokenizer
from tokenizers_zoo.spec import Crop, Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.text_vocab import Coordinate, Piece, Special
from zoo_semantics.labelled_boxes import (
    Box,
    LabelledBoxes,
    best_boxes,
    f1_of,
    label_f1,
    label_of,
    label_problem,
    label_text,
    pairs,
)
from zoo_semantics.oriented_boxes import AXES, Span, Spans, overlaps_3d, wrapped

if TYPE_CHECKING:
    import PIL.Image

KEYS = ("label", "center", "size", "yaw")
FOUND = 0.25
"""Least overlap (IoU) of a box that counts as found."""
NONE_FOUND = 1.0
"""Metres of `center_error` where there are boxes and none is found."""
FARTHEST = 1000.0
"""Metres along an axis that no centre is beyond; more is another unit."""
LONGEST = 100.0
"""Metres that no side is beyond."""
ROUNDED = 1e-6
"""Radians that a yaw may be beyond half a turn: in single precision pi is 9e-8 more than it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes3dSettings:
    """Settings of `boxes_3d`. Raises ValueError, naming the field, for a value out of range."""

    max_length: int = 144
    """Most tokens of one picture; the last boxes of the list that do not fit are dropped."""
    max_boxes: int = 16
    """Most boxes of one picture; the end of the list is dropped."""
    order: Literal["given", "near", "volume"] = "given"
    """Order of the boxes that are kept: as the list has them, nearest to the camera first, or by falling volume."""
    x: Span = (-4.0, 4.0)
    """Range in metres to the right of the camera, divided into the levels of axis v0: the vocabulary's
    `coordinate_bins` (1000 in 4M)."""
    y: Span = (-2.0, 2.0)
    """Metres above the camera, likewise, of axis v1."""
    z: Span = (-8.0, 0.0)
    """Range in metres from the camera towards the viewer, for axis v2. Visible things are below 0."""
    size: Span = (0.05, 4.0)
    """Metres of a side, likewise, with levels that are even in the logarithm."""

    def __post_init__(self) -> None:
        check_counts(self, "max_length", "max_boxes")
        for name in ("x", "y", "z", "size"):
            low, high = getattr(self, name)
            most = LONGEST if name == "size" else FARTHEST
            if not -most <= low < high <= most or (name == "size" and low <= 0):
                bounds = f"above 0, up to {most:g}" if name == "size" else "finite"
                raise ValueError(f"{name}: expected [from, to] in metres, {bounds}, from below to; got [{low}, {high}]")

    @property
    def spans(self) -> Spans:
        """From where to where the numbers of a box have levels."""
        return Spans(self.x, self.y, self.z, self.size)


class Boxes3d(LabelledBoxes[Boxes3dSettings]):
    """Oriented boxes, each as `v0=x v1=y v2=z v0=length v1=height v2=width v3=yaw label`, in the order of `order`.

    Axes are the camera's without its pitch and roll: the origin is the camera, x points right, y up against gravity,
    and z towards the viewer. With the pitch removed, whatever stands upright is upright: one angle says how it is
    turned, and the floor is at one height, as in the boxes of SUN RGB-D and ARKitScenes. `yaw` turns a box about the
    vertical, counter-clockwise seen from above: at 0 its front looks to the right, at -pi / 2 to the viewer. `length`
    is measured along the front's direction, `width` across it.

    Numbers are exact to half a level. A special token before the first box names where the levels begin and end.
    """

    summary = "Oriented boxes around things, in metres from the camera"
    value = ValueSpec(
        kind="object",
        description='[{"label": str, "center": [x, y, z], "size": [length, height, width], "yaw": radians}], metres',
        fields=(
            ("label", "what it is: up to 100 characters, words with single spaces between them"),
            ("center", "metres from the camera, axes levelled by gravity: x right, y up, z towards the viewer"),
            ("size", "metres: length along the direction in which the front looks, height, width across"),
            (
                "yaw",
                "radians in [-pi, pi] of that direction, counter-clockwise seen from above: 0 is to the right, pi / 2 "
                "away from the viewer; what has no front shows the viewer one",
            ),
        ),
    )
    settings_class = Boxes3dSettings
    axes = 4
    metrics = (
        Metric(
            name="f1",
            higher_is_better=True,
            meaning="harmonic mean of precision and recall; right is the label with an overlap (IoU of the volumes) of "
            f"{FOUND:g} or more",
        ),
        Metric(
            name="center_error",
            unit="m",
            higher_is_better=False,
            meaning="mean distance of the centres of the boxes that are right; "
            f"{NONE_FOUND:g} m where there are boxes and none is",
        ),
        Metric(name="label_f1", higher_is_better=True, meaning="as f1, of the labels alone, wherever they are"),
    )

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """As for all text modalities."""
        return replace(
            super().modality_spec(settings), token_space="levels of x, y, z, yaw and of the sides' logarithm"
        )

    @hookimpl
    def vocabulary_tokens(self, settings: Settings) -> Sequence[str]:
        """The token that declares the ranges of the levels."""
        return (settings.take(Boxes3dSettings).spans.token,)

    def problem(self, box: Any) -> str | None:
        return box_problem(box)

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """A chair in front of the camera, and boxes of other conventions."""
        chair = {"label": "chair", "center": [0.5, -0.6, -2.5], "size": [0.5, 0.9, 0.5], "yaw": 1.57}
        changed: dict[str, dict[str, Any]] = {
            "a chair": {}, "`yaw` in degrees": {"yaw": 90}, "a side of 0 metres": {"size": [0.5, 0, 0.5]},
        }  # fmt: skip
        return {what: (json.dumps([{**chair, **change}]).encode(), "json") for what, change in changed.items()}

    def encode_value(self, value: Any, tokenizer: TextTokenizer[Boxes3dSettings]) -> list[int]:
        options, vocabulary = tokenizer.settings, tokenizer.vocabulary
        boxes = self.checked(value)[: options.max_boxes]
        groups = [vocabulary.encode(box_pieces(box, options.spans, tokenizer.bins)) for box in boxes]
        start = vocabulary.encode([Special(options.spans.token)])
        ends = accumulate(map(len, groups), initial=len(start))
        kept = [n for n, end in enumerate([*ends][1:]) if end <= options.max_length]
        if options.order != "given":
            key = distance if options.order == "near" else falling_volume
            kept.sort(key=lambda n: key(boxes[n]))
        return [*start, *(index for n in kept for index in groups[n])] if kept else []

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[Boxes3dSettings]) -> list[Box]:
        """Every seven coordinates in order that a label follows, at the levels that the last special token names."""
        boxes, levels, spans = list[Box](), list[int](), tokenizer.settings.spans
        for piece in pieces:
            if isinstance(piece, Coordinate):
                expected = AXES[len(levels)] if len(levels) < len(AXES) else None
                if piece.axis == expected:
                    levels.append(piece.level)
                else:
                    levels = [piece.level] if piece.axis == AXES[0] else []
                continue
            if isinstance(piece, str) and len(levels) == len(AXES) and (label := label_of(piece)):
                centre, size, yaw = spans.numbers(levels, tokenizer.bins)
                boxes.append({"label": label, "center": centre, "size": size, "yaw": yaw})
            elif isinstance(piece, Special):
                spans = Spans.of_token(piece.name) or spans
            levels = []
        return boxes

    @hookimpl
    def transform(self, value: Any, crop: Crop) -> list[Box]:
        """A flip mirrors left and right. A crop drops nothing, and leaves camera and metres as they are.

        Where a box lies in the picture depends on the camera's field of view and pitch, which the value does not know.
        """
        boxes = self.checked(value)
        return [mirrored(box) for box in boxes] if crop.flip else boxes

    @hookimpl
    def render(self, value: list[Box], settings: Settings) -> PIL.Image.Image:
        """The boxes from above, on a grid of metres, with the camera at the bottom."""
        from zoo_semantics.oriented_boxes import draw

        options = settings.take(Boxes3dSettings)
        return draw(value, options.x, options.z)

    @hookimpl
    def score(self, predicted: Sequence[list[Box]], target: Sequence[list[Box]]) -> dict[str, float]:
        """Over all boxes of all pictures together."""
        errors = [
            math.dist(guess[row]["center"], truth[column]["center"])
            for guess, truth in zip(predicted, target, strict=True)
            for row, column in pairs(overlaps_3d(guess, truth), FOUND)
        ]
        return {
            "f1": f1_of(len(errors), predicted, target),
            "center_error": float(np.mean(errors)) if errors else NONE_FOUND if any(target) else 0.0,
            "label_f1": label_f1(predicted, target),
        }

    @hookimpl
    def constant_baseline(self, values: Sequence[list[Box]]) -> list[Box]:
        """Boxes added one by one, as long as each raises `f1`."""
        return best_boxes(values, overlaps_3d, FOUND)


def box_problem(box: Any) -> str | None:
    """Describe the first problem of a box, or return None."""
    if not isinstance(box, Mapping):
        return f"expected a table with {', '.join(KEYS)}, got {type(box).__name__}"
    if missing := [key for key in KEYS if key not in box]:
        return f"lacks {', '.join(missing)}; expected {', '.join(KEYS)}"
    if unknown := [str(key) for key in box if key not in KEYS]:
        return f"unknown keys {', '.join(unknown):.80}; expected {', '.join(KEYS)}"
    if problem := label_problem(box["label"]):
        return problem
    if not is_triple(box["center"], -FARTHEST, FARTHEST):
        return f"center: expected [x, y, z] in metres, up to {FARTHEST:g} along each, got {box['center']!r:.80}"
    if not is_triple(box["size"], 0, LONGEST) or 0 in box["size"]:
        return (
            f"size: expected [length, height, width] in metres, above 0 and up to {LONGEST:g}, got {box['size']!r:.80}"
        )
    if not is_number(box["yaw"], -math.pi - ROUNDED, math.pi + ROUNDED):
        return f"yaw: expected radians in [-pi, pi], got {box['yaw']!r:.40}"
    return None


def is_triple(numbers: Any, low: float, high: float) -> bool:
    """True for three numbers from `low` to `high`."""
    listed = isinstance(numbers, list | tuple) and len(numbers) == 3
    return listed and all(is_number(number, low, high) for number in numbers)


def is_number(number: Any, low: float, high: float) -> bool:
    """True for a number from `low` to `high`."""
    return isinstance(number, int | float) and not isinstance(number, bool) and low <= number <= high


def box_pieces(box: Box, spans: Spans, bins: int) -> list[Piece]:
    """Seven coordinates and the label."""
    levels = spans.levels(box["center"], box["size"], box["yaw"], bins)
    return [*(Coordinate(axis, level) for axis, level in zip(AXES, levels, strict=True)), label_text(box)]


def distance(box: Box) -> float:
    """Metres from the camera to the centre."""
    return math.hypot(*box["center"])


def falling_volume(box: Box) -> float:
    """Less for what is larger."""
    return -math.prod(box["size"])


def mirrored(box: Box) -> Box:
    """The box of the mirror image."""
    x, y, z = box["center"]
    return {**box, "center": [-x, y, z], "yaw": wrapped(math.pi - box["yaw"])}


plugin = Boxes3d()
