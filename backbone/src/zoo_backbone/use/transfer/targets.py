"""Kinds of targets (classes, numbers, maps): encoding, loss, decoding, metrics.

`kind` is a key of HEADS, and `outputs` the number of a head's outputs per sample or pixel. `encode` turns labels
into a target tensor, batch first. Heads output tensors for `loss` (a mean) and `decode` (one prediction per sample).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ids_of
from tokenizers_zoo.contract.validation import commonest_classes
from tokenizers_zoo.records.typed import Variant

IGNORED = -100
"""Target of positions without a label."""
ACCURACY = (
    Metric(name="accuracy", higher_is_better=True, meaning="share of correct predictions"),
    Metric(name="balanced_accuracy", higher_is_better=True, meaning="accuracy per true class, averaged over classes"),
)
ERRORS = (
    Metric(name="mae", higher_is_better=False, meaning="mean absolute error, in the label's unit"),
    Metric(name="r2", higher_is_better=True, meaning="share of the variance that is explained; 0: none, 1: all"),
)


class Target(Variant):
    """Base class. Its fields are the key "target" of a probe's config.json."""

    if TYPE_CHECKING:  # properties and methods of each target

        @property
        def outputs(self) -> int:
            """Number of a head's outputs per sample or pixel."""

        encode: Any
        loss: Any
        decode: Any


