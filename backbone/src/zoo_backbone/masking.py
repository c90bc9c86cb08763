"""Masking: from all tokens of some samples to the few that are inputs and targets (4M, arXiv 2312.06647, section 2.3).

Per sample, a part of the mixture is drawn, then from its Dirichlets the shares of the modalities that the sample has.
What a modality gets of a budget by its share, in whole tokens, is its quota. Inputs are chosen first, targets from what
is left:

- Grids, vectors and continuous layouts: random positions.
- Inputs of a sequence: random spans are masked, each replaced by one sentinel, so that the kept tokens and the
  sentinels are its quota. Where the quota is the whole length, all is kept, and nothing is left to predict.
- Targets of a sequence: of the masked spans whole ones, drawn at random as long as they fit, in reading order, and then
  `end`. A span that does not fit is not asked for; only its sentinel is seen. In two cases all spans are asked for, the
  targets are cut anywhere, and `end` may be missing: in a sequence of which the input has nothing, which is one span,
  and in a sample that would else have no target.
- What a part's targets leave of the budget goes to what it names to `fill` it, as far as no input has it, shared out
  in the same way.
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

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.batch import PackedBatch, RawBatch
from zoo_backbone.budgets import Floats, Ints, after_others, fill, fill_with_limit
from zoo_backbone.config import MaskingConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.placing import Placing, TableArrays
from zoo_backbone.spans import Bools, Keys, Spans, mask_spans

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
    places: Keys
    """`batch*sequences width+1`: keys for their places."""
    turns: Keys
    """`batch*sequences width`: keys for the order in which they are asked for."""
    alone: Floats
    """`batch`, uniform: whether the input is of one modality alone."""


class Masker:
    """Packs raw batches. Raises ConfigError or UnknownNameError for a mixture that names what cannot be."""

    def __init__(self, layout: EmbeddingLayout, config: MaskingConfig) -> None:
        self.layout = layout
        self.config = config
        self._arrays = TableArrays(layout)
        parts = config.mixtures
        self._weights = np.array([part.weight for part in parts])
        self._may_be_input = np.array([self._allowed("inputs", part.gives(layout.readable)) for part in parts])
        self._targets = np.array([self._allowed("targets", part.targets or layout.discrete) for part in parts])
        self._fills = np.array([self._allowed("fill", part.fill) for part in parts])
        self._may_be_target = self._targets | self._fills
        self._alphas = np.array([[part.input_alpha, part.target_alpha] for part in parts])
        self._alone = np.array([part.alone for part in parts])

    def _allowed(self, key: str, names: Sequence[str]) -> Bools:
        """Which modalities a key of a part allows, `modalities`."""
        check = self.layout.check_read if key == "inputs" else self.layout.check_made
        allowed = np.zeros(len(self.layout), bool)
        allowed[[self.layout.index(name) for name in names]] = True
        for name in names:
            check(name, f"masking: mixtures: {key}:")
        if key == "targets" and not names:
            raise ConfigError("masking: no modality has tokens, so there is nothing to predict; add a discrete one")
        return allowed

    def __call__(self, raw: RawBatch, seed: int, step: int, first_slot: int = 0) -> PackedBatch:
        """Choose and pack; `first_slot` is the slot of the first sample where the batch is a part of a larger one."""
        raw = self._ended(raw) if self.layout.marked_inputs else raw
        draws = self._draw(len(raw), seed, step, first_slot)
        part = self._part(raw, draws)
        rows = np.arange(len(raw))
        inputs_allowed = self._may_be_input[part] & raw.present
        targets_allowed = self._may_be_target[part] & raw.present
        targets_first = self._targets[part] & raw.present
        targets_first = np.where(targets_first.any(axis=1, keepdims=True), targets_first, targets_allowed)
        log_shares = draws.log_shares[rows, part]
        alone = draws.alone < self._alone[part]
        inputs_allowed[alone] &= _largest(log_shares[alone, 0], inputs_allowed[alone] & (raw.lengths[alone] > 0))
        inputs = self._share_inputs(raw, draws, log_shares[:, 0], inputs_allowed, targets_first)
        spans = self._mask_sequences(raw, draws, inputs)
        of_targets = after_others(log_shares[:, 1], self._fills[part])
        targets, asked = self._share_targets(raw, draws, of_targets, targets_allowed, targets_first, inputs, spans)
        placing = Placing(self._arrays, self.config, raw, inputs, targets)
        for group in self._arrays.groups:
            placing.add_group(group, draws.orders[:, group.columns])
        if len(self._arrays.sequences):
            placing.add_sequences(spans, asked)
        return placing.batch()

    def _ended(self, raw: RawBatch) -> RawBatch:
        """The same samples with `end` behind each sequence that has not its maximum length."""
        tokens, lengths = dict(raw.tokens), raw.lengths.copy()
        for index, end in zip(self._arrays.sequences, self._arrays.end, strict=True):
            spec, length = self.layout.specs[index], raw.lengths[:, index]
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
        parts, modalities, sequences = len(self._weights), len(self.layout), len(self._arrays.sequences)
        width = self._arrays.width
        uniform = np.empty((batch, 5 + sequences + 2 * parts * modalities))
        gamma = np.empty((batch, parts, 2, modalities))
        fixed = sum(len(group.indices) * group.length for group in self._arrays.groups)
        keys = np.empty((batch, fixed + sequences * (3 * width + 1) + 1), np.uint64)
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
        spans = keys[:, fixed:-1].reshape(batch * sequences, 3 * width + 1)
        return Draws(
            part=uniform[:, 0], budget=uniform[:, 1], rounding=uniform[:, 2:5], log_shares=log_shares,
            span_rounding=uniform[:, 5 : 5 + sequences], orders=keys[:, :fixed],
            cuts=spans[:, :width], places=spans[:, width : 2 * width + 1], turns=spans[:, 2 * width + 1 :],
            alone=keys[:, -1] / float(WORD),
        )  # fmt: skip

    def _part(self, raw: RawBatch, draws: Draws) -> Ints:
        """The part of the mixture for each sample, among those for which it has something to predict and, where there
        are any, something to give, and more to predict than what fills.
        """
        asked = (raw.present[:, None] & self._may_be_target).any(axis=2)
        given = asked & (raw.present[:, None] & self._may_be_input).any(axis=2)
        first = np.where(given.any(axis=1, keepdims=True), given, asked)
        first &= (raw.present[:, None] & self._targets).any(axis=2)
        weights = self._weights
        for possible in (asked, given, first):
            weights = np.where(possible | ~possible.any(axis=1, keepdims=True), weights, 0.0)
        edges = np.cumsum(weights, axis=1)
        chosen: Ints = np.argmax(edges > draws.part[:, None] * edges[:, -1:], axis=1)
        return chosen

    def _share_inputs(
        self, raw: RawBatch, draws: Draws, log_shares: Floats, allowed: Bools, targets_allowed: Bools
    ) -> Ints:
        """The quotas of the inputs: tokens per sample and modality, `batch modalities`."""
        low, high = self.config.least_input, self.config.input_budget
        budget = low + np.floor(draws.budget * (high - low + 1)).astype(np.int64)
        capacity = np.where(allowed, raw.lengths, 0)
        # Tokens that both sides may use: leave of them what the targets need, or their proportion where they are few.
        both = allowed & targets_allowed
        shared = np.where(both, raw.lengths, 0).sum(axis=1)
        others = np.where(targets_allowed & ~allowed, raw.lengths, 0).sum(axis=1)
        need = np.maximum(self.config.target_budget - others, 0)
        left = np.minimum(need, -(-shared * need // (need + budget)))
        # But one is given where there is nothing else to give, and something else to predict.
        only = ~(allowed & ~targets_allowed & (raw.lengths > 0)).any(axis=1) & (others > 0)
        left = np.where(only, np.minimum(left, np.maximum(shared - 1, 0)), left)
        return fill_with_limit(log_shares, capacity, budget, draws.rounding[:, 0], both, shared - left)

    def _mask_sequences(self, raw: RawBatch, draws: Draws, inputs: Ints) -> Spans:
        """The spans of all sequences of all samples; row `sample * sequences + sequence`."""
        sequences = self._arrays.sequences
        lengths = raw.lengths[:, sequences].ravel()
        longest = max(int(lengths.max(initial=0)), 1)
        masked = mask_spans(
            lengths, inputs[:, sequences].ravel(), np.tile(self._arrays.limits, len(raw)), self.config.span_length,
            draws.span_rounding.ravel(), draws.cuts[:, :longest], draws.places[:, : longest + 1],
        )  # fmt: skip
        return Spans.of(masked)

    def _share_targets(
        self, raw: RawBatch, draws: Draws, log_shares: Floats, allowed: Bools, first: Bools, inputs: Ints, spans: Spans
    ) -> tuple[Ints, Bools]:
        """Target tokens per sample and modality, `batch modalities`, and the spans that are asked for, `spans`."""
        of_sequences = np.ix_(np.arange(len(raw)), self._arrays.sequences)
        shape = (len(raw), len(self._arrays.sequences))
        capacity = raw.lengths - inputs
        capacity[of_sequences] = spans.cost().reshape(shape)
        whole = self.layout.causal & (inputs == 0)
        capacity[whole] = raw.lengths[whole] + 1
        capacity[~allowed] = 0
        budget = np.full(len(raw), self.config.target_budget)
        quota = fill(log_shares, capacity, budget, draws.rounding[:, 1])
        counts = quota.copy()
        # Whole sequences may be cut anywhere: all of them is asked for, and a prefix taken.
        may_be_cut = whole[of_sequences].ravel()
        room = np.where(may_be_cut, LARGEST, counts[of_sequences].ravel())
        asked = spans.that_fit(room, draws.turns, side_by_side=self.layout.marked_inputs)
        used = np.bincount(np.repeat(spans.row[asked], spans.length[asked] + 1), minlength=len(may_be_cut))
        counts[of_sequences] = np.where(whole[of_sequences], counts[of_sequences], used.reshape(shape))
        rest = np.where(self.layout.causal & ~whole, 0, capacity - counts)
        counts += fill(log_shares, rest, budget - counts.sum(axis=1), draws.rounding[:, 2])
        # A sample may have nothing but spans that are too long, but for what fills: a prefix of them is better.
        met = np.where(first, quota, 0).any(axis=1, keepdims=True)
        bare = ~np.where(first | ~met, counts, 0).any(axis=1)
        counts[bare] = quota[bare]
        bare = np.repeat(bare, shape[1])
        return counts, asked | bare[spans.row]


def _largest(log_shares: Floats, possible: Bools) -> Bools:
    """The modality with the largest share of those that are possible, `rows modalities`."""
    columns = np.arange(log_shares.shape[1])
    return columns == np.where(possible, log_shares, -np.inf).argmax(axis=1)[:, None]
