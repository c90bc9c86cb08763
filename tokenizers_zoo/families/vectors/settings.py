"""Settings of global vectors and of their tokenizers, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tokenizers_zoo.config import ADDED, check_counts
from tokenizers_zoo.families.quantized import QuantizedTrainConfig
from tokenizers_zoo.nn.config import MlpConfig
from tokenizers_zoo.quantizers.config import QuantizerConfig, QuantizerKind

LossName = Literal["cosine", "smooth_l1"]
DEFAULT_CODES = 256
"""Codes of each codebook: few enough that some thousand vectors keep them all in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorTokenizerConfig(QuantizedTrainConfig):
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
    latent_dim: int = 128
    """Numbers between encoder, quantizer and decoder."""
    width: int = 256
    """Numbers inside encoder and decoder; 4 times as many inside each block."""
    depth: int = 2
    """Blocks of the encoder, and of the decoder."""

    def __post_init__(self) -> None:
        QuantizedTrainConfig.__post_init__(self)
        check_counts(self, "width", "depth")

    def quantizer_defaults(self) -> Mapping[str, Any]:
        """DEFAULT_CODES, but for fsq kinds, whose levels say how many there are."""
        return {} if "fsq" in self.quantizer else {"codebook_size": DEFAULT_CODES}


def published_vector() -> dict[str, Any]:
    """Settings of 4M's tokenizers of global vectors: 6 blocks of 1,024, 16 codes of 8,192, memory codes, cosine loss.

    arXiv 2406.09406, appendix. How long to train, and in which batches, depends on the machine.
    """
    return {
        "tokenizer": {
            "quantizer": "memcodes",
            "codebook_size": 8192,
            "num_codebooks": 16,
            "codebook_dim": 64,
            "latent_dim": 1024,
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
    expansion: int = field(default=4, metadata=ADDED)
    """See `MlpConfig`; so are the next two."""
    final_norm: bool = field(default=True, metadata=ADDED)
    latent_map: bool = field(default=False, metadata=ADDED)
    decoder: MlpConfig | None = field(default=None, metadata=ADDED)
    """The decoder's blocks, where they are not those of the encoder."""

    @property
    def blocks(self) -> MlpConfig:
        """Those of the encoder, and mostly of the decoder."""
        names = ("width", "depth", "expansion", "final_norm", "latent_map")
        return MlpConfig(**{name: getattr(self, name) for name in names})
