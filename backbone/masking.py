"""Masking: from all tokens of some samples to the few that are inputs and targets (4M, arXiv 2312.06647, section 2.3).

Per sample, a part of the mixture is drawn, then from its Dirichlets the shares of the modalities that the sample has.
Inputs are chosen first, targets from what is left:

- Grids, vectors and continuous layouts: random positions.
- Sequences: spans are masked until the kept tokens and one sentinel per span are the share; a share of the whole length
  keeps all, and nothing is left to predict. Of the masked spans as many are targets as fit, whole ones in random
  order; the others stay behind their sentinels, so `end` is never lost. A sequence that is not in the input is one
  span, of which the targets are a prefix where `end` does not fit; so they are of all spans where a sample has nothing
  else to predict and none of them fits.
- Where inputs are marked as in training of the published models (`ModelConfig.marked_inputs`), `end` is a token of the
  sequence like any other, kept or masked; where not all spans fit, neighbours are asked for; and the sentinel of the
  next span closes.

Budgets are full whenever the sample has the tokens: a share that a modality cannot use goes to the others. Where a
sample has fewer tokens than both budgets ask for, both get less in proportion, so that there is always something to
predict. So a model never sees a short modality alone, unless a part of the mixture asks for that: in its share `alone`
of the samples, the modality with the largest share is the only input.

Random numbers are Philox's (Salmon et al. 2011), keyed by the seed and counted by step and slot: the mask of a sample
depends on seed, step, its slot in the batch and the sample itself, not on the batch's size or on other samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from backbone.batch import PackedBatch, PackedInputs, PackedTargets, RawBatch
from backbone.budgets import Floats, Ints, fill, fill_with_limit
from backbone.config import MaskingConfig, Mixture
from backbone.spans import Bools, Keys, Spans, input_tokens, mask_spans, ragged, sorted_draw, target_streams
from backbone.tables import Tables
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.modality import SequenceLayout

WORD = 1 << 64
LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch; those of a slot are the same in any batch."""

    part: Floats
    """`batch`, uniform: which part of the mixture."""
    budget: Floats
    """`batch`, uniform: how much of the input budget."""
    rounding: Floats
    """`batch 3`, uniform: of inputs, of targets, of what sequences leave."""
    log_shares: Floats
    """`batch parts 2 modalities`: logarithms of Gamma variables; normed, they are Dirichlet variables."""
    span_rounding: Floats
    """`batch sequences`, uniform."""
    orders: Keys
    """`batch tokens`: keys that order the tokens of all modalities that are not sequences."""
    cuts: Keys
    """`batch*sequences width`: keys for the lengths of spans."""
    slots: Keys
    """`batch*sequences width+1`: keys for their places."""
    turns: Keys
    """`batch*sequences width`: keys for the order in which they are asked for."""
    alone: Floats
    """`batch`, uniform: whether the input is of one modality alone."""


@dataclass(frozen=True)
class Group:
    """Modalities whose orders are drawn together: those of one length."""

    indices: Ints
    """`group`: in the list of specs."""
    columns: slice
    """Their keys in `Draws.orders`."""
    length: int


