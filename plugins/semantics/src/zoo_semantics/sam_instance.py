"""Instance masks as a sequence: of each instance its box as coordinates, and its mask in the box as codes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import Array, crop_and_resize, image_of, png_bytes, read_numbers
from tokenizers_zoo.contract.spec import Crop, Metric, ValueSpec
from tokenizers_zoo.contract.validation import array_bytes, array_of
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.object_tokens import BINS, Axis, Part, Spelling
from tokenizers_zoo.families.objects import ObjectModality, ObjectTokenizerConfig, SpelledSettings
from tokenizers_zoo.families.spatial import published
from tokenizers_zoo.records.config import Settings, Sides, height_width
from tokenizers_zoo.records.limits import limits
from tokenizers_zoo.records.typed import PositiveInt
from tokenizers_zoo.tokenizers.text_vocab import Coordinate
from zoo_semantics.instance_maps import (
    MOST_IDS,
    Instance,
    best_overlaps,
    colour_instances,
    distinct_masks,
    instances_of,
    map_of_annotations,
    map_of_masks,
    point_within,
    shape_of,
)
from zoo_semantics.labellers import InstanceLabeller

if TYPE_CHECKING:
    import PIL.Image

    from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture


FRAME = 224
"""Pixels, height and width, that published sequences count in, whatever the size of the map."""
MOST_POINTS = 7
"""Points that a published sequence asks about."""
BOX = ("xmin", "ymin", "xmax", "ymax")
SPELLING = Spelling(
    head=Part(word="point", axes=(0, 1)),
    parts=(Part(word="polygon", axes=(0, 1, 2, 3), codes=True),),
    empty=(" point", Coordinate(0, FRAME // 2), Coordinate(1, FRAME // 2), " none"),
    repeats=True,
)
"""That of ml-4m (`fourm/data/modality_transforms.py`, SAMInstanceTokTransform): a point, y then x, and the instances
that it is in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceTokenizer(ObjectTokenizerConfig):
    """Defaults of the mask tokenizer: of 1000 codes a fifth stayed unused."""

    kind_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fsq": {"codebook_size": 240}}

    blocks: Literal["mlp", "conv", "vit"] = "conv"
    width: int = 32
    steps: int = 500
    batch_size: int = 8
    learning_rate: float = 3e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceSettings(SpelledSettings):
    """Settings of sam_instance."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {
            "layout": "4m",
            "bins": 1000,
            "sentinels": 200,
            "mask_size": 64,
            "max_instances": MOST_POINTS,
            "tokenizer": {**published(codebook_size=1024)["tokenizer"], "patch_size": 16},
        }
    }

    preset: Literal["4m"] | None = None
    """4m: the sizes and sequences of 4M-21 (arXiv 2406.09406): masks of 64 x 64 by ViT-B, 16 codes of 1024 each, 1000
    levels, spelled in the vocabulary `text`."""
    image_size: Sides = 64
    """Pixels of the map: one number for squares, or [height, width]."""
    mask_size: PositiveInt = 32
    """Height and width in pixels of a tokenized mask, for boxes of any size."""
    max_instances: PositiveInt = 16
    """Most instances of one map; the smallest are dropped."""
    tokenizer: InstanceTokenizer = InstanceTokenizer()
    labeller: InstanceLabeller | None = None
    """A SAM that derives instances from rgb where no source gives them; absent, they are not derived."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map, pixels."""
        return height_width(self.image_size)


