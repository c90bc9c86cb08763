"""Attention, MLP and pre-norm blocks, as in 4M (arXiv 2312.06647, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo_backbone.model.config import ModelConfig

BlockContext = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values of a context, and the mask of used inputs: bool, broadcast to `batch heads targets inputs`."""
NORM_EPSILON = 1e-6
ALIGNED = 1.5
"""Initial scale of cross-attention keys over queries: how sharply a target attends to its own position."""


def layer_norm(width: int, config: ModelConfig) -> nn.LayerNorm:
    """Return a layer norm with 4M's epsilon, with a bias if the config asks for one."""
    return nn.LayerNorm(width, eps=NORM_EPSILON, bias=config.biased("norm"))


def rotate(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Rotate queries or keys `batch heads tokens head_size` by `batch tokens head_size` (arXiv 2104.09864).

    A pair is a channel of the first half and the same channel of the second half. The product of a query and a key
    then depends on the difference of their angles only.
    """
    if rotation is None:
        return x
    cos, sin = rotation.unsqueeze(1).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class FusedLinear(nn.Linear):
    """`parts` projections of one input, computed as one."""

    def __init__(self, inputs: int, outputs: int, parts: int, bias: bool) -> None:
        super().__init__(inputs, parts * outputs, bias=bias)
        self.parts = parts


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of the tokens that one self-attention has read, `batch heads length head_size`."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(cls, batch: int, length: int, config: ModelConfig, like: Tensor) -> KeyValueCache:
        """Allocate room for `length` tokens of `batch` samples, with the dtype and device of `like`."""
        shape = (batch, config.heads, length, config.dim // config.heads)
        return cls(keys=like.new_zeros(shape), values=like.new_zeros(shape))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values and return all so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = FusedLinear(config.dim, config.dim, 3, config.biased("qkv"))
        self.out = nn.Linear(config.dim, config.dim, bias=config.biased("out"))
        head_size = config.dim // config.heads
        self.query_norm = layer_norm(head_size, config) if config.qk_norm else nn.Identity()
        self.key_norm = layer_norm(head_size, config) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rotation: Tensor | None, mask: Tensor | None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Map `batch tokens dim` to the same shape.

        `mask` is bool, broadcast to `batch heads tokens keys`; None attends to everything.
        """
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        query, key = rotate(self.query_norm(query), rotation), rotate(self.key_norm(key), rotation)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention of targets to the context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.dim, config.dim, bias=config.biased("qkv"))
        self.kv = FusedLinear(config.dim, config.dim, 2, config.biased("qkv"))
        self.out = nn.Linear(config.dim, config.dim, bias=config.biased("out"))
        head_size = config.dim // config.heads
        self.query_norm = layer_norm(head_size, config) if config.qk_norm else nn.Identity()
        self.key_norm = layer_norm(head_size, config) if config.qk_norm else nn.Identity()

    def align(self) -> None:
        """Initialise keys like queries, so that targets first attend to the inputs of their own position.

        Learning this from scratch takes a long plateau. Mimetic initialisation (arXiv 2305.09828) does the same for
        self-attention.
        """
        with torch.no_grad():
            self.kv.weight[: self.q.out_features] = ALIGNED * self.q.weight

    def keys_and_values(self, context: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return keys and values of a (normed) context, which can be reused for any targets."""
        key, value = rearrange(self.kv(context), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return rotate(self.key_norm(key), rotation), value

    def forward(self, x: Tensor, rotation: Tensor | None, contexts: Sequence[BlockContext]) -> Tensor:
        """Attend from targets `batch targets dim`.

        Several contexts, of different lengths, are for equal shares of the rows of `x`.
        """
        query = self.query_norm(rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads))
        parts = rotate(query, rotation).chunk(len(contexts))
        mixed = [self._attend(part, *of_part) for part, of_part in zip(parts, contexts, strict=True)]
        return self.out(torch.cat(mixed) if len(mixed) > 1 else mixed[0])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return `batch targets dim`.

        Consecutive rows of the query may share a row of the keys. They are treated as further heads with the same keys
        (grouped-query attention, arXiv 2305.13245), and the mask of a row applies to all its heads.
        """
        shared = False  # a comparison would be a symbol when compiled for any batch size, which SDPA refuses
        if len(query) > len(key):
            shared = True
            query = rearrange(query, "(b r) h n d -> b (h r) n d", b=len(key))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=shared)
        return rearrange(mixed, "b (h r) n d -> (b r) n (h d)", h=self.heads)


class MLP(nn.Module):
    """Two linear layers with a non-linearity, gated or not (SwiGLU: arXiv 2002.05202, equation 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.gated_mlp
        self.activation = nn.SiLU() if config.activation == "silu" else nn.GELU()
        self.up = FusedLinear(config.dim, config.mlp_hidden, 2 if self.gated else 1, config.biased("mlp"))
        self.down = nn.Linear(config.mlp_hidden, config.dim, bias=config.biased("mlp"))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.up(x)
        if self.gated:
            hidden, gate = hidden.chunk(2, dim=-1)
            hidden = self.activation(hidden) * gate
        else:
            hidden = self.activation(hidden)
        return self.down(hidden)


class Block(nn.Module):
    """Base of encoder and decoder blocks; with `activation_checkpointing`, inner activations are recomputed."""

    activation_checkpointing = False

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.compute, x, *args, use_reentrant=False, preserve_rng_state=False)
        return self.compute(x, *args)

    def compute(self, x: Tensor, *args: Any) -> Tensor:
        raise NotImplementedError


class EncoderBlock(Block):
    """Self-attention and MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = layer_norm(config.dim, config)
        self.attention = SelfAttention(config)
        self.mlp_norm = layer_norm(config.dim, config)
        self.mlp = MLP(config)

    def compute(self, x: Tensor, rotation: Tensor | None, mask: Tensor | None) -> Tensor:
        """Map `batch inputs dim` to the same shape."""
        x = x + self.attention(self.attention_norm(x), rotation, mask)
        return x + self.mlp(self.mlp_norm(x))


class DecoderBlock(Block):
    """Self-attention within a modality's targets, cross-attention to the context, MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_norm = layer_norm(config.dim, config)
        self.self_attention = SelfAttention(config)
        self.query_norm = layer_norm(config.dim, config)
        self.context_norm = layer_norm(config.dim, config)
        self.cross_attention = CrossAttention(config)
        self.mlp_norm = layer_norm(config.dim, config)
        self.mlp = MLP(config)

    def keys_and_values(self, context: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a fixed context."""
        return self.cross_attention.keys_and_values(self.context_norm(context), rotation)

    def compute(
        self,
        x: Tensor,
        rotation: Tensor | None,
        contexts: Sequence[BlockContext],
        mask: Tensor | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Map `batch targets dim` to the same shape; `mask` is for the self-attention."""
        x = x + self.self_attention(self.self_norm(x), rotation, mask, cache)
        x = x + self.cross_attention(self.query_norm(x), rotation, contexts)
        return x + self.mlp(self.mlp_norm(x))


def initialise(module: nn.Module) -> None:
    """Initialise linear layers like 4M and MAE: Xavier-uniform, each part of a fused projection separately; no bias."""
    if isinstance(module, nn.Linear):
        parts = module.parts if isinstance(module, FusedLinear) else 1
        bound = (6 / (module.in_features + module.out_features / parts)) ** 0.5
        with torch.no_grad():
            module.weight.uniform_(-bound, bound)
            if module.bias is not None:
                module.bias.zero_()
