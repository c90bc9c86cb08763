"""Mean and confidence interval of several runs of one setting."""

from __future__ import annotations

from collections.abc import Sequence

SPREAD = "± 95 %"
"""Column heading for `interval`."""


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half of its 95 % interval (Student's t), None for one value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    from scipy import stats

    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
