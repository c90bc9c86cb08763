"""What both training loops share: learning rate schedule, EMA of the weights, and the check for non-finite losses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_zoo.errors import ZooError


class DivergedError(ZooError):
    """The loss or its gradient is not finite."""


def learning_rate_at(
    step: int,
    *,
    steps: int,
    peak: float,
    warmup_steps: int,
    minimum: float = 0.0,
    schedule: str = "cosine",
    decay_fraction: float = 0.2,
) -> float:
    """Return the learning rate of step `step`, counted from 0.

    Linear warm-up to `peak` over at most half of the steps. Then "cosine" decays to `minimum` (arXiv 1608.03983, eq.
    5), and "wsd" stays at the peak and decays over the last `decay_fraction` of the steps with 1 - sqrt(progress)
    (arXiv 2405.18392, section 3.2).
    """
    warm = min(warmup_steps, steps // 2)
    if step < warm:
        return peak * (step + 1) / warm
    if schedule == "wsd":
        length = min(decay_fraction * steps, steps - warm)
        progress = (step - (steps - length)) / max(length, 1.0)
        return minimum + (peak - minimum) * (1 - math.sqrt(max(progress, 0.0)))
    progress = (step - warm) / max(steps - warm, 1)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class EMA:
    """Exponential moving average of a model's parameters (arXiv 1803.05407 and 2411.18704), also of sharded ones.

    Buffers are not averaged: a codebook's statistics are averages already.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.parameters = dict(model.named_parameters())
        self.weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights of step `step`; the decay is lower in the first steps, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), list(self.parameters.values()), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average within the block."""
        model_weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.copy_to_model(self.weights)
        try:
            yield
        finally:
            self.copy_to_model(model_weights)

    @torch.no_grad()
    def copy_to_model(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Overwrite the model's parameters with the average, or with `weights`."""
        for name, parameter in self.parameters.items():
            parameter.copy_((weights or self.weights)[name])
        if reshard := getattr(self.model, "reshard", None):  # of FSDP, whose import would take a second
            reshard()  # parameters gathered for the last forward pass are outdated

    def state(self) -> dict[str, Tensor]:
        """Return the average by parameter name."""
        return dict(self.weights)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from saved `weights`."""
        self.weights = {name: tensors[name].to(weight.device) for name, weight in self.weights.items()}


def check_finite(
    name: str, step: int, config: Any, loss: float, norm: float, learning_rate: float, table: str = ""
) -> None:
    """Raise DivergedError if the loss or its gradient norm is not finite.

    `config` has steps, warmup_steps and precision; `table` is the prefix of these settings.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    warmup_advice = f"warmup_steps ({config.warmup_steps})"
    if config.warmup_steps >= config.steps // 2:  # it is cut to half of the steps
        warmup_advice = f"steps ({config.steps}), half of which are warm-up"
    precision_advice = "" if config.precision == "float32" else f", or set {table}precision to float32"
    raise DivergedError(
        f"{name}: step {step} of {config.steps}: the loss ({loss:g}) or its gradient norm ({norm:g}) is not finite; "
        f"lower {table}learning_rate ({learning_rate:g}), raise {table}{warmup_advice}{precision_advice}"
    )
