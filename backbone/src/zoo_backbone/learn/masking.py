"""Masking: choose the inputs and targets of some samples and pack them (4M, arXiv 2312.06647, section 2.3).

Each sample draws a component of the mixture, then from its two Dirichlets the shares of the sample's modalities in the
input and the target budget. A modality's share of a budget in whole tokens is its quota. Inputs are chosen first,
targets from the rest:

- Grids, vectors and continuous layouts: random positions.
- Inputs of a sequence: random spans are masked and replaced by one sentinel each; kept tokens and sentinels fill the
  quota. A quota of the whole length keeps everything, and nothing is left to predict.
- Targets of a sequence: random spans, as many as fit, in reading order, then the id `end`. A span that does not fit is
  not predicted; the input still shows its sentinel. All spans are targets, cut off at the budget (`end` may be
  missing), for a sequence without input tokens (a single span) and for a sample that would otherwise have no target.
- If `targets` leave a part of the target budget, the component's `fallback_targets` share it in the same way.

Budgets are full whenever the sample has enough tokens: a share that a modality cannot use goes to the others. A sample
with fewer tokens than both budgets splits them in proportion, so that there is always something to predict. A short
modality is the only input only if a component sets `single_input_prob`.

Masks are a pure function of (seed, step, slot, sample). Random numbers are Philox's (Salmon et al. 2011), keyed by the
seed and counted by step and slot, so the mask of a sample does not depend on the batch size or on other samples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.contract.layouts import SequenceLayout
from tokenizers_zoo.errors import ConfigError
from zoo_backbone.model.batch import PackedBatch, PackedInputs, PackedTargets, RawBatch
from zoo_backbone.model.config import MaskingConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.spans import Bools, Floats, Ints, Keys, Spans, mask_spans, ragged, sorted_draw

WORD = 1 << 64
LARGEST = np.iinfo(np.int64).max
SMALLEST_LOG_SHARE = -600.0
"""exp(-600) is far above float64 underflow, and far too small to earn a token of any budget."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch; each slot has the same numbers in any batch."""

    component: Floats
    """`batch`, uniform: selects the component of the mixture."""
    budget: Floats
    """`batch`, uniform: selects the sample's input budget."""
    single_input: Floats
    """`batch`, uniform: whether the input is a single modality."""
    rounding: Floats
    """`batch 3`, uniform: for inputs, targets, and what sequences leave of the target budget."""
    log_shares: Floats
    """`batch components 2 modalities`: logarithms of Gamma variables; normalised, they are Dirichlet variables."""
    span_rounding: Floats
    """`batch sequences`, uniform."""
    orders: Keys
    """`batch tokens`: keys that order the tokens of all modalities except sequences."""
    cuts: Keys
    """`batch*sequences width`: keys for the lengths of spans."""
    positions: Keys
    """`batch*sequences width+1`: keys for their places."""
    turns: Keys
    """`batch*sequences width`: keys for the order in which spans become targets."""


