"""Generate published tokenizers of any size, and compute their outputs in plain torch from the published tensors.

The sizes "vit_t" and "unet_tiny" exist only in these tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_zoo.files.published import PublishedCheckpoint
from tokenizers_zoo.tokenizers.ml4m.architecture import UNETS, VITS, UnetSize

VITS["vit_t"] = (32, 2, 2)
UNETS["unet_tiny"] = UnetSize(patch_size=4, width=32, multipliers=(1, 2), depth=1, attention=1)
Tensors = Mapping[str, Tensor]
MEMCODES = {
    "class": "VQVAE", "enc_type": "BottleneckMLP/B_2-Wi_24", "dec_type": "BottleneckMLP/B_2-Wi_24", "image_size": 1,
    "patch_size": 1, "latent_dim": 16, "codebook_size": 32, "quant_type": "memcodes", "num_codebooks": 4,
}  # fmt: skip
"""Configuration of a tokenizer of vectors, without the vector length (`n_channels`)."""


def published(seed: int = 0, source: str = "made", **config: Any) -> PublishedCheckpoint:
    """Return a tokenizer with random tensors; `config` is its config.json."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(config).items():
        tensor = torch.randn(shape, generator=generator)
        scale = 0.02 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        tensors[name] = tensor * scale + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)
    if "quantize._codebook.initted" in tensors:
        tensors["quantize._codebook.initted"] = torch.ones(1)
        tensors["quantize._codebook.cluster_size"] = torch.rand(config["codebook_size"], generator=generator) * 9
    return PublishedCheckpoint(config=config, tensors=tensors, path=source)


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all tensors."""
    tensor_shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        tensor_shapes[f"{name}.weight"] = shape
        tensor_shapes[f"{name}.bias"] = shape[:1]

    channels, dim, size = config["n_channels"], config["latent_dim"], config["codebook_size"]
    patch = config["patch_size"] if config.get("patch_proj", True) else 1
    grid = config["image_size"] // config["patch_size"]
    wide = 32 if "vit" in config["enc_type"] else int(config["enc_type"].split("Wi_")[1])
    out = config.get("n_labels", channels)
    if config["class"] == "DiVAE":
        unet_shapes(layer, channels, dim)
    for side in ("encoder", "decoder") if config["class"] == "VQVAE" else ("encoder",):
        if "MLP" in config["enc_type"]:
            layer(f"{side}.linear_in", wide, channels if side == "encoder" else wide)
            for k in range(2):
                layer(f"{side}.layernorms.{k}", wide)
                layer(f"{side}.blocks.{k}.block.0", 4 * wide, wide)
                layer(f"{side}.blocks.{k}.block.2", wide, 4 * wide)
            layer(f"{side}.linear_out", wide if side == "encoder" else channels, wide)
            continue
        tensor_shapes[f"{side}.pos_emb"] = (1, wide, grid, grid)
        for k in range(2):
            block = f"{side}.blocks.{k}"
            layer(f"{block}.norm1", wide)
            layer(f"{block}.norm2", wide)
            layer(f"{block}.attn.qkv", 3 * wide, wide)
            layer(f"{block}.attn.proj", wide, wide)
            layer(f"{block}.mlp.fc1", 4 * wide, wide)
            layer(f"{block}.mlp.fc2", wide, 4 * wide)
        if config.get("post_mlp"):
            layer(f"{side}.norm_mlp", wide)
            layer(f"{side}.post_mlp.fc1", 4 * wide, wide)
            layer(f"{side}.post_mlp.fc2", wide, 4 * wide)
        if side == "encoder":
            layer("encoder.proj", wide, channels, patch, patch)
        else:
            layer("decoder.out_proj", out * patch**2, wide)
        for k in range(2 if side == "decoder" and config.get("out_conv") else 0):
            layer(f"decoder.out_conv.{k}.dwconv", out, 1, 7, 7)
            layer(f"decoder.out_conv.{k}.norm", out)
            layer(f"decoder.out_conv.{k}.pwconv1", 4 * out, out)
            layer(f"decoder.out_conv.{k}.pwconv2", out, 4 * out)
            tensor_shapes[f"decoder.out_conv.{k}.gamma"] = (out,)
    layer("quant_proj", dim, wide, 1, 1)
    if config["class"] == "VQVAE":
        layer("post_quant_proj", wide, dim, 1, 1)
    if "n_labels" in config:
        tensor_shapes["cls_emb.weight"] = (out, channels)
    if config.get("quant_type") == "memcodes":
        heads = config["num_codebooks"]
        tensor_shapes["quantize.codes"] = (heads, size, dim // heads)
        tensor_shapes["quantize.to_k.weight"] = tensor_shapes["quantize.to_v.weight"] = (
            heads,
            dim // heads,
            dim // heads,
        )
    else:
        book = "quantize._codebook"
        tensor_shapes |= {f"{book}.embed": (size, dim), f"{book}.cluster_size": (size,), f"{book}.initted": (1,)}
        if not config.get("norm_codes", True):
            tensor_shapes[f"{book}.embed_avg"] = (size, dim)
    return tensor_shapes


def unet_shapes(layer: Any, channels: int, dim: int) -> None:
    """Add the tiny UNet's layers: 32 channels, then 64 with attention; one residual block down and two up."""

    def residual(name: str, before: int, after: int) -> None:
        layer(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", after, 128)
        layer(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name: str) -> None:
        layer(f"{name}.norm", 64)
        layer(f"{name}.qkv", 192, 64, 1)
        layer(f"{name}.proj_out", 64, 64, 1)

    down, middle, up = "decoder.input_blocks", "decoder.middle_block", "decoder.output_blocks"
    layer("decoder.time_embed.0", 128, 32)
    layer("decoder.time_embed.2", 128, 128)
    layer(f"{down}.0.0", 32, 16 * channels + dim, 3, 3)
    residual(f"{down}.1.0", 32, 32)
    layer(f"{down}.2.0.op", 32, 32, 3, 3)
    residual(f"{down}.3.0", 32, 64)
    attention(f"{down}.3.1")
    residual(f"{middle}.0", 64, 64)
    attention(f"{middle}.1")
    residual(f"{middle}.2", 64, 64)
    for number, before, after in ((0, 128, 64), (1, 96, 64), (2, 96, 32), (3, 64, 32)):
        residual(f"{up}.{number}.0", before, after)
        if after == 64:
            attention(f"{up}.{number}.1")
    layer(f"{up}.1.2.conv", 64, 64, 3, 3)
    layer("decoder.out.0", 32)
    layer("decoder.out.2", 16 * channels, 32, 3, 3)


def twin(checkpoint: PublishedCheckpoint, inputs: Tensors) -> dict[str, Tensor]:
    """Return a published tokenizer's outputs for `x`; a diffusion decoder also reads `noise` and `timesteps`."""
    config, t = checkpoint.config, checkpoint.tensors
    x = inputs["x"]
    h = F.embedding(x.long(), t["cls_emb.weight"]).movedim(-1, 1) if "n_labels" in config else x
    if "MLP" in config["enc_type"]:
        h = mlp(t, "encoder", h)
    else:
        patch = t["encoder.proj.weight"].shape[-1]
        h = vit(t, "encoder", F.conv2d(h, t["encoder.proj.weight"], t["encoder.proj.bias"], stride=patch))
    latent = F.conv2d(h, t["quant_proj.weight"], t["quant_proj.bias"])
    tokens, quant = quantize(config, t, latent)
    outputs = {"latent": latent, "tokens": tokens, "quant": quant}
    if config["class"] == "DiVAE":
        noisy = 0.5 * inputs["x"] + 0.5 * inputs["noise"]
        return outputs | {"decoder_output": unet(t, noisy, inputs["timesteps"], quant)}
    h = F.conv2d(quant, t["post_quant_proj.weight"], t["post_quant_proj.bias"])
    if "MLP" in config["enc_type"]:
        return outputs | {"decoded": mlp(t, "decoder", h)}
    h = vit(t, "decoder", h)
    h = linear(t, "decoder.out_proj", h.movedim(1, -1)).movedim(-1, 1)
    decoded = F.pixel_shuffle(h, config["patch_size"] if config.get("patch_proj", True) else 1)
    for k in range(2 if config.get("out_conv") else 0):
        name = f"decoder.out_conv.{k}"
        weight, bias = t[f"{name}.dwconv.weight"], t[f"{name}.dwconv.bias"]
        h = F.conv2d(decoded, weight, bias, padding=3, groups=len(weight)).movedim(1, -1)
        h = F.gelu(linear(t, f"{name}.pwconv1", norm(t, f"{name}.norm", h, 1e-6)))
        decoded = decoded + (t[f"{name}.gamma"] * linear(t, f"{name}.pwconv2", h)).movedim(-1, 1)
    return outputs | {"decoded": decoded}


def linear(t: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def norm(t: Tensors, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]


def vit(t: Tensors, side: str, x: Tensor) -> Tensor:
    """(batch, width, rows, columns) to the same shape: positions, two blocks of two heads, the last MLP."""
    rows, columns = x.shape[2:]
    positions = t[f"{side}.pos_emb"]
    if positions.shape[2:] != x.shape[2:]:
        positions = F.interpolate(positions, size=(rows, columns), mode="bicubic", align_corners=False)
    x = (x + positions).flatten(2).mT
    for k in range(2):
        name = f"{side}.blocks.{k}"
        qkv = linear(t, f"{name}.attn.qkv", norm(t, f"{name}.norm1", x, 1e-6))
        heads = []
        for q, key, value in zip(*(part.split(16, dim=-1) for part in qkv.split(32, dim=-1)), strict=True):
            heads.append((q @ key.mT * 16**-0.5).softmax(dim=-1) @ value)
        x = x + linear(t, f"{name}.attn.proj", torch.cat(heads, dim=-1))
        h = F.gelu(linear(t, f"{name}.mlp.fc1", norm(t, f"{name}.norm2", x, 1e-6)))
        x = x + linear(t, f"{name}.mlp.fc2", h)
    if f"{side}.norm_mlp.weight" in t:
        h = linear(t, f"{side}.post_mlp.fc1", norm(t, f"{side}.norm_mlp", x, 1e-6)).tanh()
        x = x + linear(t, f"{side}.post_mlp.fc2", h)
    return x.mT.unflatten(2, (rows, columns))


def mlp(t: Tensors, side: str, x: Tensor) -> Tensor:
    """(batch, dim, rows, columns) to (batch, other dim, rows, columns), each place by itself."""
    x = linear(t, f"{side}.linear_in", x.movedim(1, -1))
    for k in range(2):
        h = F.gelu(linear(t, f"{side}.blocks.{k}.block.0", norm(t, f"{side}.layernorms.{k}", x, 1e-5)))
        x = x + linear(t, f"{side}.blocks.{k}.block.2", h)
    return linear(t, f"{side}.linear_out", x).movedim(-1, 1)


def quantize(config: Mapping[str, Any], t: Tensors, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (batch, [codebooks,] rows, columns) and codes (batch, dim, rows, columns)."""
    x = latent.movedim(1, -1)
    if config.get("quant_type") == "memcodes":
        quantized = []
        for part, rows, to_k, to_v in zip(
            x.chunk(config["num_codebooks"], dim=-1), t["quantize.codes"], t["quantize.to_k.weight"],
            t["quantize.to_v.weight"], strict=True,
        ):  # fmt: skip
            ids = (part @ (rows @ to_k).T).argmax(dim=-1)
            quantized.append((ids, (rows @ to_v)[ids]))
        all_ids, all_codes = zip(*quantized, strict=True)
        return torch.stack(all_ids, dim=1), torch.cat(all_codes, dim=-1).movedim(-1, 1)
    rows = t["quantize._codebook.embed"]
    if config.get("norm_codes", True):
        tokens = (F.normalize(x, dim=-1) @ F.normalize(rows, dim=-1).T).argmax(dim=-1)
    else:
        tokens = torch.cdist(x.flatten(0, 2)[None], rows[None])[0].argmin(dim=-1).view(x.shape[:-1])
    return tokens, rows[tokens].movedim(-1, 1)


def unet(t: Tensors, noisy: Tensor, timesteps: Tensor, quant: Tensor) -> Tensor:
    """Call the UNet once; the parts of each block follow from the tensor names."""
    cells = F.pixel_unshuffle(noisy, 4)
    x = torch.cat([cells, F.interpolate(quant, size=cells.shape[2:], mode="nearest")], dim=1)
    half = t["decoder.time_embed.0.weight"].shape[1] // 2
    angles = timesteps[:, None] * 10000 ** (-torch.arange(half) / half)
    time = linear(t, "decoder.time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    time = F.silu(linear(t, "decoder.time_embed.2", F.silu(time)))

    def convolved(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = t[f"{name}.weight"]
        return F.conv2d(x, weight, t[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def normed(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, t[f"{name}.weight"], t[f"{name}.bias"], 1e-5)

    def run(block: str, x: Tensor) -> Tensor:
        for k in range(3):
            name = f"{block}.{k}"
            if f"{name}.in_layers.0.weight" in t:
                h = convolved(f"{name}.in_layers.2", F.silu(normed(f"{name}.in_layers.0", x)))
                h = h + linear(t, f"{name}.emb_layers.1", time)[:, :, None, None]
                h = convolved(f"{name}.out_layers.3", F.silu(normed(f"{name}.out_layers.0", h)))
                shortcut = f"{name}.skip_connection"
                x = h + (convolved(shortcut, x) if f"{shortcut}.weight" in t else x)
            elif f"{name}.qkv.weight" in t:
                flat = normed(f"{name}.norm", x).flatten(2).mT
                parts = flat @ t[f"{name}.qkv.weight"][:, :, 0].T + t[f"{name}.qkv.bias"]
                query, key, value = parts.chunk(3, dim=-1)
                mixed = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1) @ value
                mixed = mixed @ t[f"{name}.proj_out.weight"][:, :, 0].T + t[f"{name}.proj_out.bias"]
                x = x + mixed.mT.view_as(x)
            elif f"{name}.op.weight" in t:
                x = convolved(f"{name}.op", x, stride=2)
            elif f"{name}.conv.weight" in t:
                x = convolved(f"{name}.conv", F.interpolate(x, scale_factor=2, mode="nearest"))
            elif f"{name}.weight" in t:
                x = convolved(name, x)
        return x

    skips = []
    for number in range(4):
        x = run(f"decoder.input_blocks.{number}", x)
        skips.append(x)
    x = run("decoder.middle_block", x)
    for number in range(4):
        x = run(f"decoder.output_blocks.{number}", torch.cat([x, skips.pop()], dim=1))
    return F.pixel_shuffle(convolved("decoder.out.2", F.silu(normed("decoder.out.0", x))), 4)
