"""What a data source declares about itself, and samples for one that makes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, overload

from tokenizers_zoo.errors import ConfigError, PluginError

Sample = tuple[str, Mapping[str, Any]]
"""A key, and by modality the values that the sample has."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source's name, what it gives, under which licence, and its settings (a frozen dataclass with defaults).

    `classes` names the class ids per modality where the source's values are class ids, and `agrees` its settings that
    have to be equal to one of the source's, such as `{"imu": {"sample_rate": "imu_rate"}}` where a rate cannot be seen
    in the values: what disagrees is noticed before data are made. `settings` None means that the source takes none.
    """

    name: str
    summary: str
    modalities: tuple[str, ...]
    licence: str
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    agrees: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    settings: type | None = None

    def __post_init__(self) -> None:
        if not self.summary or "\n" in self.summary:
            raise PluginError(f"{self.name}: SourceSpec summary: expected one line")
        known = {own.name for own in fields(self.settings)} if self.settings is not None else set[str]()
        if unknown := sorted({own for keys in self.agrees.values() for own in keys.values()} - known):
            raise PluginError(f"{self.name}: SourceSpec agrees: {', '.join(unknown)}: expected settings of the source")


class MadeSamples(Sequence[Sample]):
    """`count` samples of a source without an end: `make(number)` is called when one is asked for, in any order.

    `make` depends on its number and what it was made with alone. It is a function of a module, or a `functools.partial`
    of one, so that other processes can call it. Raises ConfigError where `count` is None or below 0.
    """

    def __init__(self, source: str, split: str, count: int | None, make: Callable[[int], Sample]) -> None:
        if count is None:
            few = f"--{split} {1000 if split == 'train' else 100}"
            raise ConfigError(f"{source}: has no end; say how many samples to make for {split!r}, such as {few}")
        if count < 0:
            raise ConfigError(f"{source}: count: expected 0 or more, got {count}")
        self._make, self._numbers = make, range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> MadeSamples: ...
    def __getitem__(self, index: int | slice) -> Sample | MadeSamples:
        if isinstance(index, slice):
            part = copy.copy(self)
            part._numbers = self._numbers[index]
            return part
        return self._make(self._numbers[index])
