"""Heads: modules from encoder features to the outputs of a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.learn.encoder import flat_grid
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.transformer import CrossAttention, initialise, layer_norm
from zoo_backbone.use.transfer.config import HeadName, TransferConfig
from zoo_backbone.use.transfer.targets import ClassMap, Numbers

Reads = Literal["vector", "map", "tokens"]
MLP_RATIO = 4
"""Hidden width of a ConvNeXt block over its own width."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The inputs whose tokens lie on one two-dimensional grid."""

    names: tuple[str, ...]
    shape: tuple[int, int]

    @classmethod
    def of(cls, layout: EmbeddingLayout, inputs: Sequence[str]) -> Grid:
        """Return the grid of the first input that has one, with all inputs that share it. Raises ConfigError."""
        shapes = {name: shape for name in inputs if (shape := flat_grid(layout.spec(name)))}
        if not shapes:
            raise ConfigError(f"--input {','.join(inputs)}: predicting a map needs an input with a grid of two axes")
        shape = next(iter(shapes.values()))
        return cls(names=tuple(name for name, grid_shape in shapes.items() if grid_shape == shape), shape=shape)


class Head(nn.Module):
    """Base class. `reads` selects the features that a head gets, and their mask (None: all tokens are present).

    "vector": mean features `(batch, dim)`; "map": `(batch, dim, rows, columns)`; "tokens": `(batch, tokens, dim)`.
    """

    reads: ClassVar[Reads]

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return the outputs for `Target.loss` and `Target.decode`."""
        raise NotImplementedError


class PooledLinear(Head):
    """A linear layer on mean features, after batch norm without affine weights (MAE, arXiv 2111.06377, A.1)."""

    reads: ClassVar[Reads] = "vector"

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.out = _small_linear(dim, outputs)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        return self.out(self.norm(features))


class Attentive(Head):
    """Attention pooling with one learned query, and a linear layer."""

    reads: ClassVar[Reads] = "tokens"

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, config.dim))
        self.attention = CrossAttention(config)
        self.norm = layer_norm(config.dim, config)
        self.out = nn.Linear(config.dim, outputs)
        self.apply(initialise)
        nn.init.normal_(self.query)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        query = self.query.expand(len(features), -1, -1)
        context = *self.attention.keys_and_values(features, None), _attention_mask(mask)
        pooled = self.attention(query, None, [context])
        return self.out(self.norm(pooled[:, 0]))


class MapLinear(Head):
    """A linear layer from each token to the pixels of its patch."""

    reads: ClassVar[Reads] = "map"

    def __init__(self, dim: int, outputs: int, patch: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.size = patch, size
        self.out = _small_linear(dim, outputs * math.prod(patch))

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        pixels = self.out(rearrange(features, "b d h w -> b h w d"))
        height, width = self.patch
        return _resized(rearrange(pixels, "b h w (c p q) -> b c (h p) (w q)", p=height, q=width), self.size)


class ConvNeXtBlock(nn.Module):
    """A depth-wise convolution and an MLP over channels (ConvNeXt, arXiv 2201.03545, figure 4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down = nn.Linear(dim, MLP_RATIO * dim), nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(rearrange(self.depthwise(x), "b d h w -> b h w d"))
        inner = self.down(F.gelu(self.up(inner)))
        return x + rearrange(inner, "b h w d -> b d h w")


class MapConvNeXt(Head):
    """ConvNeXt blocks at the grid's resolution and at twice that, then a transposed convolution to pixels.

    After the dense heads of 4M (arXiv 2312.06647, appendix).
    """

    reads: ClassVar[Reads] = "map"

    def __init__(
        self, dim: int, outputs: int, patch: tuple[int, int], size: tuple[int, int], width: int, blocks: int
    ) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 1), *(ConvNeXtBlock(width) for _ in range(blocks))]
        if all(side % 2 == 0 for side in patch):
            layers += [nn.ConvTranspose2d(width, width // 2, 2, 2), *(ConvNeXtBlock(width // 2) for _ in range(blocks))]
            width, patch = width // 2, (patch[0] // 2, patch[1] // 2)
        layers.append(nn.ConvTranspose2d(width, outputs, patch, patch))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        return _resized(self.layers(features), self.size)


def build_head(name: HeadName, target: Any, config: TransferConfig, model: ModelConfig, grid: Grid | None) -> Head:
    """Return a new head for features of a backbone with the config `model`.

    Map heads read `grid`. Raises ValueError for a target without outputs.
    """
    if target.outputs < 1:
        raise ValueError(f"target: predicts {target.outputs} numbers, expected at least 1")
    if name == "linear" and grid is None:
        return PooledLinear(model.dim, target.outputs)
    if name == "attentive":
        small = ModelConfig(dim=model.dim, encoder_depth=1, decoder_depth=1, heads=model.heads)
        return Attentive(small, target.outputs)
    assert grid is not None and isinstance(target, ClassMap | Numbers)
    rows, columns = grid.shape
    patch = (-(-target.size[0] // rows), -(-target.size[1] // columns))
    if min(patch) < 1:
        raise ValueError(f"target: has the size {target.size}, expected at least 1")
    dim = model.dim * len(grid.names)
    if name == "linear":
        return MapLinear(dim, target.outputs, patch, target.size)
    return MapConvNeXt(dim, target.outputs, patch, target.size, model.dim, config.head_blocks)


def _small_linear(dim: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(dim, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _attention_mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else rearrange(mask, "b n -> b 1 1 n")


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate to the target's size if patches do not divide it."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
