"""Batches: raw batches with all tokens of some samples, and packed batches with the selected tokens only."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WIDTH = 8
"""Packed batches are trimmed to a multiple of this number of slots."""


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """All tokens of some samples, as stored.

    `tokens` has for each modality ids `batch length` (grids flattened row-major) or, for continuous layouts, numbers
    `batch length dim`; entries beyond a sample's length have no meaning. `lengths` (int64) and `present` (bool) are
    `batch modalities`, in the order of the backbone's specs; an absent modality has length 0, and so may a present
    sequence.
    """

    tokens: dict[str, npt.NDArray[Any]]
    lengths: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Selected tokens, `batch slots`: `ids` are rows of the token table, `positions` of the position table,
    `modalities` of the modality table. `mask` is True where a token is used.
    """

    ids: Tensor
    positions: Tensor
    modalities: Tensor
    mask: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields with one row per sample."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply `change` to each tensor with one row per sample."""
        return dataclasses.replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    @property
    def longest(self) -> int:
        """The length of the longest sample, rounded up to a multiple of WIDTH, but at most the number of slots."""
        longest = int(self.mask.sum(dim=1).max()) if self.mask.numel() else 0
        return min(max(WIDTH, -(-longest // WIDTH) * WIDTH), self.mask.shape[1])


@dataclass(frozen=True, kw_only=True)
class PackedInputs(Packed):
    """Selected input tokens, `batch inputs`; `ids` are 0 at continuous ones.

    `vectors` holds, per continuous modality, the flat indices (sample * inputs + slot) of its tokens and their values
    `(count, dim)`.
    """

    vectors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PackedTargets(Packed):
    """Selected target tokens, `batch targets`. Tokens of a modality are adjacent, sequences in reading order.

    `ids` are the rows of the token table to predict. `read` are the rows that the decoder reads at these places: the
    previous token in sequences, -1 (the mask token) in grids and vectors.
    """

    read: Tensor


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Inputs and targets of the same samples."""

    inputs: PackedInputs
    targets: PackedTargets

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the batch on a device; a copy from pinned memory goes on in the background."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> PackedBatch:
        """Return the batch in pinned memory, for copies to a GPU in the background."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        """Apply a change to all tensors."""
        vectors = {name: (change(index), change(rows)) for name, (index, rows) in self.inputs.vectors.items()}
        return self._map_sides(change, change, vectors)

    @classmethod
    def join(cls, parts: Sequence[PackedBatch]) -> PackedBatch:
        """Concatenate batches with the same budgets."""
        if len(parts) == 1:
            return parts[0]
        inputs, targets = [part.inputs for part in parts], [part.targets for part in parts]
        starts = itertools.accumulate((side.ids.numel() for side in inputs), initial=0)
        vectors: dict[str, tuple[Tensor, Tensor]] = {}
        for start, side in zip(starts, inputs, strict=False):
            for name, (index, rows) in side.vectors.items():
                before = vectors.get(name, (index[:0], rows[:0]))
                vectors[name] = torch.cat([before[0], index + start]), torch.cat([before[1], rows])
        joined = [
            {name: torch.cat([side.tensors()[name] for side in sides]) for name in sides[0].tensors()}
            for sides in (inputs, targets)
        ]
        return cls(inputs=PackedInputs(**joined[0], vectors=vectors), targets=PackedTargets(**joined[1]))

    def take(self, samples: Tensor) -> PackedBatch:
        """Return the samples in another order, a permutation."""
        slots, positions = self.inputs.mask.shape[1], torch.argsort(samples)
        vectors = {}
        for name, (index, rows) in self.inputs.vectors.items():
            moved, order = (positions[index // slots] * slots + index % slots).sort()
            vectors[name] = moved, rows[order]
        return self._map_sides(operator.itemgetter(samples), operator.itemgetter(samples), vectors)

    def trimmed(self) -> PackedBatch:
        """Remove slots that no sample uses; lengths become multiples of WIDTH or do not change.

        Unused slots cost as much as used slots. The rounding keeps the number of different shapes small.
        """
        inputs, targets, budget = self.inputs.longest, self.targets.longest, self.inputs.mask.shape[1]
        vectors = {
            name: (index // budget * inputs + index % budget, rows)
            for name, (index, rows) in self.inputs.vectors.items()
        }
        return self._map_sides(lambda x: x[:, :inputs].contiguous(), lambda x: x[:, :targets].contiguous(), vectors)

    def split(self, parts: int) -> list[PackedBatch]:
        """Split into up to `parts` batches whose sizes differ by at most one."""
        size, budget = self.inputs.ids.shape
        edges = [size * part // parts for part in range(parts + 1)]
        batches = []
        for rows in (slice(first, end) for first, end in itertools.pairwise(edges) if first < end):
            vectors = {}
            for name, (index, values) in self.inputs.vectors.items():
                in_rows = (index >= rows.start * budget) & (index < rows.stop * budget)
                if bool(in_rows.any()):
                    vectors[name] = index[in_rows] - rows.start * budget, values[in_rows]
            batches.append(self._map_sides(operator.itemgetter(rows), operator.itemgetter(rows), vectors))
        return batches

    def _map_sides(
        self,
        inputs: Callable[[Tensor], Tensor],
        targets: Callable[[Tensor], Tensor],
        vectors: dict[str, tuple[Tensor, Tensor]],
    ) -> PackedBatch:
        """Apply changes to the tensors of either side, and replace the vectors."""
        changed = dataclasses.replace(self.inputs.map_tensors(inputs), vectors=vectors)
        return PackedBatch(inputs=changed, targets=self.targets.map_tensors(targets))
