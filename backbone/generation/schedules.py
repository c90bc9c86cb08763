"""How many tokens of a grid each decoding step decides."""

from __future__ import annotations

import itertools
import math
from typing import Literal

Schedule = Literal["cosine", "linear"]


def tokens_per_step(count: int, steps: int, schedule: Schedule) -> list[int]:
    """Numbers of tokens, one a step, that sum to `count`; each at least 1, so at most `count` steps.

    After step t of T, cosine leaves cos(pi/2 * t/T) of the tokens masked (MaskGIT, arXiv 2202.04200, section 3.3),
    linear 1 - t/T.
    """
    steps = min(steps, count)
    masked = [count]
    for step in range(1, steps + 1):
        done = step / steps
        share = math.cos(math.pi / 2 * done) if schedule == "cosine" else 1 - done
        # Between what leaves a token for every step to come and what decides at least one now.
        masked.append(min(max(math.floor(count * share + 1e-9), steps - step), masked[-1] - 1))
    return [before - after for before, after in itertools.pairwise(masked)]
