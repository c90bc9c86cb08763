"""Embedding layout: the rows of each modality in the shared embedding tables, their positions and initial values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_zoo.contract.spec import ModalitySpec, OrderedIds
from tokenizers_zoo.errors import ConfigError, UnknownNameError
from zoo_backbone.model.batch import RawBatch
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.spans import Spans

Positions = Literal["grid", "line", "learned", "stored"]
"""Kinds of position embeddings: computed for the cells of a grid or the places of a sequence, or stored as weights."""
POSITION_SCALE = 2.0
"""Amplitude of the sin-cos positions. Targets use them to find the inputs at their own position, which a small model
learns much later at the usual amplitude of 1.0."""
ROTATED = 0.75
"""Share of a head's channels that are rotated, all axes together. The others compare tokens regardless of place."""
CYCLES = (0.25, 8.0)
"""Full turns between opposite edges of a grid, for the slowest and the fastest channels."""
REACH = 0.1
"""Two levels this far apart, as a share of all levels, have embeddings with a similarity of exp(-1/2)."""


class EmbeddingLayout:
    """The rows of each spec's tokens, positions and modality embedding in the shared tables, in the order of the specs.

    Appending a modality leaves all earlier rows in place. On disk each modality has its own tensors, so a checkpoint
    loads in any order of modalities. Raises ConfigError for specs that contradict each other.
    """

    span_class: ClassVar[type[Spans]] = Spans
    """How masked spans of sequences become targets."""
    inputs_only: frozenset[str] = frozenset()
    """Discrete modalities that this model cannot predict."""
    targets_only: frozenset[str] = frozenset()
    """Modalities that this model cannot read."""

    def __init__(self, specs: Sequence[ModalitySpec], config: ModelConfig | None = None) -> None:
        self.config = config or ModelConfig()
        self.specs: tuple[ModalitySpec, ...] = tuple(specs)
        self.names = tuple(spec.name for spec in specs)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"backbone: expected at least one modality, each once; got {list(self.names)}")
        sizes: dict[str, int] = {}
        self.ordered_ids: dict[str, tuple[OrderedIds, ...]] = {}
        """Per embedding table, the ids that are numbers."""
        for spec in specs:
            if spec.continuous:
                continue
            table = self.table_of(spec)
            if sizes.setdefault(table, spec.vocab_size) != spec.vocab_size:
                raise ConfigError(
                    f"backbone: {spec.name} says that vocabulary {spec.vocabulary!r} has {spec.vocab_size} ids, "
                    f"another modality says {sizes[table]}; give both one [vocabularies.{spec.vocabulary}] size"
                )
            self.ordered_ids[table] = self.ordered_ids.get(table) or spec.ordered_ids
        self.token_tables = dict(zip(sizes, consecutive(sizes.values()), strict=True))
        self.num_tokens = sum(sizes.values())
        keys = {spec.name: self.position_key(spec) for spec in specs}
        counts = {keys[spec.name]: self.num_positions_of(spec) for spec in specs}
        self._shared = dict(zip(counts, consecutive(counts.values()), strict=True))
        self.positions = {name: self._shared[key] for name, key in keys.items()}
        self.num_positions = sum(counts.values())

    def __len__(self) -> int:
        return len(self.specs)

    def index(self, name: str) -> int:
        """Return the row of a modality's embedding. Raises UnknownNameError."""
        if name not in self.names:
            published = {alias: spec.name for spec in self.specs for alias in spec.aliases}
            raise UnknownNameError.of("modality of this backbone", name, self.names, aliases=published)
        return self.names.index(name)

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a modality. Raises UnknownNameError."""
        return self.specs[self.index(name)]

    def table_of(self, spec: ModalitySpec) -> str:
        """Return the name of a discrete modality's embedding table: modalities of one vocabulary share it."""
        return spec.vocabulary

    def token_rows(self, name: str) -> slice:
        """Return the rows of a discrete modality's embedding table."""
        return self.token_tables[self.table_of(self.spec(name))]

    def position_key(self, spec: ModalitySpec) -> tuple[Positions, Any]:
        """Return the kind of a modality's positions, and a key: modalities with equal keys share their rows.

        The key of a grid is its shape; of a line, its rows and the rows for which they are computed; else the name.
        """
        layout = spec.layout
        if layout.spatial:
            return "grid", layout.axes
        if layout.variable:
            trained = self.config.position_lengths.get(spec.name)
            return "line", (num_positions(spec), num_positions(spec, trained))
        return "learned", spec.name

    def num_positions_of(self, spec: ModalitySpec) -> int:
        """Return the number of a modality's position rows."""
        return num_positions(spec)

    def positions_of(self, kind: Positions) -> dict[Any, slice]:
        """Return the position rows of one kind by their key."""
        return {key: rows for (of, key), rows in self._shared.items() if of == kind}

    def with_ends(self, raw: RawBatch) -> RawBatch:
        """Return the samples with the ids of `input_end`, for masking."""
        return raw

    def input_end(self, spec: ModalitySpec) -> int | None:
        """Return the id that follows a complete input sequence below its maximum length, or None."""
        return None

    def placeholder(self, spec: ModalitySpec) -> Tensor | None:
        """Return the token (`1`, or `1 dim`) that the encoder reads in place of an unknown modality, or None."""
        return None

    @cached_property
    def causal(self) -> np.ndarray:
        """bool `modalities`: True where targets are predicted left to right."""
        return np.array([spec.layout.causal for spec in self.specs])

    @cached_property
    def table_index(self) -> np.ndarray:
        """int64 `modalities`: index of the modality's table in `token_tables`, -1 for continuous modalities."""
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

    def readable_as(self, name: str, available: Collection[str] | None = None, *, prefers_form: bool = False) -> str:
        """Return the name under which the model reads a modality: its input form, such as `rgb_patches` for `rgb`.

        `available` are the names to choose from; default: all that the model reads. A modality that is available itself
        keeps its name, unless `prefers_form`; so does one that is not available in any form.
        """
        available = self.readable if available is None else available
        if name in available and not prefers_form:
            return name
        forms = (spec.name for spec in self.specs if spec.input_form_of == name and spec.name in available)
        return next(forms, name)

    def check_targets(self, names: Iterable[str], prefix: str) -> None:
        """Raise ConfigError, starting with `prefix`, for a modality that cannot be a target."""
        for name in names:
            if (spec := self.spec(name)).continuous:
                raise ConfigError(f"{prefix} {name}: a {spec.layout.kind} modality is an input only")
            if name in self.inputs_only:
                predicted = ", ".join(self.discrete) or "nothing"
                raise ConfigError(f"{prefix} {name}: it is only an input of this model, which predicts {predicted}")

    def check_inputs(self, names: Iterable[str], prefix: str) -> None:
        """Raise ConfigError, starting with `prefix`, for a modality that cannot be an input."""
        for name in names:
            if self.spec(name).name in self.targets_only:
                read = ", ".join(self.readable) or "nothing"
                raise ConfigError(f"{prefix} {name}: it is only a target of this model, which reads {read}")