class Masker:
    """Turns raw batches into packed ones.

    Raises ConfigError or UnknownNameError for a mixture whose inputs or targets are impossible for the modalities.
    """

    def __init__(self, layout: EmbeddingLayout, config: MaskingConfig) -> None:
        self.layout = layout
        self.config = config
        mixtures = config.mixtures
        self._weights = np.array([component.weight for component in mixtures])
        self._may_be_input = np.array([self._allowed("inputs", c.inputs or layout.readable) for c in mixtures])
        self._targets = np.array([self._allowed("targets", c.targets or layout.discrete) for c in mixtures])
        self._fallbacks = np.array([self._allowed("fallback_targets", c.fallback_targets) for c in mixtures])
        self._may_be_target = self._targets | self._fallbacks
        self._alphas = np.array([[component.input_alpha, component.target_alpha] for component in mixtures])
        self._single_input_prob = np.array([component.single_input_prob for component in mixtures])
        specs = layout.specs
        self._continuous = np.array([spec.continuous for spec in specs])
        self._position_start = np.array([layout.positions[name].start for name in layout.names], np.int64)
        self._token_start = np.array([0 if spec.continuous else layout.token_rows(spec.name).start for spec in specs])
        self._sequences: Ints = np.flatnonzero(layout.causal)
        sequences = [spec.layout for spec in specs if isinstance(spec.layout, SequenceLayout)]
        self._end = np.array([sequence.end for sequence in sequences], np.int64)
        self._sentinel = np.array([sequence.sentinel_start for sequence in sequences], np.int64)
        self._num_sentinels = np.array([sequence.num_sentinels for sequence in sequences], np.int64)
        self._width = max((sequence.max_length for sequence in sequences), default=0)
        self._by_length: dict[int, list[int]] = {}
        """Modalities (indices of specs) by fixed length; the tokens of a group are ordered together."""
        for index, spec in enumerate(specs):
            if not spec.layout.causal:
                self._by_length.setdefault(spec.layout.length, []).append(index)
        self._num_keys = sum(length * len(indices) for length, indices in self._by_length.items())

    def _allowed(self, key: str, names: Sequence[str]) -> Bools:
        """Return the modalities that a key of a component allows, `modalities`."""
        check = self.layout.check_inputs if key == "inputs" else self.layout.check_targets
        allowed = np.zeros(len(self.layout), bool)
        allowed[[self.layout.index(name) for name in names]] = True
        check(names, f"masking: mixtures: {key}:")
        if key == "targets" and not names:
            raise ConfigError("masking: no modality has tokens, so there is nothing to predict; add a discrete one")
        return allowed

    def missing_side(self, names: Collection[str]) -> str:
        """Return "targets" or "inputs" where samples with only these modalities never have any; else ""."""
        available = np.isin(self.layout.names, list(names))
        useful = (self._may_be_target & available).any(axis=1)
        if not useful.any():
            return "targets"
        return "" if (self._may_be_input[useful] & available).any() else "inputs"

    def __call__(self, raw: RawBatch, seed: int, step: int, slots: Ints | None = None) -> PackedBatch:
        """Choose and pack. `slots` are the samples' places in the batch where these are a part of it."""
        raw = self.layout.with_ends(raw)
        draws = self._draw(np.arange(len(raw)) if slots is None else slots, seed, step)
        component = self._choose_component(raw, draws)
        inputs_allowed = self._may_be_input[component] & raw.present
        targets_allowed = self._may_be_target[component] & raw.present
        targets_first = self._targets[component] & raw.present
        targets_first = np.where(targets_first.any(axis=1, keepdims=True), targets_first, targets_allowed)
        log_shares = draws.log_shares[np.arange(len(raw)), component]
        single = draws.single_input < self._single_input_prob[component]
        possible = inputs_allowed[single] & (raw.lengths[single] > 0)
        largest = np.where(possible, log_shares[single, 0], -np.inf).argmax(axis=1)
        inputs_allowed[single] &= np.arange(len(self.layout)) == largest[:, None]
        inputs = self._share_inputs(raw, draws, log_shares[:, 0], inputs_allowed, targets_first)
        lengths = raw.lengths[:, self._sequences].ravel()
        longest = max(int(lengths.max(initial=0)), 1)
        masked = mask_spans(
            lengths,
            inputs[:, self._sequences].ravel(),
            np.tile(self._num_sentinels, len(raw)),
            self.config.span_length,
            draws.span_rounding.ravel(),
            draws.cuts[:, :longest],
            draws.positions[:, : longest + 1],
        )
        spans = self.layout.span_class.of(masked)  # a row is `sample * sequences + sequence`
        target_shares = deferred_shares(log_shares[:, 1], self._fallbacks[component])
        targets, selected = self._share_targets(
            raw, draws, target_shares, targets_allowed, targets_first, inputs, spans
        )
        return self._pack(raw, draws, inputs, targets, spans, selected)

    def _draw(self, slots: Ints, seed: int, step: int) -> Draws:
        """Draw all random numbers; each slot has its own stream."""
        batch = len(slots)
        components, modalities, sequences = len(self._weights), len(self.layout), len(self._sequences)
        width, fixed = self._width, self._num_keys
        uniform = np.empty((batch, 5 + sequences + 2 * components * modalities))
        gamma = np.empty((batch, components, 2, modalities))
        keys = np.empty((batch, fixed + sequences * (3 * width + 1) + 1), np.uint64)
        stream = np.random.Philox(key=seed % WORD)
        generator = np.random.Generator(stream)
        state = stream.state
        for row, slot in enumerate(slots.tolist()):
            # Setting the counter starts a new stream, and is much faster than a new generator.
            state["state"]["counter"][:] = 0, 0, slot, step
            stream.state = state
            generator.random(out=uniform[row])
            for component in range(components):
                for side in range(2):
                    alpha = self._alphas[component, side]
                    gamma[row, component, side] = generator.standard_gamma(alpha + 1, modalities)
            keys[row] = stream.random_raw(keys.shape[1])
        # G(a) = G(a + 1) U^(1 / a) (Marsaglia and Tsang 2000, section 6), in logarithms: a small a would give 0.
        power = uniform[:, 5 + sequences :].reshape(gamma.shape)
        log_shares = np.log(gamma) + np.log1p(-power) / self._alphas[:, :, None]
        spans = keys[:, fixed:-1].reshape(batch * sequences, 3 * width + 1)
        return Draws(
            component=uniform[:, 0],
            budget=uniform[:, 1],
            single_input=keys[:, -1] / float(WORD),
            rounding=uniform[:, 2:5],
            log_shares=log_shares,
            span_rounding=uniform[:, 5 : 5 + sequences],
            orders=keys[:, :fixed],
            cuts=spans[:, :width],
            positions=spans[:, width : 2 * width + 1],
            turns=spans[:, 2 * width + 1 :],
        )

    def _choose_component(self, raw: RawBatch, draws: Draws) -> Ints:
        """Draw a component per sample, preferring those with targets, then with inputs, then with first targets."""
        targets = (raw.present[:, None] & self._may_be_target).any(axis=2)
        with_inputs = targets & (raw.present[:, None] & self._may_be_input).any(axis=2)
        first = np.where(with_inputs.any(axis=1, keepdims=True), with_inputs, targets)
        first &= (raw.present[:, None] & self._targets).any(axis=2)
        weights = self._weights
        for possible in (targets, with_inputs, first):
            weights = np.where(possible | ~possible.any(axis=1, keepdims=True), weights, 0.0)
        edges = np.cumsum(weights, axis=1)
        return np.argmax(edges > draws.component[:, None] * edges[:, -1:], axis=1)

    def _share_inputs(
        self, raw: RawBatch, draws: Draws, log_shares: Floats, allowed: Bools, targets_allowed: Bools
    ) -> Ints:
        """Return the input tokens per sample and modality, `batch modalities`."""
        low, high = self.config.least_input, self.config.input_budget
        budget = low + np.floor(draws.budget * (high - low + 1)).astype(np.int64)
        capacity = np.where(allowed, raw.lengths, 0)
        # Leave the targets enough of the tokens that both sides may use, or their proportion if there are few.
        in_both = allowed & targets_allowed
        shared = np.where(in_both, raw.lengths, 0).sum(axis=1)
        target_only = np.where(targets_allowed & ~allowed, raw.lengths, 0).sum(axis=1)
        need = np.maximum(self.config.target_budget - target_only, 0)
        left = np.minimum(need, -(-shared * need // (need + budget)))
        # But keep one input where there is no other input, and another target.
        only = ~(allowed & ~targets_allowed & (raw.lengths > 0)).any(axis=1) & (target_only > 0)
        left = np.where(only, np.minimum(left, np.maximum(shared - 1, 0)), left)
        return fill_with_limit(log_shares, capacity, budget, draws.rounding[:, 0], in_both, shared - left)

    def _share_targets(
        self, raw: RawBatch, draws: Draws, log_shares: Floats, allowed: Bools, first: Bools, inputs: Ints, spans: Spans
    ) -> tuple[Ints, Bools]:
        """Return the target tokens per sample and modality, `batch modalities`, and the selected spans, `spans`."""
        in_sequences = np.ix_(np.arange(len(raw)), self._sequences)
        shape = (len(raw), len(self._sequences))
        capacity = raw.lengths - inputs
        capacity[in_sequences] = spans.cost().reshape(shape)
        without_inputs = self.layout.causal & (inputs == 0)
        capacity[without_inputs] = raw.lengths[without_inputs] + 1
        capacity[~allowed] = 0
        budget = np.full(len(raw), self.config.target_budget)
        quota = fill(log_shares, capacity, budget, draws.rounding[:, 1])
        counts = quota.copy()
        # A sequence without inputs may be cut anywhere: select its one span, and take a prefix.
        may_be_cut = without_inputs[in_sequences].ravel()
        room = np.where(may_be_cut, LARGEST, counts[in_sequences].ravel())
        selected = spans.select(room, draws.turns)
        used = np.bincount(np.repeat(spans.row[selected], spans.length[selected] + 1), minlength=len(may_be_cut))
        counts[in_sequences] = np.where(without_inputs[in_sequences], counts[in_sequences], used.reshape(shape))
        rest = np.where(self.layout.causal & ~without_inputs, 0, capacity - counts)
        counts += fill(log_shares, rest, budget - counts.sum(axis=1), draws.rounding[:, 2])
        # Where all first targets are spans that are too long, predict a prefix of them.
        has_quota = np.where(first, quota, 0).any(axis=1, keepdims=True)
        untargeted = ~np.where(first | ~has_quota, counts, 0).any(axis=1)
        counts[untargeted] = quota[untargeted]
        untargeted = np.repeat(untargeted, shape[1])
        return counts, selected | untargeted[spans.row]

    def _pack(
        self, raw: RawBatch, draws: Draws, inputs: Ints, targets: Ints, spans: Spans, selected: Bools
    ) -> PackedBatch:
        """Pack the chosen tokens: modalities in the order of the specs, one run each."""
        sides = _Side(inputs, self.config.input_budget), _Side(targets, self.config.target_budget)
        vectors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        start = 0
        for length, indices in self._by_length.items():
            keys = draws.orders[:, start : start + length * len(indices)].reshape(-1, length)
            start += length * len(indices)
            self._pack_group(raw, np.array(indices), length, keys, *sides, vectors)
        if len(self._sequences):
            self._pack_sequences(raw, spans, selected, *sides)
        packed_inputs, packed_targets = (side.tensors() for side in sides)
        read = torch.from_numpy(sides[1].read)
        return PackedBatch(
            inputs=PackedInputs(**packed_inputs, vectors=vectors), targets=PackedTargets(**packed_targets, read=read)
        )

    def _pack_group(
        self,
        raw: RawBatch,
        group: Ints,
        length: int,
        keys: Keys,
        inputs: _Side,
        targets: _Side,
        vectors: dict[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Pack modalities of one fixed length: inputs from the front of a random order, then targets."""
        size = len(group)
        tokens = np.zeros((len(raw), size, length), np.int64)
        for column, index in enumerate(group):
            if not self._continuous[index]:
                tokens[:, column] = raw.tokens[self.layout.names[index]]
        front, behind = (side.counts[:, group].ravel() for side in (inputs, targets))
        active = np.flatnonzero(front + behind)
        samples, kinds = active // size, group[active % size]
        order = sorted_draw(keys[active], raw.lengths[samples, kinds])
        front, behind = front[active], behind[active]
        for side, counts, skipped in ((inputs, front, np.zeros_like(front)), (targets, behind, front)):
            rows, columns = ragged(counts)
            token = order[rows, columns + skipped[rows]]
            sample, kind = samples[rows], kinds[rows]
            ids = tokens.reshape(-1, length)[active[rows], token] + self._token_start[kind]
            index = side.put(sample, kind, columns, ids, self._position_start[kind] + token)
            for continuous in np.unique(kind[self._continuous[kind]]) if side is inputs else ():
                of_modality = kind == continuous
                name = self.layout.names[continuous]
                values = raw.tokens[name][sample[of_modality], token[of_modality]].astype(np.float32, copy=False)
                vectors[name] = torch.from_numpy(index[of_modality]), torch.from_numpy(values)

    def _pack_sequences(self, raw: RawBatch, spans: Spans, selected: Bools, inputs: _Side, targets: _Side) -> None:
        """Pack kept tokens and sentinels as inputs, the streams of the selected spans as targets."""
        order, size, batch = self._sequences, len(self._sequences), len(raw)
        width = spans.masked.shape[1]
        tokens = np.zeros((batch, size, width), np.int64)
        for number, index in enumerate(order):
            sequence_ids = raw.tokens[self.layout.names[index]][:, :width]
            tokens[:, number, : sequence_ids.shape[1]] = sequence_ids
        flat = tokens.reshape(-1, width)
        sentinel, num_sentinels, end = (np.tile(ids, batch) for ids in (self._sentinel, self._num_sentinels, self._end))
        lengths, quota = raw.lengths[:, order].ravel(), inputs.counts[:, order].ravel()
        closing = spans.closing(selected, sentinel, num_sentinels, end)
        read, predicted = spans.target_streams(flat, selected, sentinel, closing)
        kept_rows, kept_rank, kept_ids = spans.input_tokens(flat, lengths, quota, sentinel)
        rows, rank = ragged(targets.counts[:, order].ravel())
        for side, row, column, ids in (
            (inputs, kept_rows, kept_rank, kept_ids),
            (targets, rows, rank, predicted[rows, rank]),
        ):
            kinds = order[row % size]
            start = self._position_start[kinds]
            slots = side.put(row // size, kinds, column, ids + self._token_start[kinds], start + column)
        targets.read.ravel()[slots] = read[rows, rank] + self._token_start[kinds]


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

    def put(self, samples: Ints, kinds: Ints, columns: Ints, ids: Ints, positions: Ints) -> Ints:
        """Store the tokens number `columns` of modalities `kinds` in `samples`; return their flat indices."""
        index = samples * self.budget + self.start[samples, kinds] + columns
        self.ids.ravel()[index] = ids
        self.positions.ravel()[index] = positions
        self.kinds.ravel()[index] = kinds
        return index

    def tensors(self) -> dict[str, Any]:
        arrays = {"ids": self.ids, "positions": self.positions, "modalities": self.kinds, "mask": self.mask}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def fill(log_shares: Floats, capacity: Ints, budget: Ints, offset: Floats) -> Ints:
    """Share `budget` (`rows`) among modalities: whole tokens `rows modalities`, by share, at most `capacity`.

    A share that a modality cannot use goes to the others in proportion to their shares (water-filling), so that each
    row sums to the budget, or to its whole capacity if that is less. `offset` (`rows`, uniform in [0, 1)) decides the
    rounding; the expected number of tokens is exact (systematic sampling).
    """
    room = capacity
    log_shares = np.where(room > 0, log_shares, -np.inf)
    peak = log_shares.max(axis=1, keepdims=True, initial=-np.inf)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    weight = np.where(capacity > 0, np.exp(np.maximum(log_shares - peak, SMALLEST_LOG_SHARE)), 0.0)
    # The water rises: a modality is full at the level capacity / weight, so the lowest levels are full first.
    full_at = np.divide(capacity, weight, out=np.full(weight.shape, np.inf), where=weight > 0)
    order = np.argsort(full_at, axis=1, kind="stable")
    capacity, weight = (np.take_along_axis(array, order, axis=1) for array in (capacity, weight))
    full_at = np.take_along_axis(full_at, order, axis=1)
    total = np.minimum(budget, capacity.sum(axis=1))[:, None]
    before = np.cumsum(capacity, axis=1) - capacity
    from_here = np.cumsum(weight[:, ::-1], axis=1)[:, ::-1]
    level = np.divide(total - before, from_here, out=np.zeros(weight.shape), where=from_here > 0)
    # The water fills all modalities up to the first whose level it does not reach.
    everything = before[:, -1:] + capacity[:, -1:] == total
    full = (np.logical_and.accumulate(level >= full_at, axis=1) | everything) & (weight > 0)
    rest = total[:, 0] - np.where(full, capacity, 0).sum(axis=1)
    weight = np.where(full, 0.0, weight)
    open_weight = weight.sum(axis=1)
    scale = np.divide(rest, open_weight, out=np.zeros(len(rest)), where=open_weight > 0)
    edges = np.floor(np.cumsum(weight * scale[:, None], axis=1) + offset[:, None]).astype(np.int64)
    # After the last open modality the sum is `rest` by definition, whatever the rounding of the floats says.
    after = np.cumsum(weight[:, ::-1], axis=1)[:, ::-1] - weight
    edges = np.where(after > 0, np.minimum(edges, rest[:, None]), rest[:, None])
    counts = np.minimum(np.where(full, capacity, np.diff(edges, axis=1, prepend=0)), capacity)
    result = np.empty_like(counts)
    np.put_along_axis(result, order, counts, axis=1)
    # Next to the greatest share all faint ones look alike; once the others are full, share the rest among the faint.
    faint = (room > 0) & (log_shares - peak < SMALLEST_LOG_SHARE)
    done = np.take_along_axis(full, np.argsort(order, axis=1), axis=1) & ~faint
    rows = np.flatnonzero(faint.any(axis=1) & done.any(axis=1))
    if len(rows):
        granted = np.where(done, room, 0)[rows]
        left = budget[rows] - granted.sum(axis=1)
        result[rows] = granted + fill(log_shares[rows], room[rows] - granted, left, offset[rows])
    return result


def fill_with_limit(
    log_shares: Floats, capacity: Ints, budget: Ints, offset: Floats, group: Bools, limit: Ints
) -> Ints:
    """Share like `fill`, with at most `limit` (`rows`) tokens for all modalities of `group` (`rows modalities`)."""
    counts = fill(log_shares, capacity, budget, offset)
    over = np.flatnonzero(np.where(group, counts, 0).sum(axis=1) > limit)
    if len(over):
        logs, room, inside, group_budget = log_shares[over], capacity[over], group[over], limit[over]
        counts[over] = fill(logs, np.where(inside, room, 0), group_budget, offset[over]) + fill(
            logs, np.where(inside, 0, room), budget[over] - group_budget, offset[over]
        )
    return counts


def deferred_shares(log_shares: Floats, last: Bools) -> Floats:
    """Return shares that serve the modalities of `last` (`rows modalities`) after all others."""
    rows = np.flatnonzero(last.any(axis=1))
    if not len(rows):
        return log_shares
    result, behind = log_shares.copy(), last[rows]
    lowest = np.where(behind, np.inf, log_shares[rows]).min(axis=1, keepdims=True)
    highest = np.where(behind, log_shares[rows], -np.inf).max(axis=1, keepdims=True)
    result[rows] -= np.where(behind, highest - lowest - 2 * SMALLEST_LOG_SHARE, 0.0)
    return result
