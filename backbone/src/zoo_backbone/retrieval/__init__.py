"""Retrieval: find samples of any modality by any other. Its settings are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SpaceKind = Literal["plain", "centred", "whitened", "shared"]
Search = Literal["exact", "approximate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """Settings of the vector of a sample's modality."""

    via: str = ""
    """A global modality with one vector of numbers per sample, which the backbone predicts (4M-21, arXiv 2406.09406,
    section 3.2). Default: none, vectors are the mean features of the modality's tokens."""
    space: SpaceKind = "shared"
    """How vectors of different modalities are aligned; see `embed.py`."""
