"""How many tokens of a grid each decoding step decides, and at which temperature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

Schedule = Literal["cosine", "linear", "s-curve"]
TemperatureSchedule = Literal["constant", "linear", "inverse"]

MASKED: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "cosine": lambda done: math.cos(math.pi / 2 * done),
        "linear": lambda done: 1 - done,
        "s-curve": lambda done: (1 + math.cos(math.pi * done)) / 2,
    }
)
"""The share of tokens that is still masked when a share of the steps is done."""
INVERSE_RANGE = 100
"""Where the curve of "inverse" ends; it starts at 1."""


def tokens_per_step(count: int, steps: int, schedule: Schedule) -> list[int]:
    """Numbers of tokens, one a step, that sum to `count`; each at least 1, so at most `count` steps.

    After step t of T, cosine leaves cos(pi/2 * t/T) of the tokens masked (MaskGIT, arXiv 2202.04200, section 3.3),
    linear 1 - t/T, s-curve (1 + cos(pi * t/T)) / 2: few at both ends, what 4M's code calls cosine.
    """
    steps = min(steps, count)
    masked = [count]
    for step in range(1, steps + 1):
        share = MASKED[schedule](step / steps)
        # Between what leaves a token for every step to come and what decides at least one now.
        masked.append(min(max(math.floor(count * share + 1e-9), steps - step), masked[-1] - 1))
    return [before - after for before, after in itertools.pairwise(masked)]


def temperatures(counts: Sequence[int], start: float, end: float, schedule: TemperatureSchedule) -> list[float]:
    """The temperature of each step, where step t decides `counts[t]` tokens.

    "constant" stays at `start`. "linear" goes from `start` at the first step to `end` at the last. "inverse" is the
    schedule of 4M's published settings (there "onex" with power 0.5): `end + (start - end) * left * curve`, with the
    share of tokens that is left after the step and 1/sqrt(x), scaled to [0, 1]; x takes one of as many even steps from
    1 to 100 as there are tokens.
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
