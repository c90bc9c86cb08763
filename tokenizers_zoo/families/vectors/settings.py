"""Settings of global vectors and of their tokenizers, readable without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tokenizers_zoo.quantizers.config import QuantizerConfig, QuantizerKind
from tokenizers_zoo.training_config import TrainConfig

LossName = Literal["cosine", "smooth_l1"]
DEFAULT_CODES = 256
"""Codes of each codebook: few enough that some thousand vectors keep them all in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorTokenizerConfig(TrainConfig):
    """The `tokenizer` table of a global vector: quantizer, encoder, decoder and training, in one flat table."""

    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 256
    """Samples in one forward pass."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    loss: LossName | None = None
    """cosine: 1 - cosine, blind to length; smooth_l1: of numbers at mean 0 and deviation 1; absent takes the
    modality's own."""
    quantizer: QuantizerKind = "product_vq"
    """How latents become tokens; see `QuantizerConfig.kind`."""
    levels: tuple[int, ...] | None = None
    """fsq kinds: values per dimension; their product is the codebook size."""
    codebook_size: int = 0
    """Number of codes of each codebook; 0 takes 256, or the default of the quantizer for fsq kinds."""
    num_codebooks: int | None = None
    """Kinds with several codes per latent: how many, which is the number of tokens."""
    groups: int | None = None
    """grouped_residual_vq: parts of a latent that have residual codes of their own."""
    codebook_dim: int | None = None
    """Kinds with a codebook: numbers per code."""
    distance: Literal["cosine", "euclidean"] | None = None
    """vq, product_vq: what "nearest" means."""
    decay: float | None = None
    """vq kinds: share of the old codebook that a training step keeps."""
    kmeans_iterations: int | None = None
    """vq kinds: k-means iterations on the first batch."""
    revive_below: float | None = None
    """vq kinds: share of the mean use below which a code is replaced."""
    commitment_weight: float | None = None
    """All but fsq kinds and memcodes: weight of the distance between latents and codes in the loss."""
    entropy_weight: float | None = None
    """lfq, bsq, memcodes: weight of the entropy term in the loss."""
    latent_dim: int = 128
    """Numbers between encoder, quantizer and decoder."""
    width: int = 256
    """Numbers inside encoder and decoder; 4 times as many inside each block."""
    depth: int = 2
    """Blocks of the encoder, and of the decoder."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        for name in ("latent_dim", "width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        self.quantizer_config()

    def quantizer_config(self) -> QuantizerConfig:
        """The quantizer's part of the table, resolved."""
        own = {field.name for field in dataclasses.fields(VectorTokenizerConfig)}
        fields = [field.name for field in dataclasses.fields(QuantizerConfig) if field.name in own]
        given = {name: getattr(self, name) for name in fields}
        if not self.codebook_size and "fsq" not in self.quantizer:
            given["codebook_size"] = DEFAULT_CODES
        return QuantizerConfig(kind=self.quantizer, **given)


def published_vector() -> dict[str, Any]:
    """Settings of 4M's tokenizers of global vectors: 6 blocks of 1,024, 16 codes of 8,192, memory codes, cosine loss.

    arXiv 2406.09406, appendix. How long to train, and in which batches, depends on the machine.
    """
    return {
        "tokenizer": {
            "quantizer": "memcodes",
            "codebook_size": 8192,
            "num_codebooks": 16,
            "codebook_dim": 32,
            "latent_dim": 512,
            "width": 1024,
            "depth": 6,
            "loss": "cosine",
            "learning_rate": 1e-4,
            "warmup_steps": 5000,
            "weight_decay": 0.05,
            "ema_decay": 0.999,
            "precision": "bfloat16",
            "steps": 200_000,
            "batch_size": 1024,
            "eval_every": 2000,
        },
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorSettings:
    """Settings of a global vector. A plugin derives from it to say the network, where one derives values."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": published_vector()}
    """Tables of settings by name; keys that are given beside `preset` go before those of its table."""

    preset: str | None = None
    """"4m" for the published size; trained on accelerators, not in minutes."""
    tokenizer: VectorTokenizerConfig = VectorTokenizerConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorModelConfig:
    """What a vector tokenizer's weights are of; saved beside them, and checked when they are loaded."""

    dim: int
    """Numbers of a value."""
    loss: LossName
    """What it was trained by: after cosine, decoded vectors are given the mean length of the training values."""
    latent_dim: int
    width: int
    depth: int
    quantizer: QuantizerConfig
