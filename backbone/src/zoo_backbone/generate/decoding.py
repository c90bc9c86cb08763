"""One target decoded: grids and vectors in steps, sequences left to right; all passes of a step in one batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from einops import rearrange
from torch import Tensor

from tokenizers_zoo.spec import SequenceLayout
from tokenizers_zoo.validation import fixed_shape
from zoo_backbone.generate.guidance import Passes
from zoo_backbone.generate.inputs import GrowingInputs
from zoo_backbone.generate.partial import UNKNOWN, Ids, sees_end, unknown_cells, with_gaps_filled
from zoo_backbone.generate.plan import TargetPlan
from zoo_backbone.generate.sampling import COLDEST, CONFIDENCE, IDS, ORDER, Noise, draw, draw_several, tempered
from zoo_backbone.generate.schedules import temperatures, tokens_per_step
from zoo_backbone.model import Context, FourM
from zoo_backbone.transformer import KeyValueCache

Advance = Callable[[int], None]


def target_logits(
    model: FourM,
    name: str,
    read: Tensor,
    ranks: Tensor,
    context: Context,
    passes: Passes,
    caches: Sequence[KeyValueCache] | None = None,
) -> Tensor:
    """float32 logits `batch targets ids` over the vocabulary of `name`, all passes of `context` added up.

    `read` (`batch targets`) holds rows of the token table, -1 for the mask token; `ranks` the targets' positions within
    the modality. With `caches` the targets are the next ones of a sequence, one at a time.
    """
    tables = model.layout
    read, ranks = read.repeat(len(passes), 1), ranks.repeat(len(passes), 1)
    positions = ranks + tables.positions[name].start
    x = model.embed_targets(read, positions, torch.full_like(read, tables.index(name)))
    # No mask: all targets are of one modality, and a sequence's next token sees all before it.
    hidden = model.decode(x, model.turns(positions), context, None, caches)
    return passes.combined(model.logits(hidden, tables.table_of(tables.spec(name))).float())


def decode_grid(
    model: FourM, inputs: GrowingInputs, plan: TargetPlan, noise: Noise, passes: Passes, kept: Tensor, advance: Advance
) -> Tensor:
    """Decode the unknown cells of `kept` (`draws length`); what each step decides is an input of the next.

    Gives `draws *shape`.
    """
    layout = model.layout.spec(plan.name).layout
    left = unknown_cells(kept).to(inputs.device)
    counts = tokens_per_step(left.shape[1], plan.steps, plan.schedule)
    heat = temperatures(counts, plan.temperature, plan.final_temperature, plan.temperature_schedule)
    tokens = kept.to(inputs.device).clone()
    if plan.scheme == "roar":
        order = noise.uniform(ORDER, 0, layout.length).argsort(dim=1)
        left = order[(kept == UNKNOWN).gather(1, order)].view(left.shape).to(inputs.device)
    for step, (count, temperature) in enumerate(zip(counts, heat, strict=True)):
        # Where the order is known beforehand only the next cells are decoded. Confidence has to see all that are left.
        cells = left if plan.scheme == "maskgit" else left[:, :count]
        logits = cell_logits(model, inputs, plan, cells, passes)
        inputs.split_draws()
        uniform = noise.uniform(IDS, step, layout.length).to(inputs.device).gather(1, cells)
        uniform = rearrange(uniform, "(rows draws) cells -> rows cells draws", rows=len(logits))
        drawn = draw_several(logits, uniform, temperature, plan.top_k, plan.top_p, plan.filter_before_temperature)
        ids = rearrange(drawn, "rows cells draws -> (rows draws) cells")
        if plan.scheme == "maskgit":
            if plan.filter_before_temperature and temperature >= COLDEST:  # as 4M ranks cells
                logits = tempered(logits, temperature, plan.top_k, plan.top_p, filter_first=True)
            score = logits.gather(2, drawn) - logits.logsumexp(dim=2, keepdim=True)
            score = rearrange(score, "rows cells draws -> (rows draws) cells")
            if plan.confidence_noise:
                scale = plan.confidence_noise * (1 - step / len(counts))
                gumbel = noise.gumbel(CONFIDENCE, step, layout.length).to(inputs.device)
                score = score + scale * gumbel.gather(1, cells)
            chosen = score.argsort(dim=1, descending=True, stable=True)[:, :count]
            rest = torch.ones_like(cells, dtype=torch.bool).scatter(1, chosen, False)
            left = left[rest].view(inputs.batch, -1)
            cells, ids = cells.gather(1, chosen), ids.gather(1, chosen)
        else:
            left = left[:, count:]
        tokens.scatter_(1, cells, ids)
        inputs.add(plan.name, ids, cells)
        advance(1)
    advance(plan.steps - len(counts))
    return tokens.view(inputs.batch, *fixed_shape(layout)).cpu()


def shares_keys(device: torch.device) -> bool:
    """Whether attention reads keys that rows share where they are; a GPU's, in float32, copies them at each token."""
    return device.type == "cpu"


