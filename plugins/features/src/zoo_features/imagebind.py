"""ImageBind: a map of vectors, and one vector that lies in one space with sound, text and more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.families.features import FeatureMapModality, MapSettings, published_map
from tokenizers_zoo.families.vectors import VectorModality, VectorSettings
from tokenizers_zoo.pretrained import PretrainedConfig

if TYPE_CHECKING:
    from tokenizers_zoo.ml4m.architecture import Architecture
    from zoo_features.imagebind_network import Seen

LICENCE = "Apache-2.0; weights of ImageBind: CC-BY-NC-SA-4.0"
CLASS_VECTOR = 1280
"""Numbers of the vision trunk's class vector."""
GLOBAL_SIZE = (16, 16)
"""Patches that the picture is resized to for the global vector: 224 x 224 pixels."""
PUBLISHED_COLOURS = "imagenet"
"""The setting `colours` of published tokenizers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagebindNetwork(PretrainedConfig):
    """The published tensors of ImageBind-Huge, under their names, as .safetensors."""

    files: ClassVar[tuple[str, ...]] = ("*.safetensors",)
    advice: ClassVar[str] = (
        "save the tensors of the published imagebind_huge.pth, under their names, as .safetensors in a folder, and set"
        " network.model to it"
    )

    model: str = "imagebind_huge"
    """A local folder, or a hub id (owner/name)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagebindSettings(MapSettings):
    """Settings of imagebind."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {**published_map(16), "colours": PUBLISHED_COLOURS}}
    map_size: int | tuple[int, int] = 16
    """Vectors along each side; the picture is resized to that many patches."""
    colours: Literal["clip", "imagenet"] = "clip"
    """Normalisation of the network's input: the mean and deviation that CLIP and ImageBind were trained with, or
    ImageNet's, as in published tokenizers."""
    network: ImagebindNetwork = ImagebindNetwork()
    """What derives the values from pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagebindGlobalSettings(VectorSettings):
    """Settings of imagebind_global."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {**VectorSettings.presets["4m"], "colours": PUBLISHED_COLOURS}
    }
    colours: Literal["clip", "imagenet"] = "clip"
    """Whose mean and deviation the picture is normalised by for the network; see imagebind."""
    network: ImagebindNetwork = ImagebindNetwork()
    """What derives the values from pictures."""
    vector: Literal["embedding", "class"] = "embedding"
    """embedding: the 1,024 numbers that lie in one space with other modalities; class: the 1,280 of the last norm
    before them, which published tokenizers are of."""


def seen(network: ImagebindNetwork, rgb: np.ndarray, patches: tuple[int, int], colours: str) -> Seen:
    """Run the vision trunk on the picture; `colours` as in the settings."""
    import torch

    from zoo_features.imagebind_network import load_vision_trunk
    from zoo_features.pictures import COLOURS, normalised

    trunk = network.load(load_vision_trunk)
    with torch.inference_mode():
        result: Seen = trunk(normalised(rgb, patches, trunk.side, COLOURS[colours], trunk.cls_token.device.type))
    return result


class Imagebind(FeatureMapModality):
    """Patch vectors of ImageBind's vision trunk (arXiv 2305.05665): float32 (1280, rows, columns), after the norm."""

    settings_class = ImagebindSettings
    summary = "ImageBind features of the picture as a grid of tokens"
    channels = 1280
    description = "patch vectors of ImageBind ViT-H/14"
    derived_from = ("rgb",)
    aliases = ("tok_imagebind@224", "tok_imagebind@448", "ImageBind-H14")
    licence = LICENCE

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the feature map of the sample's rgb picture."""
        from zoo_features.pictures import as_map

        options = self.options(settings)
        patches = seen(options.network, sample["rgb"], options.size, options.colours).patches
        return as_map(patches, options.size, self.channels, options.network.model)

    def published_settings(self, architecture: Architecture, options: ImagebindSettings) -> dict[str, Any]:
        """The size of the map, and the colours of the published tokenizers."""
        return {**super().published_settings(architecture, options), "colours": PUBLISHED_COLOURS}


class ImagebindGlobal(VectorModality):
    """The embedding of ImageBind (arXiv 2305.05665): float32 (1024,), of length 1; or its class vector, (1280,)."""

    settings_class = ImagebindGlobalSettings
    summary = "The ImageBind vector of the whole picture as product codes"
    dim = 1024
    description = "embedding of ImageBind ViT-H/14, of length 1"
    derived_from = ("rgb",)
    aliases = ("tok_imagebind_global", "ImageBind-H14-global")
    licence = LICENCE

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the global feature of the sample's rgb picture."""
        from zoo_features.pictures import as_vector

        options = self.options(settings)
        found = seen(options.network, sample["rgb"], GLOBAL_SIZE, options.colours)
        vector = found.embedding if options.vector == "embedding" else found.whole
        return as_vector(vector, self.numbers(options), options.network.model)

    def numbers(self, options: ImagebindGlobalSettings) -> int:
        return self.dim if options.vector == "embedding" else CLASS_VECTOR

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        """The vector that has as many numbers, and the colours of the published tokenizers."""
        vector = "class" if architecture.channels == CLASS_VECTOR else "embedding"
        return {"vector": vector, "colours": PUBLISHED_COLOURS}


plugin = Imagebind()
global_plugin = ImagebindGlobal()
