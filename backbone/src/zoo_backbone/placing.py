"""The chosen tokens as a packed batch: which row of it each token has, with which id and position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.spec import SequenceLayout
from zoo_backbone.batch import PackedBatch, PackedInputs, PackedTargets, RawBatch
from zoo_backbone.budgets import Ints
from zoo_backbone.config import MaskingConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.spans import Bools, Keys, Spans, input_tokens, ragged, sorted_draw, target_streams


@dataclass(frozen=True)
class Group:
    """Modalities whose orders are drawn together: those of one length."""

    indices: Ints
    """`group`: in the list of specs."""
    columns: slice
    """Their keys in `Draws.orders`."""
    length: int


class TableArrays:
    """What masking asks of the tables again and again, as arrays; modalities are in the order of the specs."""

    def __init__(self, tables: EmbeddingLayout) -> None:
        specs = tables.specs
        layouts = [spec.layout for spec in specs if isinstance(spec.layout, SequenceLayout)]
        self.layout = tables
        self.continuous = np.array([spec.continuous for spec in specs])
        """bool `modalities`."""
        self.position_start = np.array([tables.positions[name].start for name in tables.names], np.int64)
        """`modalities`: the first row of each in the position table."""
        self.token_start = np.array([0 if spec.continuous else tables.token_rows(spec.name).start for spec in specs])
        """`modalities`: the first row of each in the token table, 0 for continuous ones."""
        self.groups = _groups(tables)
        """All modalities that are not sequences."""
        self.sequences: Ints = np.flatnonzero(tables.causal)
        """`sequences`: in the list of specs."""
        self.end = np.array([layout.end for layout in layouts], np.int64)
        """`sequences`: the id `end` of each."""
        self.sentinel = np.array([layout.sentinel_start for layout in layouts], np.int64)
        """`sequences`: the id of the first sentinel of each."""
        self.limits = np.array([layout.num_sentinels for layout in layouts], np.int64)
        """`sequences`: how many sentinels each has."""
        self.width = max((layout.max_length for layout in layouts), default=0)
        """Tokens of the longest sequence that there can be."""


class Placing:
    """One batch while it is packed: modalities in the order of the specs, one run each.

    `inputs` and `targets` are the numbers of tokens that each sample has of each modality, `batch modalities`.
    """

    def __init__(self, arrays: TableArrays, config: MaskingConfig, raw: RawBatch, inputs: Ints, targets: Ints) -> None:
        self.arrays = arrays
        self.raw = raw
        self.inputs = _Side(inputs, config.input_budget)
        self.targets = _Side(targets, config.target_budget)
        self.vectors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add_group(self, group: Group, keys: Keys) -> None:
        """All but sequences: inputs from the front of a random order, then targets."""
        arrays, raw = self.arrays, self.raw
        size = len(group.indices)
        tokens = np.zeros((len(raw), size, group.length), np.int64)
        for column, index in enumerate(group.indices):
            if not arrays.continuous[index]:
                tokens[:, column] = raw.tokens[arrays.layout.names[index]]
        front, behind = (side.counts[:, group.indices].ravel() for side in (self.inputs, self.targets))
        active = np.flatnonzero(front + behind)
        samples, kinds = active // size, group.indices[active % size]
        order = sorted_draw(keys.reshape(-1, group.length)[active], raw.lengths[samples, kinds])
        front, behind = front[active], behind[active]
        for side, counts, skipped in ((self.inputs, front, np.zeros_like(front)), (self.targets, behind, front)):
            rows, columns = ragged(counts)
            token = order[rows, columns + skipped[rows]]
            sample, kind = samples[rows], kinds[rows]
            index = side.place(sample, kind, columns)
            ids = tokens.reshape(-1, group.length)[active[rows], token] + arrays.token_start[kind]
            side.put(index, kind, ids, arrays.position_start[kind] + token)
            if side is self.inputs:
                self._add_vectors(kind, sample, token, index)

    def _add_vectors(self, kinds: Ints, samples: Ints, tokens: Ints, index: Ints) -> None:
        """Copy the selected vectors of continuous modalities."""
        for kind in np.unique(kinds[self.arrays.continuous[kinds]]):
            here = kinds == kind
            name = self.arrays.layout.names[kind]
            vectors = self.raw.tokens[name][samples[here], tokens[here]].astype(np.float32, copy=False)
            self.vectors[name] = torch.from_numpy(index[here]), torch.from_numpy(vectors)

    def add_sequences(self, spans: Spans, asked: Bools) -> None:
        """Kept tokens and sentinels as inputs, the streams of the asked spans as targets."""
        arrays, raw = self.arrays, self.raw
        order, size = arrays.sequences, len(arrays.sequences)
        width = spans.masked.shape[1]
        tokens = np.zeros((len(raw), size, width), np.int64)
        for column, index in enumerate(order):
            stored = raw.tokens[arrays.layout.names[index]][:, :width]
            tokens[:, column, : stored.shape[1]] = stored
        flat = tokens.reshape(-1, width)
        sentinel, end = np.tile(arrays.sentinel, len(raw)), np.tile(arrays.end, len(raw))
        lengths, quota = raw.lengths[:, order].ravel(), self.inputs.counts[:, order].ravel()
        rows, rank, ids = input_tokens(flat, lengths, quota, spans, sentinel)
        self._put_sequences(self.inputs, rows, rank, ids)
        following = spans.last(asked) + 1
        onward = arrays.layout.marked_inputs & (following < np.tile(arrays.limits, len(raw)))
        closing = np.where(onward, sentinel + following, end)
        read, predicted = target_streams(flat, spans, asked, sentinel, closing)
        rows, rank = ragged(self.targets.counts[:, order].ravel())
        place = self._put_sequences(self.targets, rows, rank, predicted[rows, rank])
        kinds = order[rows % size]
        self.targets.read.ravel()[place] = read[rows, rank] + arrays.token_start[kinds]

    def _put_sequences(self, side: _Side, rows: Ints, rank: Ints, ids: Ints) -> Ints:
        """Put tokens number `rank` of the sequences `rows`; gives their flat indices."""
        arrays = self.arrays
        size = len(arrays.sequences)
        samples, kinds = rows // size, arrays.sequences[rows % size]
        place = side.place(samples, kinds, rank)
        side.put(place, kinds, ids + arrays.token_start[kinds], arrays.position_start[kinds] + rank)
        return place

    def batch(self) -> PackedBatch:
        """The packed arrays as tensors."""

        def tensors(side: _Side) -> dict[str, Any]:
            arrays = {"ids": side.ids, "positions": side.positions, "modalities": side.kinds, "mask": side.mask}
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

        return PackedBatch(
            inputs=PackedInputs(**tensors(self.inputs), vectors=self.vectors),
            targets=PackedTargets(**tensors(self.targets), read=torch.from_numpy(self.targets.read)),
        )


class _Side:
    """Input or target tokens while they are packed: arrays `batch budget`, filled through flat indices."""

    def __init__(self, counts: Ints, budget: int) -> None:
        self.counts = counts
        self.start = np.cumsum(counts, axis=1) - counts
        self.budget = budget
        shape = (len(counts), budget)
        self.ids, self.positions, self.kinds = (np.zeros(shape, np.int64) for _ in range(3))
        self.read = np.full(shape, -1, np.int64)
        self.mask = np.arange(budget) < counts.sum(axis=1)[:, None]

    def place(self, samples: Ints, kinds: Ints, columns: Ints) -> Ints:
        """Flat indices of the tokens number `columns` of modalities `kinds` in `samples`."""
        return samples * self.budget + self.start[samples, kinds] + columns

    def put(self, index: Ints, kinds: Ints, ids: Ints, positions: Ints) -> None:
        self.ids.ravel()[index] = ids
        self.positions.ravel()[index] = positions
        self.kinds.ravel()[index] = kinds


def _groups(tables: EmbeddingLayout) -> list[Group]:
    by_length: dict[int, list[int]] = {}
    for index, spec in enumerate(tables.specs):
        if not isinstance(spec.layout, SequenceLayout):
            by_length.setdefault(spec.layout.length, []).append(index)
    groups, start = [], 0
    for length, indices in by_length.items():
        end = start + len(indices) * length
        groups.append(Group(indices=np.array(indices), columns=slice(start, end), length=length))
        start = end
    return groups
