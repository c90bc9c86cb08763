"""Sampling of token ids: number per step, temperature, filters and noise."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Schedule = Literal["cosine", "linear", "s-curve"]
TemperatureSchedule = Literal["constant", "linear", "inverse"]

MASKED: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "cosine": lambda done: math.cos(math.pi / 2 * done),
        "linear": lambda done: 1 - done,
        "s-curve": lambda done: (1 + math.cos(math.pi * done)) / 2,
    }
)
"""Fraction of tokens still masked, as a function of the fraction of finished steps."""
INVERSE_RANGE = 100
"""The "inverse" curve runs from 1 to this number."""
IDS, CONFIDENCE, ORDER = range(3)
"""Purposes of noise: sampling ids, perturbing confidences, ordering cells."""
COLDEST = 1e-6
"""At lower temperatures the most likely id is taken: the divided logits would overflow."""


def tokens_per_step(count: int, steps: int, schedule: Schedule) -> list[int]:
    """Return how many of `count` tokens each step decides: at least 1, so at most `count` steps.

    After step t of T, cosine leaves cos(pi/2 * t/T) of the tokens masked (MaskGIT, arXiv 2202.04200, section 3.3),
    linear 1 - t/T, and s-curve (1 + cos(pi * t/T)) / 2, which 4M's code calls cosine.
    """
    steps = min(steps, count)
    masked = [count]
    for step in range(1, steps + 1):
        share = MASKED[schedule](step / steps)
        # At least one token for this step, and one for each step to come.
        masked.append(min(max(math.floor(count * share + 1e-9), steps - step), masked[-1] - 1))
    return [before - after for before, after in itertools.pairwise(masked)]


def temperatures(counts: Sequence[int], start: float, end: float, schedule: TemperatureSchedule) -> list[float]:
    """Return the temperature of each step, where step t decides `counts[t]` tokens.

    "linear" goes from `start` at the first step to `end` at the last. "inverse" is the published schedule of 4M (there
    "onex" with power 0.5): `end + (start - end) * left * curve`, where `left` is the share of tokens that is masked
    after the step and `curve` is 1/sqrt(x), scaled to [0, 1]; x takes even steps from 1 to 100, one per token.
    """
    if schedule == "constant" or start == end:
        return [start] * len(counts)
    if schedule == "linear":
        last = max(len(counts) - 1, 1)
        return [start + (end - start) * step / last for step in range(len(counts))]
    total, least = sum(counts), INVERSE_RANGE**-0.5
    result = []
    for step, decided in enumerate(itertools.accumulate(counts)):
        x = 1 + (INVERSE_RANGE - 1) * step / max(total - 1, 1)
        curve = (x**-0.5 - least) / (1 - least)
        result.append(end + (start - end) * (1 - decided / total) * curve)
    return result


class Noise:
    """Uniform numbers for one target of a batch: a function of seed, sample, target, purpose and step (Philox).

    A sample gets the same numbers in any batch.
    """

    def __init__(self, seed: int, samples: Sequence[int], target: str) -> None:
        self.seed = seed
        self.samples = list(samples)
        self.target = zlib.crc32(target.encode())

    def uniform(self, purpose: int, step: int, count: int) -> Tensor:
        """Return float32 `samples count` in [0, 1)."""
        seeds = (np.random.SeedSequence([self.seed, row, self.target, purpose, step]) for row in self.samples)
        rows = [np.random.Generator(np.random.Philox(seed)).random(count, dtype=np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(rows))

    def gumbel(self, purpose: int, step: int, count: int) -> Tensor:
        """Return float32 `samples count` of the standard Gumbel distribution."""
        tiny = torch.finfo(torch.float32).eps / 2
        return -torch.log(-torch.log(self.uniform(purpose, step, count).clamp(tiny, 1 - tiny)))


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits `... ids` with -inf outside the `top_k` most likely ids (0: all) and outside the nucleus.

    The nucleus is the smallest set of ids whose probabilities, measured after top-k, sum to at least `top_p` (arXiv
    1904.09751, section 3.1). Ties with the last id are kept.
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
    """Return logits `... ids` divided by a temperature above 0 and filtered, in this order unless `filter_first`."""
    if filter_first:
        return filtered(logits, top_k, top_p) / temperature
    return filtered(logits / temperature, top_k, top_p)


def rising(sums: Tensor, shares: Tensor) -> Tensor:
    """Return cumulative sums `... ids` that never fall, and rise only where `shares` is above 0.

    Parallel sums on a GPU violate both by rounding errors.
    """
    return sums.masked_fill(shares == 0, 0).cummax(dim=-1).values


def draw(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float, filter_first: bool = False
) -> Tensor:
    """Return ids `... draws` for logits `... ids` and uniform numbers `... draws`, by inverting the distribution.

    Temperature 0 takes the most likely id.
    """
    if temperature < COLDEST:
        return logits.argmax(dim=-1, keepdim=True).expand_as(uniform)
    shares = tempered(logits, temperature, top_k, top_p, filter_first).softmax(dim=-1)
    cumulative = shares.cumsum(dim=-1)
    if cumulative.device.type != "cpu":
        cumulative = rising(cumulative, shares)
    total = cumulative[..., -1:]
    # Below the total even after rounding, so that the id has a share.
    level = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, level.contiguous(), right=True)
