"""Settings of a transfer: head, tuning, number of labels, training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.records.config import Origin, from_mapping
from tokenizers_zoo.records.typed import Interval, PositiveInt
from tokenizers_zoo.tokenizers.nn.config import MOST_BLOCKS
from tokenizers_zoo.train.config import TrainConfig

Tuning = Literal["frozen", "full", "lora", "scratch"]
HeadName = Literal["linear", "attentive", "convnext"]

HEADS: Mapping[str, tuple[HeadName, ...]] = {
    "classes": ("attentive", "linear"),
    "numbers": ("attentive", "linear"),
    "class map": ("convnext", "linear"),
    "number map": ("convnext", "linear"),
}
"""Heads for each kind of target, the default first."""
MIN_VALIDATION = 8
"""Fewer validation samples than this are not used: selecting a step by them would be chance."""
TUNING: Mapping[str, Mapping[str, Any]] = {
    "frozen": {"learning_rate": 2e-3},
    "full": {"learning_rate": 1e-3, "weight_decay": 0.05},
    "lora": {"learning_rate": 2e-3, "layer_decay": 1.0},
    "scratch": {"learning_rate": 1e-3, "weight_decay": 0.05, "layer_decay": 1.0},
}
"""Defaults for each tuning, where they differ from TransferConfig."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig(TrainConfig):
    """The table [transfer]. It extends the settings of the tokenizer training loop, which also trains probes."""

    tuning: Tuning = "frozen"
    """Which encoder weights are trained. frozen: none, features are cached; full: all, with lower rates for early
    layers; lora: low-rank adapters in the blocks' linear layers; scratch: all, from random weights (the baseline)."""
    head: HeadName | None = None
    """The head on top of the features. Default: the first that fits the kind of target."""
    labels: PositiveInt | Annotated[float, Interval("(0, 1]")] = 1.0
    """Training labels used: a float in (0, 1] is a share, an integer is a number of samples."""
    layer_decay: Annotated[float, Interval("(0, 1]")] = 0.75
    """Ratio of the learning rates of consecutive encoder layers (BEiT, arXiv 2106.08254)."""
    lora_rank: PositiveInt = 8
    """Rank of the LoRA adapters (arXiv 2106.09685)."""
    lora_alpha: PositiveInt = 16
    """LoRA adapters are scaled by lora_alpha / lora_rank."""
    head_blocks: Annotated[int, Interval(f"[1, {MOST_BLOCKS}]")] = 2
    """Blocks per resolution (convnext)."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 32
    """Samples per forward pass."""
    eval_every: int = 50
    """Steps between evaluations. Each evaluation also saves the training state."""
    validation: Annotated[float, Interval("[0, 1)")] = 0.2
    """Share of the labels used for validation: the weights of the best evaluation are kept. With 0, or with fewer than
    8 validation samples, all labels are trained on and the last weights are kept."""
    eval_samples: int = 512
    """Maximum number of validation samples. Without validation: test samples that are scored during training."""
    patience: int | None = None
    """Stop after this many evaluations without improvement of the main validation metric. Default: never."""
    dropout: Annotated[float, Interval("[0, 1)")] = 0.0
    """Dropout on the features before the head (arXiv 1207.0580)."""


def transfer_config(table: Mapping[str, Any], origin: Origin | None = None) -> TransferConfig:
    """Return the settings of a table, over the defaults of its tuning. Raises ConfigError."""
    defaults = TUNING.get(str(table.get("tuning", "frozen")), {})
    return from_mapping(TransferConfig, {**defaults, **table}, origin)


def head_for(kind: str, config: TransferConfig) -> HeadName:
    """Return the configured or default head for a kind of target. Raises ConfigError if it does not fit."""
    if config.head is None:
        return HEADS[kind][0]
    if config.head not in HEADS[kind]:
        raise ConfigError(f"--head {config.head}: cannot predict {kind}; expected {' or '.join(HEADS[kind])}")
    return config.head
