"""Attention, MLP and blocks: pre-norm, as in 4M (arXiv 2312.06647, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo_backbone.config import ModelConfig
from zoo_backbone.positions import turned

KeysAndValues = tuple[Tensor, Tensor]
NORM_EPSILON = 1e-6
ALIGNED = 1.5
"""Size of a cross-attention's first keys over that of its queries: how sharply it looks at its own position."""


def layer_norm(width: int, config: ModelConfig) -> nn.LayerNorm:
    """A layer norm with 4M's epsilon and, as the config says, without bias."""
    return nn.LayerNorm(width, eps=NORM_EPSILON, bias=config.biased("norm"))


class FusedLinear(nn.Linear):
    """`parts` projections of one input, computed as one."""

    def __init__(self, inputs: int, outputs: int, parts: int, bias: bool) -> None:
        super().__init__(inputs, parts * outputs, bias=bias)
        self.parts = parts


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of the tokens read so far in one self-attention, `batch heads length head_size`.

    Room is made once; `append` writes the new ones behind the old.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(cls, batch: int, length: int, config: ModelConfig, like: Tensor) -> KeyValueCache:
        """Room for `length` tokens of `batch` samples, with the dtype and device of `like`."""
        shape = (batch, config.heads, length, config.dim // config.heads)
        return cls(keys=like.new_zeros(shape), values=like.new_zeros(shape))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values; gives all so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = FusedLinear(config.dim, config.dim, 3, config.biased("qkv"))
        self.out = nn.Linear(config.dim, config.dim, bias=config.biased("out"))
        head_size = config.dim // config.heads
        self.query_norm = layer_norm(head_size, config) if config.qk_norm else nn.Identity()
        self.key_norm = layer_norm(head_size, config) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, turns: Tensor | None, mask: Tensor | None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """`batch tokens dim` to the same; `mask` is bool, broadcast to `batch heads tokens keys`, None for all.

        `turns`, `batch tokens head_size`, are those of the tokens' positions (see `positions.turned`).
        """
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        query, key = turned(self.query_norm(query), turns), turned(self.key_norm(key), turns)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        result: Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return result


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
        """Start with keys that are made as queries are, so that targets first look at inputs of their own position.

        Learning that from nothing is a long plateau (mimetic initialisation, arXiv 2305.09828, does so for
        self-attention).
        """
        with torch.no_grad():
            self.kv.weight[: self.q.out_features] = ALIGNED * self.q.weight

    def keys_and_values(self, context: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor]:
        """What attention needs of a (normed) context, to be kept while the context is fixed."""
        key, value = rearrange(self.kv(context), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return turned(self.key_norm(key), turns), value

    def forward(
        self,
        x: Tensor,
        turns: Tensor | None,
        keys_and_values: KeysAndValues | list[KeysAndValues],
        mask: Tensor | list[Tensor | None] | None,
    ) -> Tensor:
        """Attend from targets `batch targets dim`; `mask` is bool, broadcast to `batch heads targets inputs`.

        Lists hold contexts of different lengths, each for an equal share of the rows of `x`.
        """
        query = self.query_norm(rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads))
        query = turned(query, turns)
        if isinstance(keys_and_values, list):
            assert isinstance(mask, list)
            parts = zip(query.chunk(len(keys_and_values)), keys_and_values, mask, strict=True)
            mixed = torch.cat([self._attend(*part) for part in parts])
        else:
            assert not isinstance(mask, list)
            mixed = self._attend(query, keys_and_values, mask)
        result: Tensor = self.out(mixed)
        return result

    def _attend(self, query: Tensor, keys_and_values: KeysAndValues, mask: Tensor | None) -> Tensor:
        """Return `batch targets dim`.

        Consecutive rows of the query may share a row of the keys. They are treated as further heads with the same keys
        (grouped-query attention, arXiv 2305.13245), and the mask of a row applies to all its heads.
        """
        key, value = keys_and_values
        shared = False  # where compiled for any batch, the comparison itself is a symbol, which attention refuses
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
        """`... dim` to `... dim`."""
        hidden: Tensor = self.up(x)
        if self.gated:
            hidden, gate = hidden.chunk(2, dim=-1)
            hidden = self.activation(hidden) * gate
        else:
            hidden = self.activation(hidden)
        result: Tensor = self.down(hidden)
        return result


class Block(nn.Module):
    """Base of encoder and decoder blocks; with `activation_checkpointing`, inner activations are recomputed."""

    activation_checkpointing = False

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """`batch tokens dim` to the same; see `compute`."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(self.compute, x, *others, use_reentrant=False, preserve_rng_state=False)
            return result
        return self.compute(x, *others)

    def compute(self, x: Tensor, *others: Any) -> Tensor:
        """What the block is."""
        raise NotImplementedError


class EncoderBlock(Block):
    """Self-attention and MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = layer_norm(config.dim, config)
        self.attention = SelfAttention(config)
        self.mlp_norm = layer_norm(config.dim, config)
        self.mlp = MLP(config)

    def compute(self, x: Tensor, turns: Tensor | None, mask: Tensor | None) -> Tensor:
        """`batch inputs dim` to the same."""
        x = x + self.attention(self.attention_norm(x), turns, mask)
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result


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

    def keys_and_values(self, context: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor]:
        """What this block keeps of a fixed context."""
        return self.cross_attention.keys_and_values(self.context_norm(context), turns)

    def compute(
        self,
        x: Tensor,
        turns: Tensor | None,
        context: KeysAndValues | list[KeysAndValues],
        self_mask: Tensor | None,
        context_mask: Tensor | list[Tensor | None] | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """`batch targets dim` to the same; `context` is this block's `keys_and_values`, or a list of several."""
        x = x + self.self_attention(self.self_norm(x), turns, self_mask, cache)
        x = x + self.cross_attention(self.query_norm(x), turns, context, context_mask)
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers and zero biases, as 4M and MAE do; fused projections as if they were separate."""
    if isinstance(module, nn.Linear):
        parts = module.parts if isinstance(module, FusedLinear) else 1
        bound = (6 / (module.in_features + module.out_features / parts)) ** 0.5
        with torch.no_grad():
            module.weight.uniform_(-bound, bound)
            if module.bias is not None:
                module.bias.zero_()
