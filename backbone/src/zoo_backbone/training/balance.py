"""How much each modality counts in the loss: as the settings say, and as their losses say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from zoo_backbone.config import TrainConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.training.optim import RowAdam

NAME = "log_variance"


class Balance:
    """Factors of the modalities' losses.

    Those of the settings are relative: their mean over what a batch has is 1. With "uncertainty", a modality's loss is
    exp(-s) L + s / 2 with a learned s (arXiv 1705.07115, equation 10, for a cross-entropy), which comes to a weight of
    1 / (2 L). The gradient for s needs L alone, so it costs nothing. Raises UnknownNameError for a weight of a
    modality that the backbone has not, and ConfigError for one of an input, which has no loss.
    """

    def __init__(self, layout: EmbeddingLayout, config: TrainConfig, device: torch.device) -> None:
        self.layout, self.config = layout, config
        self.fixed = torch.ones(len(layout), device=device)
        for name, weight in config.loss_weights.items():
            layout.check_made(name, "loss_weights:")
            self.fixed[layout.index(name)] = weight
        self.learned = config.balance == "uncertainty"
        self.adam = RowAdam(torch.zeros(len(layout), 1, device=device), config.betas)

    def weights(self, whole: Tensor) -> Tensor | None:
        """The factors `modalities` for a batch with `whole` targets; None where all are 1."""
        if not self.learned and not self.config.loss_weights:
            return None
        share = whole if self.config.loss == "token" else (whole > 0).float()
        fixed = self.fixed * (share.sum() / (self.fixed * share).sum().clamp(min=1e-9))
        return fixed * self._factors() if self.learned else fixed

    def update(self, sums: Tensor, whole: Tensor, rate: float) -> None:
        """Learn from the sums of the whole batch's losses."""
        if self.learned:
            gradient = 0.5 - self._factors() * sums / whole.clamp(min=1)
            self.adam.step(torch.where(whole > 0, gradient, 0.0).unsqueeze(1), rate)

    def _factors(self) -> Tensor:
        return torch.exp(-self.adam.table.squeeze(1))

    def shown(self) -> dict[str, float]:
        """The learned factors, for the log."""
        names = self.layout.names if self.learned else ()
        return {f"weight/{name}": factor for name, factor in zip(names, self._factors().tolist(), strict=False)}

    def state(self) -> dict[str, Tensor]:
        """What was learned."""
        return {NAME: self.adam.table, **self.adam.state(NAME)} if self.learned else {}

    def empty_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors like those of `state`."""
        return {name: torch.zeros_like(tensor) for name, tensor in self.state().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        if self.learned:
            self.adam.table = tensors[NAME]
            self.adam.load_state(NAME, tensors)
