"""What the tensors of a published backbone are called here, and how their shapes differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from zoo_backbone.config import ModelConfig

ENCODER_NORMS = {"norm1": "attention_norm", "norm2": "mlp_norm"}
DECODER_NORMS = {
    "norm1": "self_norm", "query_norm": "query_norm", "context_norm": "context_norm", "norm2": "mlp_norm",
}  # fmt: skip
SELF = {"qkv": "qkv", "proj": "out", "q_norm": "query_norm", "k_norm": "key_norm"}
CROSS = {"q": "q", "kv": "kv", "proj": "out", "q_norm": "query_norm", "k_norm": "key_norm"}
LEAVES = "weight", "bias"


@dataclass(frozen=True, slots=True)
class Pair:
    """One of our tensors, and the published ones that it is made of, one above the other."""

    ours: str
    theirs: tuple[str, ...]
    pixels: int = 0
    """Of a projection of patches: their pixels. Columns go pixel by pixel there, channel by channel here."""

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Our tensor."""
        parts = [squeezed(tensors[name], leading_axes(name)) for name in self.theirs]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return rearrange(joined, "d (p c) -> d (c p)", p=self.pixels) if self.pixels else joined

    def split(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The published tensors by name, made of ours."""
        if self.pixels:
            tensor = rearrange(tensor, "d (c p) -> d (p c)", p=self.pixels)
        for name, part in zip(self.theirs, tensor.chunk(len(self.theirs)), strict=True):
            for _ in range(leading_axes(name)):
                part = part[None]
            yield name, part


def squeezed(tensor: Tensor, axes: int) -> Tensor:
    """A tensor without its first `axes`, which have length 1."""
    return tensor.reshape(tensor.shape[axes:])


def leading_axes(name: str) -> int:
    """How many axes of length 1 a published tensor of this name has before those of ours."""
    if name.endswith(".mod_emb") or name == "mask_token":
        return 2
    return int(name.endswith(".pos_emb") or name == "register_tokens")


def block_pairs(config: ModelConfig) -> Iterator[Pair]:
    """The tensors of the Transformer; which of them there are follows from the configuration."""
    for side, depth, norms in (
        ("encoder", config.encoder_depth, ENCODER_NORMS), ("decoder", config.decoder_depth, DECODER_NORMS),
    ):  # fmt: skip
        for layer in range(depth):
            block = f"{side}.{layer}"
            for theirs, ours in norms.items():
                yield from _leaves(f"{block}.{ours}", f"{block}.{theirs}", config.biased("norm"))
            if side == "encoder":
                yield from _attention(f"{block}.attention", f"{block}.attn", SELF, config)
            else:
                yield from _attention(f"{block}.self_attention", f"{block}.self_attn", SELF, config)
                yield from _attention(f"{block}.cross_attention", f"{block}.cross_attn", CROSS, config)
            up = ("fc1", "fc3") if config.gated_mlp else ("fc1",)
            for leaf in LEAVES if config.biased("mlp") else LEAVES[:1]:
                yield Pair(f"{block}.mlp.up.{leaf}", tuple(f"{block}.mlp.{name}.{leaf}" for name in up))
                yield Pair(f"{block}.mlp.down.{leaf}", (f"{block}.mlp.fc2.{leaf}",))
        yield from _leaves(f"{side}_norm", f"{side}_norm", config.biased("norm"))
    yield from _leaves("context_projection", "decoder_proj_context", True)
    yield Pair("mask", ("mask_token",))
    if config.registers:
        yield Pair("registers", ("register_tokens",))


def _leaves(ours: str, theirs: str, biased: bool) -> Iterator[Pair]:
    for leaf in LEAVES if biased else LEAVES[:1]:
        yield Pair(f"{ours}.{leaf}", (f"{theirs}.{leaf}",))


def _attention(ours: str, theirs: str, names: Mapping[str, str], config: ModelConfig) -> Iterator[Pair]:
    for their_name, our_name in names.items():
        norm = their_name.endswith("_norm")
        if norm and not config.qk_norm:
            continue
        part = "norm" if norm else "out" if their_name == "proj" else "qkv"
        yield from _leaves(f"{ours}.{our_name}", f"{theirs}.{their_name}", config.biased(part))  # type: ignore[arg-type]


def norm_biases(config: ModelConfig) -> Iterator[str]:
    """Published names of the biases of layer norms, which files hold as zeros where norms have none."""
    with_bias = ModelConfig(
        dim=config.dim, heads=config.heads, encoder_depth=config.encoder_depth, decoder_depth=config.decoder_depth,
        qk_norm=config.qk_norm, bias=("norm",),
    )  # fmt: skip
    for pair in block_pairs(with_bias):
        if pair.ours.endswith("norm.bias"):
            yield pair.theirs[0]


def modality_pairs(
    name: str, published: str, *, read: bool, made: bool, kind: str, pixels: int, shared: bool
) -> Iterator[Pair]:
    """The tensors of one modality: `read` by the encoder, `made` by the decoder.

    `kind` is that of its layout, `pixels` the number in a patch. Where markers are `shared`, the decoder's counts for
    both sides.
    """
    inputs, targets = f"encoder_embeddings.{published}", f"decoder_embeddings.{published}"
    if read:
        yield Pair(f"input_positions.{name}", (f"{inputs}.pos_emb",))
        if kind == "patches":
            yield Pair(f"projections.{name}.weight", (f"{inputs}.proj.weight",), pixels)
        elif kind == "embeddings":
            yield from _leaves(f"projections.{name}", f"{inputs}.emb_proj", True)
        else:
            yield Pair(f"tokens.{name}", (f"{inputs}.token_emb.weight",))
    if made:
        yield Pair(f"target_positions.{name}", (f"{targets}.pos_emb",))
        yield Pair(f"read.{name}", (f"{targets}.token_emb.weight",))
        yield Pair(f"output.{name}", (f"{targets}.to_logits.weight",))
    if shared:
        yield Pair(f"modalities.{name}", (f"{targets if made else inputs}.mod_emb",))
    else:
        yield from [Pair(f"modalities.{name}", (f"{inputs}.mod_emb",))] if read else []
        yield from [Pair(f"target_modalities.{name}", (f"{targets}.mod_emb",))] if made else []
