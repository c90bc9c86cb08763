"""ViT encoder and decoder as in the 4M tokenizers: pre-norm, biases, exact GELU, sin-cos positions on 1 to 3 axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.tokenizers.nn.config import BlockConfig
from tokenizers_zoo.tokenizers.nn.conv import ConvNextBlock
from tokenizers_zoo.tokenizers.nn.layers import Mlp, from_patches, to_patches

if TYPE_CHECKING:
    from jaxtyping import Float

REFERENCE_GRID = 14
"""Position units per axis of every grid, so that the range of positions is the same at any size."""


def sincos_positions(grid: tuple[int, ...], dim: int) -> Float[Tensor, "n dim"]:
    """Return sin-cos positions of the cells of a grid with any number of axes, the last axis fastest.

    Each of n axes has dim / n numbers: sines and cosines at frequencies 10000^(-2nk/dim), as in arXiv 1706.03762,
    section 3.5; a remainder stays 0. A coordinate is the centre of a cell, scaled so that the grid has REFERENCE_GRID
    units per axis.
    """
    # By numpy, so that exported networks hold the table: some runtimes have no sine of float64.
    share = dim // (2 * len(grid))
    frequencies = 10000.0 ** -(np.arange(share) / share)
    coordinates = [(np.arange(n) + 0.5) * (REFERENCE_GRID / n) - 0.5 for n in grid]
    angles = [axis.flatten()[:, None] * frequencies for axis in np.meshgrid(*coordinates, indexing="ij")]
    table = np.concatenate([part for angle in angles for part in (np.sin(angle), np.cos(angle))], axis=1)
    return torch.from_numpy(np.pad(table, ((0, 0), (0, dim - table.shape[1]))).astype(np.float32))


def resized_positions(positions: Float[Tensor, "1 dim *grid"], grid: tuple[int, ...]) -> Float[Tensor, "n dim"]:
    """Return stored positions for a grid of any size, interpolated if the size differs."""
    if tuple(positions.shape[2:]) != grid:
        mode = ("linear", "bicubic", "trilinear")[len(grid) - 1]
        positions = F.interpolate(positions, size=grid, mode=mode, align_corners=False)
    return positions[0].flatten(1).T


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
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Transformer(nn.Module):
    """Positions, blocks and the configured output layers, over a grid of `width`-dimensional tokens."""

    positions: Tensor

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        assert config.heads is not None and config.mlp_ratio is not None
        self.width = config.width
        self.blocks = nn.Sequential(*[Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=1e-6) if config.final_norm else nn.Identity()
        self.norm_post: nn.Module | None = None
        if config.post_mlp:
            self.norm_post = nn.LayerNorm(config.width, eps=1e-6)
            self.post_mlp = Mlp(config.width, int(config.width * config.mlp_ratio), nn.Tanh)
        if config.positions:
            table = sincos_positions(config.positions, config.width)
            self.register_buffer("positions", table.T.reshape(1, config.width, *config.positions))
        self.stored = bool(config.positions)
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "batch *grid width"]) -> Float[Tensor, "batch *grid width"]:
        """Same shape as `x`, which may be any size."""
        grid = tuple(x.shape[1:-1])
        positions = resized_positions(self.positions, grid) if self.stored else sincos_positions(grid, self.width)
        # Positions stay float32, and so do the sums that all blocks add to, also under autocast.
        tokens = self.norm(self.blocks(x.flatten(1, -2) + positions.to(x.device)))
        if self.norm_post is not None:
            tokens = tokens + self.post_mlp(self.norm_post(tokens))
        return tokens.view_as(x)


class VitEncoder(nn.Module):
    """A tensor with one to three axes to a grid of latents, one per patch."""

    def __init__(self, config: BlockConfig, in_channels: int, out_dim: int, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(in_channels * math.prod(patch), config.width)
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.width, out_dim)

    def forward(self, values: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch dim *grid"]:
        """Latents of all patches; the grid is the axes over the patch's sides."""
        return self.head(self.transformer(self.embed(to_patches(values, self.patch)))).movedim(-1, 1)


class VitDecoder(nn.Module):
    """A grid of codes to a tensor that is larger by the patch's side along each axis."""

    def __init__(self, config: BlockConfig, in_dim: int, out_channels: int, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(in_dim, config.width)
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.width, out_channels * math.prod(patch))
        self.out = nn.Sequential(*[ConvNextBlock(out_channels, len(patch)) for _ in range(config.out_blocks)])

    def forward(self, codes: Float[Tensor, "batch dim *grid"]) -> Float[Tensor, "batch channels *axes"]:
        """Return unbounded values."""
        patches = self.head(self.transformer(self.embed(codes.movedim(1, -1))))
        return self.out(from_patches(patches, self.patch))


def _initialise(module: nn.Module) -> None:
    """Xavier uniform weights and zero biases, as MAE and 4M do."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
