"""Specs to one id space: where each modality's tokens, positions and modality row lie in the flat tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tokenizers_zoo.errors import ConfigError, UnknownNameError
from tokenizers_zoo.spec import (
    EmbeddingsLayout,
    GridLayout,
    ModalitySpec,
    OrderedIds,
    PatchesLayout,
    SequenceLayout,
    VectorLayout,
)
from zoo_backbone.config import ModelConfig

Positions = Literal["grid", "line", "learned", "stored"]
"""Kinds of position rows: computed for the cells of a grid or for the places of a sequence, or weights."""


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` rows of a flat table from row `start`."""

    start: int
    count: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.count)


class EmbeddingLayout:
    """The layout of the flat tables for a list of specs, in the order given, in a model with this configuration.

    A modality added at the end leaves all earlier rows where they were; on disk each table and modality is stored under
    its own name, so any other order loads too.
    """

    def __init__(self, specs: Sequence[ModalitySpec], config: ModelConfig | None = None) -> None:
        config = config or ModelConfig()
        names = [spec.name for spec in specs]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"backbone: expected at least one modality, each once; got {names}")
        self.specs: tuple[ModalitySpec, ...] = tuple(specs)
        self.names = tuple(names)
        self.separate = config.tables == "separate"
        self.marked_inputs = config.marked_inputs
        self.inputs_only, self.targets_only = frozenset(config.inputs_only), frozenset(config.targets_only)
        self.token_tables: dict[str, Rows] = {}
        self.positions: dict[str, Rows] = {}
        self.ordered_ids: dict[str, tuple[OrderedIds, ...]] = {}
        """By token table, the ids of its vocabulary that are numbers."""
        sizes: dict[str, int] = {}
        for spec in specs:
            if not spec.continuous:
                self.ordered_ids[self.table_of(spec)] = self.ordered_ids.get(self.table_of(spec)) or spec.ordered_ids
                known = sizes.setdefault(self.table_of(spec), spec.vocab_size)
                if known != spec.vocab_size:
                    raise ConfigError(
                        f"backbone: {spec.name} says that vocabulary {spec.vocabulary!r} has {spec.vocab_size} ids, "
                        f"another modality says {known}; give both one [vocabularies.{spec.vocabulary}] size"
                    )
        start = 0
        for table, size in sizes.items():
            self.token_tables[table] = Rows(start, size)
            start += size
        self.num_tokens = start
        self._shared: dict[tuple[Positions, Any], Rows] = {}
        start = 0
        for spec in specs:
            stored = config.stored_positions.get(spec.name)
            if stored is not None and stored < (least := least_positions(spec)):
                raise ConfigError(
                    f"backbone: {spec.name} needs {least} positions, and the model stores {stored}; give it "
                    "a shorter maximum length or a smaller grid"
                )
            key = position_key(spec, config)
            if key not in self._shared:
                self._shared[key] = Rows(start, stored or num_positions(spec))
                start += self._shared[key].count
            self.positions[spec.name] = self._shared[key]
        self.num_positions = start

    def __len__(self) -> int:
        return len(self.specs)

    def index(self, name: str) -> int:
        """Row of a modality in the modality table. Raises UnknownNameError."""
        if name not in self.names:
            published = {alias: spec.name for spec in self.specs for alias in spec.aliases}
            raise UnknownNameError.of("modality of this backbone", name, self.names, aliases=published)
        return self.names.index(name)

    def spec(self, name: str) -> ModalitySpec:
        """The spec of a modality. Raises UnknownNameError."""
        return self.specs[self.index(name)]

    def table_of(self, spec: ModalitySpec) -> str:
        """Name of the token table that a discrete modality reads and writes."""
        return spec.name if self.separate else spec.vocabulary

    def token_rows(self, name: str) -> Rows:
        """Rows of a discrete modality's token table."""
        return self.token_tables[self.table_of(self.spec(name))]

    def positions_of(self, kind: Positions) -> dict[Any, Rows]:
        """The position rows of one kind, under what tells them apart (see `position_key`)."""
        return {key: rows for (of, key), rows in self._shared.items() if of == kind}

    @property
    def stored_positions(self) -> tuple[str, ...]:
        """Modalities whose position rows are weights."""
        return tuple(self.positions_of("stored"))

    @cached_property
    def causal(self) -> np.ndarray:
        """bool `modalities`: True where targets are predicted left to right."""
        return np.array([isinstance(spec.layout, SequenceLayout) for spec in self.specs])

    @cached_property
    def table_index(self) -> np.ndarray:
        """int64 `modalities`: index of the modality's table among `self.token_tables`, -1 for continuous ones."""
        order = list(self.token_tables)
        return np.array([-1 if spec.continuous else order.index(self.table_of(spec)) for spec in self.specs])

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of the modalities that can be targets."""
        return tuple(spec.name for spec in self.specs if not spec.continuous and spec.name not in self.inputs_only)

    @property
    def readable(self) -> tuple[str, ...]:
        """Names of the modalities that can be inputs."""
        return tuple(name for name in self.names if name not in self.targets_only)

    def check_made(self, name: str, what: str) -> None:
        """Raise ConfigError, which begins with `what`, for a modality that cannot be a target."""
        spec = self.spec(name)
        if spec.continuous:
            raise ConfigError(f"{what} {name}: a {spec.layout.kind} modality is an input only")
        if name in self.inputs_only:
            made = ", ".join(self.discrete) or "nothing"
            raise ConfigError(f"{what} {name}: it is only an input of this model, which makes {made}")

    def check_read(self, name: str, what: str) -> None:
        """Raise ConfigError, which begins with `what`, for a modality that cannot be an input."""
        if self.spec(name).name in self.targets_only:
            read = ", ".join(self.readable) or "nothing"
            raise ConfigError(f"{what} {name}: this model only makes it, and cannot be given it; it reads {read}")


def least_positions(spec: ModalitySpec) -> int:
    """Positions that inputs and targets of a modality can have.

    A sequence's targets are its masked tokens, and before each span a sentinel; spans are apart by a token that is
    kept, and has no target.
    """
    return spec.layout.length + isinstance(spec.layout, SequenceLayout)


def num_positions(spec: ModalitySpec, length: int | None = None) -> int:
    """Position rows of a modality whose positions are computed or learned; more than enough for sequences.

    With `length`, those that it would have at that length.
    """
    length = length or spec.layout.length
    return 2 * length + 2 if isinstance(spec.layout, SequenceLayout) else length


def position_key(spec: ModalitySpec, config: ModelConfig) -> tuple[Positions, Any]:
    """The kind of a modality's positions, and what tells them apart: modalities with equal keys share their rows.

    Grids have a shape; lines how many rows they are, and how many they are computed for; weights the modality's name.
    """
    layout = spec.layout
    if spec.name in config.stored_positions:
        return "stored", spec.name
    if isinstance(layout, GridLayout | PatchesLayout):
        return "grid", layout.shape
    if isinstance(layout, SequenceLayout | EmbeddingsLayout):
        return "line", (num_positions(spec), num_positions(spec, config.position_lengths.get(spec.name)))
    assert isinstance(layout, VectorLayout)
    return "learned", spec.name
