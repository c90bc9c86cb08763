"""Batches: raw batches with all tokens of some samples, and packed batches with the selected tokens only."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
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

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return dataclasses.replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})


@dataclass(frozen=True, kw_only=True)
class PackedInputs(Packed):
    """Selected input tokens, `batch inputs`; `ids` are 0 at continuous ones.

    `vectors` holds, per continuous modality, the flat indices (sample * inputs + slot) of its tokens and their values
    `(count, dim)`.
    """

    vectors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        vectors = {name: (index.to(device), rows.to(device)) for name, (index, rows) in self.vectors.items()}
        return dataclasses.replace(super().to(device), vectors=vectors)


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
        """The same batch on another device."""
        return PackedBatch(inputs=self.inputs.to(device), targets=self.targets.to(device))

    @classmethod
    def join(cls, parts: Sequence[PackedBatch]) -> PackedBatch:
        """Concatenate batches with the same budgets."""
        if len(parts) == 1:
            return parts[0]
        inputs, targets = [part.inputs for part in parts], [part.targets for part in parts]
        starts = itertools.accumulate((side.ids.numel() for side in inputs), initial=0)
        vectors: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for start, side in zip(starts, inputs, strict=False):
            for name, (index, rows) in side.vectors.items():
                vectors.setdefault(name, []).append((index + start, rows))
        joined = {
            name: (torch.cat([index for index, _ in pairs]), torch.cat([rows for _, rows in pairs]))
            for name, pairs in vectors.items()
        }
        return cls(inputs=PackedInputs(**_joined(inputs), vectors=joined), targets=PackedTargets(**_joined(targets)))

    def trimmed(self) -> PackedBatch:
        """Remove slots that no sample uses; lengths become multiples of WIDTH or do not change.

        Unused slots cost as much as used slots. The rounding keeps the number of different shapes small.
        """
        inputs, targets = (min(_width(side.mask), side.mask.shape[1]) for side in (self.inputs, self.targets))
        budget = self.inputs.mask.shape[1]
        vectors = {
            name: (index // budget * inputs + index % budget, rows)
            for name, (index, rows) in self.inputs.vectors.items()
        }
        first = {name: tensor[:, :inputs].contiguous() for name, tensor in self.inputs.tensors().items()}
        second = {name: tensor[:, :targets].contiguous() for name, tensor in self.targets.tensors().items()}
        return PackedBatch(inputs=PackedInputs(**first, vectors=vectors), targets=PackedTargets(**second))

    def split(self, parts: int) -> list[PackedBatch]:
        """Split into up to `parts` batches whose sizes differ by at most one."""
        size = len(self.targets.ids)
        edges = [size * part // parts for part in range(parts + 1)]
        return [self._rows(first, end) for first, end in itertools.pairwise(edges) if first < end]

    def _rows(self, first: int, end: int) -> PackedBatch:
        """The samples `first` to `end - 1`."""
        budget = self.inputs.ids.shape[1]
        vectors = {}
        for name, (index, rows) in self.inputs.vectors.items():
            here = (index >= first * budget) & (index < end * budget)
            if bool(here.any()):
                vectors[name] = index[here] - first * budget, rows[here]
        inputs = {name: tensor[first:end] for name, tensor in self.inputs.tensors().items()}
        targets = {name: tensor[first:end] for name, tensor in self.targets.tensors().items()}
        return PackedBatch(inputs=PackedInputs(**inputs, vectors=vectors), targets=PackedTargets(**targets))


def _width(mask: Tensor) -> int:
    """Return the length of the longest sample, rounded up."""
    longest = int(mask.sum(dim=1).max()) if mask.numel() else 0
    return max(WIDTH, -(-longest // WIDTH) * WIDTH)


def _joined(sides: Sequence[Packed]) -> dict[str, Tensor]:
    """The fields that have one row per sample, one below the other."""
    fields = [side.tensors() for side in sides]
    return {name: torch.cat([side[name] for side in fields]) for name in fields[0]}
