"""Chained any-to-any generation: each finished target becomes an input of the next (4M, arXiv 2312.06647)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from tokenizers_zoo.contract.layouts import SequenceLayout
from tokenizers_zoo.errors import ConfigError
from zoo_backbone.generate.inpainting import (
    UNKNOWN,
    Ids,
    add_partial,
    checked_partial,
    group_by_missing,
    sees_end,
    with_gaps_filled,
)
from zoo_backbone.generate.plans import TargetPlan, resolved_plan
from zoo_backbone.generate.sampling import (
    COLDEST,
    CONFIDENCE,
    IDS,
    Noise,
    Passes,
    draw,
    temperatures,
    tempered,
    tokens_per_step,
)
from zoo_backbone.generate.schemes import SCHEMES
from zoo_backbone.model.fourm import Context, FourM
from zoo_backbone.model.packing import EncoderInputs, checked_batch
from zoo_backbone.model.transformer import KeyValueCache

OnStep = Callable[[str, Any], None]


@torch.no_grad()
def generate(
    model: FourM,
    inputs: Mapping[str, Any],
    plan: Sequence[TargetPlan],
    seed: int,
    samples: Sequence[int] | None = None,
    *,
    partial: Mapping[str, Any] | None = None,
    draws: int = 1,
    once: Mapping[str, Collection[int]] | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Generate the targets of `plan`, in this order, for a batch of samples.

    Args:
        inputs: all tokens of each input modality: grids `(batch, *shape)` and vectors `(batch, n)` int64, sequences a
            list of 1-D int64 arrays, continuous modalities `(batch, n, dim)` float32 or a list of `(n, dim)`.
        samples: a number for each draw, which selects its noise (default: 0, 1, ...; required without inputs).
        partial: modalities with some of their tokens, -1 elsewhere (see inpainting.py). The rest of a target is
            generated, the rest of other modalities stays unknown. Known tokens are inputs of all targets.
        draws: draws per sample, which are consecutive in the result; shared work is done once.
        once: ids that no sequence of a modality contains twice (`ModalityHandle.single_ids`).
        on_step: called after each step with the target and its tokens so far, -1 where they are undecided.

    Returns int64 tensors `(draws, *shape)` on the CPU, and lists of 1-D int64 arrays, without end and sentinels, for
    sequences. A draw depends on the seed, its number and its own inputs only, not on the batch. Raises ConfigError for
    a plan that does not fit the model, and InvalidValueError for tokens that do not fit their modality.
    """
    layout, partial, once = model.layout, partial or {}, once or {}
    resolved = resolved_plan(layout, plan, inputs, partial)
    if samples is None and not (inputs or partial):
        raise ConfigError("generate: samples: expected a number for each sample, as there are no inputs")
    first = next(iter([*inputs.values(), *partial.values()]), ())
    numbers = list(range(len(first) * draws) if samples is None else samples)
    if draws < 1 or not numbers or len(numbers) % draws or min(seed, *numbers) < 0:
        expected = "a seed and numbers of samples from 0 on, with `draws` numbers for each of at least one sample"
        raise ConfigError(f"generate: expected {expected}; got seed {seed}, draws {draws}, {len(numbers)} numbers")
    count = len(numbers) // draws
    inputs = {
        name: checked_batch(layout.spec(name), tokens, count, f"the batch has {count}")
        for name, tokens in inputs.items()
    }
    targets = [target.name for target in resolved]
    partial = {name: checked_partial(layout, name, tokens, count, name in targets) for name, tokens in partial.items()}
    rows: dict[int, dict[str, Any]] = {}
    for group in group_by_missing(partial, count):  # samples that lack equally many cells
        encoded = EncoderInputs(layout, len(group), model.token_embedding.weight.device, draws)
        for name in (*inputs, *partial, *targets):
            encoded.mark_open(name)
        for name, tokens in inputs.items():
            encoded.add_whole(name, rows_of(tokens, group))
        for name, tokens in partial.items():
            add_partial(encoded, layout.spec(name), rows_of(tokens, group))
        draw_rows = [row * draws + draw for row in group for draw in range(draws)]
        sample_rows = [row // draws for row in draw_rows]
        generated: dict[str, Any] = {}
        for target in resolved:
            assert target.guidance is not None
            decoding = Decoding(
                model=model,
                inputs=encoded,
                plan=target,
                on_step=on_step,
                noise=Noise(seed, [numbers[row] for row in draw_rows], target.name),
                passes=Passes.of(target.guidance, target.name, encoded.names),
            )
            known_tokens = rows_of(partial[target.name], sample_rows) if target.name in partial else None
            if layout.spec(target.name).layout.causal:
                generated[target.name] = decode_sequence(decoding, known_tokens, once.get(target.name, ()))
            else:
                generated[target.name] = decode_grid(decoding, known_tokens)
        rows |= {row: {name: tokens[i] for name, tokens in generated.items()} for i, row in enumerate(draw_rows)}
    joined = {target.name: [rows[row][target.name] for row in range(len(numbers))] for target in resolved}
    return {name: torch.stack(batch) if isinstance(batch[0], Tensor) else batch for name, batch in joined.items()}


def rows_of(tokens: Any, rows: Sequence[int]) -> Any:
    """Return the tokens of the samples `rows`, which may repeat."""
    return [tokens[row] for row in rows] if isinstance(tokens, list) else tokens[list(rows)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """The decoding of one target for the draws of a batch: its plan, noise and forward passes.

    Decided tokens become inputs, for the next steps and the next targets.
    """

    model: FourM
    inputs: EncoderInputs
    plan: TargetPlan
    """With the defaults of the modality."""
    noise: Noise
    passes: Passes
    on_step: OnStep | None

    def contexts(self) -> list[Context]:
        """Encode the inputs of each pass at its own length."""
        return [self.model.context(self.inputs.packed(hidden, self.passes.marked)) for hidden in self.passes.hidden]

    def logits(
        self, contexts: Sequence[Context], read: Tensor, ranks: Tensor, caches: Sequence[KeyValueCache] | None = None
    ) -> Tensor:
        """Return float32 logits `batch targets ids` over the target's vocabulary: the weighted sum over the passes.

        `read` (`batch targets`) holds rows of the token table, -1 for the mask token, and `ranks` the positions within
        the modality. With `caches`, the targets are the next tokens of a sequence, one at a time.
        """
        model, layout, name = self.model, self.model.layout, self.plan.name
        read, ranks = read.repeat(len(self.passes), 1), ranks.repeat(len(self.passes), 1)
        positions = ranks + layout.positions[name].start
        x = model.embed_targets(read, positions, torch.full_like(read, layout.index(name)))
        # No mask: all targets are of one modality, and the next token of a sequence sees all tokens before it.
        hidden = model.decode(x, model.rotations(positions), contexts, None, caches)
        return self.passes.combined(model.logits(hidden, layout.table_of(layout.spec(name))).float())

    def confidences(
        self, logits: Tensor, sampled: Tensor, cells: Tensor, temperature: float, step: int, noise_share: float
    ) -> Tensor:
        """Return log probabilities `draws cells` of the ids `sampled` (`rows cells draws`), with the plan's noise.

        `logits` are `rows cells ids`. `noise_share` multiplies the plan's `confidence_noise`.
        """
        plan = self.plan
        if plan.filter_before_temperature and temperature >= COLDEST:  # 4M ranks cells by these probabilities
            logits = tempered(logits, temperature, plan.top_k, plan.top_p, filter_first=True)
        values = logits.gather(2, sampled) - logits.logsumexp(dim=2, keepdim=True)
        values = rearrange(values, "rows cells draws -> (rows draws) cells")
        if plan.confidence_noise:
            length = self.model.layout.spec(plan.name).layout.length
            gumbel = self.noise.gumbel(CONFIDENCE, step, length).to(values.device)
            values = values + plan.confidence_noise * noise_share * gumbel.gather(1, cells)
        return values


def decode_grid(decoding: Decoding, partial: Tensor | None) -> Tensor:
    """Decode the unknown cells of `partial` (`draws length`; None: all) in steps, and return `draws *shape`."""
    inputs, plan, noise = decoding.inputs, decoding.plan, decoding.noise
    layout = decoding.model.layout.spec(plan.name).layout
    tokens = torch.full((len(noise.samples), layout.length), UNKNOWN) if partial is None else partial
    tokens = tokens.to(inputs.device, copy=True)
    scheme = SCHEMES[plan.scheme](tokens == UNKNOWN, noise)
    counts = tokens_per_step(scheme.open_cells.shape[1], plan.steps, plan.schedule)
    step_temperatures = temperatures(counts, plan.temperature, plan.final_temperature, plan.temperature_schedule)
    for step, (count, temperature) in enumerate(zip(counts, step_temperatures, strict=True)):
        cells = scheme.next_cells(count)
        # A row of logits per draw, or per sample while its draws share their inputs and cells.
        queried = cells[:: inputs.draws]
        queried = queried if torch.equal(queried.repeat_interleave(inputs.draws, 0), cells) else cells
        logits = decoding.logits(decoding.contexts(), torch.full_like(queried, -1), queried)
        inputs.split_draws()
        uniform = noise.uniform(IDS, step, layout.length).to(inputs.device).gather(1, cells)
        uniform = rearrange(uniform, "(rows draws) cells -> rows cells draws", rows=len(logits))
        sampled = draw(logits, uniform, temperature, plan.top_k, plan.top_p, plan.filter_before_temperature)
        ids = rearrange(sampled, "rows cells draws -> (rows draws) cells")
        share_left = 1 - step / len(counts)
        confidences = functools.partial(decoding.confidences, logits, sampled, cells, temperature, step, share_left)
        cells, ids = scheme.commit(cells, ids, count, confidences)
        tokens.scatter_(1, cells, ids)
        inputs.add(plan.name, ids, cells)
        if decoding.on_step:
            decoding.on_step(plan.name, tokens.view(inputs.batch, *layout.token_shape).to("cpu", copy=True))
    return tokens.view(inputs.batch, *layout.token_shape).cpu()


def shares_keys(device: torch.device) -> bool:
    """Return whether attention reads shared keys without copying them. In float32, a GPU copies them for each token."""
    return device.type == "cpu"


def decode_sequence(decoding: Decoding, partial: Sequence[Ids] | None, once: Collection[int] = ()) -> list[Ids]:
    """Fill the gaps of the sequences `partial` (None: one gap each) from left to right, each to its own end.

    The decoder reads the stream of training: the spans of all gaps, with the sentinel of the next gap between them,
    then the end. Models that see the end of their inputs read one more sentinel instead. Ids in `once` are generated
    only in sequences that do not contain them.
    """
    model, inputs, plan, passes = decoding.model, decoding.inputs, decoding.plan, decoding.passes
    partial = [np.array([UNKNOWN])] * len(decoding.noise.samples) if partial is None else partial
    filling = _Filling(model, plan, partial, once, inputs.device)
    start = model.layout.token_rows(plan.name).start
    uniform = decoding.noise.uniform(IDS, 0, max(filling.bound, 1)).to(inputs.device)
    contexts = decoding.contexts()
    draws_per_row = inputs.draws  # rows of a step that share a row of the context
    if draws_per_row > 1 and not shares_keys(inputs.device):
        rows = torch.arange(inputs.batch, device=inputs.device).repeat_interleave(draws_per_row)
        contexts, draws_per_row = [context.select(rows) for context in contexts], 1
    inputs.split_draws()
    like = contexts[0].keys_and_values[0][0]
    caches = [KeyValueCache.empty(len(passes) * inputs.batch, filling.bound, model.config, like) for _ in model.decoder]
    alive = torch.arange(inputs.batch, device=inputs.device)  # samples in the batch of this step
    last = torch.full_like(alive, filling.layout.sentinel_start)
    done = 0
    while filling.active.any():
        if 2 * int(filling.active[alive].sum()) <= len(alive):  # caches are copied only if that halves them
            rows = filling.active[alive].nonzero().squeeze(1)
            of_passes = torch.cat([rows + number * len(alive) for number in range(len(passes))])
            alive, last = alive[rows], last[rows]
            contexts, draws_per_row = [context.select(rows // draws_per_row) for context in contexts], 1
            caches = [KeyValueCache(cache.keys[of_passes], cache.values[of_passes], cache.length) for cache in caches]
        ranks = torch.full((len(alive), 1), done, device=inputs.device)
        logits = decoding.logits(contexts, last.unsqueeze(1) + start, ranks, caches).squeeze(1)
        sampled = draw(
            filling.allowed(logits, alive),
            uniform[alive, done].unsqueeze(1),
            plan.temperature,
            plan.top_k,
            plan.top_p,
            plan.filter_before_temperature,
        ).squeeze(1)
        last = filling.append(sampled, alive, done)
        done += 1
        if decoding.on_step:
            decoding.on_step(plan.name, filling.sequences())
    sequences = filling.sequences()
    inputs.remove(plan.name)  # known tokens with their sentinels
    inputs.add_whole(plan.name, sequences)
    return sequences


class _Filling:
    """The streams that fill the gaps of `partial`: the ids written so far, and the ids that may come next.

    Tensors hold all samples; `alive` are the numbers of the samples in the batch of a step.
    """

    def __init__(
        self, model: FourM, plan: TargetPlan, partial: Sequence[Ids], once: Collection[int], device: torch.device
    ) -> None:
        spec = model.layout.spec(plan.name)
        assert isinstance(spec.layout, SequenceLayout)
        layout = spec.layout
        self.layout, self.partial, self.any_end = layout, partial, model.layout.input_end(spec) is None
        self.gaps = torch.tensor([int((row == UNKNOWN).sum()) for row in partial], device=device)
        room = [max(plan.max_length - int((row != UNKNOWN).sum()), 0) for row in partial]
        self.room = torch.tensor(room, device=device)
        self.bound = int((self.room + self.gaps - 1).max())
        """Maximum number of steps: one per token, and one to move on to each gap but the first."""
        self.tokens = torch.full((len(partial), self.bound), layout.end, device=device)
        self.active = self.room > 0
        """Samples that have not ended."""
        ends_visible = torch.tensor([sees_end(model.layout, plan.name, row) for row in partial], device=device)
        self.closing = torch.where(
            ends_visible & (self.gaps < layout.num_sentinels), layout.sentinel_start + self.gaps, layout.end
        )
        """The id that ends the last gap."""
        sentinels = range(layout.sentinel_start, layout.sentinel_start + layout.num_sentinels)
        self.marks = torch.tensor([*sentinels, layout.end], device=device)
        self.gap, self.count = torch.zeros_like(self.gaps), torch.zeros_like(self.gaps)
        self.once = torch.zeros(spec.vocab_size, dtype=torch.bool, device=device)
        self.once[[number for number in once if number < len(self.once)]] = True  # the vocabulary may have grown
        self.used_once = torch.zeros(len(partial), len(self.once), dtype=torch.bool, device=device)
        for number, row in enumerate(partial):
            self.used_once[number, torch.from_numpy(row[row != UNKNOWN]).to(device)] = True
        self.used_once &= self.once

    def allowed(self, logits: Tensor, alive: Tensor) -> Tensor:
        """Return logits `alive ids` with -inf at ids that may not come next.

        The id that ends a gap gets the summed probability of all sentinels, or the end, that end it.
        """
        closing_ids, _ = self._closing_ids(alive)
        ends = self.marks == closing_ids.unsqueeze(1)
        if self.any_end:
            # Models that do not see ends are trained on some gaps only, so the sentinel of any later gap may follow.
            numbers = torch.arange(len(self.marks), device=self.marks.device)
            ends = (numbers > self.gap[alive].unsqueeze(1)) & (numbers < self.gaps[alive].unsqueeze(1))
            ends[:, -1] = True
        logits = logits.masked_fill(self.used_once[alive], -torch.inf)
        ending = logits[:, self.marks].masked_fill(~ends, -torch.inf).logsumexp(1, keepdim=True)
        return logits.index_fill(1, self.marks, -torch.inf).scatter(1, closing_ids.unsqueeze(1), ending)

    def append(self, sampled: Tensor, alive: Tensor, step: int) -> Tensor:
        """Store the sampled ids; return them, with the end for samples that have ended."""
        closing_ids, is_last = self._closing_ids(alive)
        closes_gap = sampled == closing_ids
        last = torch.where(self.active[alive] & ~(closes_gap & is_last), sampled, self.layout.end)
        self.tokens[alive, step] = last
        self.used_once[alive, last] |= self.once[last]
        self.gap[alive] += (closes_gap & ~is_last).long()
        self.count[alive] += (~closes_gap).long()
        self.active[alive] = (last != self.layout.end) & (self.count[alive] < self.room[alive])
        return last

    def sequences(self) -> list[Ids]:
        """Return the sequences with their gaps filled."""
        sequences = []
        for row, stream in zip(self.partial, self.tokens.cpu().tolist(), strict=True):
            content = stream[: stream.index(self.layout.end)] if self.layout.end in stream else stream
            sequences.append(with_gaps_filled(row, content, self.layout))
        return sequences

    def _closing_ids(self, alive: Tensor) -> tuple[Tensor, Tensor]:
        """Return the id that ends the current gap of each sample, and whether that is its last gap."""
        is_last = self.gap[alive] + 1 >= self.gaps[alive]
        return torch.where(is_last, self.closing[alive], self.layout.sentinel_start + self.gap[alive] + 1), is_last
