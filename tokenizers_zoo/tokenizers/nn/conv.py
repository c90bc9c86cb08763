"""Convolutional encoder and decoder that do little at full resolution, for small values on a CPU; one to three axes.

Norms are inside the residual blocks only: one on the way from picture to latents would take away a picture's mean and
contrast, which absolute quantities need. In its place, the weights on that way start such that variance is kept.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tokenizers_zoo.tokenizers.nn.config import BlockConfig
from tokenizers_zoo.tokenizers.nn.layers import Mlp, shuffle, unshuffle

if TYPE_CHECKING:
    from jaxtyping import Float

NORM_GROUPS = 8
MAX_WIDENING = 4
"""Down-sampling doubles the channels up to this multiple of the width."""
CONVOLUTIONS: tuple[type[nn.Conv1d | nn.Conv2d | nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Convolutions by number of axes minus 1."""


def scale_factors(side: int) -> list[int]:
    """Return the downsampling factors of one axis, finest first: 4 (or 2, or 1) at the stem, then primes.

    Their product is the patch's side: 8 -> [4, 2], 16 -> [4, 2, 2], 14 -> [2, 7].
    """
    stem = 4 if side % 4 == 0 else 2 if side % 2 == 0 else 1
    factors, rest, prime = [stem], side // stem, 2
    while rest > 1:
        if rest % prime == 0:
            factors.append(prime)
            rest //= prime
        else:
            prime += 1
    return factors


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution over 3 cells per axis, SiLU, pointwise convolution that starts at 0, a residual sum.

    For equal time on a CPU, more steps with one wide convolution beat fewer steps with two.
    """

    def __init__(self, channels: int, axes: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes - 1]
        last = convolution(channels, channels, 1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.body = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, channels),
            nn.SiLU(),
            convolution(channels, channels, 3, padding=1),
            nn.SiLU(),
            last,
        )

    def forward(self, x: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch channels *axes"]:
        return x + self.body(x)


class ConvNextBlock(nn.Module):
    """Depthwise convolution over 7 cells per axis, norm over channels, MLP, a scale per channel, a residual sum.

    ConvNeXt, arXiv 2201.03545, figure 4; the scale starts at 1e-6.
    """

    def __init__(self, channels: int, axes: int = 2) -> None:
        super().__init__()
        self.depthwise = CONVOLUTIONS[axes - 1](channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, 4 * channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch channels *axes"]:
        return x + (self.gamma * self.mlp(self.norm(self.depthwise(x).movedim(1, -1)))).movedim(-1, 1)


def stages(config: BlockConfig, patch: tuple[int, ...]) -> list[tuple[tuple[int, ...], int, int]]:
    """Return factors, width and depth of each resolution of an encoder, finest first.

    Factors say how many times finer the next finer resolution is along each axis, or the values for the finest one.
    The last resolution is the token grid, with most of the blocks. An axis with fewer factors than another is
    downsampled in the last stages: (2, 8, 8) -> (1, 4, 4), (2, 2, 2).
    """
    per_axis = [scale_factors(side) for side in patch]
    last = max(map(len, per_axis)) - 1
    padded = [[1] * (last + 1 - len(factors)) + factors for factors in per_axis]
    depths = [config.depth // 3] * last + [config.depth]
    widths = [config.width * min(2**level, MAX_WIDENING) for level in range(last + 1)]
    return list(zip(zip(*padded, strict=True), widths, depths, strict=True))


class ConvEncoder(nn.Sequential):
    """Space to channels, convolution, residual blocks, and again at each resolution: (b c *axes) -> (b d *grid)."""

    def __init__(self, config: BlockConfig, in_channels: int, out_dim: int, patch: tuple[int, ...]) -> None:
        axes, convolution = len(patch), CONVOLUTIONS[len(patch) - 1]
        layers: list[nn.Module] = []
        channels = in_channels
        for level, (factors, width, depth) in enumerate(stages(config, patch)):
            kernel = 3 if level == 0 else 1
            cells = channels * math.prod(factors)
            layers += [unshuffle(factors), convolution(cells, width, kernel, padding=kernel // 2)]
            layers += [ResidualBlock(width, axes) for _ in range(depth)]
            channels = width
        super().__init__(*layers, convolution(channels, out_dim, 1))
        _keep_variance(self)


class ConvDecoder(nn.Sequential):
    """The encoder mirrored: (b d *grid) -> (b c *axes).

    The last convolution works at half resolution (the patch permitting) and sees across the borders of patches.
    """

    def __init__(self, config: BlockConfig, in_dim: int, out_channels: int, patch: tuple[int, ...]) -> None:
        axes, convolution = len(patch), CONVOLUTIONS[len(patch) - 1]
        coarsest_first = stages(config, patch)[::-1]
        layers: list[nn.Module] = [convolution(in_dim, coarsest_first[0][1], 3, padding=1)]
        for (factors, width, depth), (_, finer, _) in itertools.pairwise(coarsest_first):
            layers += [ResidualBlock(width, axes) for _ in range(depth)]
            layers += [convolution(width, finer * math.prod(factors), 1), shuffle(factors)]
        factors, width, depth = coarsest_first[-1]
        layers += [ResidualBlock(width, axes) for _ in range(depth)]
        if 4 in factors:
            halves = tuple(2 if factor == 4 else 1 for factor in factors)
            layers += [convolution(width, width // 2 * math.prod(halves), 1), shuffle(halves)]
            width, factors = width // 2, tuple(f // half for f, half in zip(factors, halves, strict=True))
        last = convolution(width, out_channels * math.prod(factors), 3, padding=1)
        super().__init__(*layers, nn.SiLU(), last, shuffle(factors))
        _keep_variance(self)


def _keep_variance(layers: nn.Sequential) -> None:
    """Start the convolutions outside residual blocks with weights of variance 1 / inputs, and zero biases."""
    for layer in layers:
        if isinstance(layer, CONVOLUTIONS):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
