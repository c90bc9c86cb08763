"""Retrieval: find samples of any modality by any other. Its settings are here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tokenizers_zoo.contract.samples import TEST

SpaceKind = Literal["plain", "centred", "whitened", "shared"]
TOGETHER = ""
"""The name of the vectors of all modalities together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """Settings of the vectors of stored samples."""

    via: str = ""
    """A global modality with one vector of numbers per sample, which the backbone predicts (4M-21, arXiv 2406.09406,
    section 3.2). Default: none, vectors are the mean features of the modality's tokens."""
    space: SpaceKind = "shared"
    """How vectors of different modalities are aligned; see `embed.py`."""
    modalities: tuple[str, ...] = ()
    """The modalities to embed. Default: all of the run that its tokens have."""
    split: str = TEST
    """Split of the run's tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryConfig:
    """Settings of a query."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of the inputs' vectors; 1 by default."""
    find: str = TOGETHER
    """The modality to search."""
    k: int = 10
    """Hits per query."""
    split: str = ""
    """Split of stored samples that are queries. Default: the split of the index."""
    exclude_self: bool = False
    """Exclude the query's own sample, if it is of the split of the index."""
