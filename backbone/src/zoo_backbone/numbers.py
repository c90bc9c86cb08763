"""How rows of ids that are numbers start: near ones alike, so that what is learnt of one holds for its neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tokenizers_zoo.spec import OrderedIds

REACH = 0.1
"""Of all levels, how far apart two are whose rows are to be alike by exp(-1/2)."""


@torch.no_grad()
def start_alike(rows: Tensor, runs: Iterable[OrderedIds], std: float) -> None:
    """Fill the rows of each run, of a table `ids dim`, with numbers of deviation `std`, near levels alike.

    Each of the `dim` numbers is a wave over the levels, of random frequency and phase: two rows are then alike by
    exp(-(distance / REACH)^2 / 2), but for chance (random Fourier features, Rahimi and Recht 2007, section 3).
    """
    for ids in runs:
        levels = torch.arange(ids.count).unsqueeze(1) / max(ids.count - 1, 1)
        frequencies, phases = torch.randn(rows.shape[1]) / REACH, 2 * math.pi * torch.rand(rows.shape[1])
        rows[ids.start : ids.stop] = std * math.sqrt(2) * torch.cos(levels * frequencies + phases)
