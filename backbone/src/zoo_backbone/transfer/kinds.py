"""Kinds of answers: what a head gives for them, how it is judged while it learns, and which answer it means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tokenizers_zoo.config import ADDED, from_mapping, recorded
from tokenizers_zoo.spec import GridLayout, ModalitySpec, OrderedIds, SequenceLayout, VectorLayout, ids_of
from tokenizers_zoo.validation import commonest_classes
from zoo_backbone.transfer.config import Scale
from zoo_backbone.transfer.judging import JudgedClasses, JudgedNumbers, accuracies

IGNORED = -100
"""The target of places that have none."""


class Kind(Protocol):
    """What a head answers with. Outputs are what a head gives, targets what `encode` makes of labels."""

    kind: ClassVar[str]

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for a sample, a pixel or a token."""

    def encode(self, labels: Sequence[Any]) -> Tensor:
        """Labels as targets, the batch first."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How far they are apart, a mean."""

    def decode(self, outputs: Tensor) -> list[Any]:
        """The answers that outputs mean, one a sample; of tokens those that mean them."""


@dataclass(frozen=True, kw_only=True)
class Classes(JudgedClasses):
    """One of some names a sample: outputs `batch classes`, targets int64 `batch`."""

    kind: ClassVar[str] = "classes"
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for a sample."""
        return len(self.names)

    def encode(self, labels: Sequence[Any]) -> Tensor:
        """See `Kind`."""
        number = {name: index for index, name in enumerate(self.names)}
        return torch.tensor([number[label] for label in labels])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs.float(), targets)

    def decode(self, outputs: Tensor) -> list[Any]:
        """The likeliest names."""
        return [self.names[index] for index in outputs.argmax(1).tolist()]

    def constant(self, labels: Sequence[Any]) -> Any:
        """The commonest; of equals the first by name."""
        return min(Counter(labels).items(), key=lambda item: (-item[1], item[0]))[0]


@dataclass(frozen=True, kw_only=True)
class Numbers(JudgedNumbers):
    """One number a sample, or a vector of them: outputs and targets `batch numbers`, standardised."""

    kind: ClassVar[str] = "numbers"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, ...] = ()
    """Of an answer: () for a plain number, else that of an array."""
    low: float | None = None
    high: float | None = None
    dtype: str = "float32"

    @classmethod
    def of(cls, labels: Sequence[Any], spec: ModalitySpec | None = None) -> Numbers:
        """Standardised by these labels; `spec` is that of an array's modality."""
        table = np.stack([np.ravel(np.asarray(label, np.float64)) for label in labels])
        bounds: dict[str, Any] = {}
        if spec is not None:
            value = spec.value
            bounds = {"shape": value.shape, "low": value.low, "high": value.high, "dtype": value.dtype}
        return cls(mean=tuple(table.mean(0).tolist()), std=divisors(table.std(0)), **bounds)

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for a sample."""
        return len(self.mean)

    def encode(self, labels: Sequence[Any]) -> Tensor:
        """See `Kind`."""
        table = np.stack([np.ravel(np.asarray(label, np.float64)) for label in labels])
        return torch.from_numpy((table - self.mean) / self.std).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Smooth L1: nearly the absolute error that is scored."""
        return F.smooth_l1_loss(outputs.float(), targets)

    def decode(self, outputs: Tensor) -> list[Any]:
        """In the label's unit, within its bounds."""
        table = outputs.double().cpu().numpy() * self.std + self.mean
        table = clamped(table, self.low, self.high)
        if not self.shape:
            return [float(row[0]) for row in table]
        return list(table.reshape(len(table), *self.shape).astype(self.dtype))

    def constant(self, labels: Sequence[Any]) -> Any:
        """The median, of each number by itself."""
        median = np.median(np.stack([np.asarray(label, np.float64) for label in labels]), axis=0)
        return median.astype(self.dtype) if self.shape else float(median)


