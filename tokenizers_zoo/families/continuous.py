"""Image-like modalities that are only an input: normalised pixels in patches, projected linearly by the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import CheckpointError, InvalidValueError
from tokenizers_zoo.families.images import ImageSettings, ImageValues
from tokenizers_zoo.families.statistics import (
    Array,
    StatisticsConfig,
    fit_statistics,
    import_statistics,
    load_statistics,
    mean_and_deviation,
)
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.ml4m import PublishedCheckpoint
from tokenizers_zoo.spec import ModalitySpec, PatchesLayout

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.data.samples import TrainingSamples

SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchesSettings(ImageSettings):
    """Settings of an image-like modality in continuous patches."""

    tokenizer: StatisticsConfig = field(default_factory=StatisticsConfig)
    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    """How patches are stored. "uint8" is exact for pictures of 8 bits that keep their size; values without bounds take
    float16 in its place."""


class PatchesTokenizer:
    """Mean and deviation per channel, and the size of a patch."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> None:
        self.mean, self.std, self.patch_size, self.grid = mean[:, None, None], std[:, None, None], patch_size, grid


class PatchesModality(ImageValues):
    """Values (channels, height, width) of kind "continuous" as a grid of patches.

    Numbers of a patch go channel by channel, then row by row.
    """

    settings_class: ClassVar[type[PatchesSettings]] = PatchesSettings
    published_statistics: ClassVar[tuple[tuple[float, ...], tuple[float, ...]] | None] = None
    """Mean and standard deviation per channel in the published 4M backbones, if they use these values."""
    input_form_of: ClassVar[str | None] = None
    """The discrete modality that these patches are the input form of, see `ModalitySpec`."""

    @property
    def checkpoint_class(self) -> str:
        """The "class" of this plugin's checkpoints."""
        return f"PatchesTokenizer/{type(self).__name__}"

    def describe(self, settings: Settings) -> dict[str, Any]:
        """Return the checkpoint's config for these settings as JSON types."""
        return {"class": self.checkpoint_class, "modality": settings.name, "channels": self.channels}

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """Return the spec under these settings."""
        options = self.options(settings)
        dtype = options.dtype
        if dtype == "uint8" and (self.low is None or self.high is None):
            dtype = "float16"
        return ModalitySpec(
            name=settings.name,
            summary=self.summary,
            value=self.value_spec(options),
            layout=PatchesLayout(shape=options.grid, dim=self.channels * options.patch_size**2, dtype=dtype),
            vocab_size=0,
            family="continuous",
            derived_from=self.derived_from,
            metrics=self.metrics,
            licence=self.licence,
            aliases=self.aliases,
            input_form_of=self.input_form_of,
            token_space="values at mean 0 and deviation 1 per channel",
        )

    @hookimpl
    def train_tokenizer(self, config: Settings, samples: TrainingSamples, out_dir: Path, seed: int) -> Path:
        """Compute mean and deviation per channel over training values; `seed` is recorded, and changes nothing."""
        import torch

        from tokenizers_zoo.train.report import Evaluation

        options = self.options(config)

        def evaluate(mean: Array, std: Array, held_out: Sequence[Array]) -> Evaluation:
            statistics = torch.from_numpy(mean), torch.from_numpy(std)
            tokenizer = PatchesTokenizer(*statistics, options.patch_size, options.grid)
            back = list(self.decode(tokenizer, self.encode(tokenizer, torch.from_numpy(np.stack(held_out)))).numpy())
            pairs = zip(held_out[:SHOWN], back[:SHOWN], strict=True)
            shown = [(self.render(value, config), self.render(again, config)) for value, again in pairs]
            return Evaluation(metrics=self.score(back, held_out, config), shown=shown, samples=len(held_out))

        spec, table = self.modality_spec(config), options.tokenizer
        return fit_statistics(spec, self.describe(config), table, samples, out_dir, seed, channel_statistics, evaluate)

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings) -> PatchesTokenizer:
        """Load mean and standard deviation onto `device`. The patch size comes from the settings."""
        mean, std = load_statistics(checkpoint, self.checkpoint_class, self.channels, "channels")
        options = self.options(settings)
        return PatchesTokenizer(mean.to(device), std.to(device), options.patch_size, options.grid)

    @hookimpl
    def import_published(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """Import the mean and standard deviation of a published backbone. Raises CheckpointError."""
        if self.published_statistics is None:
            raise CheckpointError(f"{settings.name}: no published 4M backbone takes these patches")
        mean, std = (np.array(numbers, dtype=np.float32) for numbers in self.published_statistics)
        import_statistics(published, self.describe(settings), mean, std, out_dir)
        return dict(settings.own)

    @hookimpl
    def encode(self, tokenizer: PatchesTokenizer, values: torch.Tensor) -> torch.Tensor:
        """Patches float32 (batch, h * w, channels * patch^2) of values (batch, channels, height, width)."""
        from einops import rearrange

        size = tokenizer.patch_size
        if values.shape[-2] % size or values.shape[-1] % size:
            raise InvalidValueError(f"{tuple(values.shape[-2:])} pixels are not a multiple of the patch size {size}")
        normalised = (values.float() - tokenizer.mean) / tokenizer.std
        return rearrange(normalised, "b c (h p) (w q) -> b (h w) (c p q)", p=size, q=size).contiguous()

    @hookimpl
    def decode(self, tokenizer: PatchesTokenizer, tokens: torch.Tensor) -> torch.Tensor:
        """Return the values of patches (batch, h * w, channels * patch^2) on the configured grid, clipped."""
        from einops import rearrange

        height, width = tokenizer.grid
        size = tokenizer.patch_size
        if tokens.shape[1] != height * width:
            raise InvalidValueError(f"expected {height * width} patches, got {tokens.shape[1]}")
        planes = rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=size, q=size)
        values = planes * tokenizer.std + tokenizer.mean
        return values if self.low is None and self.high is None else values.clamp(self.low, self.high)


def channel_statistics(values: Iterable[Array]) -> tuple[Array, Array]:
    """Return mean and standard deviation per channel over all pixels of values (channels, height, width), float32."""
    return mean_and_deviation(value.reshape(len(value), -1).T for value in values)
