"""The base of image-like modalities that the backbone sees as numbers: an input only, a vector per patch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import CheckpointError, DataError
from tokenizers_zoo.families.spatial.values import ImageValues
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.modality import ModalitySpec, PatchesLayout

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.data.samples import TrainingSamples

STATISTICS_SAMPLES = 1024
"""Training values, evenly spread, that the mean and deviation are taken over."""


class PatchTokenizer:
    """Values to patches, `channel row column` flattened and standardised per channel, and back."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> None:
        self.mean, self.std = mean[:, None, None], std[:, None, None]
        self.patch_size, self.grid = patch_size, grid

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """float32 `batch channels height width` to `batch patches channels*patch*patch`."""
        from einops import rearrange

        size = self.patch_size
        standardised = (values - self.mean) / self.std
        return rearrange(standardised, "b c (h p) (w q) -> b (h w) (c p q)", p=size, q=size)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of `encode`."""
        from einops import rearrange

        size, (height, width) = self.patch_size, self.grid
        values = rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, w=width, p=size, q=size)
        return values * self.std + self.mean


class PatchesModality(ImageValues):
    """An image-like modality of continuous values, cut in patches. Nothing is learnt but a mean and a deviation."""

    @property
    def checkpoint_class(self) -> str:
        """The "class" of this plugin's checkpoints."""
        return f"PatchTokenizer/{type(self).__name__}"

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """The spec under these settings."""
        options = self.options(settings)
        return ModalitySpec(
            name=settings.name,
            summary=self.summary,
            value=self.value_spec(options),
            layout=PatchesLayout(shape=options.grid, dim=self.channels * options.patch_size**2),
            vocab_size=0,
            family="continuous",
            derived_from=self.derived_from,
            metrics=self.metrics,
            licence=self.licence,
            token_space="values standardised per channel",
        )

    @hookimpl
    def train_tokenizer(self, config: Settings, samples: TrainingSamples, out_dir: Path) -> Path:
        """Measure mean and deviation per channel."""
        import torch

        if not len(samples.train):
            raise DataError(f"{config.name}: there are no training values")
        picked = np.unique(np.linspace(0, len(samples.train) - 1, STATISTICS_SAMPLES).astype(int))
        stack = np.stack([samples.train[index] for index in picked]).astype(np.float64)
        mean, std = stack.mean(axis=(0, 2, 3)), stack.std(axis=(0, 2, 3)).clip(1e-6)
        tensors = {"mean": torch.from_numpy(mean).float(), "std": torch.from_numpy(std).float()}
        identity = {
            "class": self.checkpoint_class,
            "modality": config.name,
            "channels": self.channels,
            "data": dict(samples.provenance),
        }
        card = f"# {config.name}: {self.summary}\n\nMean and deviation per channel of {len(picked)} training values.\n"
        save_checkpoint(out_dir, tensors, identity, card)
        return out_dir

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings) -> PatchTokenizer:
        """The statistics, at the patch size of the settings. Raises CheckpointError."""
        tensors, _ = load_checkpoint(checkpoint, self.checkpoint_class)
        if set(tensors) != {"mean", "std"} or any(tensor.shape != (self.channels,) for tensor in tensors.values()):
            raise CheckpointError(
                f"{checkpoint}: expected mean and std of {self.channels} channels, got {sorted(tensors)}"
            )
        options = self.options(settings)
        return PatchTokenizer(tensors["mean"].to(device), tensors["std"].to(device), options.patch_size, options.grid)

    @hookimpl
    def encode(self, tokenizer: PatchTokenizer, values: torch.Tensor) -> torch.Tensor:
        """float32 `batch patches dim`."""
        return tokenizer.encode(values.to(tokenizer.mean.device))

    @hookimpl
    def decode(self, tokenizer: PatchTokenizer, tokens: Any) -> torch.Tensor:
        """Values within their bounds."""
        values = tokenizer.decode(tokens.to(tokenizer.mean.device))
        return values if self.low is None and self.high is None else values.clamp(self.low, self.high)
