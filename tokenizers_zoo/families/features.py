"""Feature maps: a network's feature vector at each image position, as a grid of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.pictures import Array, read_array, to_bytes
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.families.spatial import SpatialModality
from tokenizers_zoo.records.config import Checked, Settings, Sides, height_width
from tokenizers_zoo.tokenizers.autoencoder.config import PUBLISHED_VIT, LossName, TokenizerConfig
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerKind

if TYPE_CHECKING:
    import PIL.Image

    from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture
LARGEST = 65504.0
"""The largest number of float16, as which maps are stored."""
CONSTANT_SAMPLES = 4096
"""Number of values that a constant baseline is computed from, evenly spread over the given ones."""
TINY = float(np.finfo(np.float64).tiny)
"""Divisor in place of a length of 0. It is this small because all values may be small in their unit."""
SHOWN_PIXELS = 128
"""Approximate pixels along the longer side of a rendered map."""
FEATURE_METRICS = (
    Metric(
        name="cosine",
        higher_is_better=True,
        meaning="mean cosine similarity of predicted and true vectors: 1 is the same direction, 0 a right angle",
    ),
    Metric(
        name="variance_explained",
        higher_is_better=True,
        meaning="1 - squared error / squared distance of the true vectors from their mean: 1 is exact, 0 is that mean",
    ),
)
"""Metrics of feature maps and global vectors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapTokenizerConfig(TokenizerConfig):
    """The `tokenizer` table of a feature map: a small ViT and a cosine codebook, each vector one token."""

    steps: int = 400
    learning_rate: float = 3e-3
    quantizer: QuantizerKind = "vq"
    blocks: Literal["conv", "vit"] = "vit"
    width: int = 192
    """Numbers per token inside encoder and decoder."""
    depth: int = 2
    """Transformer blocks of the encoder, and of the decoder."""
    flip: bool = False
    """Mirror half of the training maps. A mirrored map is only close to the map of a mirrored image."""

    def __post_init__(self) -> None:
        TokenizerConfig.__post_init__(self)
        if self.diffusion is not None:
            raise ValueError("diffusion: works with pictures only; remove it")


def published_map(side: int) -> dict[str, Any]:
    """Return the settings of 4M's tokenizers of feature maps (arXiv 2406.09406, appendix)."""
    return {"map_size": side, "tokenizer": {**PUBLISHED_VIT, "codebook_size": 8192, "loss": "smooth_l1"}}


@dataclass(frozen=True, kw_only=True, slots=True)
class MapSettings(Checked):
    """Settings of a feature map. A plugin's subclass sets the size and, if it derives values, the network."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Tables of settings by name; explicitly given keys override the preset's."""

    preset: str | None = None
    """"4m" for the published size, if there is one; needs an accelerator to train."""
    map_size: Sides = 14
    """Vectors along each side: one number for squares, or [rows, columns]."""
    tokenizer: MapTokenizerConfig = MapTokenizerConfig()

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.preset is not None and self.preset not in self.presets:
            raise ValueError("preset: this map has none; leave it out")

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of vectors."""
        return height_width(self.map_size)

    @property
    def patch(self) -> tuple[int, ...]:
        """Vectors per token along each axis: always one."""
        return (1, 1)


class FeatureMapModality(SpatialModality):
    """A map of vectors, float32 (channels, rows, columns), one token (or several codes) per vector.

    Maps are stored as float16, whose relative error of 0.0005 is far below that of any tokenizer. The shared crop cuts
    and resizes the map like an image. The result only approximates the features of the cropped image, because each
    vector depends on its surroundings. The same holds for mirroring; the difference is small for networks that were
    trained with mirrored images. Where this matters, derive the maps from the cropped images.
    """

    settings_class: ClassVar[type[Any]] = MapSettings
    loss: ClassVar[LossName] = "smooth_l1"
    standardise = "common"  # channels that hardly vary say little about a vector's direction
    metrics = FEATURE_METRICS
    token_space = "vectors less their mean, at deviation 1 over all channels"

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        """Return the size of the map, in vectors."""
        rows, columns = architecture.size
        return {"map_size": rows if rows == columns else [rows, columns]}

    def read(self, data: bytes, extension: str, options: Any) -> Array:
        value = read_array(data, extension)
        if value.ndim != 3 or value.dtype.kind != "f":
            raise ValueError(f"expected floats (channels, rows, columns), got {value.dtype} {value.shape}")
        return value

    def write(self, value: Array, options: Any) -> tuple[bytes, str]:
        return array_bytes(np.clip(value, -LARGEST, LARGEST).astype(np.float16)), "npy"

    def picture(self, value: Array, options: Any) -> PIL.Image.Image:
        """Return the map's principal components as an RGB image; colours of different maps are not comparable."""
        from PIL import Image

        rows, columns = value.shape[1:]
        scale = max(1, round(SHOWN_PIXELS / max(rows, columns)))
        image = Image.fromarray(np.ascontiguousarray(main_colours(value)))
        return image.resize((columns * scale, rows * scale), Image.Resampling.NEAREST)

    def measure(self, predicted: list[Array], target: list[Array], options: Any) -> Mapping[str, float]:
        return agreement(predicted, target)

    @hookimpl
    def constant_baseline(self, values: Sequence[Array], settings: Settings) -> Array:
        """Return, per position, the clipped vector with the greatest mean cosine to the values."""
        central = central_value(values)
        return central if self.low is None and self.high is None else np.clip(central, self.low, self.high)


