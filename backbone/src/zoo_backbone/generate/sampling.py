"""From logits to ids: temperature, top-k, top-p; and the noise, which belongs to a sample and not to its batch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

IDS, CONFIDENCE, ORDER = range(3)
"""What noise is for: drawing ids, disturbing confidences, ordering cells."""
COLDEST = 1e-6
"""Temperatures below leave the likeliest alone; logits over still lower ones would not be finite."""


class Noise:
    """Uniform numbers for one target of a batch, a function of (seed, sample, target, purpose, step) alone.

    Counter-based (Philox), so a sample gets the same numbers in any batch, alone or with others.
    """

    def __init__(self, seed: int, samples: Sequence[int], target: str) -> None:
        self.seed = seed
        self.samples = list(samples)
        self.target = zlib.crc32(target.encode())

    def uniform(self, purpose: int, step: int, count: int) -> Tensor:
        """float32 `samples count`, in [0, 1)."""
        rows = [
            np.random.Generator(
                np.random.Philox(np.random.SeedSequence([self.seed, sample, self.target, purpose, step]))
            ).random(count, dtype=np.float32)
            for sample in self.samples
        ]
        return torch.from_numpy(np.stack(rows))

    def gumbel(self, purpose: int, step: int, count: int) -> Tensor:
        """float32 `samples count` of the standard Gumbel distribution."""
        tiny = torch.finfo(torch.float32).eps / 2
        return -torch.log(-torch.log(self.uniform(purpose, step, count).clamp(tiny, 1 - tiny)))


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """`... ids` with -inf at all ids but the `top_k` likeliest (0: all), and of those but the nucleus.

    The nucleus is the smallest set of likeliest ids whose probabilities sum to at least `top_p` (arXiv 1904.09751,
    section 3.1), measured after top-k. Ids as likely as the last one kept are kept too.
    """
    if 0 < top_k < logits.shape[-1]:
        last = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    if top_p < 1:
        ordered = logits.sort(dim=-1, descending=True).values
        shares = ordered.softmax(dim=-1)
        inside = shares.cumsum(dim=-1) - shares < top_p
        last = ordered.masked_fill(~inside, torch.inf).amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < last, -torch.inf)
    return logits


def tempered(logits: Tensor, temperature: float, top_k: int, top_p: float, filter_first: bool = False) -> Tensor:
    """The logits `... ids` that ids are drawn from, at a temperature above 0.

    The temperature divides the logits first; top-k and top-p then look at the probabilities that it makes. With
    `filter_first` they look at those before it.
    """
    if filter_first:
        return filtered(logits, top_k, top_p) / temperature
    return filtered(logits / temperature, top_k, top_p)


def rising(sums: Tensor, shares: Tensor) -> Tensor:
    """Cumulative sums `... ids` of `shares` that nowhere fall, and that rise at no id without a share.

    Those of a GPU, which adds in parallel, do both by rounding errors; those of the CPU do not, and would stay as they
    are.
    """
    return sums.masked_fill(shares == 0, 0).cummax(dim=-1).values


def draw(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    filter_first: bool = False,
) -> Tensor:
    """Ids `...` from logits `... ids`, one uniform number `...` each; see `draw_several`."""
    return draw_several(logits, uniform.unsqueeze(-1), temperature, top_k, top_p, filter_first).squeeze(-1)


def draw_several(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    filter_first: bool = False,
) -> Tensor:
    """Ids `... draws` from logits `... ids`, one uniform number `... draws` each.

    Temperature 0, or all but, takes the likeliest. Of other temperatures see `tempered`.
    """
    if temperature < COLDEST:
        return logits.argmax(dim=-1, keepdim=True).expand_as(uniform)
    shares = tempered(logits, temperature, top_k, top_p, filter_first).softmax(dim=-1)
    cumulative = shares.cumsum(dim=-1)
    if cumulative.device.type != "cpu":
        cumulative = rising(cumulative, shares)
    total = cumulative[..., -1:]
    # Below the total even after rounding, so that the id found always has a share.
    level = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, level.contiguous(), right=True)
