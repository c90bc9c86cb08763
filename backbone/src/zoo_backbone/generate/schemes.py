"""Decoding orders of grids and vectors: the cells that a step draws, and the drawn cells that it decides.

Another order is a class with two methods, and its name in `SCHEMES`.
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
    """A step of the decoding and its draws. Tensors are `draws cells`."""

    number: int
    """Counted from 0."""
    share_left: float
    """Share of the steps that were left before this one."""
    count: int
    """Cells to decide, for each draw."""
    cells: Tensor
    """The cells that `Scheme.next_cells` returned, int64."""
    ids: Tensor
    """The id drawn for each cell, int64."""
    log_probabilities: Callable[[], Tensor]
    """Computes the log probability of each id, float32."""


class Scheme(ABC):
    """A decoding order of the cells of a batch where `is_open` (bool `draws length`) is True, equally many per draw."""

    default_steps: ClassVar[int] = 8
    """Steps where the plan sets none; 0: one per cell."""

    def __init__(self, is_open: Tensor, noise: Noise, confidence_noise: float) -> None:
        self.open_cells = is_open.nonzero()[:, 1].view(len(is_open), -1)
        """The undecided cells of each draw, int64 `draws cells`."""
        self.length, self.noise, self.confidence_noise = is_open.shape[1], noise, confidence_noise

    @abstractmethod
    def next_cells(self, count: int) -> Tensor:
        """Return the open cells that the next step draws, `draws cells`: at least `count`, which it will decide."""

    @abstractmethod
    def commit(self, step: Step) -> tuple[Tensor, Tensor]:
        """Remove `step.count` of the drawn cells from `open_cells`; return them and their ids, `draws count`."""


class RowByRow(Scheme):
    """Row by row, one cell per step by default."""

    default_steps = 0

    def next_cells(self, count: int) -> Tensor:
        return self.open_cells[:, :count]

    def commit(self, step: Step) -> tuple[Tensor, Tensor]:
        self.open_cells = self.open_cells[:, step.count :]
        return step.cells, step.ids


class RandomOrder(RowByRow):
    """In a random order, which differs between draws (4M, arXiv 2312.06647)."""

    default_steps = Scheme.default_steps

    def __init__(self, is_open: Tensor, noise: Noise, confidence_noise: float) -> None:
        super().__init__(is_open, noise, confidence_noise)
        order = noise.uniform(ORDER, 0, self.length).argsort(dim=1).to(is_open.device)
        self.open_cells = order[is_open.gather(1, order)].view(self.open_cells.shape)


class MostConfident(Scheme):
    """The most confident tokens first: each step draws all open cells (MaskGIT, arXiv 2202.04200).

    Gumbel noise on the log probabilities, times `confidence_noise`, falls linearly to 0 over the steps.
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
        self.open_cells = step.cells[is_open].view(len(decided), -1)
        return step.cells.gather(1, decided), step.ids.gather(1, decided)


SCHEMES: dict[str, type[Scheme]] = {"maskgit": MostConfident, "roar": RandomOrder, "autoregressive": RowByRow}
"""By name in a plan. The first is the default of grids and vectors; the summaries of the classes are in the docs."""
