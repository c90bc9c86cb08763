"""Semantic segmentation as tokens, and the kind of place: one of declared classes."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import image_of, png_bytes, read_array, read_numbers
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.families.classes import ClassModality, ClassSettings
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings, TokenizerConfig, published
from tokenizers_zoo.records.config import Settings
from zoo_semantics.labellers import ClassLabeller

if TYPE_CHECKING:
    from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture


COCO_CLASSES = (
    "void",
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
    "banner", "blanket", "bridge", "cardboard", "counter", "curtain", "door-stuff", "floor-wood", "flower", "fruit",
    "gravel", "house", "light", "mirror-stuff", "net", "pillow", "platform", "playingfield", "railroad", "river",
    "road", "roof", "sand", "sea", "shelf", "snow", "stairs", "tent", "towel", "wall-brick", "wall-stone",
    "wall-tile", "wall-wood", "water-other", "window-blind", "window-other", "tree-merged", "fence-merged",
    "ceiling-merged", "sky-other-merged", "cabinet-merged", "table-merged", "floor-other-merged", "pavement-merged",
    "mountain-merged", "grass-merged", "dirt-merged", "paper-merged", "food-other-merged", "building-other-merged",
    "rock-merged", "wall-other-merged", "rug-merged",
)  # fmt: skip


CLASSES = (
    "void", "floor", "wall", "ceiling", "window", "door", "picture", "rug",
    "table", "chair", "sofa", "shelf", "books", "box", "ball", "cylinder", "lamp", "plant", "person",
)  # fmt: skip
VOID = "void"


@dataclass(frozen=True, kw_only=True, slots=True)
class SemsegSettings(SpatialSettings):
    """Settings of semseg."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": published(codebook_size=4096)}

    classes: tuple[str, ...] = CLASSES
    """Names of the class ids 0, 1, ...; pixels of the class "void", if there is one, are not scored."""
    tokenizer: TokenizerConfig = field(default=TokenizerConfig(steps=700))
    labeller: ClassLabeller | None = None
    """A network that derives the classes from rgb where no source gives them; absent, they are not derived."""

    def __post_init__(self) -> None:
        SpatialSettings.__post_init__(self)
        if not 2 <= len(self.classes) <= 256 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: expected 2 to 256 different names, got {len(self.classes)}")
        for label, name in (self.labeller.labels if self.labeller else {}).items():
            if name not in self.classes:
                raise ValueError(f"labeller: labels: {label!r} is to be {name!r}, which is none of the classes")


class Semseg(SpatialModality):
    """Class ids int64 (height, width)."""

    settings_class = SemsegSettings
    summary = "semantic segmentation as a grid of tokens"
    kind = "classes"
    written_as = "png"
    loss = "cross_entropy"
    class_balance = 0.25
    unscored = (VOID,)
    aliases = ("tok_semseg@224", "tok_semseg@448", "semseg_coco")
    labelled_from = ("rgb",)
    metrics = (
        Metric(
            name="miou",
            higher_is_better=True,
            meaning="intersection over union over all pictures, averaged over the classes that occur in the truth",
            bound=0.55,
        ),
        Metric(name="pixel_accuracy", higher_is_better=True, meaning="share of pixels with the right class"),
    )

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Classes that the labeller sees in the sample's rgb picture, at its size."""
        options = self.options(settings)
        return options.labeller.class_ids(sample["rgb"], options.classes)

    def class_names(self, options: SemsegSettings) -> tuple[str, ...]:
        return options.classes

    def published_settings(self, architecture: Architecture, options: SemsegSettings) -> dict[str, Any]:
        """Return as many class names: the settings', COCO's, or numbers."""
        count = architecture.classes
        names = next((candidate for candidate in (options.classes, COCO_CLASSES) if len(candidate) == count), None)
        classes = list(names or (f"class {number}" for number in range(count)))
        return {**super().published_settings(architecture, options), "classes": classes}

    def read(self, data: bytes, extension: str, options: SemsegSettings) -> np.ndarray:
        if extension == "npy":
            value = read_array(data, extension)
        else:
            value = read_numbers(data, extension, "class ids", ("P", "L", "1"))
        if value.dtype.kind not in "iub":
            raise ValueError(f"expected integer class ids, got {value.dtype}")
        if value.size and not 0 <= int(value.min()) <= int(value.max()) < len(options.classes):
            raise ValueError(
                f"expected class ids 0 to {len(options.classes) - 1}, got {value.min()} to {value.max()}; name all"
                " classes in the modality's table of registry.toml (classes = [...])"
            )
        return value.astype(np.int64, copy=False)

    @hookimpl
    def example_files(self, settings: Settings) -> dict[str, tuple[bytes, str]]:
        """Maps of other conventions."""
        ids = np.ones((8, 8), np.uint8)
        ids[0, 0] = 255
        return {"255 where no class is": (png_bytes(image_of(ids)), "png")}

    def picture(self, value: np.ndarray, options: SemsegSettings) -> Any:
        image = image_of(value.astype(np.uint8))
        image.putpalette(class_colours(len(options.classes)).tobytes())
        return image

    def measure(self, predicted: list[np.ndarray], target: list[np.ndarray], options: Any) -> Mapping[str, float]:
        count = len(options.classes)
        table = np.zeros((count, count), dtype=np.int64)  # rows: truth
        for guess, truth in zip(predicted, target, strict=True):
            table += np.bincount((truth * count + guess).ravel(), minlength=count**2).reshape(count, count)
        table[list(self.value_spec(options).unscored_ids)] = 0
        hits, occurring = np.diag(table), table.sum(axis=1) > 0
        if not occurring.any():
            return {"miou": float("nan"), "pixel_accuracy": float("nan")}
        union = table.sum(axis=0) + table.sum(axis=1) - hits
        return {
            "miou": float(np.mean(hits[occurring] / union[occurring])),
            "pixel_accuracy": float(hits.sum() / table.sum()),
        }


def class_colours(count: int) -> np.ndarray:
    """uint8 (count, 3): black for id 0, then hues by the golden ratio at three brightnesses, so neighbours differ."""
    colours = [(0.0, 0.0, 0.0)]
    colours += [
        colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.65, (0.95, 0.75, 0.55)[index % 3]) for index in range(1, count)
    ]
    return (np.array(colours) * 255 + 0.5).astype(np.uint8)


PLACES = "dining room", "living room", "library", "playroom", "empty room"


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneClassSettings(ClassSettings):
    """Settings of scene_class."""

    classes: tuple[str, ...] = PLACES
    """Names of the ids 0, 1, ...; more may be added at the end. The defaults are the classes of the source `scenes`. It
    decides by the furniture that covers most of the picture: tables and chairs make a dining room, sofas a living room,
    shelves and books a library, boxes, balls and cylinders a playroom. Below 4 % of the picture it is an empty room."""


class SceneClass(ClassModality[SceneClassSettings]):
    """The name of a class."""

    summary = "The kind of place that the picture shows, one of declared classes"
    settings_class = SceneClassSettings


plugin = Semseg()
scene_class = SceneClass()
