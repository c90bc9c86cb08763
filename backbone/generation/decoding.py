"""One target decoded: grids and vectors in steps, sequences left to right; all passes of a step in one batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from einops import rearrange
from torch import Tensor

from backbone.generation.guidance import Passes
from backbone.generation.inputs import GrowingInputs
from backbone.generation.partial import UNKNOWN, Ids, sees_end, unknown_cells, with_gaps_filled
from backbone.generation.plan import TargetPlan
from backbone.generation.sampling import COLDEST, CONFIDENCE, IDS, ORDER, Noise, draw, draw_several, tempered
from backbone.generation.schedules import temperatures, tokens_per_step
from backbone.model import Context, FourM
from backbone.transformer import KeyValueCache
from tokenizers_zoo.modality import SequenceLayout
from tokenizers_zoo.values import fixed_shape

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
    tables = model.tables
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
    layout = model.tables.spec(plan.name).layout
    left = unknown_cells(kept).to(inputs.device)
    counts = tokens_per_step(left.shape[1], plan.steps, plan.schedule)
    heat = temperatures(counts, plan.temperature, plan.final_temperature, plan.cooling)
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
        drawn = draw_several(logits, uniform, temperature, plan.top_k, plan.top_p, plan.filter_first)
        ids = rearrange(drawn, "rows cells draws -> (rows draws) cells")
        if plan.scheme == "maskgit":
            if plan.filter_first and temperature >= COLDEST:  # as 4M ranks cells
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
    layout = model.tables.spec(plan.name).layout
    assert isinstance(layout, SequenceLayout)
    device, start = inputs.device, model.tables.token_rows(plan.name).start
    gaps = torch.tensor([int((row == UNKNOWN).sum()) for row in kept], device=device)
    room = torch.tensor([max(plan.max_length - int((row != UNKNOWN).sum()), 0) for row in kept], device=device)
    # A step for each token there is room for, and one to go on to each gap but the first.
    bound = int((room + gaps - 1).max())
    uniform = noise.uniform(IDS, 0, max(bound, 1)).to(device)
    context = model.context(inputs.packed(passes))
    sharing = inputs.draws  # so many rows of a step see one row of the context, until the batch is cut
    if sharing > 1:
        if not shares_keys(device):
            context, sharing = context.select(inputs.rows_of_draws(passes)), 1
        inputs.split_draws()
    caches = [
        KeyValueCache.empty(len(passes) * inputs.batch, bound, model.config, context.keys_and_values[0][0])
        for _ in model.decoder
    ]
    tokens = torch.full((inputs.batch, bound), layout.end, device=device)
    alive = torch.arange(inputs.batch, device=device)  # samples in the batch of this step
    going = room > 0
    shown = torch.tensor([sees_end(model.tables, plan.name, row) for row in kept], device=device)
    closing = torch.where(shown & (gaps < layout.num_sentinels), layout.sentinel_start + gaps, layout.end)
    sentinels = range(layout.sentinel_start, layout.sentinel_start + layout.num_sentinels)
    marks = torch.tensor([*sentinels, layout.end], device=device)
    gap, count = torch.zeros_like(gaps), torch.zeros_like(gaps)
    single = torch.zeros(model.tables.spec(plan.name).vocab_size, dtype=torch.bool, device=device)
    single[[number for number in once if number < len(single)]] = True  # a vocabulary may have grown since
    spent = torch.stack([_holding(row, single) for row in kept])
    last = torch.full((inputs.batch,), layout.sentinel_start, device=device)
    done = 0
    while going.any():
        if 2 * int(going[alive].sum()) <= len(alive):  # the caches are copied only when that halves them
            rows = going[alive].nonzero().squeeze(1)
            of_passes = torch.cat([rows + number * len(alive) for number in range(len(passes))])
            alive, last = alive[rows], last[rows]
            context, sharing = context.select(of_passes // sharing), 1
            caches = [KeyValueCache(cache.keys[of_passes], cache.values[of_passes], cache.length) for cache in caches]
        ranks = torch.full((len(alive), 1), done, device=device)
        logits = target_logits(model, plan.name, last.unsqueeze(1) + start, ranks, context, passes, caches).squeeze(1)
        is_last = gap[alive] + 1 >= gaps[alive]
        onward = torch.where(is_last, closing[alive], layout.sentinel_start + gap[alive] + 1)
        if once:
            logits = logits.masked_fill(spent[alive], -torch.inf)
        following = marks == onward.unsqueeze(1)
        ends = following if model.config.marked_inputs else gap_ends(marks, gap[alive], gaps[alive])
        logits = restricted(logits, marks, ends, onward)
        last = draw(logits, uniform[alive, done], plan.temperature, plan.top_k, plan.top_p, plan.filter_first)
        moved = last == onward
        last = torch.where(going[alive] & ~(moved & is_last), last, layout.end)
        tokens[alive, done] = last
        spent[alive, last] |= single[last]
        gap[alive] += (moved & ~is_last).long()
        count[alive] += (~moved).long()
        going[alive] = (last != layout.end) & (count[alive] < room[alive])
        done += 1
        advance(1)
    advance(plan.max_length - done)
    made = []
    for row, stream in zip(kept, tokens.cpu().tolist(), strict=True):
        content = stream[: stream.index(layout.end)] if layout.end in stream else stream
        made.append(with_gaps_filled(row, content, layout))
    return made


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
