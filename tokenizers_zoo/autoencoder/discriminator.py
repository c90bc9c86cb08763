"""The patch discriminator for adversarial training, and the adaptive weight of its loss."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

WIDTHS = (32, 64, 128)
"""Channels after each halving of the resolution."""
REDUCTION = 2 ** len(WIDTHS)
"""Pixels per output along each side; the smallest size of its inputs."""
MAX_WEIGHT = 1e4
"""The largest adaptive weight, as in the code of arXiv 2012.09841."""


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
