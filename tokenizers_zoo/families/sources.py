"""Sources that compute their samples, such as simulations: a plugin gives a spec and one function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.samples import LazySequence
from tokenizers_zoo.contract.source import Sample, SourceSpec
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.records.config import Settings


class MadeSamples(LazySequence[Sample]):
    """`count` samples of a source without an end; `make(number)` is called on access, in any order.

    Raises ConfigError if `count` is None or negative.
    """

    def __init__(self, source: str, split: str, count: int | None, make: Callable[[int], Sample]) -> None:
        if count is None:
            example = f"--{split} {1000 if split == 'train' else 100}"
            raise ConfigError(f"{source}: has no end; say how many samples to make for {split!r}, such as {example}")
        if count < 0:
            raise ConfigError(f"{source}: count: expected 0 or more, got {count}")
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def item(self, index: int) -> Sample:
        return self._make(index)


class MadeSource:
    """The plugin object of a source of any number of samples: `make(settings, split, seed, number)` returns a sample.

    `make` has to be a pure function of a module, because other processes call it, too. `settings` is an instance of the
    spec's `settings`, or None.
    """

    def __init__(self, spec: SourceSpec, make: Callable[[Any, str, int, int], Sample]) -> None:
        self.spec, self.make = spec, make

    @hookimpl
    def source_spec(self) -> SourceSpec:
        return self.spec

    @hookimpl
    def samples(self, split: str, count: int | None, seed: int, settings: Settings) -> MadeSamples:
        options = None if self.spec.settings is None else settings.take(self.spec.settings)
        return MadeSamples(self.spec.name, split, count, partial(self.make, options, split, seed))