def agreement(predicted: Sequence[Array], target: Sequence[Array]) -> dict[str, float]:
    """Return FEATURE_METRICS over aligned arrays whose first axis is the channels, computed in float64.

    The cosine of two vectors of length 0 is 1; of a vector of length 0 and any other vector it is 0. If the true
    vectors do not vary (a single vector, for example), distances are taken from 0 instead of their mean.
    """
    cosine, error, count = 0.0, 0.0, 0
    total, squares = np.zeros(len(target[0])), 0.0
    for p, t in zip(predicted, target, strict=True):
        a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (p, t))
        lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
        both_zero = ~a.any(axis=0) & ~b.any(axis=0)
        cosine += float(np.where(both_zero, 1.0, (a * b).sum(axis=0) / np.maximum(lengths, TINY)).sum())
        error += float(((a - b) ** 2).sum())
        total, squares, count = total + b.sum(axis=1), squares + float((b**2).sum()), count + b.shape[1]
    around_mean = squares - float((total**2).sum()) / count
    varies = around_mean > 1e-9 * squares
    explained = 1 - error / ((around_mean if varies else squares) or 1e-12)
    return {"cosine": cosine / count, "variance_explained": explained}


def central_value(values: Sequence[Array]) -> Array:
    """Return the constant with the best mean cosine to CONSTANT_SAMPLES of the values (channels, ...), float32.

    For unit vectors, the sum of cosines with a direction is its dot product with their sum, so their mean direction is
    the best constant. It is scaled to the mean length of the values.
    """
    indices = np.unique(np.linspace(0, len(values) - 1, CONSTANT_SAMPLES).astype(int))
    directions, length = np.zeros(1), np.zeros(1)
    for value in (np.asarray(values[index], dtype=np.float64) for index in indices):
        lengths = np.linalg.norm(value, axis=0, keepdims=True)
        directions = directions + value / np.maximum(lengths, TINY)
        length = length + lengths / len(indices)
    central = directions / np.maximum(np.linalg.norm(directions, axis=0, keepdims=True), 1e-12) * length
    return central.astype(np.float32)


def main_colours(value: Array) -> NDArray[np.uint8]:
    """Return a map's three principal components over its positions, as colours (rows, columns, 3) around grey.

    The largest weight of a component is positive, so that similar maps look similar. Three standard deviations are full
    colour.
    """
    channels, rows, columns = value.shape
    vectors = value.reshape(channels, -1).T.astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    left, scales, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    parts = (left * scales * signs)[:, :3]
    parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))
    deviations = parts.std(axis=0)
    colours = 0.5 + parts / np.maximum(6 * deviations, 1e-12) * (deviations > 1e-6 * max(float(scales[0]), 1e-12))
    return to_bytes(colours).reshape(rows, columns, 3)
