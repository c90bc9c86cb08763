"""Metadata computed from other modalities, as in 4M-21 (arXiv 2406.09406): shape, contents and look of a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError, InvalidValueError
from tokenizers_zoo.families.text import words_of
from tokenizers_zoo.records.config import Settings
from zoo_metadata.fields import MetadataField, Number
from zoo_metadata.metadata import MetadataModality, MetadataSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class DerivedSettings(MetadataSettings):
    """Settings of metadata that are computed from other modalities."""

    inputs: tuple[str, ...] = ()
    """The modalities to compute from; fields that need others are left out."""


D = TypeVar("D", bound=DerivedSettings)


class DerivedMetadata(MetadataModality[D]):
    """Metadata computed from other modalities, as far as they are among the settings' `inputs`.

    A subclass gives `measures`: by modality, the function of a value, the settings and the modality's spec (None where
    it is not known) that computes numbers by field. It may omit fields that cannot be measured. Results are clipped to
    the declared range.
    """

    measures: ClassVar[Mapping[str, Callable[[Any, Any, ModalitySpec | None], Mapping[str, float]]]]

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """As for all metadata. Raises ConfigError for an input that nothing is computed from."""
        inputs = settings.take(self.settings_class).inputs
        if not inputs or set(inputs) - set(self.measures) or len(set(inputs)) < len(inputs):
            expected = ", ".join(self.measures)
            raise ConfigError(f"{settings.origin.at('inputs')}: expected some of {expected}, got {', '.join(inputs)}")
        return replace(super().modality_spec(settings), derived_from=inputs)

    @hookimpl
    def derive(
        self, sample: Mapping[str, Any], settings: Settings, specs: Mapping[str, ModalitySpec]
    ) -> dict[str, Number]:
        """All declared fields that the inputs give, in the order of the table."""
        options = settings.take(self.settings_class)
        measured: dict[str, float] = {}
        for name in options.inputs:
            measured |= self.measures[name](sample[name], options, specs.get(name))
        table = {name: declared for name, declared in self.table(options).items() if name in measured}
        rounded = {name: declared.nearest_value(measured[name]) for name, declared in table.items()}
        return {name: value for name, value in rounded.items() if value is not None}


# ---- geometric_metadata

OCCLUSION = 0.1
"""Least deviation from the plane through the neighbours, as a fraction of the inverse depth, of a pixel at an edge."""
GEOMETRIC_FIELDS = {
    "geometric_complexity": MetadataField(meaning="spherical variance of the normals, 0 for one plane"),
    "occlusion_score": MetadataField(meaning="share of pixels at an edge where one thing hides another"),
    "nearest_depth": MetadataField(kind="log", low=0.1, high=100, unit="m", meaning="5th percentile over pixels"),
    "median_depth": MetadataField(kind="log", low=0.1, high=100, unit="m", meaning="median over pixels"),
    "farthest_depth": MetadataField(kind="log", low=0.1, high=100, unit="m", meaning="95th percentile over pixels"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometricMetadataSettings(DerivedSettings):
    """Settings of `geometric_metadata`."""

    inputs: tuple[str, ...] = ("normal", "depth")
    """The modalities to compute from: normal, depth, or both."""


def of_normals(normal: npt.NDArray[Any], options: Any, spec: Any) -> Mapping[str, float]:
    """Spherical variance: 1 minus the length of the mean of unit vectors (3, height, width).

    Mardia and Jupp, Directional Statistics (2000), sec. 9.2.1.
    """
    mean = np.asarray(normal, dtype=np.float64).reshape(3, -1).mean(axis=1)
    return {"geometric_complexity": float(1 - np.linalg.norm(mean))}


def of_depth(depth: npt.NDArray[Any], options: Any, spec: Any) -> Mapping[str, float]:
    """How far planar depth (1, height, width), metres, reaches, and how much of it are occlusion edges."""
    near, middle, far = np.percentile(depth, (5, 50, 95)).tolist()
    score = float(occlusion_edges(depth[0], OCCLUSION).mean())
    return {"occlusion_score": score, "nearest_depth": near, "median_depth": middle, "farthest_depth": far}


def occlusion_edges(depth: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.bool_]:
    """bool (height, width): True on the far side of every jump of depth.

    The inverse depth of a plane is affine in the picture (n . x = d with x = z (u, v, 1) gives 1/z = n . (u, v, 1) / d)
    so its second differences along rows and columns are 0 for any slant. On smooth surfaces they are small. A pixel is
    at an edge if they exceed `threshold` times its own inverse depth: there the hidden surface begins. It is below 0 on
    the near side, which is not counted.
    """
    inverse = 1 / np.asarray(depth, dtype=np.float64)
    edges = np.zeros(inverse.shape, dtype=bool)
    edges[1:-1] |= np.diff(inverse, 2, axis=0) > threshold * inverse[1:-1]
    edges[:, 1:-1] |= np.diff(inverse, 2, axis=1) > threshold * inverse[:, 1:-1]
    return edges


class GeometricMetadata(DerivedMetadata[GeometricMetadataSettings]):
    """Numbers about the shape of a scene: how complex it is, how much is hidden, how far it reaches."""

    summary = "The shape of the scene: complexity, occlusion, how far it reaches"
    settings_class = GeometricMetadataSettings
    default_fields = GEOMETRIC_FIELDS
    measures: ClassVar = {"normal": of_normals, "depth": of_depth}


# ---- image_metadata

LUMA = np.array((0.2126, 0.7152, 0.0722))
"""Weights of R', G', B' in the luma (ITU-R BT.709-6, item 3.2)."""
IMAGE_FIELDS = {
    "brightness": MetadataField(meaning="mean luma"),
    "contrast": MetadataField(high=0.5, meaning="standard deviation of the luma"),
    "saturation": MetadataField(meaning="mean HSV saturation"),
    "colourfulness": MetadataField(high=1.5, meaning="Hasler and Suesstrunk's, of sRGB in [0, 1]"),
    "entropy": MetadataField(high=8, unit="bits", meaning="of the luma in 256 levels"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMetadataSettings(DerivedSettings):
    """Settings of `image_metadata`."""

    inputs: tuple[str, ...] = ("rgb",)
    """The modalities to compute from: rgb."""


def appearance(rgb: npt.NDArray[Any], options: Any, spec: Any) -> Mapping[str, float]:
    """Numbers about a picture (3, height, width) in [0, 1].

    `contrast` is the RMS contrast (Peli, Contrast in complex images, 1990); `saturation` that of HSV (Smith, Color
    gamut transform pairs, 1978), 0 for black; `colourfulness` is sigma_rgyb + 0.3 mu_rgyb (Hasler and Suesstrunk,
    Measuring colourfulness in natural images, 2003), which for sRGB in [0, 255] is 255 times as large; `entropy` is
    Shannon's (1948) of the histogram of the luma.
    """
    pixels = np.asarray(rgb, dtype=np.float64).reshape(3, -1)
    luma = LUMA @ pixels
    brightest, darkest = pixels.max(axis=0), pixels.min(axis=0)
    saturation = np.divide(brightest - darkest, brightest, out=np.zeros_like(brightest), where=brightest > 0)
    red, green, blue = pixels
    opponent = np.stack([red - green, 0.5 * (red + green) - blue])
    spread, strength = math.hypot(*opponent.std(axis=1)), math.hypot(*opponent.mean(axis=1))
    shares = np.bincount(np.clip(luma * 256, 0, 255).astype(np.int64), minlength=256) / luma.size
    nonzero = shares[shares > 0]
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float(saturation.mean()),
        "colourfulness": spread + 0.3 * strength,
        "entropy": float((nonzero * -np.log2(nonzero)).sum()) + 0.0,  # a plain picture has 0, not -0
    }


class ImageMetadata(DerivedMetadata[ImageMetadataSettings]):
    """Numbers about the look of a picture."""

    summary = "How the picture looks: brightness, contrast, saturation, colourfulness, entropy"
    settings_class = ImageMetadataSettings
    default_fields = IMAGE_FIELDS
    measures: ClassVar = {"rgb": appearance}


# ---- semantic_metadata

COUNTABLE = ("table", "chair", "sofa", "shelf", "books", "box", "ball", "cylinder", "lamp", "plant", "person")
SEMANTIC_FIELDS = {
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


def of_boxes(boxes: Sequence[Mapping[str, Any]], options: SemanticMetadataSettings, spec: Any) -> Mapping[str, float]:
    """Counts of boxes and of their labels."""
    labels = [box["label"] for box in boxes]
    return {"num_people": labels.count(options.person), "num_objects": len(labels), "num_labels": len(set(labels))}


def of_instances(instances: npt.NDArray[Any], options: Any, spec: Any) -> Mapping[str, float]:
    """The number of instances in a map of their ids (height, width), 0 where there is none."""
    return {"num_segments": np.unique(instances[instances > 0]).size}


def of_classes(
    semseg: npt.NDArray[Any], options: SemanticMetadataSettings, spec: ModalitySpec | None
) -> Mapping[str, float]:
    """Shares of class ids (height, width), of groups that have a class; nothing where every pixel is void.

    Class names come from the spec. Raises InvalidValueError for ids beyond them.
    """
    classes = spec.value.classes if spec else ()
    counts = np.bincount(semseg.ravel(), minlength=len(classes)).tolist()
    if len(counts) > len(classes):
        raise InvalidValueError(f"class ids up to {len(counts) - 1}, and semseg names {len(classes)} classes")
    pixels = {name: count for name, count in zip(classes, counts, strict=True) if name != options.void}
    total = sum(pixels.values())
    if not total:
        return {}
    groups = {"object_share": options.countable, "walkable_share": options.walkable}
    present_labels = {name: [label for label in labels if label in pixels] for name, labels in groups.items()}
    shares = {name: sum(map(pixels.__getitem__, labels)) / total for name, labels in present_labels.items() if labels}
    return {**shares, "num_classes": sum(count > 0 for count in pixels.values())}


def of_caption(caption: str, options: Any, spec: Any) -> Mapping[str, float]:
    """Lengths of a text; nothing where it has no words.

    A sentence ends at `.`, `!`, `?` or their like, or the text, but not at the point within a number.
    """
    words = len(words_of(caption))
    if not words:
        return {}
    sentences = sum(bool(re.search(r"\w", part)) for part in re.split(r"(?<!\d)\.|\.(?!\d)|[!?。！？｡।॥؟۔…]", caption))
    return {"caption_characters": len(caption), "caption_words": words, "caption_sentences": sentences}


class SemanticMetadata(DerivedMetadata[SemanticMetadataSettings]):
    """Numbers about the contents of a picture, and the length of its caption."""

    summary = "What the picture shows: people, objects, classes, and the length of its caption"
    settings_class = SemanticMetadataSettings
    default_fields = SEMANTIC_FIELDS
    measures: ClassVar = {
        "boxes": of_boxes,
        "sam_instance": of_instances,
        "semseg": of_classes,
        "caption": of_caption,
    }


geometric = GeometricMetadata()
image = ImageMetadata()
semantic = SemanticMetadata()
