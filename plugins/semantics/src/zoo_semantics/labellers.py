"""Classes, boxes and instances that networks see in pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np

from tokenizers_zoo.contract.pictures import Array
from tokenizers_zoo.contract.pretrained import LabellerConfig, PretrainedError
from tokenizers_zoo.errors import and_others
from tokenizers_zoo.families.object_tokens import box_overlaps
from tokenizers_zoo.records.config import SHOWN
from tokenizers_zoo.records.typed import Interval, PositiveInt


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassLabeller(LabellerConfig):
    """A segmentation network: SegFormer, DPT, Mask2Former, MaskFormer, and others of their output."""

    architectures: ClassVar[tuple[str, ...]] = (
        "ForSemanticSegmentation",
        "Mask2FormerForUniversalSegmentation",
        "MaskFormerForInstanceSegmentation",
    )

    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Classes of the network's labels: { "armchair" = "chair", ... }. A label that is missing here becomes the class of
    the same name (or of one of several, as in "floor, flooring"), else "void"."""

    def class_ids(self, picture: Array, classes: Sequence[str]) -> Array:
        """Ids of `classes`, int64 (height, width), of a picture float (3, height, width) in [0, 1].

        Raises PretrainedError where labels have no class.
        """
        table = class_table(self.network.config.id2label, self.labels, classes, self.model)
        resize = self.processor.post_process_semantic_segmentation
        label_ids: Array = resize(self.outputs(picture), target_sizes=[picture.shape[-2:]])[0].cpu().numpy()
        return table[label_ids]


def class_table(names: Mapping[int, str], labels: Mapping[str, str], classes: Sequence[str], model: str) -> Array:
    """The class id, int64, for each label of the network: see `ClassLabeller.labels`. Raises PretrainedError."""
    check_labels(labels, names, model)
    ids = {name.lower(): index for index, name in reversed(list(enumerate(classes)))}
    table = np.full(max(names) + 1, -1)
    for index, label in names.items():
        candidates = [labels[label]] if label in labels else [label, *re.split(r"\s*[,;]\s*", label)]
        table[index] = next((ids[name.lower()] for name in candidates if name.lower() in ids), -1)
    assigned = {index for index in table.tolist() if index >= 0} - {ids.get("void", -1)}
    if not assigned:
        raise PretrainedError(f"{model}: none of its labels is one of the classes; set labeller.labels; {_some(names)}")
    lost = [label for index, label in names.items() if table[index] < 0]
    if lost and "void" not in ids:
        raise PretrainedError(
            f"{model}: there is no class for its label {lost[0]!r}{and_others(len(lost) - 1)}, and no class void that"
            " takes them; name their classes in labeller.labels"
        )
    return np.where(table < 0, ids.get("void", -1), table)


def check_labels(labels: Mapping[str, str], names: Mapping[int, str], model: str) -> None:
    """Raise PretrainedError where the settings speak of a label that the network does not have."""
    for label in labels:
        if label not in names.values():
            raise PretrainedError(f"{model}: has no label {label!r}, which labeller.labels names; {_some(names)}")


def _some(names: Mapping[int, str]) -> str:
    return f"it has {', '.join(list(names.values())[:8])}{', ...' if len(names) > 8 else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxLabeller(LabellerConfig):
    """A detection network: DETR, YOLOS, RT-DETR, and others of their output."""

    architectures: ClassVar[tuple[str, ...]] = ("ForObjectDetection",)

    threshold: Annotated[float, Interval("(0, 1)")] = 0.5
    """The least score of a box that is kept, in (0, 1)."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Other names of the network's labels: { "potted plant" = "plant", ... }; one named "" is left out."""

    def boxes(self, picture: Array) -> list[dict[str, Any]]:
        """Boxes in a picture float (3, height, width) in [0, 1], as fractions of its width and height, best first."""
        names = self.network.config.id2label
        check_labels(self.labels, names, self.model)
        read = self.processor.post_process_object_detection
        detections = read(self.outputs(picture), threshold=self.threshold, target_sizes=[(1, 1)])[0]
        labels = [names.get(index, "") for index in detections["labels"].tolist()]
        renamed = [self.labels.get(label, label) for label in labels]
        return labelled_boxes(renamed, detections["boxes"].tolist(), detections["scores"].tolist())


