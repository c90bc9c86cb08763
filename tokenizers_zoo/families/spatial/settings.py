"""Settings of image-like modalities and of their tokenizers, readable without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from tokenizers_zoo.config import ADDED
from tokenizers_zoo.families.quantized import QuantizedTrainConfig
from tokenizers_zoo.families.spatial.diffusion_settings import PUBLISHED_DIFFUSION, DiffusionConfig
from tokenizers_zoo.nn.config import BlockConfig
from tokenizers_zoo.quantizers.config import QuantizerConfig

LossName = Literal["l1", "l2", "smooth_l1", "cosine", "cross_entropy", "ordinal", "bce"]
"""Losses that compare what the decoder gives with what it should give, number by number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig(QuantizedTrainConfig):
    """What is minimised: one main loss, and others by their weights; see `LOSSES_OF_KIND` for which fit what."""

    loss: LossName | None = None
    """Main reconstruction loss, of weight 1 where its own weight is not given; absent takes the modality's own."""
    l1_weight: float = 0.0
    """Weight of the mean absolute error."""
    l2_weight: float = 0.0
    """Weight of the mean squared error."""
    smooth_l1_weight: float = 0.0
    """Weight of the error squared and halved below 1, and absolute less 1/2 above."""
    cosine_weight: float = 0.0
    """Weight of 1 - cosine between channels, per pixel."""
    cross_entropy_weight: float = 0.0
    """Weight of the cross-entropy of classes, nats."""
    ordinal_weight: float = 0.0
    """Weight of the squared earth mover's distance of classes whose ids are an order."""
    bce_weight: float = 0.0
    """Weight of the cross-entropy of 0/1 values, nats."""
    class_balance: float | None = None
    """Exponent in [0, 1] by which rare classes (or ones) weigh more: frequency ^ -exponent; absent takes the
    modality's own, 0 is off."""
    perceptual_weight: float = 0.0
    """Weight of the distance of EfficientNet-Lite features; needs the extra `perceptual`, and bounded values. It sees
    them as pictures, from black at the lower bound to white at the upper: of other than three channels the first alone.
    """
    adversarial_weight: float = 0.0
    """Weight of a critic that tells true from decoded patches, as a multiple of the adaptive weight."""
    adversarial_start: float = 0.5
    """Share of the steps after which the critic comes in, in [0, 1)."""
    adversarial_rate: float = 0.25
    """Learning rate of the critic as a multiple of the model's."""

    def __post_init__(self) -> None:
        QuantizedTrainConfig.__post_init__(self)
        for name in (f"{loss}_weight" for loss in (*get_args(LossName), "perceptual", "adversarial")):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.class_balance is not None and not 0 <= self.class_balance <= 1:
            raise ValueError(f"class_balance: expected an exponent in [0, 1], got {self.class_balance}")
        if not 0 <= self.adversarial_start < 1:
            raise ValueError(f"adversarial_start: expected a share in [0, 1), got {self.adversarial_start}")
        if not 0 < self.adversarial_rate < math.inf:
            raise ValueError(f"adversarial_rate: expected a multiple above 0, got {self.adversarial_rate}")
        for name in ("adversarial_start", "adversarial_rate"):
            if name in self.extra_losses() and not self.adversarial_weight:
                raise ValueError(f"{name}: there is no critic without adversarial_weight; set that above 0")

    def extra_losses(self) -> dict[str, float]:
        """What the table says of losses beyond the name of the main one, by key; nothing where it says nothing."""
        common = {"loss", *(field.name for field in dataclasses.fields(QuantizedTrainConfig))}
        fields = [field for field in dataclasses.fields(LossConfig) if field.name not in common]
        return {field.name: getattr(self, field.name) for field in fields if getattr(self, field.name) != field.default}

    def loss_weights(self, main: LossName) -> dict[str, float]:
        """Weights above 0 by name, with `main` as the main loss where the table names none; adversarial is not one."""
        given = {name: getattr(self, f"{name}_weight") for name in (*get_args(LossName), "perceptual")}
        main = self.loss or main
        return {main: 1.0, **{name: weight for name, weight in given.items() if weight}}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig(LossConfig):
    """The `tokenizer` table of registry.toml: quantizer, encoder, decoder and training, in one flat table.

    A plugin derives from it to give other defaults.
    """

    default_spread: ClassVar[float | None] = None
    """Spread of fsq where the table gives none; None takes that of the kind."""
    default_levels: ClassVar[tuple[int, ...]] = (8, 6, 5)
    """Levels of fsq where the table gives neither levels nor a codebook size.

    240 codes: of 1,000, what is smoother than photographs left a third unused, and came back no better.
    """

    steps: int = 800
    """Optimizer steps."""
    batch_size: int = 16
    """Samples in one forward pass."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW."""
    blocks: Literal["conv", "vit"] = "conv"
    """Kind of encoder and decoder; see `BlockConfig.kind`."""
    width: int = 0
    """Channels of encoder and decoder; 0 takes the default of the kind."""
    depth: int = 0
    """Residual blocks: for conv those at the token grid (finer resolutions have a third, rounded down); for vit all. 0
    takes the default of the kind."""
    heads: int | None = None
    """vit: attention heads."""
    mlp_ratio: float | None = None
    """vit: hidden width of the MLPs as a multiple of the width."""
    flip: bool = True
    """Mirror half of the training samples left to right, where the modality has `transform`."""
    diffusion: DiffusionConfig | None = None
    """A second decoder that draws fine detail; absent for none."""

    def __post_init__(self) -> None:
        LossConfig.__post_init__(self)
        self.block_config()

    def quantizer_defaults(self) -> Mapping[str, Any]:
        """Of fsq: the levels where the table does not say how many codes there are, and how much they are spread."""
        if self.quantizer != "fsq":
            return {}
        spread = {"spread_weight": self.default_spread}
        return spread if self.codebook_size else {"levels": self.default_levels, **spread}

    def block_config(self) -> BlockConfig:
        """The encoder's and decoder's part of the table, resolved."""
        return BlockConfig(
            kind=self.blocks, width=self.width, depth=self.depth, heads=self.heads, mlp_ratio=self.mlp_ratio
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSettings:
    """Size of an image-like modality's values, and of its tokens' patches."""

    image_size: int | tuple[int, int] = 64
    """Pixels: one number for squares, or [height, width]."""
    patch_size: int = 8
    """Pixels per token along each side; divides the image size."""

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"image_size: expected at least 1 pixel, got {self.image_size}")
        if self.patch_size < 1 or any(side % self.patch_size for side in self.size):
            raise ValueError(
                f"patch_size: {self.patch_size} does not divide the image size {self.size[0]} x {self.size[1]}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per column and per row."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size


def published(*, codebook_size: int, diffusion: bool = False) -> dict[str, Any]:
    """Settings of 4M's tokenizers (arXiv 2312.06647, appendix), with a diffusion decoder where they have one.

    ViT-B/16 at 224 x 224, and a cosine codebook by moving averages of 32 numbers per code. How long to train, and in
    which batches, depends on the machine: set `steps`, `batch_size` and `grad_accum_steps`.
    """
    tokenizer: dict[str, Any] = dict(
        quantizer="vq",
        codebook_size=codebook_size,
        codebook_dim=32,
        latent_dim=32,
        decay=0.99,
        blocks="vit",
        width=768,
        depth=12,
        heads=12,
        learning_rate=1e-4,
        warmup_steps=5000,
        weight_decay=0.05,
        ema_decay=0.999,
        precision="bfloat16",
        steps=200_000,
        batch_size=64,
        eval_every=2000,
    )
    if diffusion:
        tokenizer["diffusion"] = PUBLISHED_DIFFUSION
    return {"image_size": 224, "patch_size": 16, "tokenizer": tokenizer}


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialSettings(ImageSettings):
    """Settings of an image-like modality with discrete tokens."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": published(codebook_size=8192, diffusion=True)}
    """Tables of settings by name; keys that are given beside `preset` go before those of its table."""

    preset: str | None = None
    """"4m" for the published size: ViT-B encoder and decoder at 224 pixels; trained on accelerators, not in minutes."""
    tokenizer: TokenizerConfig = TokenizerConfig()

    def __post_init__(self) -> None:
        ImageSettings.__post_init__(self)
        diffusion = self.tokenizer.diffusion
        if diffusion is None:
            return
        if diffusion.layout == "own" and self.patch_size % diffusion.patch_size:
            raise ValueError(
                f"tokenizer.diffusion.patch_size: {diffusion.patch_size} does not divide the patch size"
                f" {self.patch_size} of the tokens"
            )
        if any(side % diffusion.patch_size for side in self.size):
            raise ValueError(
                f"tokenizer.diffusion.patch_size: {diffusion.patch_size} does not divide the image size"
                f" {self.size[0]} x {self.size[1]}"
            )

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens per column and per row, and per patch where it has several."""
        return self.tokenizer.quantizer_config().token_shape(self.grid)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialModelConfig:
    """What a spatial tokenizer's weights are of; saved beside them, and checked when they are loaded."""

    channels: int
    """Channels of what the decoder gives: those of the values, or one per class."""
    classes: bool
    """Whether values are class ids."""
    patch_size: int
    latent_dim: int
    quantizer: QuantizerConfig
    blocks: BlockConfig
    decoder: BlockConfig | None = field(default=None, metadata=ADDED)
    """The plain decoder's blocks, where they are not those of the encoder."""
    plain_decoder: bool = field(default=True, metadata=ADDED)
    """Whether there is one beside a diffusion decoder; published tokenizers have either."""
    class_channels: int = field(default=8, metadata=ADDED)
    """Numbers per pixel that class ids are embedded in."""
    inputs: Literal["own", "published"] = field(default="own", metadata=ADDED)
    """What the encoder was trained on: what the modality's `to_model` gives, or what its `to_published` does."""
