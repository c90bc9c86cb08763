"""Reconstruction losses of spatial tokenizers, chosen by name and weight in the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LOSSES_OF_KIND: dict[str, tuple[str, ...]] = {
    "continuous": ("l1", "l2", "smooth_l1", "cosine", "perceptual", "adversarial"),
    "classes": ("cross_entropy", "ordinal"),
    "binary": ("bce",),
}
"""Which losses fit which kind of values."""


def ordinal(logits: Float[Tensor, "batch classes height width"], ids: Int[Tensor, "batch height width"]) -> Tensor:
    """Mean over pixels of the squared differences of cumulated shares, for classes whose ids are an order.

    The squared earth mover's distance of arXiv 1611.05916, section 3.2, with unit distance between neighbours.
    """
    truth = F.one_hot(ids, logits.shape[1]).movedim(-1, 1)
    return (logits.softmax(dim=1) - truth).cumsum(dim=1).square().sum(dim=1).mean()


RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "l1": lambda outputs, target, _: F.l1_loss(outputs, target),
    "l2": lambda outputs, target, _: F.mse_loss(outputs, target),
    "smooth_l1": lambda outputs, target, _: F.smooth_l1_loss(outputs, target),
    "cosine": lambda outputs, target, _: 1 - F.cosine_similarity(outputs, target, dim=1, eps=1e-6).mean(),
    "cross_entropy": lambda outputs, target, weights: F.cross_entropy(outputs, target, weights),
    "ordinal": lambda outputs, target, _: ordinal(outputs, target),
    "bce": lambda outputs, target, weights: F.binary_cross_entropy_with_logits(outputs, target, pos_weight=weights),
}
"""Mean losses (outputs, target, weights of classes) by name."""


def check_losses(names: Iterable[str], kind: str, settings: Settings) -> None:
    """Raise ConfigError for the first loss that does not fit the kind of values."""
    for name in names:
        if name not in LOSSES_OF_KIND[kind]:
            fitting = LOSSES_OF_KIND[kind]
            table = settings.get("tokenizer", {})
            key = f"{name}_weight" if f"{name}_weight" in table else "loss"
            where = settings.origin.inner("tokenizer").at(key)
            raise ConfigError(f"{where}: {name} does not fit {kind} values; choose {' or '.join(fitting)}")


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
