"""DINOv2: a map of vectors learnt from pictures alone, and one vector of the whole picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.families.features import FeatureMapModality, MapSettings, published_map
from tokenizers_zoo.families.vectors import VectorModality, VectorSettings
from tokenizers_zoo.pretrained import PretrainedConfig, PretrainedError

if TYPE_CHECKING:
    import torch

LICENCE = "Apache-2.0; weights of facebook/dinov2-base: Apache-2.0"
GLOBAL_SIZE = (16, 16)
"""Patches that the picture is resized to for the global vector: 224 x 224 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dinov2Network(PretrainedConfig):
    """Any DINOv2 (without registers) of transformers whose vectors have 768 numbers."""

    model: str = "facebook/dinov2-base"
    """A local folder, or a hub id (owner/name)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dinov2Settings(MapSettings):
    """Settings of dinov2."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": published_map(16)}
    map_size: int | tuple[int, int] = 16
    """Vectors along each side; the picture is resized to that many patches."""
    network: Dinov2Network = Dinov2Network()
    """What derives the values from pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dinov2GlobalSettings(VectorSettings):
    """Settings of dinov2_global."""

    network: Dinov2Network = Dinov2Network()
    """What derives the values from pictures."""


def last_layer(network: Dinov2Network, rgb: np.ndarray, patches: tuple[int, int]) -> torch.Tensor:
    """The class vector and the patch vectors of the last layer after its norm: (1, 1 + patches, dim).

    Raises PretrainedError for another network.
    """
    import torch

    from zoo_features.pictures import IMAGENET, normalised

    loaded = network.transformers("Dinov2Model")
    if loaded.config.model_type != "dinov2":  # the class would load it without the tensors it does not know
        raise PretrainedError(f"{network.model}: is a {loaded.config.model_type}, expected a dinov2 without registers")
    with torch.inference_mode():
        pixels = normalised(rgb, patches, loaded.config.patch_size, IMAGENET, loaded.device.type)
        hidden: torch.Tensor = loaded(pixel_values=pixels).last_hidden_state
    return hidden


class Dinov2(FeatureMapModality):
    """Patch vectors of DINOv2 (arXiv 2304.07193): float32 (768, rows, columns), after the last norm."""

    settings_class = Dinov2Settings
    summary = "DINOv2 features of the picture as a grid of tokens"
    channels = 768
    description = "patch vectors of DINOv2 ViT-B/14"
    derived_from = ("rgb",)
    aliases = ("tok_dinov2@224", "tok_dinov2@448", "DINOv2-B14")
    licence = LICENCE

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the feature map of the sample's rgb picture."""
        from zoo_features.pictures import as_map

        options = self.options(settings)
        hidden = last_layer(options.network, sample["rgb"], options.size)
        return as_map(hidden[:, 1:], options.size, self.channels, options.network.model)


class Dinov2Global(VectorModality):
    """The class vector of DINOv2 (arXiv 2304.07193): float32 (768,), after the last norm."""

    settings_class = Dinov2GlobalSettings
    summary = "The DINOv2 vector of the whole picture as product codes"
    dim = 768
    description = "class vector of DINOv2 ViT-B/14"
    derived_from = ("rgb",)
    aliases = ("tok_dinov2_global", "DINOv2-B14-global")
    licence = LICENCE

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the global feature of the sample's rgb picture."""
        from zoo_features.pictures import as_vector

        network = self.options(settings).network
        return as_vector(last_layer(network, sample["rgb"], GLOBAL_SIZE)[:, 0], self.dim, network.model)


plugin = Dinov2()
global_plugin = Dinov2Global()