def labelled_boxes(
    labels: Sequence[str], edges: Sequence[Sequence[float]], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """Boxes by falling score, clipped to the picture; those without a label ("" or "N/A") or an area are left out."""
    boxes = []
    for index in sorted(range(len(labels)), key=lambda index: -scores[index]):
        label = " ".join(labels[index].split())
        xmin, ymin, xmax, ymax = (min(max(edge, 0.0), 1.0) for edge in edges[index])
        if label not in ("", "N/A") and xmin < xmax and ymin < ymax:
            boxes.append({"label": label, "box": [xmin, ymin, xmax, ymax]})
    return boxes


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceLabeller(LabellerConfig):
    """SAM, asked at each point of a grid (arXiv 2304.02643, appendix B, without the zoomed-in crops)."""

    architectures: ClassVar[tuple[str, ...]] = ("SamModel",)

    points: PositiveInt = 32
    """Points along each side of the grid; SAM gives three masks for each."""
    batch: PositiveInt = field(default=64, metadata=SHOWN)
    """Points in one forward pass; each needs memory for three masks of the picture's size."""
    min_quality: Annotated[float, Interval("[0, 1]")] = 0.88
    """The least overlap (IoU) with the true mask that SAM predicts of a mask that is kept."""
    min_stability: Annotated[float, Interval("[0, 1]")] = 0.95
    """The least overlap (IoU) of a mask's pixels at a threshold raised and lowered by 1 logit."""
    max_overlap: Annotated[float, Interval("[0, 1]")] = 0.7
    """Non-maximum suppression: masks whose boxes overlap (IoU) more with a better mask are dropped."""

    def masks(self, picture: Array) -> Array:
        """Masks, bool (masks, height, width), of a picture float (3, height, width) in [0, 1], best first."""
        masks, qualities = [np.zeros((0, *picture.shape[-2:]), bool)], [np.zeros(0)]
        for logits, quality in self._predict_masks(picture):
            smaller, larger = ((logits > threshold).sum(axis=(1, 2)) for threshold in (1.0, -1.0))
            good = (quality > self.min_quality) & (smaller >= self.min_stability * np.maximum(larger, 1))
            masks.append(logits[good] > 0)
            qualities.append(quality[good])
        candidates, quality = np.concatenate(masks), np.concatenate(qualities)
        nonempty = candidates.any(axis=(1, 2))
        candidates, quality = candidates[nonempty], quality[nonempty]
        return candidates[non_maximum_suppression(boxes_of_masks(candidates), quality, self.max_overlap)]

    def _predict_masks(self, picture: Array) -> Iterator[tuple[Array, Array]]:
        """Logits (masks, height, width) and predicted qualities (masks,), points by points."""
        import torch

        network, inputs = self.network, self.inputs(picture)
        sizes = inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist()
        height, width = sizes[1][0]
        steps = (np.arange(self.points) + 0.5) / self.points
        grid = torch.tensor([[(x * width, y * height)] for y in steps for x in steps], dtype=torch.float32)
        with torch.inference_mode():
            embeddings = network.get_image_embeddings(inputs["pixel_values"])
            for points in grid.to(embeddings.device).split(self.batch):
                answer = network(image_embeddings=embeddings, input_points=points[None], multimask_output=True)
                quality = answer.iou_scores[0].flatten()
                likely = quality > self.min_quality
                small = answer.pred_masks[0].flatten(0, 1)[likely]
                if len(small):
                    logits = self.processor.post_process_masks([small[None]], *sizes, binarize=False)
                    yield logits[0][0].cpu().numpy(), quality[likely].cpu().numpy()


def boxes_of_masks(masks: Array) -> Array:
    """The edges (left, top, right, bottom), pixels, of bool masks (masks, height, width) that are not empty."""
    edges = []
    for axis in (1, 2):  # along columns, then along rows
        occupied: Array = np.asarray(masks.any(axis=axis))
        edges.append((occupied.argmax(axis=1), occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)))
    (left, right), (top, bottom) = edges
    return np.stack([left, top, right, bottom], axis=1)


def non_maximum_suppression(boxes: Array, scores: Array, max_overlap: float) -> list[int]:
    """Greedy non-maximum suppression: which boxes (n, 4) remain, by falling score; equal ones in their order."""
    remaining: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if not (box_overlaps(boxes[index : index + 1].astype(np.float64), boxes[remaining]) > max_overlap).any():
            remaining.append(index)
    return remaining
