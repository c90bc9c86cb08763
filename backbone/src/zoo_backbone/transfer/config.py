"""The settings of a transfer: which head, what of the encoder moves, how many labels, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers_zoo.config import Origin, from_mapping
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.train.config import TrainConfig

Tuning = Literal["frozen", "full", "lora", "scratch"]
HeadName = Literal["linear", "attentive", "convnext", "knn", "tokens"]
Scale = Literal["auto", "linear", "log"]
As = Literal["classes", "numbers", "tokens"]

HEADS: Mapping[str, tuple[HeadName, ...]] = {
    "classes": ("attentive", "linear", "knn"),
    "numbers": ("attentive", "linear", "knn"),
    "class map": ("convnext", "linear"),
    "number map": ("convnext", "linear"),
    "tokens": ("tokens",),
}
"""By kind of answer the heads that give it, the default first."""
VALIDATION_LEAST = 8
"""Validation samples below which none are set apart: a choice by fewer is chance."""
TUNING: Mapping[str, Mapping[str, Any]] = {
    "frozen": {"learning_rate": 2e-3},
    "full": {"learning_rate": 1e-3, "weight_decay": 0.05},
    "lora": {"learning_rate": 2e-3, "layer_decay": 1.0},
    "scratch": {"learning_rate": 1e-3, "weight_decay": 0.05, "layer_decay": 1.0},
}
"""What differs from the defaults of TransferConfig where nothing else is said, by tuning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig(TrainConfig):
    """One transfer: the table [transfer], with the keys of the tokenizers' training loop, which trains it."""

    tuning: Tuning = "frozen"
    """What of the encoder moves. frozen: nothing, its features are computed once; full: all, early layers least; lora:
    low-rank additions to the blocks' linear layers; scratch: all, from random weights, which is the comparison."""
    head: HeadName | None = None
    """What is put on the features; absent: the default for the kind of answer."""
    labels: int | float = 1.0
    """Training samples whose labels are used: a share above 0 and up to 1 with a point, or a number of samples."""
    scale: Scale = "auto"
    """How numbers of a map are learned. auto: by their logarithm where the modality's are always above 0."""
    layer_decay: float = 0.75
    """Learning rate of each layer of the encoder as a multiple of that of the next (BEiT, arXiv 2106.08254)."""
    neighbours: int = 20
    """Of knn: how many vote."""
    temperature: float = 0.07
    """Of knn: the votes' weights are exp(cosine / temperature) (DINO, arXiv 2104.14294, appendix)."""
    lora_rank: int = 8
    """Rank of lora's additions (arXiv 2106.09685)."""
    lora_alpha: int = 16
    """Size of lora's additions: they count alpha / rank times."""
    head_blocks: int = 2
    """Blocks of convnext at each of its resolutions, or of the decoder of tokens."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 32
    """Samples in one forward pass."""
    eval_every: int = 50
    """Steps between evaluations, each of which also saves the training state."""
    validation: float = 0.2
    """Share of the labels that is not learned from: the weights of the step that does best on these samples are kept.
    0: all labels are learned from, and the last weights are kept; so it is, too, where fewer than 8 samples
    would be set apart."""
    eval_samples: int = 512
    """Validation samples at most, the rest of the share is learned from; without validation, test samples that are
    looked at on the way."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better main metric on the validation samples; absent does all
    steps. The weights of the best evaluation are kept in either case."""
    dropout: float = 0.0
    """Share of the features' numbers that a training step drops before the head reads them (arXiv 1207.0580)."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        most = 1 if isinstance(self.labels, float) else math.inf
        if isinstance(self.labels, bool) or not 0 < self.labels <= most:
            raise ValueError(
                f"labels: expected a share such as 0.1, 1.0 for all, or a number of samples without a point, got "
                f"{self.labels}"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected a number above 0 and up to 1, got {self.layer_decay}")
        if min(self.neighbours, self.lora_rank, self.head_blocks) < 1:
            raise ValueError("neighbours, lora_rank and head_blocks: expected at least 1")
        if not 0 < self.temperature < math.inf or self.lora_alpha <= 0:
            raise ValueError(
                f"temperature and lora_alpha: expected numbers above 0, got {self.temperature} and {self.lora_alpha}"
            )
        if not 0 <= self.validation < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"validation and dropout: expected shares from 0 to below 1, got {self.validation} and {self.dropout}"
            )
        if self.validation and self.eval_samples < VALIDATION_LEAST:
            raise ValueError(
                f"eval_samples: bounds the validation samples, which have to be {VALIDATION_LEAST} at least, got "
                f"{self.eval_samples}; raise it, or set validation to 0"
            )
        if self.patience is not None and not self.validation:
            raise ValueError("patience: watches the validation samples, and validation is 0; leave one of them out")
        if self.patience is not None and self.head == "knn":
            raise ValueError("patience: knn trains nothing that could stop early; leave it out")
        if self.head == "knn" and self.tuning != "frozen":
            raise ValueError(f"head: knn trains nothing, so it goes with frozen features, not with {self.tuning}")


def transfer_config(table: Mapping[str, Any], origin: Origin | None = None) -> TransferConfig:
    """The settings of a table, over the defaults of its tuning. Raises ConfigError."""
    defaults = TUNING.get(str(table.get("tuning", "frozen")), {})
    return from_mapping(TransferConfig, {**defaults, **table}, origin)


def chosen_head(kind: str, config: TransferConfig) -> HeadName:
    """The head for a kind of answer. Raises ConfigError where the one that is asked for does not give it."""
    if config.head is None:
        return HEADS[kind][0]
    if config.head not in HEADS[kind]:
        raise ConfigError(f"--head {config.head}: does not give {kind}; expected {' or '.join(HEADS[kind])}")
    return config.head
