"""retrieval.json: recall between pairs of modalities, as `zoo retrieve eval` measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers_zoo.records.typed import Complete
from zoo_backbone.measure.evaluation import GalleryRecord

FOLDER, FILE = "retrieval", "retrieval.json"
RECALL_AT = ("1", "5", "10")
"""Numbers of hits among which the correct sample counts."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Share of correct samples among the first hits, by the number of hits, and the median rank."""

    recall: Mapping[str, float]
    median_rank: float

    def __post_init__(self) -> None:
        if missing := set(RECALL_AT) - self.recall.keys():
            raise ValueError(f"recall: has no {min(missing)}")


@dataclass(frozen=True, kw_only=True)
class MeanRecall(Recall):
    """The mean over pairs."""

    chance: Recall
    """Of a random order."""


@dataclass(frozen=True, kw_only=True)
class PairRecall(MeanRecall):
    """Samples with both modalities, searched by their query among all targets."""

    query: str
    target: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class RetrievalIdentity:
    """Everything that the results depend on."""

    fingerprint: str
    """The backbone's."""
    split: str
    embedding: Mapping[str, str]
    """`EmbeddingConfig`: the way from tokens to vectors."""
    tokenizers: Mapping[str, str]
    settings: Mapping[str, int]
    """The largest number of samples."""


@dataclass(frozen=True, kw_only=True)
class RetrievalRecord(Complete):
    """The content of retrieval.json."""

    identity: RetrievalIdentity
    pairs: tuple[PairRecall, ...]
    mean: MeanRecall
    galleries: tuple[GalleryRecord, ...]
    """Queries with their hits."""
    seconds: float
