"""Convolutional encoder and decoder that do little at full resolution, for small pictures on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tokenizers_zoo.blocks.config import BlockConfig

if TYPE_CHECKING:
    from jaxtyping import Float

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
    """Two times norm, SiLU, 3x3 convolution, and a residual sum; the second convolution starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        last = self.body[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Same shape as `x`."""
        return x + self.body(x)


def _stages(config: BlockConfig, patch_size: int) -> list[tuple[int, int]]:
    """(factor, channels) per resolution, finest first."""
    factors = scale_factors(patch_size)
    return [(factor, config.width * min(2**level, MAX_WIDENING)) for level, factor in enumerate(factors)]


class ConvEncoder(nn.Sequential):
    """Space to channels by the stem's factor, residual blocks, down-sample, residual blocks, ...: (b c h w) -> (b d h/p w/p)."""

    def __init__(self, config: BlockConfig, in_channels: int, out_dim: int, patch_size: int) -> None:
        layers: list[nn.Module] = []
        channels = in_channels
        for level, (factor, width) in enumerate(_stages(config, patch_size)):
            kernel = 3 if level == 0 else 1
            layers += [nn.PixelUnshuffle(factor), nn.Conv2d(channels * factor**2, width, kernel, padding=kernel // 2)]
            layers += [ResidualBlock(width) for _ in range(config.depth)]
            channels = width
        layers += [nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, out_dim, 1)]
        super().__init__(*layers)


class ConvDecoder(nn.Sequential):
    """The encoder mirrored: (b d h w) -> (b c h*p w*p), with its last convolutions at half or full resolution."""

    def __init__(self, config: BlockConfig, in_dim: int, out_channels: int, patch_size: int) -> None:
        stages = _stages(config, patch_size)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(in_dim, stages[0][1], 3, padding=1)]
        for (factor, width), (_, finer) in zip(stages[:-1], stages[1:], strict=True):
            layers += [ResidualBlock(width) for _ in range(config.depth)]
            layers += [nn.Conv2d(width, finer * factor**2, 1), nn.PixelShuffle(factor)]
        stem, width = stages[-1]
        layers += [ResidualBlock(width) for _ in range(config.depth)]
        if stem == 4:
            layers += [nn.Conv2d(width, width // 2 * 4, 1), nn.PixelShuffle(2)]
            width, stem = width // 2, 2
        layers += [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, out_channels * stem**2, 3, padding=1)]
        layers += [nn.PixelShuffle(stem)]
        super().__init__(*layers)
