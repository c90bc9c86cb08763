"""Convert tensors of published tokenizers to our names and layout, and back without loss.

Our models replace 1 x 1 convolutions by linear layers, and the channel is the last axis of our patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from tokenizers_zoo.errors import CheckpointError, and_others
from tokenizers_zoo.files.published import PublishedCheckpoint
from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture, UnetSize
from tokenizers_zoo.tokenizers.nn.config import BlockConfig, MlpConfig
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerConfig

POINTWISE = "o i 1 1 -> o i"
"""A 1 x 1 convolution as a linear map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorMapping:
    """A published tensor and our names for it. With several names, each has one row of the first axis."""

    published: str
    names: tuple[str, ...]
    pattern: str = ""
    """einops pattern that converts the published tensor to ours; empty if it is unchanged."""
    sizes: Mapping[str, int] = field(default_factory=dict)


def tensor_mappings(architecture: Architecture) -> list[TensorMapping]:
    """Return the mappings of all tensors of a published tokenizer."""
    mappings = list(_encoder(architecture))
    if architecture.classes:
        mappings.append(TensorMapping(published="cls_emb.weight", names=("embedding.weight",)))
    mappings += _quantizer(architecture.quantizer)
    mappings += _unet(architecture.unet) if architecture.unet is not None else _decoder(architecture)
    return mappings


def _encoder(architecture: Architecture) -> Iterator[TensorMapping]:
    config = architecture.encoder
    if isinstance(config, MlpConfig):
        yield from _layer("encoder.linear_in", "encoder.0")
        yield from _mlp_blocks(config, "encoder", first=1)
        yield from _layer("encoder.linear_out", f"encoder.{config.depth + 1}")
        yield from _layer("quant_proj", f"encoder.{config.depth + 2}", POINTWISE)
        return
    side = architecture.patch_size
    yield from _layer("encoder.proj", "encoder.embed", "o c h w -> o (h w c)", sizes={"h": side, "w": side})
    yield from _vit_blocks(config, "encoder")
    yield from _layer("quant_proj", "encoder.head", POINTWISE)


def _decoder(architecture: Architecture) -> Iterator[TensorMapping]:
    config, side = architecture.decoder, architecture.patch_size
    assert config is not None
    if isinstance(config, MlpConfig):
        yield from _layer("post_quant_proj", "decoder.0", POINTWISE)
        yield from _layer("decoder.linear_in", "decoder.1")
        yield from _mlp_blocks(config, "decoder", first=2)
        yield from _layer("decoder.linear_out", f"decoder.{config.depth + 2}")
        return
    cells = {"h": side, "w": side}
    yield from _layer("post_quant_proj", "decoder.embed", POINTWISE)
    yield from _vit_blocks(config, "decoder")
    patch = "(c h w) -> (h w c)"
    yield from _layer("decoder.out_proj", "decoder.head", "(c h w) i -> (h w c) i", patch, sizes=cells)
    for k in range(config.out_blocks):
        theirs, ours = f"decoder.out_conv.{k}", f"decoder.out.{k}"
        yield from _layers(theirs, ours, dwconv="depthwise", norm="norm", pwconv1="mlp.expand", pwconv2="mlp.contract")
        yield TensorMapping(published=f"{theirs}.gamma", names=(f"{ours}.gamma",))


def _vit_blocks(config: BlockConfig, side: str) -> Iterator[TensorMapping]:
    """Yield the mappings of positions, blocks and output layers."""
    ours = f"{side}.transformer"
    yield TensorMapping(published=f"{side}.pos_emb", names=(f"{ours}.positions",))
    for k in range(config.depth):
        yield from _layers(
            f"{side}.blocks.{k}",
            f"{ours}.blocks.{k}",
            **{
                "norm1": "norm_attention",
                "attn.qkv": "attention.to_qkv",
                "attn.proj": "attention.to_out",
                "norm2": "norm_mlp",
                "mlp.fc1": "mlp.expand",
                "mlp.fc2": "mlp.contract",
            },
        )
    if config.post_mlp:
        last = {"norm_mlp": "norm_post", "post_mlp.fc1": "post_mlp.expand", "post_mlp.fc2": "post_mlp.contract"}
        yield from _layers(side, ours, **last)