class Masker:
    """Packs raw batches. Raises ConfigError or UnknownNameError for a mixture that names what cannot be."""

    def __init__(self, tables: Tables, config: MaskingConfig) -> None:
        self.tables = tables
        self.config = config
        specs = tables.specs
        self._continuous = np.array([spec.continuous for spec in specs])
        self._is_sequence = tables.causal
        self._sequences = np.flatnonzero(tables.causal)
        layouts = [spec.layout for spec in specs if isinstance(spec.layout, SequenceLayout)]
        self._end = np.array([layout.end for layout in layouts], np.int64)
        self._sentinel = np.array([layout.sentinel_start for layout in layouts], np.int64)
        self._limits = np.array([layout.num_sentinels for layout in layouts], np.int64)
        self._width = max((layout.max_length for layout in layouts), default=0)
        self._groups = _groups(tables)
        self._position_start = np.array([tables.positions[name].start for name in tables.names], np.int64)
        self._token_start = np.array([0 if spec.continuous else tables.token_rows(spec.name).start for spec in specs])
        parts = config.mixtures
        self._weights = np.array([part.weight for part in parts])
        self._may_be_input = np.array([self._allowed(part, "inputs", tables.readable) for part in parts])
        self._may_be_target = np.array([self._allowed(part, "targets", tables.discrete) for part in parts])
        self._alphas = np.array([[part.input_alpha, part.target_alpha] for part in parts])
        self._alone = np.array([part.alone for part in parts])

    def _allowed(self, part: Mixture, side: str, everything: tuple[str, ...]) -> Bools:
        names = getattr(part, side) or everything
        allowed = np.zeros(len(self.tables), bool)
        for name in names:
            allowed[self.tables.index(name)] = True
        for name in names:
            if name in self.tables.inputs_only | self.tables.targets_only:
                check = self.tables.check_read if side == "inputs" else self.tables.check_made
                check(name, f"masking: mixtures: {side}:")
        if side == "targets" and (wrong := [name for name in names if name not in self.tables.discrete]):
            raise ConfigError(f"masking: mixtures: targets: {wrong[0]} is continuous and can only be an input")
        if side == "targets" and not names:
            raise ConfigError("masking: no modality has tokens, so there is nothing to predict; add a discrete one")
        return allowed

    def __call__(self, raw: RawBatch, seed: int, step: int, first_slot: int = 0) -> PackedBatch:
        """Choose and pack; `first_slot` is the slot of the first sample where the batch is a part of a larger one."""
        raw = self._ended(raw) if self.tables.marked_inputs else raw
        draws = self._draw(len(raw), seed, step, first_slot)
        part = self._part(raw, draws)
        rows = np.arange(len(raw))
        inputs_allowed = self._may_be_input[part] & raw.present
        targets_allowed = self._may_be_target[part] & raw.present
        shares = draws.log_shares[rows, part]
        alone = draws.alone < self._alone[part]
        inputs_allowed[alone] &= _largest(shares[alone, 0], inputs_allowed[alone] & (raw.lengths[alone] > 0))
        inputs = self._share_inputs(raw, draws, shares[:, 0], inputs_allowed, targets_allowed)
        spans = self._mask_sequences(raw, draws, inputs)
        targets, asked = self._share_targets(raw, draws, shares[:, 1], targets_allowed, inputs, spans)
        packing = _Packing(self, raw, inputs, targets)
        for group in self._groups:
            packing.add_group(group, draws.orders[:, group.columns])
        if len(self._sequences):
            packing.add_sequences(spans, asked)
        return packing.batch()

    def _ended(self, raw: RawBatch) -> RawBatch:
        """The same samples with `end` behind each sequence that has not its maximum length."""
        tokens, lengths = dict(raw.tokens), raw.lengths.copy()
        for index, end in zip(self._sequences, self._end, strict=True):
            spec, length = self.tables.specs[index], raw.lengths[:, index]
            rows = np.flatnonzero(raw.present[:, index] & (length < spec.layout.length))
            stored = tokens[spec.name]
            content = np.zeros((len(raw), spec.layout.length), stored.dtype)
            content[:, : stored.shape[1]] = stored
            content[rows, length[rows]] = end
            tokens[spec.name] = content
            lengths[rows, index] += 1
        return replace(raw, tokens=tokens, lengths=lengths)

    def _draw(self, batch: int, seed: int, step: int, first_slot: int) -> Draws:
        """Fill the arrays slot by slot: each slot is a stream of its own."""
        parts, modalities, sequences = len(self._weights), len(self.tables), len(self._sequences)
        uniform = np.empty((batch, 5 + sequences + 2 * parts * modalities))
        gamma = np.empty((batch, parts, 2, modalities))
        fixed = sum(len(group.indices) * group.length for group in self._groups)
        keys = np.empty((batch, fixed + sequences * (3 * self._width + 1) + 1), np.uint64)
        stream = np.random.Philox(key=seed % WORD)
        generator = np.random.Generator(stream)
        state = stream.state
        for slot in range(batch):
            # A counter of its own is a stream of its own; setting it is much faster than a new generator.
            state["state"]["counter"][:] = 0, 0, first_slot + slot, step
            stream.state = state
            generator.random(out=uniform[slot])
            for part in range(parts):
                for side in range(2):
                    gamma[slot, part, side] = generator.standard_gamma(self._alphas[part, side] + 1, modalities)
            keys[slot] = stream.random_raw(keys.shape[1])
        # G(a) = G(a + 1) U^(1 / a) (Marsaglia and Tsang 2000, section 6), in logarithms so that a small a does not
        # give 0.
        power = uniform[:, 5 + sequences :].reshape(gamma.shape)
        log_shares = np.log(gamma) + np.log1p(-power) / self._alphas[:, :, None]
        width = self._width
        spans = keys[:, fixed:-1].reshape(batch * sequences, 3 * width + 1)
        return Draws(
            part=uniform[:, 0], budget=uniform[:, 1], rounding=uniform[:, 2:5], log_shares=log_shares,
            span_rounding=uniform[:, 5 : 5 + sequences], orders=keys[:, :fixed],
            cuts=spans[:, :width], slots=spans[:, width : 2 * width + 1], turns=spans[:, 2 * width + 1 :],
            alone=keys[:, -1] / float(WORD),
        )  # fmt: skip

    def _part(self, raw: RawBatch, draws: Draws) -> Ints:
        """The part of the mixture for each sample, among those for which it has something to predict and, where there
        are any, something to give.
        """
        asked = (raw.present[:, None] & self._may_be_target).any(axis=2)
        given = asked & (raw.present[:, None] & self._may_be_input).any(axis=2)
        weights = self._weights
        for possible in (asked, given):
            weights = np.where(possible | ~possible.any(axis=1, keepdims=True), weights, 0.0)
        edges = np.cumsum(weights, axis=1)
        chosen: Ints = np.argmax(edges > draws.part[:, None] * edges[:, -1:], axis=1)
        return chosen

    def _share_inputs(
        self, raw: RawBatch, draws: Draws, log_shares: Floats, allowed: Bools, targets_allowed: Bools
    ) -> Ints:
        """Input tokens per sample and modality, `batch modalities`."""
        low, high = self.config.least_input, self.config.input_budget
        budget = low + np.floor(draws.budget * (high - low + 1)).astype(np.int64)
        capacity = np.where(allowed, raw.lengths, 0)
        # Tokens that both sides may use: leave of them what the targets need, or their proportion where they are few.
        both = allowed & targets_allowed
        shared = np.where(both, raw.lengths, 0).sum(axis=1)
        others = np.where(targets_allowed & ~allowed, raw.lengths, 0).sum(axis=1)
        need = np.maximum(self.config.target_budget - others, 0)
        left = np.minimum(need, -(-shared * need // (need + budget)))
        return fill_with_limit(log_shares, capacity, budget, draws.rounding[:, 0], both, shared - left)

    def _mask_sequences(self, raw: RawBatch, draws: Draws, inputs: Ints) -> Spans:
        """The spans of all sequences of all samples; row `sample * sequences + sequence`."""
        lengths = raw.lengths[:, self._sequences].ravel()
        longest = max(int(lengths.max(initial=0)), 1)
        masked = mask_spans(
            lengths, inputs[:, self._sequences].ravel(), np.tile(self._limits, len(raw)), self.config.span_length,
            draws.span_rounding.ravel(), draws.cuts[:, :longest], draws.slots[:, : longest + 1],
        )  # fmt: skip
        return Spans.of(masked)

    def _share_targets(
        self, raw: RawBatch, draws: Draws, log_shares: Floats, allowed: Bools, inputs: Ints, spans: Spans
    ) -> tuple[Ints, Bools]:
        """Target tokens per sample and modality, `batch modalities`, and the spans that are asked for, `spans`."""
        of_sequences = np.ix_(np.arange(len(raw)), self._sequences)
        shape = (len(raw), len(self._sequences))
        capacity = raw.lengths - inputs
        capacity[of_sequences] = spans.cost().reshape(shape)
        whole = self._is_sequence & (inputs == 0)
        capacity[whole] = raw.lengths[whole] + 1
        capacity[~allowed] = 0
        budget = np.full(len(raw), self.config.target_budget)
        shares = fill(log_shares, capacity, budget, draws.rounding[:, 1])
        counts = shares.copy()
        # Whole sequences may be cut anywhere: all of them is asked for, and a prefix taken.
        may_be_cut = whole[of_sequences].ravel()
        room = np.where(may_be_cut, LARGEST, counts[of_sequences].ravel())
        asked = spans.that_fit(room, draws.turns, side_by_side=self.tables.marked_inputs)
        used = np.bincount(np.repeat(spans.row[asked], spans.length[asked] + 1), minlength=len(may_be_cut))
        counts[of_sequences] = np.where(whole[of_sequences], counts[of_sequences], used.reshape(shape))
        rest = np.where(self._is_sequence & ~whole, 0, capacity - counts)
        counts += fill(log_shares, rest, budget - counts.sum(axis=1), draws.rounding[:, 2])
        # A sample may have nothing but spans that are too long: a prefix of them is better than no target.
        bare = np.repeat(~counts.any(axis=1), shape[1])
        counts[of_sequences] = np.where(bare.reshape(shape), shares[of_sequences], counts[of_sequences])
        return counts, asked | bare[spans.row]


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


class _Packing:
    """One batch while it is packed: modalities in the order of the specs, one run each."""

    def __init__(self, masker: Masker, raw: RawBatch, inputs: Ints, targets: Ints) -> None:
        self.masker = masker
        self.raw = raw
        self.inputs = _Side(inputs, masker.config.input_budget)
        self.targets = _Side(targets, masker.config.target_budget)
        self.vectors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add_group(self, group: Group, keys: Keys) -> None:
        """All but sequences: inputs from the front of a random order, then targets."""
        masker, raw = self.masker, self.raw
        size = len(group.indices)
        tokens = np.zeros((len(raw), size, group.length), np.int64)
        for column, index in enumerate(group.indices):
            if not masker._continuous[index]:
                tokens[:, column] = raw.tokens[masker.tables.names[index]]
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
            ids = tokens.reshape(-1, group.length)[active[rows], token] + masker._token_start[kind]
            side.put(index, kind, ids, masker._position_start[kind] + token)
            if side is self.inputs:
                self._add_vectors(kind, sample, token, index)

    def _add_vectors(self, kinds: Ints, samples: Ints, tokens: Ints, index: Ints) -> None:
        """Copy the selected vectors of continuous modalities."""
        for kind in np.unique(kinds[self.masker._continuous[kinds]]):
            here = kinds == kind
            name = self.masker.tables.names[kind]
            vectors = self.raw.tokens[name][samples[here], tokens[here]].astype(np.float32, copy=False)
            self.vectors[name] = torch.from_numpy(index[here]), torch.from_numpy(vectors)

    def add_sequences(self, spans: Spans, asked: Bools) -> None:
        """Kept tokens and sentinels as inputs, the streams of the asked spans as targets."""
        masker, raw = self.masker, self.raw
        order, size = masker._sequences, len(masker._sequences)
        width = spans.masked.shape[1]
        tokens = np.zeros((len(raw), size, width), np.int64)
        for column, index in enumerate(order):
            stored = raw.tokens[masker.tables.names[index]][:, :width]
            tokens[:, column, : stored.shape[1]] = stored
        flat = tokens.reshape(-1, width)
        sentinel, end = np.tile(masker._sentinel, len(raw)), np.tile(masker._end, len(raw))
        lengths, shares = raw.lengths[:, order].ravel(), self.inputs.counts[:, order].ravel()
        rows, rank, ids = input_tokens(flat, lengths, shares, spans, sentinel)
        self._put_sequences(self.inputs, rows, rank, ids)
        following = spans.last(asked) + 1
        onward = masker.tables.marked_inputs & (following < np.tile(masker._limits, len(raw)))
        closing = np.where(onward, sentinel + following, end)
        read, predicted = target_streams(flat, spans, asked, sentinel, closing)
        rows, rank = ragged(self.targets.counts[:, order].ravel())
        place = self._put_sequences(self.targets, rows, rank, predicted[rows, rank])
        kinds = order[rows % size]
        self.targets.read.ravel()[place] = read[rows, rank] + masker._token_start[kinds]

    def _put_sequences(self, side: _Side, rows: Ints, rank: Ints, ids: Ints) -> Ints:
        masker = self.masker
        size = len(masker._sequences)
        samples, kinds = rows // size, masker._sequences[rows % size]
        place = side.place(samples, kinds, rank)
        side.put(place, kinds, ids + masker._token_start[kinds], masker._position_start[kinds] + rank)
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


def _largest(log_shares: Floats, possible: Bools) -> Bools:
    """The modality with the largest share of those that are possible, `rows modalities`."""
    columns = np.arange(log_shares.shape[1])
    return columns == np.where(possible, log_shares, -np.inf).argmax(axis=1)[:, None]


def _groups(tables: Tables) -> list[Group]:
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
