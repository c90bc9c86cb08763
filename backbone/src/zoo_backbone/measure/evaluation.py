"""evaluation.json: the scores of a backbone on held-out samples, and the metrics of every pair of inputs and target.

The scored prediction minimises the expected error (minimum Bayes risk, Kumar and Byrne, NAACL 2004): it is the best
single value for several draws. A single draw would add its own spread to the error. The constant baseline is the best
single value for training values, so a model that knows only the distribution of values has a skill of about 0.
Galleries show the draws.

A plugin's metrics score values of its modality. A `PairMetric` is a figure of the evaluation itself, the same for all
modalities, such as the skill score. The entries of `PAIR_METRICS` are measured by `zoo backbone eval`, stored in
evaluation.json, and shown by every command and page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.records.io import REMEDY, read_record
from tokenizers_zoo.records.typed import OPTIONAL, Complete

FOLDER, FILE = "evaluation", "evaluation.json"
Number = int | float | None
Scores = Mapping[str, Number]
"""Scores by metric; None for a number that is not finite."""
Pair = tuple[tuple[str, ...], str]
"""Input modalities and a target."""


# ---------------------------------------------------------------- the record


@dataclass(frozen=True, kw_only=True)
class EvaluationIdentity:
    """Everything that the scores depend on."""

    weights: str
    """sha256 of the backbone's weights."""
    settings: Mapping[str, Any]
    """`EvaluationConfig`, without the pairs and the number of samples."""
    tokenizers: Mapping[str, str]
    """Fingerprint by modality."""
    samples: str
    """sha256 of keys and tokens of the test samples."""
    values: Mapping[str, str]
    """Digest by `SPLIT/NAME`."""
    decoders: Mapping[str, str]
    """sha256 of a tokenizer and its settings, by modality."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModality:
    """A modality of an evaluation."""

    test_samples: int
    metrics: tuple[Metric, ...]
    """The first is the main metric."""


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Cross-entropy of a modality's tokens: mean per target token of test samples, masked as in training."""

    nats: float
    uniform: float
    """The loss of a uniform prediction: log(vocab_size)."""
    targets: int


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropies by modality. Tokens of another tokenizer than in training are neither targets nor inputs."""

    samples: int
    tokens_of: tuple[str, ...]
    """The modalities whose tokens were used."""
    modalities: Mapping[str, Entropy]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The value of a pair metric; None if it is undefined."""

    value: Number
    resampled: tuple[Number, ...] = ()
    """The value over bootstrap resamples of the samples, the same ones in all evaluations with equal seed and number of
    samples; empty for a metric without intervals."""


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """The scores of one target, predicted from some inputs."""

    inputs: tuple[str, ...]
    target: str
    samples: int
    score: Scores
    """Of the predictions."""
    constant_baseline: Scores
    """Of the best constant prediction for training values, over the same samples."""
    reconstruction: Scores
    """Of the tokenizer's reconstruction of the truth, over the same samples."""
    figures: Mapping[str, Figure]
    """By name of the `PairMetric`."""

    @property
    def pair(self) -> Pair:
        return self.inputs, self.target

    def figure(self, name: str = "skill") -> Number:
        """Return the value of a pair metric; None if it is undefined or was not measured."""
        return self.figures[name].value if name in self.figures else None


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """The cells of one sample: texts, and None for cells of the picture."""

    key: str
    cells: tuple[str | None, ...]
    hits: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    """Keys of the hits of a query."""


@dataclass(frozen=True, kw_only=True)
class GalleryRecord:
    """A gallery of some inputs, several draws and the truth; or of a query and its hits."""

    inputs: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    query: str = field(default="", metadata=OPTIONAL)
    target: str
    picture: str | None
    """Path relative to the record; None if all cells are texts."""
    columns: tuple[str, ...]
    """Headers."""
    rows: tuple[GalleryRow, ...]

    @property
    def pair(self) -> Pair:
        return self.inputs, self.target


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Complete):
    """The content of evaluation.json, and of unfinished.json while the evaluation runs."""

    identity: EvaluationIdentity
    modalities: Mapping[str, EvaluatedModality]
    skipped: Mapping[str, str]
    """Reason by modality, or by "cross-entropy" or "a + b to c" for a loss or pair without samples or values."""
    unreadable: Mapping[str, Mapping[str, str]]
    """Reason by `SPLIT/NAME` and key, for values that cannot be read and were left out."""
    cross_entropy: CrossEntropy | None
    pairs: tuple[PairScore, ...]
    """In the order of the command."""
    galleries: tuple[GalleryRecord, ...]
    seconds: float

    def main_metric(self, target: str) -> Metric:
        return self.modalities[target].metrics[0]


def read_evaluation(path: Path) -> EvaluationRecord:
    """Read evaluation.json, with metrics of each target. Raises CheckpointError if damaged."""
    evaluation = read_record(path, EvaluationRecord)
    for pair in evaluation.pairs:
        if pair.target not in evaluation.modalities or not evaluation.modalities[pair.target].metrics:
            raise CheckpointError(f"{path}: damaged: has no metrics of {pair.target}; {REMEDY}")
    return evaluation


# ---------------------------------------------------------------- metrics of a pair


class Measured(NamedTuple):
    """Scores of predictions; None for a number that is not finite."""

    scores: dict[str, float | None]
    resampled: list[float | None]
    """The main metric over bootstrap resamples of the samples."""


@dataclass(frozen=True, kw_only=True)
class PairPredictions:
    """The predictions of a target: all that a pair metric can be measured on."""

    handle: ModalityHandle
    """The target."""
    draws: Sequence[Sequence[Any]]
    """Several values per sample."""
    values: Sequence[Any]
    """The scored prediction: one value per sample."""
    truth: Sequence[Any]
    score: Measured
    constant_baseline: Measured
    reconstruction: Measured


@dataclass(frozen=True, kw_only=True)
class PairMetric:
    """A figure of every pair of inputs and target."""

    name: str
    meaning: str
    """Its scale, for readers of a table."""
    measure: Callable[[PairPredictions], Figure]
    higher_is_better: bool = True

    def text(self, value: Number, sign: str = "") -> str:
        """Return a value for a table, with two decimals; a dash for None."""
        return "-" if value is None else f"{value:{sign}z.2f}"


def skill_score(
    score: float | None, baseline: float | None, reconstruction: float | None, higher_is_better: bool
) -> float | None:
    """Return (score - baseline) / (reconstruction - baseline): 0 is the constant baseline, 1 the reconstruction.

    None if a score is missing, or the reconstruction is not better than the baseline.
    """
    if score is None or baseline is None or reconstruction is None:
        return None
    gain = reconstruction - baseline if higher_is_better else baseline - reconstruction
    if gain <= 1e-9 * max(abs(reconstruction), abs(baseline), 1e-300):
        return None
    return (score - baseline) / (reconstruction - baseline)


def _skill(predictions: PairPredictions) -> Figure:
    """Return the skill score of the main metric."""
    main = predictions.handle.spec.metrics[0]
    skill = partial(skill_score, higher_is_better=main.higher_is_better)
    bounds = predictions.score, predictions.constant_baseline, predictions.reconstruction
    resampled = map(skill, *(measured.resampled for measured in bounds))
    return Figure(
        value=skill(*(measured.scores[main.name] for measured in bounds)),
        resampled=tuple(None if value is None else round(value, 5) for value in resampled),
    )


PAIR_METRICS = {
    metric.name: metric
    for metric in (
        PairMetric(name="skill", meaning="0 = best constant prediction, 1 = tokenizer reconstruction", measure=_skill),
    )
}
"""Metrics of every pair, by name. Tables show them in this order."""