def _mlp_blocks(config: MlpConfig, side: str, first: int) -> Iterator[TensorMapping]:
    for k in range(config.depth):
        yield from _layer(f"{side}.layernorms.{k}", f"{side}.{first + k}.norm")
        yield from _layer(f"{side}.blocks.{k}.block.0", f"{side}.{first + k}.mlp.expand")
        yield from _layer(f"{side}.blocks.{k}.block.2", f"{side}.{first + k}.mlp.contract")


def _quantizer(config: QuantizerConfig) -> Iterator[TensorMapping]:
    ours = "quantizer.adapter"
    if config.kind == "memcodes":
        yield TensorMapping(published="quantize.codes", names=(f"{ours}.codes",))
        yield TensorMapping(published="quantize.to_k.weight", names=(f"{ours}.to_k",))
        yield TensorMapping(published="quantize.to_v.weight", names=(f"{ours}.to_v",))
        return
    rows = {"embed": "codes d -> 1 codes d", "cluster_size": "codes -> 1 codes", "initted": "1 ->"}
    if config.distance == "euclidean":
        rows["embed_avg"] = rows["embed"]
    for name, pattern in rows.items():
        names = (f"{ours}.vq._codebook.{name}",)
        yield TensorMapping(published=f"quantize._codebook.{name}", names=names, pattern=pattern)


def _unet(size: UnetSize) -> Iterator[TensorMapping]:
    """Published blocks are numbered through, first on the way down and then on the way up."""
    ours, last = "denoiser.network", len(size.multipliers) - 1
    attending = len(size.multipliers) - size.attention
    yield from _layer("decoder.time_embed.0", f"{ours}.time_embedding.linear_1")
    yield from _layer("decoder.time_embed.2", f"{ours}.time_embedding.linear_2")
    yield from _layer("decoder.input_blocks.0.0", f"{ours}.conv_in")
    number, channels = 1, size.width
    skips = [channels]
    for level, multiplier in enumerate(size.multipliers):
        block = f"{ours}.down_blocks.{level}"
        for k in range(size.depth):
            theirs, width = f"decoder.input_blocks.{number}", size.width * multiplier
            yield from _residual(f"{theirs}.0", f"{block}.resnets.{k}", shortcut=channels != width)
            if level >= attending:
                yield from _attention(f"{theirs}.1", f"{block}.attentions.{k}")
            number, channels = number + 1, width
            skips.append(channels)
        if level != last:
            yield from _layer(f"decoder.input_blocks.{number}.0.op", f"{block}.downsamplers.0.conv")
            number += 1
            skips.append(channels)
    yield from _residual("decoder.middle_block.0", f"{ours}.mid_block.resnets.0", shortcut=False)
    yield from _attention("decoder.middle_block.1", f"{ours}.mid_block.attentions.0")
    yield from _residual("decoder.middle_block.2", f"{ours}.mid_block.resnets.1", shortcut=False)
    number = 0
    for up, multiplier in enumerate(reversed(size.multipliers)):
        block, level = f"{ours}.up_blocks.{up}", last - up
        for k in range(size.depth + 1):
            theirs, width = f"decoder.output_blocks.{number}", size.width * multiplier
            yield from _residual(f"{theirs}.0", f"{block}.resnets.{k}", shortcut=channels + skips.pop() != width)
            if level >= attending:
                yield from _attention(f"{theirs}.1", f"{block}.attentions.{k}")
            if level and k == size.depth:
                yield from _layer(f"{theirs}.{2 if level >= attending else 1}.conv", f"{block}.upsamplers.0.conv")
            number, channels = number + 1, width
    yield from _layer("decoder.out.0", f"{ours}.conv_norm_out")
    yield from _layer("decoder.out.2", f"{ours}.conv_out")