@dataclass(frozen=True, kw_only=True)
class ClassMap(JudgedClasses):
    """A class for each pixel: outputs `batch classes height width`, targets int64 `batch height width`.

    Targets are IGNORED where the label is one of the `unscored` classes.
    """

    kind: ClassVar[str] = "class map"
    names: tuple[str, ...]
    size: tuple[int, int]
    dtype: str = "int64"
    unscored: tuple[str, ...] = field(default=(), metadata=ADDED)
    """Those of `names` that are neither learned nor given. Probes of earlier versions learned them as any other."""

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for a pixel."""
        return len(self.names)

    @property
    def unscored_ids(self) -> tuple[int, ...]:
        """The ids of the unscored classes."""
        return ids_of(self.unscored, self.names)

    def encode(self, labels: Sequence[Any]) -> Tensor:
        """See `Kind`."""
        maps = np.stack(labels).astype(np.int64)
        if self.unscored:
            maps[np.isin(maps, self.unscored_ids)] = IGNORED
        return torch.from_numpy(maps)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, a mean over the pixels that are not IGNORED; 0 where all are."""
        total = F.cross_entropy(outputs.float(), targets, ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)

    def decode(self, outputs: Tensor) -> list[Any]:
        """The likeliest class of each pixel, of those that are scored."""
        if self.unscored:
            outputs = outputs.index_fill(1, torch.tensor(self.unscored_ids, device=outputs.device), -math.inf)
        likeliest = outputs.max(dim=1).indices  # what argmax gives, in a quarter of its time on a CPU
        return list(likeliest.cpu().numpy().astype(self.dtype))

    def constant(self, labels: Sequence[Any]) -> Any:
        """The commonest class of each pixel, see `commonest_classes`."""
        return commonest_classes(np.stack(labels), self.unscored_ids).astype(self.dtype)

    def score(self, predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
        """The metrics of answers over the pixels whose true class is scored; NaN where there are none."""
        guess, true = np.stack(predicted), np.stack(truth)
        scored = ~np.isin(true, self.unscored_ids)
        return accuracies(guess[scored], true[scored])


@dataclass(frozen=True, kw_only=True)
class NumberMap(JudgedNumbers):
    """Numbers for each pixel: outputs and targets `batch channels height width`, standardised by channel."""

    kind: ClassVar[str] = "number map"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    scale: str = "linear"
    """log: numbers are learned by their logarithm."""
    low: float | None = None
    high: float | None = None
    dtype: str = "float32"

    @classmethod
    def of(cls, labels: Iterable[Any], spec: ModalitySpec, scale: Scale) -> NumberMap:
        """Standardised by these labels, as `scale` says. Raises ValueError where it does not fit them."""
        value = spec.value
        positive = value.low is not None and value.low > 0
        if scale == "log" and not positive:
            raise ValueError(f"scale log: needs numbers that are declared to be above 0, and {spec.name} has {value}")
        chosen = "log" if scale != "linear" and positive else "linear"
        table = np.stack([rearrange(np.asarray(label, np.float64), "c h w -> c (h w)") for label in labels])
        table = np.log(table) if chosen == "log" else table
        height, width = value.shape[1:]
        return cls(
            mean=tuple(table.mean((0, 2)).tolist()), std=divisors(table.std((0, 2))), size=(int(height), int(width)),
            scale=chosen, low=value.low, high=value.high, dtype=value.dtype,
        )  # fmt: skip

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for a pixel."""
        return len(self.mean)

    def _moments(self) -> tuple[Any, Any]:
        return np.array(self.mean)[:, None, None], np.array(self.std)[:, None, None]

    def encode(self, labels: Sequence[Any]) -> Tensor:
        """See `Kind`."""
        mean, std = self._moments()
        maps = np.stack(labels).astype(np.float64)
        return torch.from_numpy(((np.log(maps) if self.scale == "log" else maps) - mean) / std).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Smooth L1 over the pixels."""
        return F.smooth_l1_loss(outputs.float(), targets)

    def decode(self, outputs: Tensor) -> list[Any]:
        """In the modality's unit, within its bounds."""
        mean, std = self._moments()
        maps = outputs.double().cpu().numpy() * std + mean
        maps = np.exp(np.minimum(maps, 80.0)) if self.scale == "log" else maps
        return list(clamped(maps, self.low, self.high).astype(self.dtype))

    def constant(self, labels: Sequence[Any]) -> Any:
        """The median of each pixel."""
        return np.median(np.stack(labels), axis=0).astype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The modality's own tokens, one after the other (Pix2Seq, arXiv 2109.10852), as its codec gives and takes them.

    Outputs are logits `batch tokens vocabulary`, targets int64 `batch tokens`: content, the end where the length
    varies, then IGNORED.
    """

    kind: ClassVar[str] = "tokens"
    vocab_size: int
    shape: tuple[int, ...]
    """Of a sample's tokens; of variable length the longest that a training label has."""
    end: int | None = None
    """The id that ends tokens of variable length."""
    sentinels: tuple[int, int] = (0, 0)
    """The first id, and the number of those, that only the backbone writes."""
    codec: str = ""
    """The fingerprint of the tokenizer."""
    ordered_ids: tuple[OrderedIds, ...] = ()
    """Ids that are numbers; a new head's rows of near ones are alike."""

    @classmethod
    def of(cls, tokens: Sequence[Any], spec: ModalitySpec, codec: str) -> Tokens:
        """For a modality that has tokens, of which these are the training labels'."""
        layout = spec.layout
        if isinstance(layout, SequenceLayout):
            longest = max(max(len(row) for row in tokens), 1)
            sentinels = layout.sentinel_start, layout.num_sentinels
            return cls(
                vocab_size=spec.vocab_size, shape=(longest,), end=layout.end, sentinels=sentinels, codec=codec,
                ordered_ids=spec.ordered_ids,
            )  # fmt: skip
        assert isinstance(layout, GridLayout | VectorLayout)
        shape = layout.shape if isinstance(layout, GridLayout) else (layout.length,)
        return cls(vocab_size=spec.vocab_size, shape=shape, codec=codec, ordered_ids=spec.ordered_ids)

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for a token."""
        return self.vocab_size

    @property
    def length(self) -> int:
        """Tokens of a sample at most, with the end."""
        return math.prod(self.shape) + (self.end is not None)

    def encode(self, labels: Sequence[Any]) -> Tensor:
        """Tokens of labels, not labels, as targets."""
        targets = torch.full((len(labels), self.length), IGNORED)
        for row, tokens in zip(targets, labels, strict=True):
            content = torch.as_tensor(np.asarray(tokens)).flatten()
            row[: len(content)] = content
            if self.end is not None:
                row[len(content)] = self.end
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the next token, a mean over tokens."""
        return F.cross_entropy(outputs.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def decode(self, outputs: Tensor) -> list[Any]:
        """Ids `batch tokens`, as the head read them one by one, as the codec takes them."""
        ids = outputs.cpu().numpy()
        if self.end is None:
            return list(ids.reshape(len(ids), *self.shape))
        ends = [np.flatnonzero(row == self.end) for row in ids]
        return [row[: end[0] if len(end) else math.prod(self.shape)] for row, end in zip(ids, ends, strict=True)]


KINDS: dict[str, Any] = {cls.kind: cls for cls in (Classes, Numbers, ClassMap, NumberMap, Tokens)}


def kind_to_json(kind: Any) -> dict[str, Any]:
    """A kind as JSON types."""
    return {"kind": kind.kind, **recorded(kind)}


def kind_from_json(data: Mapping[str, Any]) -> Any:
    """The kind that `kind_to_json` wrote."""
    return from_mapping(KINDS[data["kind"]], {key: value for key, value in data.items() if key != "kind"})


def divisors(std: Any) -> tuple[float, ...]:
    """Standard deviations to divide by: 1 where nothing varies."""
    return tuple(np.where(std > 1e-12, std, 1.0).tolist())


def clamped(numbers: Any, low: float | None, high: float | None) -> Any:
    """Numbers within bounds, where there are any."""
    return numbers if low is None and high is None else np.clip(numbers, low, high)
