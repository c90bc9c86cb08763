"""Build an encoder or a decoder from its configuration, with the check of sizes that both kinds share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tokenizers_zoo.blocks.config import BlockConfig
from tokenizers_zoo.blocks.conv import ConvDecoder, ConvEncoder
from tokenizers_zoo.blocks.vit import VitDecoder, VitEncoder
from tokenizers_zoo.errors import InvalidValueError

if TYPE_CHECKING:
    from jaxtyping import Float

ENCODERS: dict[str, type[ConvEncoder | VitEncoder]] = {"conv": ConvEncoder, "vit": VitEncoder}
DECODERS: dict[str, type[ConvDecoder | VitDecoder]] = {"conv": ConvDecoder, "vit": VitDecoder}


class Encoder(nn.Module):
    """A picture of any size that the patch divides, to latents on a grid."""

    def __init__(self, config: BlockConfig, in_channels: int, out_dim: int, patch_size: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.body = ENCODERS[config.kind](config, in_channels, out_dim, patch_size)

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim h w"]:
        """Latents, `h = height / patch_size`.

        Raises InvalidValueError for another number of channels, and for a size that the patch does not divide.
        """
        channels, height, width = pixels.shape[1:]
        if channels != self.in_channels:
            raise InvalidValueError(f"encoder: expected {self.in_channels} channels, got {channels}")
        if height % self.patch_size or width % self.patch_size:
            raise InvalidValueError(
                f"encoder: {height} x {width} (height x width) is not a multiple of the patch size {self.patch_size};"
                " crop or resize"
            )
        return self.body(pixels)


class Decoder(nn.Module):
    """Codes on a grid of any size, to a picture."""

    def __init__(self, config: BlockConfig, in_dim: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.body = DECODERS[config.kind](config, in_dim, out_channels, patch_size)

    def forward(self, codes: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch channels height width"]:
        """The picture, unbounded; `height = h * patch_size`."""
        return self.body(codes)


def build_encoder(config: BlockConfig, in_channels: int, out_dim: int, patch_size: int) -> Encoder:
    """The encoder of `config`: (batch, in_channels, height, width) -> (batch, out_dim, height/patch, width/patch)."""
    return Encoder(config, in_channels, out_dim, patch_size)


def build_decoder(config: BlockConfig, in_dim: int, out_channels: int, patch_size: int) -> Decoder:
    """The decoder of `config`: (batch, in_dim, h, w) -> (batch, out_channels, h * patch, w * patch)."""
    return Decoder(config, in_dim, out_channels, patch_size)
