"""Decoding orders of grids and vectors: the cells that a step draws, and the drawn cells that it decides.

Another order is a class with two methods, and its name in `SCHEMES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from zoo_backbone.generate.sampling import ORDER, Noise

Confidences = Callable[[], Tensor]


class Scheme(ABC):
    """A decoding order of the cells of a batch where `is_open` (bool `draws length`) is True, equally many per draw."""

    default_steps: ClassVar[int] = 8
    """Steps where the plan sets none; 0: one per cell."""

    def __init__(self, is_open: Tensor, noise: Noise) -> None:
        self.open_cells = is_open.nonzero()[:, 1].view(len(is_open), -1)
        """The undecided cells of each draw, int64 `draws cells`."""

    @abstractmethod
    def next_cells(self, count: int) -> Tensor:
        """Return the open cells that the next step draws, `draws cells`: at least `count`, which it will decide."""

    @abstractmethod
    def commit(self, cells: Tensor, ids: Tensor, count: int, confidences: Confidences) -> tuple[Tensor, Tensor]:
        """Remove `count` of the drawn cells from `open_cells`; return them and their ids, `draws count`.

        `cells` and `ids` are `draws cells`, like the result of `confidences`: the log probability of each id, plus the
        plan's `confidence_noise`.
        """


class RowByRow(Scheme):
    """Row by row, one cell per step by default."""

    default_steps = 0

    def next_cells(self, count: int) -> Tensor:
        return self.open_cells[:, :count]

    def commit(self, cells: Tensor, ids: Tensor, count: int, confidences: Confidences) -> tuple[Tensor, Tensor]:
        self.open_cells = self.open_cells[:, count:]
        return cells, ids


class RandomOrder(RowByRow):
    """In a random order, which differs between draws (4M, arXiv 2312.06647)."""

    default_steps = Scheme.default_steps

    def __init__(self, is_open: Tensor, noise: Noise) -> None:
        super().__init__(is_open, noise)
        order = noise.uniform(ORDER, 0, is_open.shape[1]).argsort(dim=1).to(is_open.device)
        self.open_cells = order[is_open.gather(1, order)].view(self.open_cells.shape)


class MostConfident(Scheme):
    """The most confident tokens first: each step draws all open cells (MaskGIT, arXiv 2202.04200)."""

    def next_cells(self, count: int) -> Tensor:
        return self.open_cells

    def commit(self, cells: Tensor, ids: Tensor, count: int, confidences: Confidences) -> tuple[Tensor, Tensor]:
        decided = confidences().argsort(dim=1, descending=True, stable=True)[:, :count]
        is_open = torch.ones_like(cells, dtype=torch.bool).scatter(1, decided, False)
        self.open_cells = cells[is_open].view(len(cells), -1)
        return cells.gather(1, decided), ids.gather(1, decided)


SCHEMES: dict[str, type[Scheme]] = {"maskgit": MostConfident, "roar": RandomOrder, "autoregressive": RowByRow}
"""By name in a plan. The first is the default of grids and vectors; the summaries of the classes are in the docs."""