class SamInstances(ObjectModality):
    """Instance id of each pixel: int32 (height, width), 0 for background. Ids have no other meaning.

    Instances are tokenized in order of size, largest first. Overlapping masks, which such a map cannot hold, are made
    into one by `instance_maps.map_of_masks`; files may be 16-bit or palette PNGs of ids, .npy of a map or of masks,
    bool (masks, height, width), and SAM's JSON.

    With `layout = "4m"` they are spelled as in 4M-21, which asks about points, at random in training. Here each
    instance is asked about once, at a point of its own: no instance is missed or told twice, the largest come first,
    and the same map always has the same tokens. A map without any asks about its middle.
    """

    settings_class = InstanceSettings
    summary = "instance masks, class-agnostic: of each its box as coordinates and its shape as codes"
    loss = "bce"
    aliases = ("instances", "sam_mask", "sam-instance")
    labelled_from = ("rgb",)
    metrics = (
        Metric(
            name="best_iou",
            higher_is_better=True,
            meaning="overlap (IoU) of each true instance with the predicted one that fits best, mean over all",
        ),
        Metric(
            name="f1",
            higher_is_better=True,
            meaning="harmonic mean of precision and recall of instances; right is an overlap (IoU) above 0.5",
        ),
    )

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> Array:
        """Instances that SAM sees in the sample's rgb picture, at its size."""
        picture = sample["rgb"]
        return map_of_masks(self.options(settings).labeller.masks(picture), picture.shape[-2:])

    def value_spec(self, options: InstanceSettings) -> ValueSpec:
        return ValueSpec(
            shape=options.size,
            dtype="int32",
            unit="instance",
            low=0,
            high=MOST_IDS,
            description="instance ids, 0 for background",
        )

    def axes(self, options: InstanceSettings) -> tuple[Axis, ...]:
        if options.layout == "4m":
            return tuple(Axis(name=name, high=(BINS - 1) / FRAME) for name in ("point y", "point x", *BOX))
        return tuple(Axis(name=name) for name in BOX)

    def spelling(self, options: InstanceSettings) -> Spelling | None:
        return SPELLING if options.layout == "4m" else None

    def item_shape(self, options: InstanceSettings) -> tuple[int, ...]:
        return (1, options.mask_size, options.mask_size)

    def max_objects(self, options: InstanceSettings) -> int:
        return options.max_instances

    def split(self, value: Array, options: InstanceSettings) -> list[Instance]:
        """The instances, largest first."""
        if value.ndim != 2 or value.dtype.kind not in "iu" or (value.size and int(value.min()) < 0):
            raise InvalidValueError(f"expected ids (height, width) of 0 and more, got {value.dtype} {value.shape}")
        return instances_of(value)

    def items(self, objects: Sequence[Instance], options: InstanceSettings) -> Array:
        size = (options.mask_size, options.mask_size)
        masks = [shape_of(instance.mask, size) for instance in objects]
        return np.stack(masks)[:, None].astype(np.float32)

    def coordinates(self, objects: Sequence[Instance], fitted: Mapping[str, Array], options: InstanceSettings) -> Array:
        height, width = options.size
        boxes = np.array([(o.left / width, o.top / height, o.right / width, o.bottom / height) for o in objects])
        if options.layout != "4m":
            return boxes
        points = (np.array([point_within(o) for o in objects]) + 0.5) / (height, width)
        return np.concatenate([np.floor(points * FRAME) / FRAME, boxes], axis=1)

    def join(self, coordinates: Array, items: Array, fitted: Mapping[str, Array], options: InstanceSettings) -> Array:
        """Masks painted into their boxes, largest first so that the smaller lie on top; empty ones are left out.

        With `layout = "4m"`, several points may belong to one instance; nearly equal decoded instances are merged.
        """
        height, width = options.size
        boxes = coordinates[:, -len(BOX) :].clip(0, 1)
        edges = np.rint(boxes * (width, height, width, height)).astype(int)
        steps = FRAME if options.layout == "4m" else options.bins - 1
        for side, (first, last) in ((width, (0, 2)), (height, (1, 3))):  # a pixel may be less than from level to level
            thin = (edges[:, first] == edges[:, last]) & (side > steps)
            edges[thin, first] = edges[thin, first].clip(max=side - 1)
            edges[thin, last] = edges[thin, first] + 1
        masks = []
        for (left, top, right, bottom), logits in zip(edges.tolist(), items[:, 0], strict=True):
            if right > left and bottom > top:
                mask = np.zeros((height, width), bool)
                mask[top:bottom, left:right] = crop_and_resize(logits, Crop(), (bottom - top, right - left)) > 0
                masks.append(mask)
        return map_of_masks(distinct_masks(masks) if options.layout == "4m" else masks, options.size)

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        """The published sequences, and the size of a mask."""
        return {"layout": "4m", "mask_size": architecture.size[0], "max_instances": MOST_POINTS}

    def crop_value(self, value: Array, crop: Crop, options: InstanceSettings) -> Array:
        """The crop of the map, by nearest pixels; ids stay."""
        same = crop.is_whole and value.shape == options.size
        return value if same else crop_and_resize(value, crop, options.size, nearest=True)

    def read(self, data: bytes, extension: str, options: InstanceSettings) -> Array:
        if extension == "json":
            return map_of_annotations(data)
        if extension == "npy":
            value = array_of(data)
            if value.dtype == bool and value.ndim == 3 and min(value.shape[1:]):
                limits().check("masks", len(value), f"{len(value):,} masks")
                return map_of_masks(value, value.shape[1:])
            if not value.size:
                raise ValueError(f"the array {value.shape} is empty")
        else:
            value = read_numbers(data, extension, "instance ids", ("P", "L"))
        if value.dtype.kind not in "iu":
            raise ValueError(
                f"expected integer ids (height, width) or bool masks (masks, height, width), got {value.dtype}"
            )
        return value.astype(np.int32, copy=False)

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """Masks as SAM gives them, which may overlap, and its files."""
        masks = np.zeros((2, 8, 8), bool)
        masks[0, :6], masks[1, 4:] = True, True
        annotation = [{"segmentation": {"size": [8, 8], "counts": [0, 16, 48]}}]
        polygon = [{"segmentation": [[0, 0, 4, 0, 4, 4]]}]
        return {
            "masks that overlap, bool (masks, height, width)": (array_bytes(masks), "npy"),
            "SAM's annotations": (json.dumps(annotation).encode(), "json"),
            "a polygon instead of a mask": (json.dumps(polygon).encode(), "json"),
        }

    def write(self, value: Array, options: InstanceSettings) -> tuple[bytes, str]:
        """A 16-bit PNG of the ids."""
        return png_bytes(image_of(value.astype(np.uint16))), "png"

    def picture(self, value: Array, options: InstanceSettings) -> PIL.Image.Image:
        """Each instance in a colour that follows from its place."""
        return image_of(colour_instances(value))

    def measure(
        self, predicted: Sequence[Array], target: Sequence[Array], options: InstanceSettings
    ) -> dict[str, float]:
        """Over all instances of all maps together."""
        matches = [best_overlaps(np.asarray(p), np.asarray(t)) for p, t in zip(predicted, target, strict=True)]
        best = np.concatenate([overlaps for overlaps, _ in matches])
        guessed = sum(count for _, count in matches)
        hits = int((best > 0.5).sum())  # above a half, one predicted instance fits one true instance only
        return {
            "best_iou": float(best.mean()) if len(best) else float(not guessed),
            "f1": 2 * hits / (guessed + len(best)) if guessed + len(best) else 1.0,
        }


plugin = SamInstances()
