"""Settings of an evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenizers_zoo.config import check_amounts, check_counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Which pairs of inputs and target `zoo backbone eval` scores, in the table [eval]."""

    inputs: tuple[tuple[str, ...], ...] | None = None
    """Sets of input modalities; absent: each modality alone. `--input` overrides it."""
    targets: tuple[str, ...] | None = None
    """Modalities predicted from each set; absent: all discrete ones. `--target` overrides it."""

    def __post_init__(self) -> None:
        for key, what in (("inputs", "set of modalities"), ("targets", "modality")):
            if getattr(self, key) == ():
                raise ValueError(f"{key}: expected at least one {what}; leave the key out for the default")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How much is evaluated, and how."""

    samples: int = 32
    """Held-out samples per pair."""
    baseline_samples: int = 256
    """Training values that the constant baseline is fitted to."""
    loss_samples: int = 256
    """Held-out samples for the cross-entropy."""
    batch_size: int = 32
    """Samples generated and decoded at a time."""
    draws: int = 16
    """Draws per sample. The scored prediction is the best single value for all of them (minimum expected error);
    1: the likeliest tokens, without sampling."""
    temperature: float = 0.7
    """Sampling temperature of the scored draws. Below 1, fewer draws are enough."""
    steps: int = 1
    """Decoding steps of scored grids and vectors. More steps make the tokens of a draw more consistent."""
    gallery_pairs: int = 24
    """The first so many pairs get a gallery."""
    gallery_samples: int = 4
    """Samples in a gallery."""
    gallery_draws: int = 3
    """Draws per sample in a gallery."""
    seed: int = 0
    """Seed of the choice of samples, of masks and of draws."""

    def __post_init__(self) -> None:
        check_counts(
            self,
            "samples",
            "baseline_samples",
            "loss_samples",
            "batch_size",
            "draws",
            "steps",
            "gallery_samples",
            "gallery_draws",
        )
        check_amounts(self, "gallery_pairs", "seed")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a number above 0, got {self.temperature:g}")
