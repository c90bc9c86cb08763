"""Mean and standard deviation of training values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

LEAST_DEVIATION = 0.01
"""The smallest deviation of a channel, as a fraction of the mean deviation."""
SMALL, ROUNDING = 1e-6, 1e-9
"""A channel is constant if its deviation is below SMALL of the largest (or of 1) or below ROUNDING of its mean. If all
channels are constant, their deviation is set to SMALL."""
CHUNK = 16


def some_values(train: Sequence[Any], count: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Yield batches of up to `count` values in random order, as copies."""
    import torch

    chosen = rng.permutation(len(train))[:count]
    for start in range(0, len(chosen), CHUNK):
        yield torch.from_numpy(np.stack([train[int(index)] for index in chosen[start : start + CHUNK]]))


def moments(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (channels,), float64, over batches (batch, channels, ...).

    Sums of squares are merged around the running mean (Chan, Golub and LeVeque 1979), which avoids cancellation.
    """
    import torch

    count, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for batch in batches:
        numbers = batch.double().transpose(0, 1).flatten(1)
        if not (new := numbers.shape[1]):
            continue
        variance, average = torch.var_mean(numbers, dim=1, correction=0)
        shift = average - mean
        squares = squares + new * variance + shift**2 * (count * new / (count + new))
        mean = mean + shift * (new / (count + new))
        count += new
    return mean, (squares / count).sqrt()


def to_divide_by(mean: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Return deviations to divide by: LEAST_DEVIATION of their mean for constant channels.

    Otherwise a channel that is constant in training would dominate wherever it varies later.
    """
    return deviations.where(vary(mean, deviations), least_deviation(mean, deviations))


def vary(mean: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Return which channels vary by more than rounding, in any unit; see SMALL and ROUNDING."""
    return deviations > (ROUNDING * mean.abs()).clamp_min(SMALL * min(1.0, float(deviations.max())))


def least_deviation(mean: torch.Tensor, deviations: torch.Tensor) -> float:
    """Return LEAST_DEVIATION of the mean deviation, or SMALL if no channel varies."""
    return LEAST_DEVIATION * float(deviations.mean()) if bool(vary(mean, deviations).any()) else SMALL
