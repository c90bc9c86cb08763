"""Image-like modalities: a grid of tokens from a trained autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tokenizers_zoo.families.base import TrainedModality
from tokenizers_zoo.families.images import ImageSettings, ImageValues
from tokenizers_zoo.tokenizers.autoencoder.config import PUBLISHED_DIFFUSION, PUBLISHED_VIT, LossName, TokenizerConfig

if TYPE_CHECKING:
    from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture

__all__ = ["ImageSettings", "ImageValues", "SpatialModality", "SpatialSettings", "TokenizerConfig", "published"]


def published(*, codebook_size: int, diffusion: bool = False) -> dict[str, Any]:
    """Return the settings of 4M's tokenizers at 224 x 224 (arXiv 2312.06647, appendix)."""
    tokenizer = {**PUBLISHED_VIT, "codebook_size": codebook_size}
    if diffusion:
        tokenizer["diffusion"] = PUBLISHED_DIFFUSION
    return {"image_size": 224, "patch_size": 16, "tokenizer": tokenizer}


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialSettings(ImageSettings):
    """Settings of an image-like modality with discrete tokens."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": published(codebook_size=8192, diffusion=True)}
    """Tables of settings by name; keys given besides `preset` override them."""

    preset: str | None = None
    """"4m" for the published size: ViT-B encoder and decoder at 224 pixels; needs accelerators."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    def __post_init__(self) -> None:
        ImageSettings.__post_init__(self)
        diffusion = self.tokenizer.diffusion
        if diffusion is None:
            return
        cell, size = diffusion.patch_size, f"{self.size[0]} x {self.size[1]}"
        if diffusion.layout == "own" and self.patch_size % cell:
            raise ValueError(f"tokenizer.diffusion.patch_size: {cell} does not divide patch_size {self.patch_size}")
        if any(side % cell for side in self.size):
            raise ValueError(f"tokenizer.diffusion.patch_size: {cell} does not divide the image size {size}")


class SpatialModality(ImageValues, TrainedModality):
    """An image-like modality with a grid of tokens.

    A plugin sets attributes. It overrides `to_network` and `from_network` if the network's inputs differ from the
    values. Values of kind "classes" and "binary" need neither.
    """

    family = "spatial"
    settings_class: ClassVar[type[Any]] = SpatialSettings
    loss: ClassVar[LossName] = "l1"

    def network_channels(self, options: Any) -> int:
        return len(self.class_names(options)) if self.kind == "classes" else self.channels

    def meaning(self, options: Any) -> dict[str, Any]:
        return {"classes": list(self.class_names(options))} if self.kind == "classes" else {}

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        """Return image and patch size."""
        height, width = architecture.size
        side = height if height == width else [height, width]
        return {"image_size": side, "patch_size": architecture.patch_size}
