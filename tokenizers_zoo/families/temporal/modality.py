"""The base class of plugins for modalities that run over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.config import Settings, recorded
from tokenizers_zoo.families.spatial import ImageValues
from tokenizers_zoo.families.spatial.settings import LossName
from tokenizers_zoo.families.spatial.values import QUANTILES
from tokenizers_zoo.families.temporal.settings import TemporalModelConfig, token_grid
from tokenizers_zoo.families.trained import TrainedModality
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.spec import GridLayout, ModalitySpec

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.families.temporal.model import TemporalCodec, TemporalTask


class TemporalModality(ImageValues, TrainedModality):
    """Continuous values that run over time, whose tokens come from a VQ autoencoder on a grid with 1 to 3 axes.

    Files, pictures, metrics and the constant baseline are hooked as in `ImageValues`. A plugin derives from
    `SeriesModality` or `ClipModality`; a base of its own gives `value_spec`, `transform` and `to_model`.
    """

    settings_class: ClassVar[type[Any]]
    codec_name = "TemporalTokenizer"
    loss: ClassVar[LossName] = "l1"
    token_space: ClassVar[str] = ""

    def to_model(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        """What the tokenizer works on: (batch, *value) -> (batch, channels, *axes), axes as the settings' `sizes`."""
        return values

    def from_model(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        """Values within their bounds, from any output of the tokenizer: the inverse of `to_model`."""
        return outputs if self.low is None and self.high is None else outputs.clamp(self.low, self.high)

    def model_channels(self, options: Any) -> int:
        """Channels of what the tokenizer works on."""
        return self.channels

    def signal(self, options: Any) -> dict[str, Any]:
        """Settings without which tokens would mean something else, JSON types: a tokenizer of others is refused."""
        return {}

    def model_config(self, options: Any) -> TemporalModelConfig:
        """The model that these settings ask for."""
        return TemporalModelConfig(
            channels=self.model_channels(options),
            patch=options.patch,
            latent_dim=options.tokenizer.latent_dim,
            quantizer=options.tokenizer.quantizer_config(),
            blocks=options.tokenizer.block_config(),
        )

    def constant_maps(self, stack: NDArray[Any], options: Any) -> list[NDArray[Any]]:
        """Per number the median, other quantiles and the mean of values `(count, ...)`."""
        maps = [*np.quantile(stack, QUANTILES, axis=0), stack.mean(axis=0)]
        bounded = [np.clip(found, self.low, self.high) for found in maps] if self.low is not None else maps
        return [found.astype(np.float32) for found in bounded]

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """The spec under these settings."""
        options = self.options(settings)
        quantizer = options.tokenizer.quantizer_config()
        return self.spec_of(
            settings, layout=GridLayout(shape=token_grid(options)), vocab_size=quantizer.codebook_size,
            num_codebooks=quantizer.codes_per_position, family="temporal", token_space=self.token_space,
        )  # fmt: skip

    def task(self, settings: Settings) -> TemporalTask:
        """The autoencoder."""
        from tokenizers_zoo.families.temporal.model import TemporalTask

        return TemporalTask(self, settings)

    def codec_class(self, options: Any) -> type[TemporalCodec]:
        """Codecs run on other lengths and sizes than they were trained on, too, as long as the patch divides them."""
        from tokenizers_zoo.families.temporal.model import TemporalCodec

        return TemporalCodec

    def describe(self, settings: Settings) -> dict[str, Any]:
        """The checkpoint's config for these settings, JSON types."""
        options = self.options(settings)
        return {
            "class": self.checkpoint_class,
            "modality": settings.name,
            "sizes": list(options.sizes),
            "signal": self.signal(options),
            "loss": options.tokenizer.loss or self.loss,
            **options.tokenizer.extra_losses(),
            "flip": options.tokenizer.flip,
            "model": recorded(self.model_config(options)),
        }
