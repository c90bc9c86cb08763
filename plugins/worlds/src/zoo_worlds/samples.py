"""Samples generated on demand, in any order and in any process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from tokenizers_zoo.source import MadeSamples, Sample

Maker = Callable[[np.random.Generator, Any], dict[str, Any]]


def made(name: str, make: Maker, split: str, count: int | None, seed: int, settings: Any) -> MadeSamples:
    """`count` samples of a world: `make(rng, settings)`, whose generator depends on (split, seed, number) alone."""
    return MadeSamples(name, split, count, partial(_sample, name, make, split, seed, settings))


def _sample(name: str, make: Maker, split: str, seed: int, settings: Any, number: int) -> Sample:
    rng = np.random.default_rng([*f"{name}/{split}".encode(), seed, number])
    return f"{name}-{split}-{seed}-{number:06d}", make(rng, settings)


def check_limits(settings: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise ValueError, naming the field, for a value out of its range."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value}")
