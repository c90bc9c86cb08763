"""CLIP: a map of vectors that lie in one space with text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.families.features import FeatureMapModality, MapSettings, published_map
from tokenizers_zoo.pretrained import PretrainedConfig

if TYPE_CHECKING:
    from tokenizers_zoo.ml4m.architecture import Architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipNetwork(PretrainedConfig):
    """Any CLIP of transformers whose vectors have 512 numbers."""

    model: str = "openai/clip-vit-base-patch16"
    """A local folder, or a hub id (owner/name)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings(MapSettings):
    """Settings of clip."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {**published_map(14), "colours": "imagenet"}}
    map_size: int | tuple[int, int] = 14
    """Vectors along each side; the picture is resized to that many patches."""
    colours: Literal["clip", "imagenet"] = "clip"
    """Normalisation of the network's input: the mean and deviation that CLIP was trained with, or ImageNet's, as in
    published tokenizers."""
    network: ClipNetwork = ClipNetwork()
    """What derives the values from pictures."""


class Clip(FeatureMapModality):
    """Patch vectors of CLIP's image encoder (arXiv 2103.00020): float32 (512, rows, columns).

    Features of the last layer after the final norm and the projection that CLIP applies to its class token.
    """

    settings_class = ClipSettings
    summary = "CLIP features of the picture as a grid of tokens"
    channels = 512
    description = "projected patch vectors of CLIP ViT-B/16"
    derived_from = ("rgb",)
    aliases = ("tok_clip@224", "tok_clip@448", "CLIP-B16")
    licence = "Apache-2.0; weights of openai/clip-vit-base-patch16: MIT"

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the feature map of the sample's rgb picture."""
        import torch

        from zoo_features.pictures import COLOURS, as_map, normalised

        options = self.options(settings)
        network = options.network.transformers("CLIPVisionModelWithProjection")
        side = network.config.patch_size
        colours = COLOURS[options.colours]
        pixels = normalised(sample["rgb"], options.size, side, colours, network.device.type)
        with torch.inference_mode():
            trunk = network.vision_model
            hidden = trunk(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
            vectors = network.visual_projection(trunk.post_layernorm(hidden))
        return as_map(vectors, options.size, self.channels, options.network.model)

    def published_settings(self, architecture: Architecture, options: ClipSettings) -> dict[str, Any]:
        """The size of the map, and the colours of the published tokenizers."""
        return {**super().published_settings(architecture, options), "colours": "imagenet"}


plugin = Clip()
