"""Heads: from the encoder's features to the outputs that a kind of answer asks for."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo_backbone.config import ModelConfig
from zoo_backbone.transfer.config import HeadName, TransferConfig
from zoo_backbone.transfer.decoder import TokenDecoder
from zoo_backbone.transfer.kinds import ClassMap, NumberMap, Tokens
from zoo_backbone.transfer.reading import Grid, Head, Reads
from zoo_backbone.transformer import CrossAttention, initialise, layer_norm

WIDER = 4
"""Hidden width of a ConvNeXt block over its own."""


class PooledLinear(Head):
    """One linear layer on the mean of all tokens, after a batch norm without weights (MAE, arXiv 2111.06377, A.1)."""

    reads: ClassVar[Reads] = "vector"

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.out = nn.Linear(dim, outputs)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """`batch dim` to `batch outputs`."""
        result: Tensor = self.out(self.norm(features))
        return result


class Attentive(Head):
    """One learned query attends to all tokens, and a linear layer reads what it found."""

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
        """`batch tokens dim` to `batch outputs`."""
        query = self.query.expand(len(features), -1, -1)
        seen = None if mask is None else rearrange(mask, "b n -> b 1 1 n")
        found = self.attention(query, None, self.attention.keys_and_values(features, None), seen)
        result: Tensor = self.out(self.norm(found[:, 0]))
        return result


class Neighbours(Head):
    """The labelled samples nearest by cosine vote; nothing is trained.

    The bank is centred, and so is what is compared with it: features that share a large part would all be alike.
    """

    reads: ClassVar[Reads] = "vector"
    bank: Tensor
    mean: Tensor
    answers: Tensor

    def __init__(self, bank: Tensor, answers: Tensor, neighbours: int, temperature: float, outputs: int) -> None:
        """`bank` is `samples dim`; `answers` are numbers, `samples outputs`, or classes, int64 `samples`.

        Probes of earlier versions have classes as numbers, one-hot.
        """
        super().__init__()
        self.register_buffer("mean", bank.mean(0))
        self.register_buffer("bank", F.normalize(bank - self.mean, dim=1))
        self.register_buffer("answers", answers)
        self.neighbours, self.temperature, self.outputs = neighbours, temperature, outputs

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """`batch dim` to `batch outputs`: the weighted mean of the neighbours' answers; of classes their shares."""
        cosines = F.normalize(features - self.mean, dim=1) @ self.bank.T
        best, rows = cosines.topk(min(self.neighbours, len(self.bank)), dim=1)
        weights = torch.softmax(best / self.temperature, dim=1)
        if self.answers.ndim == 1:
            shares = weights.new_zeros(len(weights), self.outputs)
            return shares.scatter_add(1, self.answers[rows], weights)
        return (weights.unsqueeze(2) * self.answers[rows]).sum(1)


class MapLinear(Head):
    """One linear layer from each token to the pixels of its patch."""

    reads: ClassVar[Reads] = "map"

    def __init__(self, dim: int, outputs: int, patch: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.size = patch, size
        self.out = nn.Linear(dim, outputs * math.prod(patch))
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """`batch dim rows columns` to `batch outputs height width`."""
        pixels = self.out(rearrange(features, "b d h w -> b h w d"))
        height, width = self.patch
        return resized(rearrange(pixels, "b h w (c p q) -> b c (h p) (w q)", p=height, q=width), self.size)


class ConvNeXtBlock(nn.Module):
    """A wide depth-wise convolution and an MLP over channels (ConvNeXt, arXiv 2201.03545, figure 4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down = nn.Linear(dim, WIDER * dim), nn.Linear(WIDER * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`batch dim height width` to the same."""
        inner = self.norm(rearrange(self.depthwise(x), "b d h w -> b h w d"))
        inner = self.down(F.gelu(self.up(inner)))
        return x + rearrange(inner, "b h w d -> b d h w")


class MapConvNeXt(Head):
    """ConvNeXt blocks at the grid's size and at twice that, and a transposed convolution to pixels.

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
        """`batch dim rows columns` to `batch outputs height width`."""
        return resized(self.layers(features), self.size)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Outputs at the size of the answer: interpolated where patches do not divide it."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)


def build_head(name: HeadName, kind: Any, config: TransferConfig, model: ModelConfig, grid: Grid | None) -> Head:
    """A new head on features of a backbone like `model`; maps lie on `grid`. knn is made of features, not here."""
    if name == "linear" and grid is None:
        return PooledLinear(model.dim, kind.outputs)
    small = ModelConfig(dim=model.dim, encoder_depth=1, decoder_depth=config.head_blocks, heads=model.heads)
    if name == "attentive":
        return Attentive(small, kind.outputs)
    if name == "tokens":
        return TokenDecoder(small, cast(Tokens, kind))
    assert grid is not None and isinstance(kind, ClassMap | NumberMap)
    rows, columns = grid.shape
    patch = (-(-kind.size[0] // rows), -(-kind.size[1] // columns))
    dim = model.dim * len(grid.names)
    if name == "linear":
        return MapLinear(dim, kind.outputs, patch, kind.size)
    return MapConvNeXt(dim, kind.outputs, patch, kind.size, model.dim, config.head_blocks)