def consecutive(counts: Iterable[int]) -> list[slice]:
    """Return the slices of consecutive runs of these lengths."""
    ends = list(itertools.accumulate(counts))
    return list(map(slice, [0, *ends], ends))


def num_positions(spec: ModalitySpec, length: int | None = None) -> int:
    """Return the position rows of a modality, or its rows if it had `length` tokens; sequences have some to spare."""
    length = length or spec.layout.length
    return 2 * length + 2 if spec.layout.causal else length


def position_table(layout: EmbeddingLayout, dim: int) -> Tensor:
    """Return fixed sin-cos embeddings `positions dim`; zeros where positions are learned or stored."""
    table = torch.zeros(layout.num_positions, dim)
    for shape, rows in layout.positions_of("grid").items():
        table[rows] = sincos_grid(shape, dim)
    for (count, computed_for), rows in layout.positions_of("line").items():
        table[rows] = sincos_grid((count,), dim, (computed_for,))
    return POSITION_SCALE * table


def learned_rows(layout: EmbeddingLayout) -> Tensor:
    """Return int64 `positions`: the row, from 1, of learned positions in their concatenated tables; 0 for others."""
    learned = torch.zeros(layout.num_positions, dtype=torch.int64)
    for rows in layout.positions_of("learned").values():
        learned[rows] = 1
    return learned * learned.cumsum(0)


