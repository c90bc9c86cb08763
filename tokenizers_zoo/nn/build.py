"""Build an encoder or a decoder from its configuration, with the check of sizes that both kinds share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tokenizers_zoo.errors import InvalidValueError, by
from tokenizers_zoo.nn.config import BlockConfig
from tokenizers_zoo.nn.conv import ConvDecoder, ConvEncoder
from tokenizers_zoo.nn.patches import PatchSize, patch_sides
from tokenizers_zoo.nn.vit import VitDecoder, VitEncoder

if TYPE_CHECKING:
    from jaxtyping import Float

ENCODERS: dict[str, type[ConvEncoder | VitEncoder]] = {"conv": ConvEncoder, "vit": VitEncoder}
DECODERS: dict[str, type[ConvDecoder | VitDecoder]] = {"conv": ConvDecoder, "vit": VitDecoder}


class Encoder(nn.Module):
    """Values with one to three axes of any size that the patch divides, to latents on a grid."""

    def __init__(self, config: BlockConfig, in_channels: int, out_dim: int, patch_size: PatchSize) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch = patch_sides(patch_size)
        self.body = ENCODERS[config.kind](config, in_channels, out_dim, self.patch)

    def forward(self, values: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch dim *grid"]:
        """Latents; along each axis the grid is the size over the patch's side.

        Raises InvalidValueError for another number of axes or channels, and for a size that the patch does not divide.
        """
        channels, *sizes = values.shape[1:]
        if channels != self.in_channels:
            raise InvalidValueError(f"encoder: expected {self.in_channels} channels, got {channels}")
        if len(sizes) != len(self.patch) or any(n % side for n, side in zip(sizes, self.patch, strict=True)):
            raise InvalidValueError(
                f"encoder: {by(sizes)} is not a multiple of the patch size {by(self.patch)}; crop or resize"
            )
        return self.body(values)


class Decoder(nn.Module):
    """Codes on a grid of any size, to values."""

    def __init__(self, config: BlockConfig, in_dim: int, out_channels: int, patch_size: PatchSize) -> None:
        super().__init__()
        self.body = DECODERS[config.kind](config, in_dim, out_channels, patch_sides(patch_size))

    def forward(self, codes: Float[Tensor, "batch dim *grid"]) -> Float[Tensor, "batch channels *axes"]:
        """The values, unbounded; along each axis the size is the grid's times the patch's side."""
        return self.body(codes)


def build_encoder(config: BlockConfig, in_channels: int, out_dim: int, patch_size: PatchSize) -> Encoder:
    """The encoder of `config`: (batch, in_channels, *axes) -> (batch, out_dim, *axes / patch)."""
    return Encoder(config, in_channels, out_dim, patch_size)


def build_decoder(config: BlockConfig, in_dim: int, out_channels: int, patch_size: PatchSize) -> Decoder:
    """The decoder of `config`: (batch, in_dim, *grid) -> (batch, out_channels, *grid x patch)."""
    return Decoder(config, in_dim, out_channels, patch_size)
