"""Low-rank additions to the encoder's linear layers (LoRA, arXiv 2106.09685), by peft."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.encoder import FourMEncoder

LAYERS = r"encoder\.\d+\.(attention\.(qkv|out)|mlp\.(up|down))"
"""The layers that get additions: all of attention and MLP."""
MARK = "lora_"
"""In the names of what peft adds."""


def require_peft() -> None:
    """Raise ConfigError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError('--tuning lora: needs peft, which is not installed; pip install "zoo-backbone[transfer]"')


def add_lora(encoder: FourMEncoder, rank: int, alpha: int) -> None:
    """Add to a frozen encoder what is trained in its place; it changes nothing yet. Raises ConfigError without peft."""
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LAYERS, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, encoder.model)


def lora_state(encoder: FourMEncoder) -> dict[str, Tensor]:
    """The additions alone, by name."""
    return {name: tensor for name, tensor in encoder.model.state_dict().items() if MARK in name}