def _residual(theirs: str, ours: str, *, shortcut: bool) -> Iterator[TensorMapping]:
    parts = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"}
    parts |= {"out_layers.0": "norm2", "out_layers.3": "conv2"}
    yield from _layers(theirs, ours, **parts, **({"skip_connection": "conv_shortcut"} if shortcut else {}))


def _attention(theirs: str, ours: str) -> Iterator[TensorMapping]:
    yield from _layer(f"{theirs}.norm", f"{ours}.group_norm")
    for part, pattern in (("weight", "(three o) i 1 -> three o i"), ("bias", "(three o) -> three o")):
        names = tuple(f"{ours}.to_{name}.{part}" for name in "qkv")
        yield TensorMapping(published=f"{theirs}.qkv.{part}", names=names, pattern=pattern, sizes={"three": 3})
    yield from _layer(f"{theirs}.proj_out", f"{ours}.to_out.0", "o i 1 -> o i")


def _layers(theirs: str, ours: str, **parts: str) -> Iterator[TensorMapping]:
    """Yield the mappings of weights and biases of several layers of one block, unchanged."""
    for published, our_name in parts.items():
        yield from _layer(f"{theirs}.{published}", f"{ours}.{our_name}")


def _layer(
    theirs: str, ours: str, weight: str = "", bias: str = "", sizes: Mapping[str, int] | None = None
) -> Iterator[TensorMapping]:
    """Yield the mappings of a layer's weight and bias."""
    for part, pattern in (("weight", weight), ("bias", bias)):
        used = sizes if pattern and sizes else {}
        yield TensorMapping(published=f"{theirs}.{part}", names=(f"{ours}.{part}",), pattern=pattern, sizes=used)


def from_published(
    published: PublishedCheckpoint,
    mappings: Sequence[TensorMapping],
    state: Mapping[str, Tensor],
    other_tensors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return all tensors of our model: converted from the published tensors, and `other_tensors` as they are.

    Only the shapes of `state`, our model's state dict, are used. Raises CheckpointError that names the tensor if a
    published tensor is missing or unused, or if its shape does not match its config.json.
    """
    names = {mapping.published for mapping in mappings}
    if unexpected := sorted(set(published.tensors) - names):
        raise CheckpointError(
            f"{published.path}: has {unexpected[0]}{and_others(len(unexpected) - 1)}, which its config.json does not"
            " ask for; copy the folder again"
        )
    tensors = dict(other_tensors)
    for mapping in mappings:
        shape = _published_tensor(mapping, [state[name] for name in mapping.names]).shape
        tensor = published.tensor(mapping.published, *shape)
        if mapping.published in published.same_as:  # our files hold no tensor twice
            tensor = tensor.clone()
        if mapping.pattern:
            tensor = rearrange(tensor, mapping.pattern, **mapping.sizes)
        tensors |= zip(mapping.names, tensor.unbind() if len(mapping.names) > 1 else [tensor], strict=True)
    assert tensors.keys() == state.keys(), tensors.keys() ^ state.keys()
    return tensors


def to_published(tensors: Mapping[str, Tensor], mappings: Sequence[TensorMapping]) -> dict[str, Tensor]:
    """Convert our tensors to the published ones. Raises CheckpointError if a tensor is missing."""
    published = {}
    for mapping in mappings:
        if missing := [name for name in mapping.names if name not in tensors]:
            raise CheckpointError(
                f"the weights lack {missing[0]}, which becomes {mapping.published}; import them again"
            )
        published[mapping.published] = _published_tensor(mapping, [tensors[name] for name in mapping.names])
    return published


def _published_tensor(mapping: TensorMapping, tensors: Sequence[Tensor]) -> Tensor:
    tensor = tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))
    if not mapping.pattern:
        return tensor
    before, after = mapping.pattern.split("->")
    return rearrange(tensor, f"{after} -> {before}", **mapping.sizes)
