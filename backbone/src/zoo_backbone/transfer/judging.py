"""How good answers are where no modality judges them: accuracy of classes, errors of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tokenizers_zoo.spec import Metric

AT_A_TIME = 1 << 22
"""Numbers, or classes, that are judged at a time."""
ACCURACY = (
    Metric(name="accuracy", higher_is_better=True, meaning="share that is right"),
    Metric(name="balanced_accuracy", higher_is_better=True, meaning="mean over the true classes of the share right"),
)
ERRORS = (
    Metric(name="mae", higher_is_better=False, meaning="mean absolute error, in the label's unit"),
    Metric(name="r2", higher_is_better=True, meaning="share of the variance that is explained; 0: none, 1: all"),
)


class JudgedClasses:
    """Classes, of samples or of their pixels."""

    metrics: ClassVar[tuple[Metric, ...]] = ACCURACY
    """What `score` gives, the main one first."""

    def score(self, predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
        """The metrics of answers, over all samples and pixels."""
        return accuracies(np.stack(predicted).ravel(), np.stack(truth).ravel())


class JudgedNumbers:
    """Numbers, of samples or of their pixels."""

    metrics: ClassVar[tuple[Metric, ...]] = ERRORS
    """What `score` gives, the main one first."""

    def score(self, predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
        """The metrics of answers, over all samples and pixels."""
        return errors(predicted, truth)


def accuracies(predicted: Any, truth: Any) -> dict[str, float]:
    """The metrics ACCURACY of two arrays `samples` of classes, names or ids from 0 on; NaN of empty ones."""
    if not np.size(truth):
        return {"accuracy": math.nan, "balanced_accuracy": math.nan}
    right = predicted == truth
    ids = truth if truth.dtype.kind in "iu" else np.unique(truth, return_inverse=True)[1]
    counts = hits = np.zeros(int(ids.max()) + 1, np.int64)
    for start in range(0, len(ids), AT_A_TIME):
        chunk = ids[start : start + AT_A_TIME].astype(np.int64)
        counts = counts + np.bincount(chunk, minlength=len(counts))
        hits = hits + np.bincount(chunk[right[start : start + AT_A_TIME]], minlength=len(counts))
    there = counts > 0
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(hits[there] / counts[there]))}


def errors(predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
    """The metrics ERRORS; variance is around each number's own mean. R2 of truths that are all alike is NaN.

    Samples are taken as float64 up to AT_A_TIME numbers together, not those of a whole split.
    """
    step = max(1, AT_A_TIME // max(1, np.size(truth[0])))
    chunks = [slice(start, start + step) for start in range(0, len(truth), step)]

    def floats(listed: Sequence[Any], chunk: slice) -> Any:
        return np.stack([np.asarray(x, np.float64) for x in listed[chunk]])

    mean = sum(floats(truth, chunk).sum(0) for chunk in chunks) / len(truth)
    residual = total = absolute = 0.0
    for chunk in chunks:
        guess, true = floats(predicted, chunk), floats(truth, chunk)
        residual += ((guess - true) ** 2).sum()
        total += ((true - mean) ** 2).sum()
        absolute += np.abs(guess - true).sum()
    r2 = 1 - residual / total if total > 0 else math.nan
    return {"mae": float(absolute / (len(truth) * np.size(truth[0]))), "r2": float(r2)}
