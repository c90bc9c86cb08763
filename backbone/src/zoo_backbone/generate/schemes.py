"""Decoding schemes of grids and vectors: which cells are drawn in a step, and which of them are then decided.

Another order is one more class in SCHEMES, and its name in `plans.Scheme`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo_backbone.generate.sampling import CONFIDENCE, ORDER, Noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The draws of one step. Tensors are `draws cells`."""

    number: int
    share_left: float
    """Share of the steps that were left before this one."""
    count: int
    """Cells that each draw decides in this step."""
    cells: Tensor
    """The drawn cells, int64."""
    ids: Tensor
    """An id for each cell."""
    log_probabilities: Callable[[], Tensor]
    """Returns the log probability of each id."""


class Scheme(ABC):
    """Decides the cells `open_cells` of a batch of grids of `length` cells; int64 `draws cells`, equally many each."""

    draws_share_cells: ClassVar[bool] = True
    """Whether all draws of a sample draw the same cells as long as they have the same tokens."""

    def __init__(self, open_cells: Tensor, length: int, noise: Noise, confidence_noise: float) -> None:
        self.open_cells, self.length = open_cells, length
        self.noise, self.confidence_noise = noise, confidence_noise

    @abstractmethod
    def next_cells(self, count: int) -> Tensor:
        """Return the open cells to draw in a step that decides `count` of them."""

    @abstractmethod
    def commit(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the decided cells and their ids, `draws count`; they are no longer open."""


class RowByRow(Scheme):
    """Cells in the order of the grid."""

    def next_cells(self, count: int) -> Tensor:
        return self.open_cells[:, :count]

    def commit(self, step: Step) -> tuple[Tensor, Tensor]:
        self.open_cells = self.open_cells[:, step.count :]
        return step.cells, step.ids


class RandomOrder(RowByRow):
    """Cells in a random order of each draw (4M, arXiv 2312.06647: ROAR)."""

    draws_share_cells = False

    def __init__(self, open_cells: Tensor, length: int, noise: Noise, confidence_noise: float) -> None:
        order = noise.uniform(ORDER, 0, length).argsort(dim=1).to(open_cells.device)
        is_open = torch.zeros_like(order, dtype=torch.bool).scatter(1, open_cells, True)
        super().__init__(order[is_open.gather(1, order)].view(open_cells.shape), length, noise, confidence_noise)


class MostConfident(Scheme):
    """All open cells are drawn, and the most probable are decided (MaskGIT, arXiv 2202.04200, section 3.2).

    `confidence_noise` times Gumbel noise is added to the log probabilities; it falls linearly to 0 over the steps.
    """

    def next_cells(self, count: int) -> Tensor:
        return self.open_cells

    def commit(self, step: Step) -> tuple[Tensor, Tensor]:
        confidence = step.log_probabilities()
        if self.confidence_noise:
            gumbel = self.noise.gumbel(CONFIDENCE, step.number, self.length).to(confidence.device)
            confidence = confidence + self.confidence_noise * step.share_left * gumbel.gather(1, step.cells)
        decided = confidence.argsort(dim=1, descending=True, stable=True)[:, : step.count]
        is_open = torch.ones_like(step.cells, dtype=torch.bool).scatter(1, decided, False)
        self.open_cells = self.open_cells[is_open].view(len(decided), -1)
        return step.cells.gather(1, decided), step.ids.gather(1, decided)


SCHEMES: dict[str, type[Scheme]] = {"maskgit": MostConfident, "roar": RandomOrder, "autoregressive": RowByRow}
"""By the name in a plan; the first is the default."""
