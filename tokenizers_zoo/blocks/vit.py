"""ViT encoder and decoder as in the 4M tokenizers: pre-norm, biases, exact GELU, 2-D sin-cos positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.blocks.config import BlockConfig
from tokenizers_zoo.blocks.mlp import Mlp

if TYPE_CHECKING:
    from jaxtyping import Float

REFERENCE_GRID = 14
"""Every grid is spread over this many position units per axis: the same range of positions at any size."""


def sincos_positions(height: int, width: int, dim: int) -> Float[Tensor, "n dim"]:
    """2-D sin-cos positions of a grid's cells, row by row; `dim` is a multiple of 4.

    Half of the numbers tell the row and half the column, as sines and cosines at frequencies 10000^(-4k/dim), as in
    arXiv 1706.03762, section 3.5. Coordinates are those of the cells' centres on a grid of REFERENCE_GRID x
    REFERENCE_GRID cells that covers the same picture.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def axis(cells: int) -> Tensor:
        centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * (REFERENCE_GRID / cells) - 0.5
        angles = centres[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = axis(height)[:, None].expand(-1, width, -1)
    columns = axis(width)[None].expand(height, -1, -1)
    return rearrange(torch.cat([rows, columns], dim=2), "h w d -> (h w) d").float()


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n dim"]:
        """Same shape as `x`; without the residual sum."""
        query, key, value = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(rearrange(mixed, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual sum."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.norm_mlp = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n dim"]:
        """Same shape as `x`."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Transformer(nn.Module):
    """Positions, blocks and a last norm over a grid of `width`-dimensional tokens."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        assert config.heads is not None and config.mlp_ratio is not None
        self.width = config.width
        self.blocks = nn.Sequential(*[Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "batch h w width"]) -> Float[Tensor, "batch h w width"]:
        """Same shape as `x`, which may be any size."""
        height, width = x.shape[1:3]
        positions = sincos_positions(height, width, self.width).to(x)
        x = self.norm(self.blocks(rearrange(x, "b h w d -> b (h w) d") + positions))
        return rearrange(x, "b (h w) d -> b h w d", h=height)


class VitEncoder(nn.Module):
    """A picture to a grid of latents, one per patch."""

    def __init__(self, config: BlockConfig, in_channels: int, out_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed = nn.Linear(in_channels * patch_size**2, config.width)
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.width, out_dim)

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim h w"]:
        """Latents of all patches; `h` and `w` are the picture's sizes over the patch size."""
        patch = self.patch_size
        patches = rearrange(pixels, "b c (h p) (w q) -> b h w (p q c)", p=patch, q=patch)
        return rearrange(self.head(self.transformer(self.embed(patches))), "b h w d -> b d h w")


class VitDecoder(nn.Module):
    """A grid of codes to a picture, `patch_size` times as high and wide."""

    def __init__(self, config: BlockConfig, in_dim: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed = nn.Linear(in_dim, config.width)
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.width, out_channels * patch_size**2)

    def forward(self, codes: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch channels height width"]:
        """The picture, unbounded."""
        patches = self.head(self.transformer(self.embed(rearrange(codes, "b d h w -> b h w d"))))
        return rearrange(patches, "b h w (p q c) -> b c (h p) (w q)", p=self.patch_size, q=self.patch_size)


def _initialise(module: nn.Module) -> None:
    """Xavier uniform weights and zero biases, as MAE and 4M do."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
