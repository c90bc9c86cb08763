"""The settings of an evaluation: what is asked, how much of it, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenizers_zoo.config import check_amounts, check_counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What `zoo backbone eval` asks, in the table [eval] beside how much."""

    given: tuple[tuple[str, ...], ...] | None = None
    """Sets of modalities that are given, each set for itself; absent: each modality alone. `--given` takes
    precedence."""
    make: tuple[str, ...] | None = None
    """Modalities that are made of each set; absent: all that are discrete. `--make` takes precedence."""

    def __post_init__(self) -> None:
        for key, what in (("given", "set of modalities"), ("make", "modality")):
            if getattr(self, key) == ():
                raise ValueError(f"{key}: expected at least one {what}, or no such key")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How much is evaluated, and how."""

    samples: int = 32
    """Test samples per pair."""
    floor_samples: int = 256
    """Training values that the constant baseline is chosen for."""
    loss_samples: int = 256
    """Test samples for the cross-entropy."""
    batch_size: int = 32
    """Samples generated and decoded at a time."""
    answers: int = 16
    """Draws per sample; the score is that of the one value that fits them best. 1: the likeliest tokens, no draw."""
    temperature: float = 0.7
    """Of these draws: below 1 they keep closer to what is likely, so fewer of them show it."""
    steps: int = 1
    """Decoding steps of scored grids and vectors. More make the tokens of a draw agree with one another."""
    gallery_pairs: int = 24
    """Pairs, the first ones, that get a gallery."""
    gallery_samples: int = 4
    """Samples in a gallery."""
    draws: int = 3
    """Draws per sample in a gallery."""
    seed: int = 0
    """Seed of the choice of samples, of masks and of draws."""

    def __post_init__(self) -> None:
        check_counts(
            self,
            "samples",
            "floor_samples",
            "loss_samples",
            "batch_size",
            "answers",
            "steps",
            "gallery_samples",
            "draws",
        )
        check_amounts(self, "gallery_pairs", "seed")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a number above 0, got {self.temperature:g}")
