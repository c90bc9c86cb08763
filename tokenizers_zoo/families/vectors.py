"""Global vectors, of a whole value or of a state, as a few product codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.layouts import TokenLayout, VectorLayout
from tokenizers_zoo.contract.pictures import Array, image_of, to_bytes
from tokenizers_zoo.contract.spec import Metric, ValueSpec
from tokenizers_zoo.families.base import TrainedModality
from tokenizers_zoo.families.features import FEATURE_METRICS, agreement, central_value
from tokenizers_zoo.records.typed import PositiveInt
from tokenizers_zoo.tokenizers.autoencoder.config import (
    PUBLISHED_TRAINING,
    AutoencoderConfig,
    LossName,
    QuantizedTrainConfig,
)
from tokenizers_zoo.tokenizers.nn.config import MlpConfig
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerKind

if TYPE_CHECKING:
    import PIL.Image
COLUMNS, WIDTH = 32, 128
"""Largest number of columns of a vector's picture, and its approximate width in pixels."""
DEFAULT_CODES = 256
"""Default codebook size: a few thousand vectors keep all codes in use."""
NUMBER_METRICS = FEATURE_METRICS[::-1]
"""The metrics of vectors whose numbers have a meaning each: the first is the explained variance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorTokenizerConfig(QuantizedTrainConfig):
    """The `tokenizer` table of a global vector: quantizer, encoder, decoder and training, in one flat table."""

    steps: int = 600
    batch_size: int = 256
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    loss: Literal["cosine", "smooth_l1"] | None = None
    """cosine: 1 - cosine similarity, which ignores the length; smooth_l1: of standardised numbers. Absent: the
    modality's default."""
    quantizer: QuantizerKind = "product_vq"
    latent_dim: int = 128
    width: PositiveInt = 256
    """Width of encoder and decoder; 4 times as wide inside each block."""
    depth: PositiveInt = 2
    """Blocks of the encoder, and of the decoder."""

    def quantizer_defaults(self) -> Mapping[str, Any]:
        """DEFAULT_CODES, except for fsq kinds, where the levels decide."""
        return {} if "fsq" in self.quantizer else {"codebook_size": DEFAULT_CODES}

    def block_config(self) -> MlpConfig:
        return MlpConfig(width=self.width, depth=self.depth, expansion=4, final_norm=True)

    def loss_weights(self, main: LossName) -> dict[str, float]:
        return {self.loss or main: 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorSettings:
    """Settings of a global vector. A plugin derives from it to add the network that computes values."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {
            "tokenizer": {
                **PUBLISHED_TRAINING,
                "quantizer": "memcodes",
                "codebook_size": 8192,
                "num_codebooks": 16,
                "codebook_dim": 64,
                "latent_dim": 1024,
                "width": 1024,
                "depth": 6,
                "loss": "cosine",
                "batch_size": 1024,
            }
        }
    }
    """Tables of settings by name; keys given besides `preset` override them."""

    preset: str | None = None
    """"4m" for the published size (arXiv 2406.09406, appendix); needs accelerators."""
    tokenizer: VectorTokenizerConfig = VectorTokenizerConfig()

    @property
    def patch(self) -> tuple[int, ...]:
        """Empty: a vector has no axes."""
        return ()


class VectorModality(TrainedModality):
    """A vector float32 (dim,), as one token per codebook.

    A vector of an image describes the whole image; crops and flips do not change it.
    """

    family = "vectors"
    settings_class: ClassVar[type[Any]] = VectorSettings
    dim: ClassVar[int]
    """Numbers of a value."""
    loss: ClassVar[LossName] = "cosine"
    unit: ClassVar[str] = ""
    description: ClassVar[str] = ""
    metrics: ClassVar[tuple[Metric, ...]] = FEATURE_METRICS
    token_space = "standardised numbers"
    statistics_samples = 4096

    def numbers(self, options: Any) -> int:
        """Return the numbers of a value under these settings."""
        return self.dim

    def value_spec(self, options: Any) -> ValueSpec:
        return ValueSpec(shape=(self.numbers(options),), unit=self.unit, description=self.description)

    def layout(self, options: Any) -> TokenLayout:
        return VectorLayout(length=options.tokenizer.quantizer_config().codes_per_position)

    def network_channels(self, options: Any) -> int:
        return self.numbers(options)

    def model_config(self, options: Any) -> AutoencoderConfig:
        config = super().model_config(options)
        return dataclasses.replace(config, directions="cosine" in options.tokenizer.loss_weights(self.loss))

    @hookimpl
    def render(self, value: Array) -> PIL.Image.Image:
        """Draw its numbers row by row, blue below 0 and red above; full colour is 3 root mean squares."""
        columns = min(COLUMNS, len(value))
        numbers = np.pad(value.astype(np.float64), (0, -len(value) % columns)).reshape(-1, columns)
        fade = 1 - np.minimum(np.abs(numbers) / max(3 * float(np.sqrt((value**2).mean())), 1e-12), 1)
        colours = np.stack([np.where(numbers > 0, 1, fade), fade, np.where(numbers < 0, 1, fade)], axis=-1)
        pixels = to_bytes(colours)
        return image_of(pixels.repeat(WIDTH // columns, axis=0).repeat(WIDTH // columns, axis=1))

    @hookimpl
    def score(self, predicted: Sequence[Array], target: Sequence[Array]) -> Mapping[str, float]:
        return agreement([np.asarray(value) for value in predicted], [np.asarray(value) for value in target])

    @hookimpl
    def constant_baseline(self, values: Sequence[Array]) -> Array:
        """Return the vector with the greatest mean cosine and the mean length; with NUMBER_METRICS the mean."""
        if self.metrics[0] == NUMBER_METRICS[0]:
            mean: Array = np.mean(np.asarray(values, np.float64), axis=0).astype(np.float32)
            return mean
        return central_value(values)
