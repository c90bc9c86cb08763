"""Retrieval: find samples of any modality by any other. Its settings are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Embedding = Literal["encoder", "predicted"]
SpaceKind = Literal["plain", "centred", "whitened", "shared"]
Search = Literal["exact", "approximate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """Settings of the vector of a sample's modality."""

    embedding: Embedding = "encoder"
    """encoder: mean features of the modality's tokens; predicted: the value of the global modality `via` that the
    backbone predicts from it (4M-21, arXiv 2406.09406, section 3.2)."""
    via: str = ""
    """The predicted modality: one vector of numbers per sample."""
    space: SpaceKind = "shared"
    """How vectors of different modalities are aligned; see `embed.py`."""
    fit_samples: int = 4096
    """Maximum number of training samples that the space is fitted to."""

    def __post_init__(self) -> None:
        if self.fit_samples < 2:
            raise ValueError(f"fit_samples: expected at least 2, got {self.fit_samples}")
        if (self.embedding == "predicted") != bool(self.via):
            raise ValueError("via: expected a vector modality with embedding predicted, and none with encoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """Size of an evaluation."""

    samples: int = 1000
    """Maximum number of held-out samples, spread evenly over the split."""
    gallery_pairs: int = 8
    """Pairs of modalities with a picture of queries and hits."""
    gallery_samples: int = 4
    """Queries per picture."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("gallery_pairs", 0), ("gallery_samples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
