"""The base class of plugins for image-like modalities with discrete tokens."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tokenizers_zoo.config import Settings
from tokenizers_zoo.families.spatial.settings import LossName, SpatialModelConfig, SpatialSettings
from tokenizers_zoo.families.spatial.values import ImageValues
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.modality import GridLayout, ModalitySpec

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.data.samples import TrainingSamples
    from tokenizers_zoo.families.spatial.model import SpatialTokenizer
    from tokenizers_zoo.families.spatial.task import SpatialTask


class SpatialModality(ImageValues):
    """An image-like modality whose tokens come from a VQ autoencoder.

    A plugin sets attributes, and overrides `to_model` and `from_model` where the tokenizer does not work on the values
    themselves. Values of kind "classes" and "binary" need neither.
    """

    settings_class = SpatialSettings
    loss: ClassVar[LossName] = "l1"
    standardised: ClassVar[bool] = True
    """Whether what the model sees is shifted and scaled by the mean and deviation of the training values."""
    common_scale: ClassVar[bool] = False
    """Whether all channels are scaled by one deviation, so that each counts for as much as it varies."""
    class_balance: ClassVar[float] = 0.0
    """Exponent in [0, 1] by which rare classes weigh more in the loss: weight = frequency ^ -exponent; 0 is off."""
    token_space: ClassVar[str] = ""

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

    @property
    def checkpoint_class(self) -> str:
        """The "class" of this plugin's checkpoints."""
        return f"SpatialTokenizer/{type(self).__name__}"

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """The spec under these settings."""
        options = self.options(settings)
        quantizer = options.tokenizer.quantizer_config()
        return ModalitySpec(
            name=settings.name,
            summary=self.summary,
            value=self.value_spec(options),
            layout=GridLayout(shape=options.token_grid),
            vocab_size=quantizer.codebook_size,
            num_codebooks=quantizer.codes_per_position,
            family="spatial",
            derived_from=self.derived_from,
            metrics=self.metrics,
            licence=self.licence,
            token_space=self.token_space,
        )

    @hookimpl
    def train_tokenizer(self, config: Settings, samples: TrainingSamples, out_dir: Path, seed: int) -> Path:
        """Train the autoencoder in the common loop."""
        from tokenizers_zoo.training import train

        table = self.options(config).tokenizer
        return train(self._task(config, table.diffusion is not None), samples, table, out_dir, seed)

    def _task(self, config: Settings, diffusion: bool) -> SpatialTask:
        if diffusion:
            from tokenizers_zoo.families.spatial.diffusion_task import DiffusionTask

            return DiffusionTask(self, config)
        from tokenizers_zoo.families.spatial.task import SpatialTask

        return SpatialTask(self, config)

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings) -> SpatialTokenizer:
        """The trained autoencoder, in eval mode; its image size may be another than that of the settings."""
        from tokenizers_zoo.families.spatial.model import SpatialTokenizer

        if self.options(settings).tokenizer.diffusion is None:
            return SpatialTokenizer.load(self, settings, checkpoint, device)
        from tokenizers_zoo.families.spatial.diffusion import DiffusionTokenizer

        return DiffusionTokenizer.load(self, settings, checkpoint, device)

    @hookimpl
    def encode(self, tokenizer: SpatialTokenizer, values: torch.Tensor) -> torch.Tensor:
        """Tokens int64 (batch, h / patch, w / patch[, codes]) of values of any size that the patch divides."""
        return tokenizer.encode(values)

    @hookimpl
    def decode(self, tokenizer: SpatialTokenizer, tokens: torch.Tensor) -> torch.Tensor:
        """Values of tokens (batch, h / patch, w / patch[, codes])."""
        return tokenizer.decode(tokens)

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
            "model": asdict(self.model_config(options)),
        }