def sincos_grid(shape: tuple[int, ...], dim: int, steps: tuple[int, ...] | None = None) -> Tensor:
    """Return sin-cos positions of a grid, `prod(shape) dim`, row-major; the axes share the channels equally.

    An axis of n steps has sines, then cosines, of the index times frequencies that fall geometrically from pi/2 to
    pi/(4n), that is, periods of 4 to 8n steps. The periods of up to 60,000 of arXiv 1706.03762, section 3.5, leave most
    channels nearly constant on 8 or 14 steps, and attention by position hard to learn. Remaining channels are zero.
    `steps` replaces n: with one n for both, a shorter axis has the first rows of a longer one.
    """
    share = dim // len(shape) // 2
    exponents = torch.arange(share, dtype=torch.float64) / max(share - 1, 1)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    angles = [
        axis.flatten().unsqueeze(1) * (math.pi / 2 * (2 * n) ** -exponents)
        for axis, n in zip(axes, steps or shape, strict=True)
    ]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return F.pad(table, (0, dim - table.shape[1])).float()


def rotation_table(layout: EmbeddingLayout, head_size: int) -> Tensor:
    """Return the rotation of each position, `positions head_size`: cosines, then sines (arXiv 2104.09864, section 3.2).

    Each axis of a grid has its share of the channel pairs. Angles depend on the place between the grid's edges, so that
    cells of a fine and a coarse grid over one image agree. Sequences, vectors and stored positions are not rotated: the
    index of a word says nothing about a place.
    """
    pairs = head_size // 2
    angles = torch.zeros(layout.num_positions, pairs)
    for shape, rows in layout.positions_of("grid").items():
        angles[rows] = grid_angles(shape, pairs)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def grid_angles(shape: tuple[int, ...], pairs: int) -> Tensor:
    """Return the angles of a grid's cells in radians, `prod(shape) pairs`, row-major; 0 for the remaining pairs."""
    share = int(ROTATED * pairs) // len(shape)
    slow, fast = CYCLES
    cycles = slow * (fast / slow) ** (torch.arange(share, dtype=torch.float64) / max(share - 1, 1))
    centres = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in shape]
    axes = torch.meshgrid(*centres, indexing="ij")
    angles = torch.cat([2 * math.pi * cycles * axis.flatten().unsqueeze(1) for axis in axes], dim=1)
    return F.pad(angles, (0, pairs - angles.shape[1])).float()


@torch.no_grad()
def init_ordered_ids(rows: Tensor, runs: Iterable[OrderedIds], std: float) -> None:
    """Initialise ids that are numbers so that near levels have similar rows and learn together.

    `rows` is a table `ids dim`. Every channel is a cosine over the levels with random frequency and phase (random
    Fourier features, Rahimi and Recht 2007, section 3). Two rows then have a similarity of about exp(-(distance /
    REACH)^2 / 2). Values have standard deviation `std`.
    """
    for ids in runs:
        levels = torch.arange(ids.count).unsqueeze(1) / max(ids.count - 1, 1)
        frequencies, phases = torch.randn(rows.shape[1]) / REACH, 2 * math.pi * torch.rand(rows.shape[1])
        rows[ids.start : ids.stop] = std * math.sqrt(2) * torch.cos(levels * frequencies + phases)
