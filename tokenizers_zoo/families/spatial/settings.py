"""Settings of image-like modalities and of their tokenizers, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenizers_zoo.blocks.config import BlockConfig
from tokenizers_zoo.quantizers.config import QuantizerConfig, QuantizerKind
from tokenizers_zoo.training import TrainConfig

LossName = Literal["l1", "l2", "smooth_l1", "cosine", "cross_entropy", "bce"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig(TrainConfig):
    """The `tokenizer` table of registry.toml: quantizer, encoder, decoder and training, in one flat table.

    A plugin derives from it to give other defaults.
    """

    default_levels: ClassVar[tuple[int, ...]] = (8, 5, 5, 5)
    """Levels of fsq where the table gives neither levels nor a codebook size."""

    steps: int = 800
    """Optimizer steps."""
    batch_size: int = 16
    """Samples in one forward pass."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW."""
    quantizer: QuantizerKind = "fsq"
    """How latents become tokens; see `QuantizerConfig.kind`."""
    levels: tuple[int, ...] | None = None
    """fsq: values per dimension; their product is the codebook size."""
    codebook_size: int = 0
    """Number of codes; 0 takes the default of the quantizer."""
    codebook_dim: int | None = None
    """vq, simvq: numbers per code."""
    distance: Literal["cosine", "euclidean"] | None = None
    """vq: what "nearest" means."""
    decay: float | None = None
    """vq: share of the old codebook that a training step keeps."""
    kmeans_iterations: int | None = None
    """vq: k-means iterations on the first batch."""
    revive_below: float | None = None
    """vq: average count per batch below which a code is replaced."""
    commitment_weight: float | None = None
    """vq, lfq, simvq: weight of the distance between latents and codes in the loss."""
    entropy_weight: float | None = None
    """lfq: weight of the entropy term in the loss."""
    latent_dim: int = 32
    """Numbers per latent between encoder, quantizer and decoder."""
    blocks: Literal["conv", "vit"] = "conv"
    """Kind of encoder and decoder; see `BlockConfig.kind`."""
    width: int = 0
    """Channels of encoder and decoder; 0 takes the default of the kind."""
    depth: int = 0
    """Residual blocks: per resolution for conv, in all for vit; 0 takes the default of the kind."""
    heads: int | None = None
    """vit: attention heads."""
    mlp_ratio: float | None = None
    """vit: hidden width of the MLPs as a multiple of the width."""
    loss: LossName | None = None
    """Reconstruction loss; absent takes the modality's own."""
    flip: bool = True
    """Mirror half of the training samples left to right."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim: expected at least 1, got {self.latent_dim}")
        self.quantizer_config()
        self.block_config()

    def quantizer_config(self) -> QuantizerConfig:
        """The quantizer's part of the table, resolved."""
        levels = self.levels
        if self.quantizer == "fsq" and levels is None and not self.codebook_size:
            levels = self.default_levels
        return QuantizerConfig(
            kind=self.quantizer,
            codebook_size=self.codebook_size,
            levels=levels,
            codebook_dim=self.codebook_dim,
            distance=self.distance,
            decay=self.decay,
            kmeans_iterations=self.kmeans_iterations,
            revive_below=self.revive_below,
            commitment_weight=self.commitment_weight,
            entropy_weight=self.entropy_weight,
        )

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


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialSettings(ImageSettings):
    """Settings of an image-like modality with discrete tokens."""

    tokenizer: TokenizerConfig = TokenizerConfig()


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
