"""Convolutional encoder and decoder that do little at full resolution, for small pictures on a CPU.

Norms are inside the residual blocks only: one on the way from picture to latents would take away a picture's mean and
contrast, which absolute quantities need. In its place, the weights on that way start such that variance is kept.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from tokenizers_zoo.blocks.config import BlockConfig

if TYPE_CHECKING:
    from jaxtyping import Float

NORM_GROUPS = 8
MAX_WIDENING = 4
"""Down-sampling doubles the channels up to this multiple of the width."""


def scale_factors(patch_size: int) -> list[int]:
    """The factors by which resolution falls, finest first: 4 (or 2, or 1) at the stem, then primes.

    Their product is the patch size: 8 -> [4, 2], 16 -> [4, 2, 2], 14 -> [2, 7].
    """
    stem = 4 if patch_size % 4 == 0 else 2 if patch_size % 2 == 0 else 1
    factors, rest, prime = [stem], patch_size // stem, 2
    while rest > 1:
        if rest % prime == 0:
            factors.append(prime)
            rest //= prime
        else:
            prime += 1
    return factors


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, SiLU, 1x1 convolution that starts at 0, and a residual sum.

    For equal time on a CPU, more steps with one 3x3 convolution beat fewer steps with two.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.body = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            last,
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Same shape as `x`."""
        return x + self.body(x)


class Stage(NamedTuple):
    """One resolution of an encoder or decoder."""

    factor: int
    """How many times finer the next finer resolution is, or the picture for the finest stage."""
    width: int
    """Channels."""
    depth: int
    """Residual blocks."""


def stages(config: BlockConfig, patch_size: int) -> list[Stage]:
    """The resolutions of an encoder, finest first; the last is the token grid, where most of the blocks are."""
    factors = scale_factors(patch_size)
    return [
        Stage(
            factor=factor,
            width=config.width * min(2**level, MAX_WIDENING),
            depth=config.depth if level == len(factors) - 1 else config.depth // 3,
        )
        for level, factor in enumerate(factors)
    ]


class ConvEncoder(nn.Sequential):
    """Space to channels, convolution, residual blocks, and again at each resolution: (b c h w) -> (b d h/p w/p)."""

    def __init__(self, config: BlockConfig, in_channels: int, out_dim: int, patch_size: int) -> None:
        layers: list[nn.Module] = []
        channels = in_channels
        for level, (factor, width, depth) in enumerate(stages(config, patch_size)):
            kernel = 3 if level == 0 else 1
            layers += [nn.PixelUnshuffle(factor), nn.Conv2d(channels * factor**2, width, kernel, padding=kernel // 2)]
            layers += [ResidualBlock(width) for _ in range(depth)]
            channels = width
        super().__init__(*layers, nn.Conv2d(channels, out_dim, 1))
        _keep_variance(self)


class ConvDecoder(nn.Sequential):
    """The encoder mirrored: (b d h w) -> (b c h*p w*p).

    The last convolution works at half resolution (the patch size permitting) and sees across the borders of patches.
    """

    def __init__(self, config: BlockConfig, in_dim: int, out_channels: int, patch_size: int) -> None:
        coarsest_first = stages(config, patch_size)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(in_dim, coarsest_first[0].width, 3, padding=1)]
        for coarse, fine in itertools.pairwise(coarsest_first):
            layers += [ResidualBlock(coarse.width) for _ in range(coarse.depth)]
            layers += [nn.Conv2d(coarse.width, fine.width * coarse.factor**2, 1), nn.PixelShuffle(coarse.factor)]
        factor, width, depth = coarsest_first[-1]
        layers += [ResidualBlock(width) for _ in range(depth)]
        if factor == 4:
            layers += [nn.Conv2d(width, width // 2 * 4, 1), nn.PixelShuffle(2)]
            width, factor = width // 2, 2
        layers += [nn.SiLU(), nn.Conv2d(width, out_channels * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        super().__init__(*layers)
        _keep_variance(self)


def _keep_variance(layers: nn.Sequential) -> None:
    """Start the convolutions outside residual blocks with weights of variance 1 / inputs, and zero biases."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
