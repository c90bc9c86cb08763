"""Samples that are made when they are asked for, in any order, in any process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from tokenizers_zoo.errors import ConfigError

Sample = tuple[str, Mapping[str, Any]]
Maker = Callable[[np.random.Generator, Any], dict[str, Any]]
SPLITS = ("train", "test")


class MadeSamples(Sequence[Sample]):
    """`make(rng, settings)` for each index, whose generator depends on (split, seed, index) alone."""

    def __init__(self, name: str, make: Maker, split: str, seed: int, indices: range, settings: Any) -> None:
        self.name, self.make, self.split, self.seed = name, make, split, seed
        self.indices, self.settings = indices, settings

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> MadeSamples: ...
    def __getitem__(self, index: int | slice) -> Sample | MadeSamples:
        if isinstance(index, slice):
            return MadeSamples(self.name, self.make, self.split, self.seed, self.indices[index], self.settings)
        number = self.indices[index]
        letters = [*f"{self.name}/{self.split}".encode()]
        rng = np.random.default_rng([*letters, self.seed, number])
        return f"{self.name}-{self.split}-{self.seed}-{number:06d}", self.make(rng, self.settings)


def made(name: str, make: Maker, split: str, count: int | None, seed: int, settings: Any) -> MadeSamples:
    """`count` samples of a world without an end. Raises ConfigError."""
    if count is None:
        few = f"--{split} {1000 if split == 'train' else 100}"
        raise ConfigError(f"{name}: has no end; say how many samples to make for {split!r}, such as {few}")
    if count < 0:
        raise ConfigError(f"{name}: count: expected 0 or more, got {count}")
    return MadeSamples(name, make, split, seed, range(count), settings)


def check_limits(settings: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise ValueError, naming the field, for a value out of its range."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value}")
