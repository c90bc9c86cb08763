"""Specs to one id space: where each modality's tokens, positions and modality row lie in the flat tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenizers_zoo.errors import ConfigError, UnknownNameError
from tokenizers_zoo.modality import (
    EmbeddingsLayout,
    GridLayout,
    ModalitySpec,
    OrderedIds,
    PatchesLayout,
    SequenceLayout,
    VectorLayout,
)


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` rows of a flat table from row `start`."""

    start: int
    count: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.count)


class Tables:
    """The layout of the flat tables for a list of specs, in the order given.

    With `separate`, modalities of one vocabulary have token rows of their own each. `stored_positions` are modalities
    whose position rows are weights, and how many they have; `position_lengths` sequences whose rows are computed for
    another length than theirs, and that one; `marked_inputs` is `ModelConfig`'s. A modality added at the end leaves all
    earlier rows where they were; on disk each table and modality is stored under its own name, so any other order loads
    too.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        *,
        separate: bool = False,
        stored_positions: Mapping[str, int] | None = None,
        position_lengths: Mapping[str, int] | None = None,
        marked_inputs: bool = False,
    ) -> None:
        names = [spec.name for spec in specs]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"backbone: expected at least one modality, each once; got {names}")
        self.specs: tuple[ModalitySpec, ...] = tuple(specs)
        self.names = tuple(names)
        self.separate = separate
        self.marked_inputs = marked_inputs
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
        shared: dict[tuple[object, ...], Rows] = {}
        start = 0
        stored = stored_positions or {}
        for spec in specs:
            if spec.name in stored and stored[spec.name] < (least := least_positions(spec)):
                raise ConfigError(
                    f"backbone: {spec.name} needs {least} positions, and the model stores {stored[spec.name]}; give it "
                    "a shorter maximum length or a smaller grid"
                )
            length = (position_lengths or {}).get(spec.name)
            key = ("stored", spec.name) if spec.name in stored else position_key(spec, length)
            if key not in shared:
                shared[key] = Rows(start, stored.get(spec.name) or num_positions(spec))
                start += shared[key].count
            self.positions[spec.name] = shared[key]
        self.num_positions = start
        self.position_keys = {key: rows for key, rows in shared.items()}

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

    @property
    def stored_positions(self) -> tuple[str, ...]:
        """Modalities whose position rows are weights."""
        return tuple(str(key[1]) for key in self.position_keys if key[0] == "stored")

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
        return tuple(spec.name for spec in self.specs if not spec.continuous)


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


def position_key(spec: ModalitySpec, length: int | None = None) -> tuple[object, ...]:
    """Modalities with equal keys share fixed position rows; vectors have learned rows of their own.

    `length` is that which a sequence's rows are computed for, where that is not its own.
    """
    layout = spec.layout
    if isinstance(layout, GridLayout | PatchesLayout):
        return ("grid", layout.shape)
    if isinstance(layout, SequenceLayout | EmbeddingsLayout):
        return ("line", num_positions(spec), num_positions(spec, length))
    assert isinstance(layout, VectorLayout)
    return ("learned", spec.name, layout.length)