@dataclass(frozen=True, kw_only=True)
class Classes(Target):
    """One class per sample: outputs `(batch, classes)`, targets int64 `(batch,)`."""

    kind: ClassVar[str] = "classes"
    metrics: ClassVar[tuple[Metric, ...]] = ACCURACY
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        return len(self.names)

    def encode(self, labels: Sequence[Any]) -> Tensor:
        number = {name: index for index, name in enumerate(self.names)}
        return torch.tensor([number[str(label)] for label in labels])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets)

    def decode(self, outputs: Tensor) -> list[Any]:
        return [self.names[index] for index in outputs.argmax(1).tolist()]

    def constant_baseline(self, labels: Sequence[Any]) -> Any:
        """Return the most frequent class, the first by name among equals."""
        return min(Counter(labels).items(), key=lambda item: (-item[1], item[0]))[0]

    def score(self, predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of predicted class names."""
        counts = Counter(truth)
        hits = Counter(true for guess, true in zip(predicted, truth, strict=True) if guess == true)
        return _accuracies(np.array(list(counts.values())), np.array([hits[name] for name in counts]))


@dataclass(frozen=True, kw_only=True)
class ClassMap(Target):
    """One class per pixel: outputs `(batch, classes, height, width)`, targets int64 `(batch, height, width)`.

    Pixels of an `unscored` class have no target, and no prediction is an unscored class.
    """

    kind: ClassVar[str] = "class map"
    metrics: ClassVar[tuple[Metric, ...]] = ACCURACY
    names: tuple[str, ...]
    size: tuple[int, int]
    dtype: str = "int64"
    unscored: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        return len(self.names)

    @property
    def unscored_ids(self) -> tuple[int, ...]:
        return ids_of(self.unscored, self.names)

    def encode(self, labels: Sequence[Any]) -> Tensor:
        maps = np.stack(labels).astype(np.int64)
        maps[np.isin(maps, self.unscored_ids)] = IGNORED
        return torch.from_numpy(maps)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, a mean over labelled pixels; 0 if there are none."""
        total = F.cross_entropy(outputs.float(), targets, ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)

    def decode(self, outputs: Tensor) -> list[Any]:
        outputs = outputs.index_fill(1, torch.tensor(self.unscored_ids, device=outputs.device).long(), -math.inf)
        likeliest = outputs.max(dim=1).indices  # equals argmax, four times faster on CPU
        return list(likeliest.cpu().numpy().astype(self.dtype))

    def constant_baseline(self, labels: Sequence[Any]) -> Any:
        """Return the most frequent class of each pixel, see `commonest_classes`."""
        return commonest_classes(np.stack(labels), self.unscored_ids).astype(self.dtype)

    def score(self, predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
        """Return the metrics over pixels whose true class is scored; NaN if there are none."""
        counts, hits = np.zeros((2, len(self.names)), np.int64)
        for guess, true in zip(predicted, truth, strict=True):
            counts += np.bincount(true.ravel(), minlength=len(counts))
            hits += np.bincount(true[guess == true], minlength=len(counts))
        scored = np.setdiff1d(np.arange(len(counts)), self.unscored_ids)
        return _accuracies(counts[scored], hits[scored])


@dataclass(frozen=True, kw_only=True)
class Numbers(Target):
    """Numbers, standardised: one, or a vector `(n,)`; also base class of NumberMap."""

    kind: ClassVar[str] = "numbers"
    metrics: ClassVar[tuple[Metric, ...]] = ERRORS
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, ...] = ()
    dtype: str | None = None
    """Type of predicted arrays; None: predictions are Python floats."""
    low: float | None = None
    high: float | None = None
    scale: str = "linear"
    """"log": the logarithm is learned."""

    @classmethod
    def fit(cls, labels: Iterable[Any], spec: ModalitySpec | None = None) -> Numbers:
        """Standardise by labels: plain numbers, or values of `spec`. Maps of positive numbers become logarithms."""
        fields: dict[str, Any] = {}
        if spec is not None:
            value = spec.value
            fields = {"shape": value.shape, "dtype": value.dtype, "low": value.low, "high": value.high}
            fields["scale"] = "log" if len(value.shape) == 3 and value.low is not None and value.low > 0 else "linear"
        table = np.stack([np.asarray(label, np.float64) for label in labels])
        table = table.reshape(*table.shape[:2], -1) if table.ndim > 1 else table[:, None, None]
        table = np.log(table) if fields.get("scale") == "log" else table
        std = table.std((0, 2))
        std[std <= 1e-12] = 1.0  # constant labels
        target_class = NumberMap if len(fields.get("shape", ())) == 3 else cls
        return target_class(mean=tuple(table.mean((0, 2)).tolist()), std=tuple(std.tolist()), **fields)

    @property
    def outputs(self) -> int:
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a map."""
        return self.shape[1], self.shape[2]

    def _moments(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        shape = (-1, *[1] * (len(self.shape) - 1))
        return np.reshape(self.mean, shape), np.reshape(self.std, shape)

    def encode(self, labels: Sequence[Any]) -> Tensor:
        mean, std = self._moments()
        table = np.stack([np.asarray(label, np.float64) for label in labels]).reshape(-1, *(self.shape or (1,)))
        return torch.from_numpy(((np.log(table) if self.scale == "log" else table) - mean) / std).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the smooth L1 loss: close to the absolute error, which is the main metric."""
        return F.smooth_l1_loss(outputs.float(), targets)

    def decode(self, outputs: Tensor) -> list[Any]:
        """Return predictions in the label's unit, clipped to its bounds."""
        mean, std = self._moments()
        table = outputs.double().cpu().numpy() * std + mean
        table = np.exp(np.minimum(table, 80.0)) if self.scale == "log" else table
        table = table if self.low is None and self.high is None else np.clip(table, self.low, self.high)
        if self.dtype is None:
            return [float(number) for number in table[:, 0]]
        return [np.asarray(row, self.dtype) for row in table.reshape(len(table), *self.shape)]

    def constant_baseline(self, labels: Sequence[Any]) -> Any:
        """Return the median of each number."""
        median = np.median(np.stack([np.asarray(label, np.float64) for label in labels]), axis=0)
        return float(median) if self.dtype is None else np.asarray(median, self.dtype)

    def score(self, predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
        """Return the metrics, one sample at a time in float64. Variance is around the mean of each number."""
        mean = sum(np.asarray(true, np.float64) for true in truth) / len(truth)
        residual = total = absolute = 0.0
        for guess, true in zip(predicted, truth, strict=True):
            error = np.asarray(guess, np.float64) - np.asarray(true, np.float64)
            residual += np.square(error).sum()
            absolute += np.abs(error).sum()
            total += np.square(np.asarray(true, np.float64) - mean).sum()
        r2 = 1 - residual / total if total > 0 else math.nan
        return {"mae": float(absolute / (len(truth) * np.size(truth[0]))), "r2": float(r2)}


@dataclass(frozen=True, kw_only=True)
class NumberMap(Numbers, Target):
    """Numbers per pixel, `(channels, height, width)`, with moments per channel."""

    kind: ClassVar[str] = "number map"

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise ValueError(f"shape: expected channels, height and width, got {self.shape}")


def _accuracies(counts: npt.NDArray[np.int64], hits: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics ACCURACY from the number of labels and of hits per class."""
    present = counts > 0
    if not present.any():
        return {"accuracy": math.nan, "balanced_accuracy": math.nan}
    balanced = float(np.mean(hits[present] / counts[present]))
    return {"accuracy": float(hits.sum() / counts.sum()), "balanced_accuracy": balanced}
