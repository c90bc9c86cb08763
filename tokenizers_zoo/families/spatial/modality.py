"""The base class of plugins for image-like modalities with discrete tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tokenizers_zoo.config import Settings, recorded
from tokenizers_zoo.families.published import PublishedTokenizers
from tokenizers_zoo.families.spatial.settings import LossName, SpatialModelConfig, SpatialSettings
from tokenizers_zoo.families.spatial.values import ImageValues
from tokenizers_zoo.families.trained import TrainedModality
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.spec import GridLayout, ModalitySpec

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.families.spatial.model import SpatialTokenizer
    from tokenizers_zoo.families.spatial.task import SpatialTask
    from tokenizers_zoo.ml4m import PublishedCheckpoint
    from tokenizers_zoo.ml4m.architecture import Architecture


class SpatialModality(PublishedTokenizers, ImageValues, TrainedModality):
    """An image-like modality whose tokens come from a VQ autoencoder.

    A plugin sets attributes, and overrides `to_model` and `from_model` where the tokenizer does not work on the values
    themselves. Values of kind "classes" and "binary" need neither.
    """

    settings_class: ClassVar[type[SpatialSettings]] = SpatialSettings
    codec_name = "SpatialTokenizer"
    loss: ClassVar[LossName] = "l1"
    standardised: ClassVar[bool] = True
    """Whether what the model sees is shifted and scaled by the mean and deviation of the training values."""
    common_scale: ClassVar[bool] = False
    """Whether all channels are scaled by one deviation, so that each counts for as much as it varies."""
    class_balance: ClassVar[float] = 0.0
    """Exponent in [0, 1] by which rare classes weigh more in the loss: weight = frequency ^ -exponent; 0 is off."""
    token_space: ClassVar[str] = ""
    published_scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Mean and deviation that what `to_published` gives is shifted and scaled by for published tokenizers."""

    @property
    def published_channels(self) -> tuple[int, ...]:
        """Channels that published tokenizers of this modality may have."""
        return (self.channels,)

    def to_published(self, values: torch.Tensor) -> torch.Tensor:
        """What published tokenizers work on, before `published_scale`: as `to_model`, where that is not their own."""
        return self.to_model(values)

    def from_published(self, outputs: torch.Tensor) -> torch.Tensor:
        """Continuous values within their bounds, from any output of a published tokenizer: undoes `to_published`."""
        return self.from_model(outputs)

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        """The settings beside `tokenizer` that a published tokenizer needs."""
        height, width = architecture.size
        side = height if height == width else [height, width]
        return {"image_size": side, "patch_size": architecture.patch_size}

    def to_model(self, values: torch.Tensor) -> torch.Tensor:
        """What the tokenizer works on, from continuous values: (batch, channels, height, width) -> the same shape."""
        return values

    def from_model(self, outputs: torch.Tensor) -> torch.Tensor:
        """Continuous values within their bounds, from any output of the tokenizer: the inverse of `to_model`."""
        return outputs if self.low is None and self.high is None else outputs.clamp(self.low, self.high)

    def model_config(self, options: Any) -> SpatialModelConfig:
        """The model that these settings ask for."""
        return SpatialModelConfig(
            channels=len(self.class_names(options)) if self.kind == "classes" else self.channels,
            classes=self.kind == "classes",
            patch_size=options.patch_size,
            latent_dim=options.tokenizer.latent_dim,
            quantizer=options.tokenizer.quantizer_config(),
            blocks=options.tokenizer.block_config(),
        )

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """The spec under these settings."""
        options = self.options(settings)
        quantizer = options.tokenizer.quantizer_config()
        return self.spec_of(
            settings, layout=GridLayout(shape=options.token_grid), vocab_size=quantizer.codebook_size,
            num_codebooks=quantizer.codes_per_position, family="spatial", token_space=self.token_space,
        )  # fmt: skip

    def task(self, settings: Settings) -> SpatialTask:
        """The autoencoder, or with the setting `diffusion` its diffusion decoder."""
        if self.options(settings).tokenizer.diffusion is not None:
            from tokenizers_zoo.families.spatial.diffusion_task import DiffusionTask

            return DiffusionTask(self, settings)
        from tokenizers_zoo.families.spatial.task import SpatialTask

        return SpatialTask(self, settings)

    def codec_class(self, options: Any) -> type[SpatialTokenizer]:
        """Codecs run on values of any size that the patch divides, and on their tokens."""
        if options.tokenizer.diffusion is not None:
            from tokenizers_zoo.families.spatial.diffusion import DiffusionTokenizer

            return DiffusionTokenizer
        from tokenizers_zoo.families.spatial.model import SpatialTokenizer

        return SpatialTokenizer

    def import_tokenizer(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """See `PublishedTokenizers`."""
        from tokenizers_zoo.families.spatial.importing import import_tokenizer

        return import_tokenizer(self, published, out_dir, settings)

    def describe(self, settings: Settings) -> dict[str, Any]:
        """The checkpoint's config for these settings, JSON types."""
        options = self.options(settings)
        return {
            "class": self.checkpoint_class,
            "modality": settings.name,
            "image_size": list(options.size),
            "classes": list(self.class_names(options)),
            "loss": options.tokenizer.loss or self.loss,
            **options.tokenizer.extra_losses(),
            "flip": options.tokenizer.flip,
            "model": recorded(self.model_config(options)),
        }