def cell_logits(model: FourM, inputs: GrowingInputs, plan: TargetPlan, cells: Tensor, passes: Passes) -> Tensor:
    """float32 logits `rows cells ids`: a row a draw, or a sample where its draws still share them."""
    context = model.context(inputs.packed(passes))
    if plan.scheme == "maskgit":
        cells = cells[:: inputs.draws]
    return target_logits(model, plan.name, torch.full_like(cells, -1), cells, context, passes)


def decode_sequence(
    model: FourM,
    inputs: GrowingInputs,
    plan: TargetPlan,
    noise: Noise,
    passes: Passes,
    kept: Sequence[Ids],
    advance: Advance,
    once: Collection[int] = (),
) -> list[Ids]:
    """Decode left to right what fills the gaps of `kept`, from the first sentinel; each sample stops at its own end.

    The stream reads as in training: the spans of all gaps with the sentinel of the next between them, then the end; or,
    where the model is shown the end, one sentinel more. Of the ids `once` none is written that is kept or was written.
    """
    filling = _Filling(model, plan, kept, once, inputs.device)
    start = model.layout.token_rows(plan.name).start
    uniform = noise.uniform(IDS, 0, max(filling.bound, 1)).to(inputs.device)
    context = model.context(inputs.packed(passes))
    sharing = inputs.draws  # so many rows of a step see one row of the context, until the batch is cut
    if sharing > 1:
        if not shares_keys(inputs.device):
            context, sharing = context.select(inputs.rows_of_draws(passes)), 1
        inputs.split_draws()
    caches = [
        KeyValueCache.empty(len(passes) * inputs.batch, filling.bound, model.config, context.keys_and_values[0][0])
        for _ in model.decoder
    ]
    alive = torch.arange(inputs.batch, device=inputs.device)  # samples in the batch of this step
    last = torch.full_like(alive, filling.layout.sentinel_start)
    done = 0
    while filling.going.any():
        if 2 * int(filling.going[alive].sum()) <= len(alive):  # the caches are copied only when that halves them
            rows = filling.going[alive].nonzero().squeeze(1)
            of_passes = torch.cat([rows + number * len(alive) for number in range(len(passes))])
            alive, last = alive[rows], last[rows]
            context, sharing = context.select(of_passes // sharing), 1
            caches = [KeyValueCache(cache.keys[of_passes], cache.values[of_passes], cache.length) for cache in caches]
        ranks = torch.full((len(alive), 1), done, device=inputs.device)
        logits = target_logits(model, plan.name, last.unsqueeze(1) + start, ranks, context, passes, caches).squeeze(1)
        logits = filling.allowed(logits, alive)
        drawn = draw(
            logits, uniform[alive, done], plan.temperature, plan.top_k, plan.top_p, plan.filter_before_temperature
        )
        last = filling.written(drawn, alive, done)
        done += 1
        advance(1)
    advance(plan.max_length - done)
    return filling.filled()


class _Filling:
    """The streams that fill the gaps of `kept`: what each sample has written of its own, and what may come next.

    Its tensors are of all samples; `alive` are the numbers of those that a step decodes.
    """

    def __init__(
        self, model: FourM, plan: TargetPlan, kept: Sequence[Ids], once: Collection[int], device: torch.device
    ) -> None:
        spec = model.layout.spec(plan.name)
        assert isinstance(spec.layout, SequenceLayout)
        layout = spec.layout
        self.layout, self.kept, self.any_end = layout, kept, not model.config.marked_inputs
        self.gaps = torch.tensor([int((row == UNKNOWN).sum()) for row in kept], device=device)
        room = [max(plan.max_length - int((row != UNKNOWN).sum()), 0) for row in kept]
        self.room = torch.tensor(room, device=device)
        self.bound = int((self.room + self.gaps - 1).max())
        """Steps at most: one for each token there is room for, and one to go on to each gap but the first."""
        self.tokens = torch.full((len(kept), self.bound), layout.end, device=device)
        self.going = self.room > 0
        """Samples that have not come to their end."""
        shown = torch.tensor([sees_end(model.layout, plan.name, row) for row in kept], device=device)
        self.closing = torch.where(
            shown & (self.gaps < layout.num_sentinels), layout.sentinel_start + self.gaps, layout.end
        )
        """The id that ends the last gap."""
        sentinels = range(layout.sentinel_start, layout.sentinel_start + layout.num_sentinels)
        self.marks = torch.tensor([*sentinels, layout.end], device=device)
        self.gap, self.count = torch.zeros_like(self.gaps), torch.zeros_like(self.gaps)
        self.once = torch.zeros(spec.vocab_size, dtype=torch.bool, device=device)
        self.once[[number for number in once if number < len(self.once)]] = True  # a vocabulary may have grown since
        self.spent = torch.stack([_holding(row, self.once) for row in kept])

    def allowed(self, logits: Tensor, alive: Tensor) -> Tensor:
        """The logits, `alive ids`, with -inf at what may not come next."""
        gap, gaps = self.gap[alive], self.gaps[alive]
        onward = self._onward(alive)
        logits = logits.masked_fill(self.spent[alive], -torch.inf)
        ends = gap_ends(self.marks, gap, gaps) if self.any_end else self.marks == onward.unsqueeze(1)
        return restricted(logits, self.marks, ends, onward)

    def written(self, drawn: Tensor, alive: Tensor, step: int) -> Tensor:
        """Take the ids that were drawn; gives what was written, the end where a sample is at its own."""
        moved, is_last = drawn == self._onward(alive), self._is_last(alive)
        last = torch.where(self.going[alive] & ~(moved & is_last), drawn, self.layout.end)
        self.tokens[alive, step] = last
        self.spent[alive, last] |= self.once[last]
        self.gap[alive] += (moved & ~is_last).long()
        self.count[alive] += (~moved).long()
        self.going[alive] = (last != self.layout.end) & (self.count[alive] < self.room[alive])
        return last

    def filled(self) -> list[Ids]:
        """Each sample's row with its gaps filled."""
        made = []
        for row, stream in zip(self.kept, self.tokens.cpu().tolist(), strict=True):
            content = stream[: stream.index(self.layout.end)] if self.layout.end in stream else stream
            made.append(with_gaps_filled(row, content, self.layout))
        return made

    def _is_last(self, alive: Tensor) -> Tensor:
        """Whether the gap that a sample is at is its last, bool `alive`."""
        return self.gap[alive] + 1 >= self.gaps[alive]

    def _onward(self, alive: Tensor) -> Tensor:
        """The id that ends the gap that a sample is at, `alive`."""
        return torch.where(self._is_last(alive), self.closing[alive], self.layout.sentinel_start + self.gap[alive] + 1)


def _holding(row: Ids, ids: Tensor) -> Tensor:
    """Those of the ids, bool `ids`, that a row has."""
    found = torch.zeros_like(ids)
    found[torch.from_numpy(row[row != UNKNOWN])] = True
    return found & ids


def gap_ends(marks: Tensor, gap: Tensor, gaps: Tensor) -> Tensor:
    """Those of the marks, all sentinels and then the end, that mean that a gap is over: bool, `batch marks`.

    `gap` and `gaps` (`batch`) are its number and how many there are. In training a model that is not shown ends is
    asked for some of the gaps only: the sentinel of any later one may be next, or the end.
    """
    numbers = torch.arange(len(marks), device=marks.device)
    ends = (numbers > gap.unsqueeze(1)) & (numbers < gaps.unsqueeze(1))
    ends[:, -1] = True
    return ends


def restricted(logits: Tensor, marks: Tensor, ends: Tensor, onward: Tensor) -> Tensor:
    """`batch ids` with -inf at all `marks` but `onward` (`batch`), the id that ends the gap.

    It has the probability of those of the marks, `ends` (bool, `batch marks`), that mean that the gap is over.
    """
    ending = logits[:, marks].masked_fill(~ends, -torch.inf).logsumexp(1, keepdim=True)
    return logits.index_fill(1, marks, -torch.inf).scatter(1, onward.unsqueeze(1), ending)
