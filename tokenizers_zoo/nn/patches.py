"""Cutting tensors with one to three axes into patches, and putting them together again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

PatchSize = int | tuple[int, ...]
"""Cells of each axis that make a patch; one number stands for both axes of a picture."""


def patch_sides(patch_size: PatchSize) -> tuple[int, ...]:
    """The sides of a patch, one per axis. Raises ValueError unless they are one to three numbers of at least 1."""
    sides = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    if not 1 <= len(sides) <= 3 or min(sides) < 1:
        raise ValueError(f"patch_size: expected one to three numbers of at least 1, got {patch_size}")
    return sides


def _pattern(axes: int) -> tuple[str, str, str]:
    """Names for einops: the whole axes, the patches along them, the cells within a patch."""
    whole = " ".join(f"(n{axis} p{axis})" for axis in range(axes))
    return whole, " ".join(f"n{axis}" for axis in range(axes)), " ".join(f"p{axis}" for axis in range(axes))


def _sizes(sides: tuple[int, ...]) -> dict[str, int]:
    return {f"p{axis}": side for axis, side in enumerate(sides)}


def to_patches(x: Float[Tensor, "batch channels *axes"], sides: tuple[int, ...]) -> Float[Tensor, "batch *grid dim"]:
    """One vector per patch: its cells row by row, all channels of a cell together."""
    whole, grid, cells = _pattern(len(sides))
    return rearrange(x, f"b c {whole} -> b {grid} ({cells} c)", **_sizes(sides))


def from_patches(x: Float[Tensor, "batch *grid dim"], sides: tuple[int, ...]) -> Float[Tensor, "batch channels *axes"]:
    """The inverse of `to_patches`."""
    whole, grid, cells = _pattern(len(sides))
    return rearrange(x, f"b {grid} ({cells} c) -> b c {whole}", **_sizes(sides))


class Unshuffle(nn.Module):
    """Space to channels by a factor per axis: (b, c, *axes) -> (b, c x factors, *axes / factors).

    On two equal factors it is `nn.PixelUnshuffle`, in the same order of channels.
    """

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch more *grid"]:
        whole, grid, cells = _pattern(len(self.factors))
        return rearrange(x, f"b c {whole} -> b (c {cells}) {grid}", **_sizes(self.factors))


class Shuffle(nn.Module):
    """Channels to space: the inverse of `Unshuffle`, on two equal factors `nn.PixelShuffle`."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Float[Tensor, "batch more *grid"]) -> Float[Tensor, "batch channels *axes"]:
        whole, grid, cells = _pattern(len(self.factors))
        return rearrange(x, f"b (c {cells}) {grid} -> b c {whole}", **_sizes(self.factors))
