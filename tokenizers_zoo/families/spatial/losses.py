"""Reconstruction losses of spatial tokenizers, chosen by name in the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

LOSSES_OF_KIND: dict[str, tuple[str, ...]] = {
    "continuous": ("l1", "l2", "smooth_l1", "cosine"),
    "classes": ("cross_entropy",),
    "binary": ("bce",),
}
"""Which losses fit which kind of values."""

RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "l1": lambda outputs, target, _: F.l1_loss(outputs, target),
    "l2": lambda outputs, target, _: F.mse_loss(outputs, target),
    "smooth_l1": lambda outputs, target, _: F.smooth_l1_loss(outputs, target),
    "cosine": lambda outputs, target, _: 1 - F.cosine_similarity(outputs, target, dim=1, eps=1e-6).mean(),
    "cross_entropy": lambda outputs, target, weights: F.cross_entropy(outputs, target, weights),
    "bce": lambda outputs, target, weights: F.binary_cross_entropy_with_logits(outputs, target, pos_weight=weights),
}
"""Mean losses (outputs, target, weights of classes) by name."""


def check_loss(name: str, kind: str, settings: Settings) -> None:
    """Raise ConfigError where the loss does not fit the kind of values."""
    if name not in LOSSES_OF_KIND[kind]:
        where = settings.origin.inner("tokenizer").at("loss")
        raise ConfigError(f"{where}: {name} does not fit {kind} values; choose {' or '.join(LOSSES_OF_KIND[kind])}")


def frequency_weights(values: Tensor, classes: int, balance: float) -> Float[Tensor, " classes"]:
    """Weights of classes by frequency ^ -balance, 1 on average over the pixels; for 0/1 values, that of the ones alone.

    A class that does not occur counts as one pixel, so that its weight stays finite.
    """
    if values.dtype.is_floating_point:  # 0 and 1: the weight of a one relative to a zero
        ones = float(values.sum().clamp(1, values.numel() - 1))
        return torch.tensor([((values.numel() - ones) / ones) ** balance])
    counts = torch.bincount(values.flatten(), minlength=classes).double().clamp_min(1)
    shares = counts / counts.sum()
    weights = shares**-balance
    return (weights / (weights * shares).sum()).float()
