"""Confidence intervals: of the mean of several runs of one setting, and of a score over samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

RESAMPLES = 100
"""Bootstrap resamples of a score."""
SPREAD = "± 95 %"
"""Column heading for `interval`."""


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half of its 95 % interval (Student's t), None for one value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    from scipy import stats

    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def bootstrap(score: Callable[[Sequence[int]], float], count: int, seed: int) -> list[float]:
    """Return the scores of RESAMPLES resamples of `count` samples, drawn with replacement (Efron, 1979).

    `score` gives the score of the samples at some places. If the score of all samples is the mean of the scores of each
    sample, the resamples need no further calls. Calls with equal `count` and `seed` use the same resamples: the
    difference of two results over the same samples is the bootstrap of the paired difference.
    """
    samples = np.random.default_rng([seed, count]).integers(count, size=(RESAMPLES, count))
    sample_scores = np.array([score([index]) for index in range(count)], np.float64)
    if np.isclose(sample_scores.mean(), score(range(count)), rtol=1e-6, atol=1e-12):
        return list(map(float, sample_scores[samples].mean(axis=1)))
    return [float(score(indices)) for indices in samples.tolist()]


def percentiles(resampled: Iterable[float | None]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of resampled scores; None if fewer than half of them are numbers."""
    numbers = [number for number in resampled if number is not None and np.isfinite(number)]
    if 2 * len(numbers) < RESAMPLES:
        return None
    low, high = np.percentile(numbers, [2.5, 97.5])
    return float(low), float(high)
