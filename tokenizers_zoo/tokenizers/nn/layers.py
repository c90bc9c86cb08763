"""Layers that several kinds of blocks share: the MLP, and cutting tensors with one to three axes into patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class FunctionModule(nn.Module):
    """A function as a module with the weights of the `parts` that it calls."""

    def __init__(self, function: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Mlp(nn.Module):
    """Linear, activation (exact GELU by default), linear, with biases; without the residual sum."""

    def __init__(self, dim: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.activation = activation()
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        return self.contract(self.activation(self.expand(x)))


class InvertedBottleneck(nn.Module):
    """Norm, linear to a multiple of the width, GELU, linear back, residual sum (arXiv 2306.13575, section 3.2)."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, expansion * width)

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        return x + self.mlp(self.norm(x))


def _pattern(sides: tuple[int, ...]) -> tuple[str, str, str, dict[str, int]]:
    """Return names for einops (axes, patches along them, cells within a patch), and the sizes of the cells."""
    sizes = {f"p{axis}": side for axis, side in enumerate(sides)}
    axes = " ".join(f"(n{axis} p{axis})" for axis in range(len(sides)))
    return axes, " ".join(f"n{axis}" for axis in range(len(sides))), " ".join(sizes), sizes


def to_patches(x: Float[Tensor, "batch channels *axes"], sides: tuple[int, ...]) -> Float[Tensor, "batch *grid dim"]:
    """Return one vector per patch: its cells row by row, the channels of a cell together."""
    axes, grid, cells, sizes = _pattern(sides)
    return rearrange(x, f"b c {axes} -> b {grid} ({cells} c)", **sizes)


def from_patches(x: Float[Tensor, "batch *grid dim"], sides: tuple[int, ...]) -> Float[Tensor, "batch channels *axes"]:
    """Undo `to_patches`."""
    axes, grid, cells, sizes = _pattern(sides)
    return rearrange(x, f"b {grid} ({cells} c) -> b c {axes}", **sizes)


def unshuffle(factors: tuple[int, ...]) -> Rearrange:
    """Space to channels by a factor per axis: (b, c, *axes) -> (b, c x factors, *axes / factors).

    Equals `nn.PixelUnshuffle` for two equal factors.
    """
    axes, grid, cells, sizes = _pattern(factors)
    return Rearrange(f"b c {axes} -> b (c {cells}) {grid}", **sizes)


def shuffle(factors: tuple[int, ...]) -> Rearrange:
    """Channels to space: the inverse of `unshuffle`; equals `nn.PixelShuffle` for two equal factors."""
    axes, grid, cells, sizes = _pattern(factors)
    return Rearrange(f"b (c {cells}) {grid} -> b c {axes}", **sizes)
