"""The critic that tokenizers can be trained against, and how much it counts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

WIDTHS = (32, 64, 128)
"""Channels of the critic after each halving of the resolution."""
REDUCTION = 2 ** len(WIDTHS)
"""Pixels along each side of what it judges at once: values have at least so many."""
MAX_WEIGHT = 1e4
"""The largest adaptive weight, as in the code of arXiv 2012.09841."""


class PatchCritic(nn.Sequential):
    """Says of each patch of a picture how true it looks: (b c h w) -> (b 1 h/8 w/8), unbounded.

    The patch discriminator of arXiv 1611.07004, section 3.2, with group norms, which do not mix the samples of a batch.
    """

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for narrow, wide in itertools.pairwise(WIDTHS):
            convolution = nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=False)
            layers += [convolution, nn.GroupNorm(8, wide), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))


def hinge_loss(true: Tensor, made: Tensor) -> Float[Tensor, ""]:
    """What the critic minimises: true patches above 1, made ones below -1 (arXiv 1705.02894, eq. 3), halved."""
    return 0.5 * (F.relu(1 - true).mean() + F.relu(1 + made).mean())


def adversarial_losses(critic: nn.Module, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The model's loss, whose gradient spares the critic, and the critic's, whose gradient spares the model."""
    critic.requires_grad_(False)
    loss = -critic(outputs).mean()
    critic.requires_grad_(True)
    return loss, hinge_loss(critic(target), critic(outputs.detach()))


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: nn.Parameter) -> Float[Tensor, ""]:
    """The weight at which the adversarial loss moves the decoder's last layer as much as the reconstruction loss does.

    The ratio of the norms of their gradients (arXiv 2012.09841, eq. 7).
    """
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=MAX_WEIGHT).detach()


def last_weight(decoder: nn.Module) -> nn.Parameter:
    """The weight of a decoder's last layer."""
    return [parameter for parameter in decoder.parameters() if parameter.ndim > 1][-1]
