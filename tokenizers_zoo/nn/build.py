"""Encoders and decoders from their settings: `BlockConfig` for one to three axes, `MlpConfig` for vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tokenizers_zoo.errors import InvalidValueError, by
from tokenizers_zoo.nn.config import BlockConfig, MlpConfig
from tokenizers_zoo.nn.conv import ConvDecoder, ConvEncoder
from tokenizers_zoo.nn.layers import InvertedBottleneck
from tokenizers_zoo.nn.vit import VitDecoder, VitEncoder

if TYPE_CHECKING:
    from jaxtyping import Float

Patch = tuple[int, ...]
"""Cells per latent along each axis; empty for vectors."""
ENCODERS: dict[str, type[ConvEncoder | VitEncoder]] = {"conv": ConvEncoder, "vit": VitEncoder}
DECODERS: dict[str, type[ConvDecoder | VitDecoder]] = {"conv": ConvDecoder, "vit": VitDecoder}


class Encoder(nn.Module):
    """Values with one to three axes of any size that the patch divides, to latents on a grid."""

    def __init__(self, config: BlockConfig, in_channels: int, out_dim: int, patch: Patch) -> None:
        super().__init__()
        self.in_channels, self.patch = in_channels, patch
        self.body = ENCODERS[config.kind](config, in_channels, out_dim, patch)

    def forward(self, values: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch dim *grid"]:
        """Return latents. Raises InvalidValueError for another number of channels or axes, or sizes that do not fit."""
        channels, *sizes = values.shape[1:]
        if channels != self.in_channels:
            raise InvalidValueError(f"encoder: expected {self.in_channels} channels, got {channels}")
        if len(sizes) != len(self.patch) or any(n % side for n, side in zip(sizes, self.patch, strict=True)):
            raise InvalidValueError(
                f"encoder: {by(sizes)} is not a multiple of the patch size {by(self.patch)}; crop or resize"
            )
        return self.body(values)


class Decoder(nn.Module):
    """Codes on a grid of any size, to unbounded values that are larger by the patch."""

    def __init__(self, config: BlockConfig, in_dim: int, out_channels: int, patch: Patch) -> None:
        super().__init__()
        self.body = DECODERS[config.kind](config, in_dim, out_channels, patch)

    def forward(self, codes: Float[Tensor, "batch dim *grid"]) -> Float[Tensor, "batch channels *axes"]:
        return self.body(codes)


def build_encoder(config: BlockConfig | MlpConfig, in_channels: int, out_dim: int, patch: Patch) -> nn.Module:
    """Return the encoder (batch, in_channels, *axes) -> (batch, out_dim, *axes / patch)."""
    _check(config, patch)
    if isinstance(config, BlockConfig):
        return Encoder(config, in_channels, out_dim, patch)
    layers = [nn.Linear(in_channels, config.width), *_blocks(config), *_latent_map(config)]
    return nn.Sequential(*layers, nn.Linear(config.width, out_dim))


def build_decoder(config: BlockConfig | MlpConfig, in_dim: int, out_channels: int, patch: Patch) -> nn.Module:
    """Return the decoder (batch, in_dim, *grid) -> (batch, out_channels, *grid x patch)."""
    _check(config, patch)
    if isinstance(config, BlockConfig):
        return Decoder(config, in_dim, out_channels, patch)
    layers = [nn.Linear(in_dim, config.width), *_latent_map(config), *_blocks(config)]
    return nn.Sequential(*layers, nn.Linear(config.width, out_channels))


def _check(config: BlockConfig | MlpConfig, patch: Patch) -> None:
    axes = "no axis" if isinstance(config, MlpConfig) else "one to three axes"
    if isinstance(config, MlpConfig) != (not patch) or len(patch) > 3 or min(patch, default=1) < 1:
        raise ValueError(f"patch: {type(config).__name__} is for {axes}, got the patch {patch}")


def _blocks(config: MlpConfig) -> list[nn.Module]:
    blocks: list[nn.Module] = [InvertedBottleneck(config.width, config.expansion) for _ in range(config.depth)]
    return [*blocks, nn.LayerNorm(config.width)] if config.final_norm else blocks


def _latent_map(config: MlpConfig) -> list[nn.Linear]:
    return [nn.Linear(config.width, config.width)] if config.latent_map else []
