"""Records of a backbone that its pages and comparisons read: its checkpoint, evaluations, growth and probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers_zoo.checkpoint import CheckpointRecord
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.io import REMEDY, read_record
from tokenizers_zoo.spec import Metric, ModalitySpec

Number = int | float | None
Scores = Mapping[str, Number]
"""Scores by metric."""


# ---------------------------------------------------------------- config.json


@dataclass(frozen=True, kw_only=True)
class Start:
    """The trained backbone that a training started from."""

    folder: str
    weights_sha256: str = ""
    knows: tuple[str, ...] = ()
    added: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedBackbone:
    """The published checkpoint that a backbone was imported from."""

    config: Mapping[str, Any]
    modalities: tuple[Mapping[str, Any], ...]
    names: Mapping[str, str]
    """Our modalities by published name."""
    absent: tuple[str, ...] = ()
    """Biases of zeros that the published file does not have."""
    same_as: Mapping[str, str] = field(default_factory=dict)
    """Tensors that share their numbers with another one."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Types of tensors that are not float32."""
    file_metadata: Mapping[str, str] | None = None
    """Metadata of the published safetensors file, unless they are the usual ones."""


@dataclass(frozen=True, kw_only=True)
class BackboneRecord(CheckpointRecord):
    """config.json of a backbone."""

    architecture: Literal["FourM", "PublishedFourM"]
    model: Mapping[str, Any]
    specs: tuple[ModalitySpec, ...]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the tokenizers at its training, by modality; empty if they are unknown."""
    train: Mapping[str, Any] = field(default_factory=dict)
    training_seconds: float | None = None
    start: Start | None = None
    ml4m: PublishedBackbone | None = None
    asked: tuple[Mapping[str, Any], ...] = ()
    """The mixtures that a grown backbone uses when it grows again. Its own training mostly had new modalities as
    targets."""


@dataclass(frozen=True, kw_only=True)
class TrainingSize:
    """The length of a training and its batch size."""

    steps: int = 0
    batch_size: int = 0


# ---------------------------------------------------------------- evaluation.json


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """The scores of one target, predicted from some inputs."""

    inputs: tuple[str, ...]
    target: str
    samples: int
    skill: Number
    score: Scores
    constant_baseline: Scores
    reconstruction: Scores
    resampled_skill: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """The cells of one sample: texts, and None for cells of the picture."""

    key: str
    cells: tuple[str | None, ...]
    hits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GalleryRecord:
    """A gallery of some inputs, generated values and truth; or of a query and its hits."""

    inputs: tuple[str, ...] = ()
    query: str = ""
    target: str
    picture: str | None
    columns: tuple[str, ...]
    rows: tuple[GalleryRow, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluationIdentity:
    """Everything that the scores depend on."""

    weights: str = ""
    settings: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    decoders: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A modality of an evaluation."""

    metrics: tuple[Metric, ...]


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Cross-entropy of a modality's tokens, and of a uniform prediction."""

    nats: float
    uniform: float


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropies by modality."""

    modalities: Mapping[str, Entropy] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """evaluation.json of a backbone."""

    identity: EvaluationIdentity
    pairs: tuple[PairScore, ...]
    galleries: tuple[GalleryRecord, ...]
    modalities: Mapping[str, Evaluated] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    cross_entropy: CrossEntropy = CrossEntropy()
    unreadable: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Codes:
    """How a tokenizer uses its codes."""

    size: int | None = None
    usage: Number = None
    perplexity: Number = None
    codebooks: float | None = None
    least_usage: float | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerScores(Codes):
    """evaluation.json of a tokenizer."""

    metrics: Scores = field(default_factory=dict)
    samples: int | None = None
    split: str = ""
    codebook: Codes | None = None


# ---------------------------------------------------------------- growth.json


@dataclass(frozen=True, kw_only=True)
class Change:
    """A number of a grown backbone, and the one to compare it with."""

    after: Number
    before: Number = None
    uniform: Number = None


@dataclass(frozen=True, kw_only=True)
class SkillChange(Change):
    """The skill score of a pair before and after growing."""

    inputs: tuple[str, ...]
    target: str


@dataclass(frozen=True, kw_only=True)
class Growth:
    """growth.json of a grown backbone."""

    losses: Mapping[str, Change]
    new: Mapping[str, Change]
    skills: tuple[SkillChange, ...]


# ---------------------------------------------------------------- retrieval.json


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Recall by the number of hits ("1", "5", "10"), and the median rank."""

    recall: Mapping[str, float]
    median_rank: float

    def __post_init__(self) -> None:
        if missing := {"1", "5", "10"} - self.recall.keys():
            raise ValueError(f"recall: has no {min(missing)}")


@dataclass(frozen=True, kw_only=True)
class MeanRecall(Recall):
    """Recall, and the recall of a random order."""

    chance: Recall


@dataclass(frozen=True, kw_only=True)
class PairRecall(MeanRecall):
    """Recall of a pair of modalities."""

    query: str
    target: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The way from tokens to vectors."""

    via: str
    space: str


@dataclass(frozen=True, kw_only=True)
class RetrievalIdentity:
    """Everything that the results depend on."""

    fingerprint: str
    split: str
    embedding: Embedding


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """retrieval.json, the result of `zoo retrieve eval`."""

    identity: RetrievalIdentity
    pairs: tuple[PairRecall, ...]
    mean: MeanRecall
    galleries: tuple[GalleryRecord, ...]


# ---------------------------------------------------------------- metrics.json of a probe


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """The labels that a probe predicts."""

    name: str
    kind: str
    text: str = ""
    """The task as given; not in the file."""


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """Numbers of labelled samples."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True, kw_only=True)
class ProbeMetric(Metric):
    """A metric of a probe with its score."""

    score: Number
    baseline: Number


@dataclass(frozen=True, kw_only=True)
class Probe:
    """metrics.json of a probe."""

    task: ProbeTask
    inputs: tuple[str, ...]
    head: str
    tuning: str
    seed: int
    labels: LabelCounts
    settings: Mapping[str, Any]
    backbone: CheckpointRecord
    metrics: tuple[ProbeMetric, ...]


NO_EVALUATION = Evaluation(identity=EvaluationIdentity(settings={}), pairs=(), galleries=())


def read_evaluation(path: Path) -> Evaluation:
    """Return the evaluation.json of a backbone, with metrics of each target. Raises CheckpointError if damaged."""
    evaluation = read_record(path, Evaluation)
    for pair in evaluation.pairs:
        if pair.target not in evaluation.modalities or not evaluation.modalities[pair.target].metrics:
            raise CheckpointError(f"{path}: damaged: has no metrics of {pair.target}; {REMEDY}")
    return evaluation
