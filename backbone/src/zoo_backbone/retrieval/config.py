"""The settings of retrieval: how vectors are made and searched, and how much is measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

Embedding = Literal["encoder", "predicted"]
SpaceKind = Literal["plain", "centred", "whitened", "shared"]
Search = Literal["exact", "approximate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """How a sample's modality becomes a vector."""

    embedding: Embedding = "encoder"
    """encoder: the mean of the encoder's features over the modality's tokens; predicted: the value of the global
    modality `via` that the backbone predicts from it (4M-21, arXiv 2406.09406, section 3.2)."""
    via: str = ""
    """The modality that is predicted, one vector of numbers a sample."""
    space: SpaceKind = "shared"
    """What brings the modalities together, fitted to training samples: plain (nothing), centred, whitened, shared."""
    fit_samples: int = 4096
    """Training samples, at most, that the space is fitted to."""

    def __post_init__(self) -> None:
        if self.fit_samples < 2:
            raise ValueError(f"fit_samples: expected at least 2, got {self.fit_samples}")
        if (self.embedding == "predicted") != bool(self.via):
            raise ValueError("via: expected the name of a vector modality with embedding predicted, and only with it")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """How much is measured, and shown."""

    samples: int = 1000
    """Held-out samples that are searched, at most; they are spread evenly over the split."""
    gallery_pairs: int = 8
    """Pairs, those from and to the modality that shows a sample best, that get a gallery."""
    gallery_samples: int = 4
    """Queries in a gallery."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = {"samples": 2, "gallery_pairs": 0}.get(field.name, 1)
            if getattr(self, field.name) < least:
                raise ValueError(f"{field.name}: expected at least {least}, got {getattr(self, field.name)}")
