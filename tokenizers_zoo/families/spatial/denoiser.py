"""The network of the diffusion decoder: a UNet on patches, told the codes by concatenation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from tokenizers_zoo.families.spatial.diffusion_settings import DiffusionConfig
from tokenizers_zoo.nn.patches import Shuffle, Unshuffle

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

HEAD_DIM, NORM_GROUPS = 64, 32
"""Channels per attention head and groups of a norm at most; less where they do not divide the width."""


class Denoiser(nn.Module):
    """What the noisy target at a time tells about the clean one, given the codes and, for a residual, plain outputs.

    `patch_size` is the modality's: pixels per code along each side. Values and grids may have any size.
    """

    scale: Tensor
    """Deviation of what is denoised, which is divided by it, per channel."""

    def __init__(self, config: DiffusionConfig, channels: int, latent_dim: int, patch_size: int) -> None:
        super().__init__()
        patch = (config.patch_size,) * 2
        cells = channels * math.prod(patch)
        self.coarsening = 2 ** (len(config.multipliers) - 1)
        self.unshuffle, self.shuffle = Unshuffle(patch), Shuffle(patch)
        self.hidden_code = nn.Parameter(torch.zeros(latent_dim, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.spread: nn.Module | None = None
        told = latent_dim
        if config.layout == "own":
            factor, told = patch_size // config.patch_size, config.width
            widened = nn.Conv2d(latent_dim, told * factor**2, 3, padding=1)
            self.spread = nn.Sequential(widened, nn.SiLU(), Shuffle((factor, factor)))
        given = cells * (2 if config.target == "residual" else 1) + told
        self.network = unet(config, given, cells)
        nn.init.zeros_(self.network.conv_out.weight)  # what is right on average, until it knows better

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        times: Int[Tensor, " batch"],
        codes: Float[Tensor, "batch dim h w"],
        plain: Float[Tensor, "batch channels height width"] | None,
        shown: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The prediction, of the shape of `noisy`; samples that are not `shown` do without codes and plain outputs."""
        if shown is not None:
            codes = torch.where(shown[:, None, None, None], codes, self.hidden_code)
            plain = plain if plain is None else plain * shown[:, None, None, None]
        first = self.unshuffle(noisy)
        told = F.interpolate(codes, first.shape[-2:], mode="nearest") if self.spread is None else self.spread(codes)
        parts = [first, told] if plain is None else [first, told, self.unshuffle(plain)]
        cells = torch.cat(parts, dim=1)
        height, width = cells.shape[-2:]
        padded = F.pad(cells, (0, -width % self.coarsening, 0, -height % self.coarsening))
        return self.shuffle(self.network(padded, times, return_dict=False)[0][..., :height, :width])


def unet(config: DiffusionConfig, channels: int, out_channels: int) -> UNet2DModel:
    """The UNet on cells."""
    own = config.layout == "own"
    plain = len(config.multipliers) - config.attention
    down = ["DownBlock2D"] * plain + ["AttnDownBlock2D"] * config.attention
    return UNet2DModel(
        in_channels=channels,
        out_channels=out_channels,
        block_out_channels=tuple(config.width * multiplier for multiplier in config.multipliers),
        layers_per_block=config.depth,
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in down[::-1]),
        attention_head_dim=math.gcd(config.width, HEAD_DIM) if own else config.width * config.multipliers[-1],
        norm_num_groups=math.gcd(config.width, NORM_GROUPS),
        resnet_time_scale_shift="scale_shift" if own else "default",
    )
