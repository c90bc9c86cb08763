"""Settings of the autoencoder and of its training; importable without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import (
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    as_dicts,
)
from tokenizers_zoo.tokenizers.nn.config import MOST_BLOCKS, BlockConfig, MlpConfig
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerConfig, QuantizerFields, QuantizerKind, unused_fields
from tokenizers_zoo.train.config import Seed, TrainConfig

ValueKind = Literal["continuous", "classes", "binary"]
LossName = Literal["l1", "l2", "smooth_l1", "cosine", "cross_entropy", "ordinal", "bce"]
"""Losses that compare the decoder's output with its target element by element."""
LOSS_WEIGHTS = tuple(f"{loss}_weight" for loss in (*get_args(LossName), "perceptual", "adversarial"))
MOST_LEVELS, MOST_RESOLUTIONS = 100_000, 16
"""Limits of diffusion decoders, for the configurations of strangers."""
LOSSES_OF_KIND: dict[ValueKind, tuple[str, ...]] = {
    "continuous": ("l1", "l2", "smooth_l1", "cosine", "perceptual", "adversarial"),
    "classes": ("cross_entropy", "ordinal"),
    "binary": ("bce",),
}
"""The losses that each kind of values can be trained with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedTrainConfig(QuantizerFields, TrainConfig):
    """Training and quantizer settings in one flat table. Families derive from it to add encoder and decoder."""

    quantizer: QuantizerKind = "fsq"
    """How latents become tokens; see `QuantizerConfig.kind`."""
    latent_dim: PositiveInt = 32
    """Channels between encoder, quantizer and decoder."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        self.quantizer_config()

    @classmethod
    def irrelevant_fields(cls, table: Mapping[str, Any]) -> Iterable[str]:
        """Return the fields that the quantizer chosen in `table` does not use; they are reset."""
        return unused_fields(str(table["quantizer"])) if "quantizer" in table else ()

    def quantizer_defaults(self) -> Mapping[str, Any]:
        """Return the family's defaults for quantizer fields that the table does not set."""
        return {}

    def quantizer_config(self) -> QuantizerConfig:
        """Return the resolved quantizer settings of the table."""
        fields = dataclasses.fields(QuantizerFields)
        values = {f.name: getattr(self, f.name) for f in fields}
        unset = {f.name for f in fields if values[f.name] == f.default}
        defaults = {name: value for name, value in self.quantizer_defaults().items() if name in unset}
        return QuantizerConfig(kind=self.quantizer, **{**values, **defaults})

    def block_config(self) -> BlockConfig | MlpConfig:
        """Return the resolved encoder and decoder settings of the table."""
        raise NotImplementedError

    def loss_weights(self, main: LossName) -> dict[str, float]:
        """Weights of the reconstruction losses by name, with `main` as the default loss."""
        return {main: 1.0}

    def augmentation(self) -> dict[str, Any]:
        """Further training settings that are no part of `TrainConfig`, for the run's identity."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig(Checked):
    """The table `tokenizer.diffusion`: a second decoder that samples details instead of averaging them.

    The fields in `sampling_fields` only affect decoding and can change at any time.
    """

    sampling_fields: ClassVar[tuple[str, ...]] = ("sampler", "sampling_steps", "guidance_scale", "limit", "seed")

    base: str | None = None
    """Folder (or hub id) of a trained tokenizer. Its encoder, quantizer and plain decoder stay frozen, so its tokens,
    token stores and backbones stay valid. Absent: everything is trained together."""
    target: Literal["values", "residual"] = "values"
    """values: generate values from codes. residual (needs `base`): generate the error of the plain decoder from codes
    and its output (predict and refine, arXiv 2112.02475), which needs far fewer steps."""
    prediction: Literal["x0", "v", "epsilon"] = "v"
    """Training target of the network: the clean values, the velocity (arXiv 2202.00512), or the noise.

    The width must be at least channels x patch_size^2; a narrower network cannot separate a cell from its noise.
    """
    schedule: Literal["linear", "cosine"] = "cosine"
    """Noise schedule: linear betas (arXiv 2006.11239), or squared cosine (arXiv 2102.09672), with less noise."""
    zero_terminal_snr: bool = True
    """Whether the last time step is pure noise, as in sampling (arXiv 2305.08891); not possible with epsilon."""
    drop_share: Annotated[float, Interval("[0, 1)")] = 0.1
    """Fraction of training samples without codes, for classifier-free guidance (arXiv 2207.12598)."""
    patch_size: PositiveInt = 2
    """Pixels per cell of the network along each side; divides the modality's patch size."""
    width: PositiveInt = 32
    """Channels at the network's finest resolution; a multiple of 16."""
    multipliers: tuple[PositiveInt, ...] = (1, 2, 2)
    """Channels of each resolution as multiples of the width; each resolution is half the one before."""
    depth: Annotated[int, Interval(f"[1, {MOST_BLOCKS}]")] = 1
    """Residual blocks per resolution on the way down; one more on the way up."""
    attention: NonNegativeInt = 0
    """Number of coarsest resolutions with attention, in addition to the middle block, which always has it."""
    layout: Literal["own", "published"] = "own"
    """published: the network of 4M's tokenizers. Codes are upsampled as they are, time embeddings are added in each
    residual block, and attention has one head. own: codes are upsampled by a learned map; time scales and shifts."""
    noise_levels: Annotated[int, Interval(f"[1, {MOST_LEVELS}]")] = 1000
    """Number of time steps in training."""
    sampler: Literal["ddim", "dpm"] = "ddim"
    """Deterministic DDIM (arXiv 2010.02502), or second-order DPM-Solver++ (arXiv 2211.01095)."""
    sampling_steps: PositiveInt = 10
    """Network evaluations per decoding, a divisor of `noise_levels`; guidance doubles them."""
    guidance_scale: NonNegativeFloat = 1.0
    """1: no guidance. Larger values move away from the unconditional prediction."""
    limit: Literal["none", "range"] = "none"
    """range: clip each prediction of the clean target to [-1, 1]."""
    seed: Seed = 0
    """Seed of the sampling noise. Equal seeds and tokens give equal values."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError("prediction: epsilon needs zero_terminal_snr = false; or choose x0 or v")
        if self.target == "residual" and self.base is None:
            raise ValueError("target: residual refines a trained tokenizer; set base")
        if self.width % 16:
            raise ValueError(f"width: expected a multiple of 16, got {self.width}")
        if not 1 <= len(self.multipliers) <= MOST_RESOLUTIONS:
            raise ValueError(f"multipliers: expected 1 to {MOST_RESOLUTIONS} numbers, got {len(self.multipliers)}")
        if self.zero_terminal_snr and self.noise_levels == 1:
            raise ValueError("noise_levels: expected at least 2 with zero_terminal_snr, got 1")
        if self.noise_levels % self.sampling_steps:
            raise ValueError(f"sampling_steps: expected a divisor of {self.noise_levels}, got {self.sampling_steps}")
        if self.attention > len(self.multipliers):
            raise ValueError(f"attention: expected up to {len(self.multipliers)} resolutions, got {self.attention}")
        if self.guidance_scale != 1 and not self.drop_share:
            raise ValueError("guidance_scale: values other than 1 need a drop_share above 0 in training")

    def trained_settings(self) -> dict[str, Any]:
        """Return the fields that the weights depend on, as JSON types, without the path `base`."""
        omitted = {"base", *self.sampling_fields}
        return {name: value for name, value in as_dicts(self).items() if name not in omitted}

    def sampling_settings(self) -> dict[str, Any]:
        """Return the fields that only affect decoding."""
        return {name: getattr(self, name) for name in self.sampling_fields}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig(QuantizedTrainConfig):
    """The `tokenizer` table of registry.toml for grids: quantizer, encoder, decoder, losses and training.

    Plugins derive from it to change defaults. See `LOSSES_OF_KIND` for the losses that fit each kind of values.
    """

    default_spread: ClassVar[float | None] = None
    """Default `spread_weight` of fsq; None takes the quantizer's default."""
    default_levels: ClassVar[tuple[int, ...]] = (8, 6, 5)
    """Default levels of fsq: 240 codes. With 1,000 codes a third was unused on values smoother than photographs, and
    reconstructions were no better."""

    steps: int = 800
    batch_size: int = 16
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW."""
    blocks: Literal["conv", "vit"] = "conv"
    """Kind of encoder and decoder; see `BlockConfig.kind`."""
    width: PositiveInt | None = None
    """Channels of encoder and decoder. Absent: the default of the kind."""
    depth: PositiveInt | None = None
    """Residual blocks. conv: blocks at the token grid; finer resolutions have a third. vit: all blocks. Absent: the
    default of the kind."""
    heads: int | None = None
    """vit: attention heads."""
    mlp_ratio: float | None = None
    """vit: hidden width of the MLPs as a multiple of the width."""
    flip: bool = True
    """Mirror half of the training samples left to right, for modalities with `transform`."""
    loss: LossName | None = None
    """Main reconstruction loss; its weight is 1 unless given. Absent: the modality's default."""
    l1_weight: NonNegativeFloat = 0.0
    """Weight of the mean absolute error."""
    l2_weight: NonNegativeFloat = 0.0
    """Weight of the mean squared error."""
    smooth_l1_weight: NonNegativeFloat = 0.0
    """Weight of the smooth L1 loss (beta 1)."""
    cosine_weight: NonNegativeFloat = 0.0
    """Weight of 1 - cosine similarity between channels, per pixel."""
    cross_entropy_weight: NonNegativeFloat = 0.0
    """Weight of the cross-entropy of classes, nats."""
    ordinal_weight: NonNegativeFloat = 0.0
    """Weight of the squared earth mover's distance, for classes with an order."""
    bce_weight: NonNegativeFloat = 0.0
    """Weight of the binary cross-entropy, nats."""
    class_balance: Annotated[float, Interval("[0, 1]")] | None = None
    """Exponent in [0, 1] that weights rare classes: frequency ^ -exponent. 0 is off. Absent: the modality's default."""
    perceptual_weight: NonNegativeFloat = 0.0
    """Weight of the perceptual loss: the distance of EfficientNet-Lite features. Needs the extra `perceptual` and
    bounded values. Values are shown to the network as images from black (low) to white (high); unless there are three
    channels, the first one is shown as grey."""
    adversarial_weight: NonNegativeFloat = 0.0
    """Weight of the patch discriminator's loss, as a multiple of the adaptive weight."""
    adversarial_start: Annotated[float, Interval("[0, 1)")] = 0.5
    """Fraction of the steps after which the discriminator starts, in [0, 1)."""
    adversarial_rate: PositiveFloat = 0.25
    """Learning rate of the discriminator as a multiple of the model's."""
    diffusion: DiffusionConfig | None = None
    """A second decoder that samples fine detail; absent for none."""

    def __post_init__(self) -> None:
        QuantizedTrainConfig.__post_init__(self)
        self.block_config()
        for name in ("adversarial_start", "adversarial_rate"):
            if name in self.loss_settings() and not self.adversarial_weight:
                raise ValueError(f"{name}: used with adversarial_weight only; set that above 0")

    def quantizer_defaults(self) -> Mapping[str, Any]:
        """Default levels and spread of fsq."""
        if self.quantizer != "fsq":
            return {}
        spread = {"spread_weight": self.default_spread}
        return spread if self.codebook_size else {"levels": self.default_levels, **spread}

    def block_config(self) -> BlockConfig:
        return BlockConfig(
            kind=self.blocks, width=self.width or 0, depth=self.depth or 0, heads=self.heads, mlp_ratio=self.mlp_ratio
        )

    def loss_settings(self) -> dict[str, float]:
        """Return the loss settings that differ from their defaults, without the main loss."""
        names = (*LOSS_WEIGHTS, "class_balance", "adversarial_start", "adversarial_rate")
        defaults = {f.name: f.default for f in dataclasses.fields(TokenizerConfig)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    def augmentation(self) -> dict[str, Any]:
        """Flipping and loss settings."""
        return {"flip": self.flip, **self.loss_settings()}

    def loss_weights(self, main: LossName) -> dict[str, float]:
        """Nonzero weights of the reconstruction losses by name, without the adversarial loss."""
        weights = {name: getattr(self, f"{name}_weight") for name in (*get_args(LossName), "perceptual")}
        return {self.loss or main: 1.0, **{name: weight for name, weight in weights.items() if weight}}


PUBLISHED_TRAINING: dict[str, Any] = {
    "learning_rate": 1e-4,
    "warmup_steps": 5000,
    "weight_decay": 0.05,
    "ema_decay": 0.999,
    "precision": "bfloat16",
    "steps": 200_000,
    "batch_size": 64,
    "eval_every": 2000,
}
"""Training settings of the presets "4m". Adapt `steps`, `batch_size` and `grad_accum_steps` to the machine."""
PUBLISHED_VIT: dict[str, Any] = {
    "quantizer": "vq",
    "codebook_dim": 32,
    "latent_dim": 32,
    "decay": 0.99,
    "blocks": "vit",
    "width": 768,
    "depth": 12,
    "heads": 12,
    **PUBLISHED_TRAINING,
}
"""4M's tokenizers of grids (arXiv 2312.06647, appendix): ViT-B and an EMA cosine codebook of 32 numbers per code."""
PUBLISHED_DIFFUSION: dict[str, Any] = {
    "prediction": "x0",
    "schedule": "linear",
    "drop_share": 0.0,
    "patch_size": 4,
    "width": 256,
    "multipliers": [1, 2, 2, 2],
    "depth": 3,
    "attention": 2,
    "sampler": "ddim",
    "sampling_steps": 50,
}
"""The patched UNet decoder of 4M's image, depth, normal and edge tokenizers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """The architecture of an autoencoder, saved with its weights and checked when they are loaded."""

    kind: ValueKind = "continuous"
    """continuous: any numbers; classes: class ids in, logits out; binary: 0 and 1 in, logits out."""
    channels: int
    """Output channels of the decoder: as many as the network inputs have, or one per class."""
    patch: tuple[int, ...]
    """Cells per latent along each axis; empty for vectors."""
    latent_dim: int
    quantizer: QuantizerConfig
    encoder: BlockConfig | MlpConfig
    decoder: BlockConfig | MlpConfig | None = None
    """Blocks of the plain decoder; None: the same as the encoder's."""
    plain_decoder: bool = True
    """False if there is only a diffusion decoder, as in published tokenizers."""
    class_channels: int = 8
    """Embedding size of class ids."""
    directions: bool = False
    """Whether only the direction of vectors counts: outputs get the mean length of the training values."""
    inputs: Literal["own", "published"] = "own"
    """Whether values go through the modality's `to_network` or its `to_published`."""
    fitted: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Names and shapes of further statistics of the training values."""
