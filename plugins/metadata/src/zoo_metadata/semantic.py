"""Semantic metadata as in 4M-21 (arXiv 2406.09406): counts and areas of a picture's contents, length of its caption."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.text import words_of
from tokenizers_zoo.spec import ModalitySpec
from zoo_metadata.base import DerivedMetadata, DerivedSettings
from zoo_metadata.fields import MetadataField

COUNTABLE = ("table", "chair", "sofa", "shelf", "books", "box", "ball", "cylinder", "lamp", "plant", "person")

FIELDS = MappingProxyType(
    {
        "num_people": MetadataField(kind="int", high=20, meaning="boxes of people (crowdedness)"),
        "num_objects": MetadataField(kind="int", high=31, meaning="boxes, whatever is in them (clutter)"),
        "num_labels": MetadataField(kind="int", high=31, meaning="different labels of boxes (instance diversity)"),
        "num_segments": MetadataField(kind="int", high=31, meaning="instances, whatever they are (clutter)"),
        "object_share": MetadataField(meaning="share of pixels of countable classes (objectness)"),
        "walkable_share": MetadataField(meaning="share of pixels of classes to walk on (walkability)"),
        "num_classes": MetadataField(kind="int", high=31, meaning="classes that have a pixel (semantic diversity)"),
        "caption_characters": MetadataField(kind="log", low=1, high=2000, meaning="characters of the caption"),
        "caption_words": MetadataField(kind="log", low=1, high=400, meaning="words of the caption"),
        "caption_sentences": MetadataField(kind="int", low=1, high=20, meaning="sentences of the caption"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticMetadataSettings(DerivedSettings):
    """Settings of `semantic_metadata`."""

    inputs: tuple[str, ...] = ("boxes", "semseg", "caption")
    """The modalities to compute from: any of boxes, sam_instance, semseg, caption."""
    countable: tuple[str, ...] = COUNTABLE
    """The classes that are things, not stuff. If semseg has none of these classes, their share is omitted."""
    walkable: tuple[str, ...] = ("floor", "rug")
    """The classes that one can walk on; theirs likewise."""
    void: str = "void"
    """The class of pixels that say nothing."""
    person: str = "person"
    """The label of the boxes of people."""


def of_boxes(boxes: Sequence[Mapping[str, Any]], options: SemanticMetadataSettings) -> Mapping[str, float]:
    """Counts of boxes and of their labels."""
    labels = [box["label"] for box in boxes]
    return {
        "num_people": labels.count(options.person),
        "num_objects": len(labels),
        "num_labels": len(set(labels)),
    }


def of_instances(instances: npt.NDArray[Any], options: SemanticMetadataSettings) -> Mapping[str, float]:
    """The number of instances in a map of their ids (height, width), 0 where there is none."""
    return {"num_segments": np.unique(instances[instances > 0]).size}


def of_classes(
    semseg: npt.NDArray[Any], options: SemanticMetadataSettings, classes: Sequence[str]
) -> Mapping[str, float]:
    """Shares of class ids (height, width), of groups that have a class; nothing where every pixel is void.

    Raises InvalidValueError.
    """
    counts = np.bincount(semseg.ravel(), minlength=len(classes)).tolist()
    if len(counts) > len(classes):
        raise InvalidValueError(f"class ids up to {len(counts) - 1}, and semseg names {len(classes)} classes")
    pixels = {name: count for name, count in zip(classes, counts, strict=True) if name != options.void}
    total = sum(pixels.values())
    if not total:
        return {}
    groups = {"object_share": options.countable, "walkable_share": options.walkable}
    known = {name: [label for label in labels if label in pixels] for name, labels in groups.items()}
    shares = {name: sum(map(pixels.__getitem__, labels)) / total for name, labels in known.items() if labels}
    return {**shares, "num_classes": sum(count > 0 for count in pixels.values())}


def of_caption(caption: str, options: SemanticMetadataSettings) -> Mapping[str, float]:
    """Lengths of a text; nothing where it has no words.

    A sentence ends at `.`, `!`, `?` or their like, or the text, but not at the point within a number.
    """
    words = len(words_of(caption))
    if not words:
        return {}
    sentences = sum(bool(re.search(r"\w", part)) for part in re.split(r"(?<!\d)\.|\.(?!\d)|[!?。！？｡।॥؟۔…]", caption))
    return {"caption_characters": len(caption), "caption_words": words, "caption_sentences": sentences}


class SemanticMetadata(DerivedMetadata[SemanticMetadataSettings]):
    """Numbers about the contents of a picture."""

    summary = "What the picture shows: people, objects, classes, and the length of its caption"
    settings_class = SemanticMetadataSettings
    default_fields = FIELDS
    derived_from = ("boxes", "semseg", "caption")
    measures = MappingProxyType(
        {"boxes": of_boxes, "sam_instance": of_instances, "semseg": of_classes, "caption": of_caption}
    )

    def measured(self, name: str, value: Any, options: Any, spec: ModalitySpec | None) -> Mapping[str, float]:
        """Class ids are looked up in the specs of the input modalities."""
        if name != "semseg":
            return super().measured(name, value, options, spec)
        return of_classes(value, options, spec.value.classes if spec else ())


plugin = SemanticMetadata()
