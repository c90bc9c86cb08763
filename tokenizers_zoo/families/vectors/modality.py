"""The base class of plugins for global vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.config import Settings, recorded
from tokenizers_zoo.families.features import FEATURE_METRICS, agreement, central_value
from tokenizers_zoo.families.published import PublishedTokenizers
from tokenizers_zoo.families.spatial.values import to_bytes
from tokenizers_zoo.families.trained import TrainedModality
from tokenizers_zoo.families.vectors.settings import LossName, VectorModelConfig, VectorSettings
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.spec import Metric, ModalitySpec, ValueSpec, VectorLayout

if TYPE_CHECKING:
    import PIL.Image

    from tokenizers_zoo.families.vectors.model import VectorTask, VectorTokenizer
    from tokenizers_zoo.ml4m import PublishedCheckpoint
    from tokenizers_zoo.ml4m.architecture import Architecture

Array = NDArray[Any]
COLUMNS, WIDTH = 32, 128
"""Most numbers per row of a vector's picture, and about how many pixels that is wide."""
NUMBER_METRICS = FEATURE_METRICS[::-1]
"""The metrics of a vector whose numbers count each for itself: the first is the share of variance explained."""


class VectorModality(PublishedTokenizers, TrainedModality):
    """A vector float32 (dim,) of a whole value, as one token per codebook.

    Where it is the vector of a picture, it is that of the whole one, and stays as it is under the shared crop and flip.
    """

    settings_class: ClassVar[type[VectorSettings]] = VectorSettings
    codec_name = "VectorTokenizer"
    dim: ClassVar[int]
    """Numbers of a value."""
    loss: ClassVar[LossName] = "cosine"
    unit: ClassVar[str] = ""
    description: ClassVar[str] = ""
    metrics: ClassVar[tuple[Metric, ...]] = FEATURE_METRICS
    derived_from: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str] = "Apache-2.0"
    aliases: ClassVar[tuple[str, ...]] = ()

    def value_spec(self, options: Any) -> ValueSpec:
        """A vector of so many numbers."""
        return ValueSpec(shape=(self.numbers(options),), unit=self.unit, description=self.description)

    def numbers(self, options: Any) -> int:
        """Numbers of a value under these settings."""
        return self.dim

    def published_settings(self, architecture: Architecture) -> dict[str, Any]:
        """The settings beside `tokenizer` that a published tokenizer needs."""
        return {}

    def model_config(self, options: Any) -> VectorModelConfig:
        """The model that these settings ask for."""
        table = options.tokenizer
        return VectorModelConfig(
            dim=self.numbers(options),
            loss=table.loss or self.loss,
            latent_dim=table.latent_dim,
            width=table.width,
            depth=table.depth,
            quantizer=table.quantizer_config(),
        )

    def describe(self, settings: Settings) -> dict[str, Any]:
        """The checkpoint's config for these settings, JSON types."""
        model = recorded(self.model_config(self.options(settings)))
        return {"class": self.checkpoint_class, "modality": settings.name, "model": model}

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """The spec under these settings."""
        quantizer = self.options(settings).tokenizer.quantizer_config()
        count = quantizer.codes_per_position
        return self.spec_of(
            settings, layout=VectorLayout(length=count), vocab_size=quantizer.codebook_size, num_codebooks=count,
            family="vectors", token_space="numbers at mean 0 and deviation 1",
        )  # fmt: skip

    def task(self, settings: Settings) -> VectorTask:
        """The autoencoder."""
        from tokenizers_zoo.families.vectors.model import VectorTask

        return VectorTask(self, settings)

    def codec_class(self, options: Any) -> type[VectorTokenizer]:
        """Codecs run on (batch, dim), and on tokens (batch, codebooks)."""
        from tokenizers_zoo.families.vectors.model import VectorTokenizer

        return VectorTokenizer

    def import_tokenizer(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """See `PublishedTokenizers`."""
        from tokenizers_zoo.families.vectors.importing import import_tokenizer

        return import_tokenizer(self, published, out_dir, settings)

    @hookimpl
    def render(self, value: Array) -> PIL.Image.Image:
        """Its numbers row by row, blue below 0 and red above; full colour is 3 root mean squares."""
        from PIL import Image

        columns = min(COLUMNS, len(value))
        numbers = np.pad(value.astype(np.float64), (0, -len(value) % columns)).reshape(-1, columns)
        fade = 1 - np.minimum(np.abs(numbers) / max(3 * float(np.sqrt((value**2).mean())), 1e-12), 1)
        colours = np.stack([np.where(numbers > 0, 1, fade), fade, np.where(numbers < 0, 1, fade)], axis=-1)
        pixels = to_bytes(colours)
        return Image.fromarray(pixels.repeat(WIDTH // columns, axis=0).repeat(WIDTH // columns, axis=1))

    @hookimpl
    def score(self, predicted: Sequence[Array], target: Sequence[Array]) -> Mapping[str, float]:
        """FEATURE_METRICS over aligned lists."""
        return agreement([np.asarray(value) for value in predicted], [np.asarray(value) for value in target])

    @hookimpl
    def constant_baseline(self, values: Sequence[Array]) -> Array:
        """The vector with the greatest mean cosine with these, of their mean length; by NUMBER_METRICS their mean."""
        if self.metrics[0] == NUMBER_METRICS[0]:
            mean: Array = np.mean(np.asarray(values, np.float64), axis=0).astype(np.float32)
            return mean
        return central_value(values)
