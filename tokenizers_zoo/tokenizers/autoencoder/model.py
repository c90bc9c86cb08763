"""The vector-quantised autoencoder: encoder, quantizer and decoder over no axis (vectors) or one to three axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.tokenizers.autoencoder.config import AutoencoderConfig
from tokenizers_zoo.tokenizers.nn.config import BlockConfig, MlpConfig
from tokenizers_zoo.tokenizers.nn.conv import ConvDecoder, ConvEncoder
from tokenizers_zoo.tokenizers.nn.layers import InvertedBottleneck
from tokenizers_zoo.tokenizers.nn.vit import VitDecoder, VitEncoder
from tokenizers_zoo.tokenizers.quantizers.quantizer import Quantizer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

DENOISER = "denoiser."
"""Prefix of the diffusion decoder's tensors; all other tensors belong to the plain autoencoder."""


def build_encoder(config: BlockConfig | MlpConfig, in_channels: int, out_dim: int, patch: tuple[int, ...]) -> nn.Module:
    """Return the encoder (batch, in_channels, *axes) -> (batch, out_dim, *axes / patch)."""
    _check(config, patch)
    if isinstance(config, BlockConfig):
        return (ConvEncoder if config.kind == "conv" else VitEncoder)(config, in_channels, out_dim, patch)
    layers = [nn.Linear(in_channels, config.width), *_blocks(config), *_latent_map(config)]
    return nn.Sequential(*layers, nn.Linear(config.width, out_dim))


def build_decoder(config: BlockConfig | MlpConfig, in_dim: int, out_channels: int, patch: tuple[int, ...]) -> nn.Module:
    """Return the decoder (batch, in_dim, *grid) -> (batch, out_channels, *grid x patch), with unbounded values."""
    _check(config, patch)
    if isinstance(config, BlockConfig):
        return (ConvDecoder if config.kind == "conv" else VitDecoder)(config, in_dim, out_channels, patch)
    layers = [nn.Linear(in_dim, config.width), *_latent_map(config), *_blocks(config)]
    return nn.Sequential(*layers, nn.Linear(config.width, out_channels))


def _check(config: BlockConfig | MlpConfig, patch: tuple[int, ...]) -> None:
    axes = "no axis" if isinstance(config, MlpConfig) else "one to three axes"
    if isinstance(config, MlpConfig) != (not patch) or len(patch) > 3 or min(patch, default=1) < 1:
        raise ValueError(f"patch: {type(config).__name__} is for {axes}, got the patch {patch}")


def _blocks(config: MlpConfig) -> list[nn.Module]:
    blocks: list[nn.Module] = [InvertedBottleneck(config.width, config.expansion) for _ in range(config.depth)]
    return [*blocks, nn.LayerNorm(config.width)] if config.final_norm else blocks


def _latent_map(config: MlpConfig) -> list[nn.Linear]:
    return [nn.Linear(config.width, config.width)] if config.latent_map else []


class Autoencoder(nn.Module):
    """Encoder, quantizer and decoder, with mean and standard deviation of the training values per channel.

    Inputs are (batch, channels, *axes), or class ids (batch, *axes). Outputs are standardised channels, or logits.
    Tokens are (batch, *grid), with a last axis of codes if the quantizer has several per latent; for vectors always
    (batch, codes).
    """

    mean: Tensor
    std: Tensor
    has_two_decoders = False
    """Whether there is a plain decoder besides a diffusion decoder."""
    length: Tensor
    """Mean length of the training vectors; 0 unless `directions`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        if config.kind == "classes":
            channels = config.class_channels
            self.embedding = nn.Embedding(config.channels, channels)
        self.encoder = build_encoder(config.encoder, channels, config.latent_dim, config.patch)
        self.quantizer = Quantizer(config.quantizer, config.latent_dim)
        self.decoder: nn.Module = NoDecoder()
        if config.plain_decoder:
            decoder = config.decoder or config.encoder
            self.decoder = build_decoder(decoder, config.latent_dim, config.channels, config.patch)
        per_channel = (config.channels, *[1] * len(config.patch))
        self.register_buffer("mean", torch.zeros(per_channel))
        self.register_buffer("std", torch.ones(per_channel))
        if config.directions:
            self.register_buffer("length", torch.ones(()))
        for name, shape in config.fitted.items():
            self.register_buffer(f"fitted_{name}", torch.zeros(shape, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> tuple[Float[Tensor, "batch channels *axes"], Float[Tensor, ""]]:
        """Return the decoder's outputs and the quantizer's loss."""
        codes, loss = self.codes(inputs)
        return self.decoder(codes), loss

    def latents(self, inputs: Tensor) -> Float[Tensor, "batch *grid dim"]:
        """Encode inputs, channels last."""
        if self.config.kind == "classes":
            return self.encoder(self.embedding(inputs).movedim(-1, 1)).movedim(1, -1)
        return self.encoder(self.standardise(inputs)).movedim(1, -1)

    def codes(self, inputs: Tensor) -> tuple[Float[Tensor, "batch dim *grid"], Float[Tensor, ""]]:
        """Return the decoder's inputs, with a gradient to the encoder, and the quantizer's loss."""
        quantized = self.quantizer(self.latents(inputs))
        return quantized.codes.movedim(-1, 1), quantized.loss

    def encode(self, inputs: Tensor) -> Int[Tensor, "batch *grid_codes"]:
        tokens = self.quantizer.encode(self.latents(inputs))
        return tokens[:, None] if tokens.ndim == 1 else tokens

    def codes_of(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Float[Tensor, "batch dim *grid"]:
        """Return the decoder's inputs for tokens. Raises InvalidValueError for ids outside the codebook."""
        if not self.config.patch and self.quantizer.codes_per_position == 1:
            tokens = tokens[:, 0]
        return self.quantizer.decode(tokens).movedim(-1, 1)

    def decode(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Float[Tensor, "batch channels *axes"]:
        """Return outputs in the units of the inputs, or logits."""
        return self.decode_plain(tokens)

    def decode_plain(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Float[Tensor, "batch channels *axes"]:
        """Return the plain decoder's outputs, even if there is a diffusion decoder."""
        return self.unstandardise(self.decoder(self.codes_of(tokens)))

    def standardise(self, inputs: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch channels *axes"]:
        """Return inputs with mean 0 and standard deviation 1."""
        return (inputs - self.mean) / self.std

    def unstandardise(self, outputs: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch channels *axes"]:
        """Undo `standardise`; with `directions`, give vectors the mean length of the training values."""
        values = outputs * self.std + self.mean
        if not self.config.directions:
            return values
        return F.normalize(values, dim=1, eps=torch.finfo(values.dtype).tiny) * self.length


class NoDecoder(nn.Module):
    """Stands in for the plain decoder of a tokenizer without one."""

    def forward(self, codes: Tensor) -> Tensor:
        raise CheckpointError(
            "this tokenizer has a diffusion decoder only; add the table tokenizer.diffusion from its registry.toml"
        )
