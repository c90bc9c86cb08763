"""Chained any-to-any generation: each finished target becomes an input of the next (4M, arXiv 2312.06647)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbone.generation.inputs import GrowingInputs
from backbone.generation.plan import TargetPlan
from backbone.generation.sampling import CONFIDENCE, IDS, ORDER, Noise, draw
from backbone.generation.schedules import tokens_per_step
from backbone.model import Context, FourM
from backbone.transformer import KeyValueCache
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.modality import SequenceLayout
from tokenizers_zoo.values import fixed_shape


@torch.inference_mode()
def generate(
    model: FourM,
    given: Mapping[str, Any],
    plan: Sequence[TargetPlan],
    seed: int,
    samples: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Generate the targets of `plan`, in its order, for a batch of samples.

    `given` maps modalities to all their tokens, as codecs give them: grids `(batch, *shape)` and vectors `(batch, n)`
    int64, sequences a list of 1-D int64 arrays, continuous ones `(batch, n, dim)` float32 or a list of `(n, dim)`.
    Gives int64 tensors `(batch, *shape)` on the CPU, and for sequences lists of 1-D int64 arrays, without end and
    sentinels.

    `samples` numbers the samples (default: 0, 1, ...; needed where nothing is given). What a sample becomes depends on
    the seed, its number and its own inputs, not on the batch it is in. Raises ConfigError for a plan that does not fit
    the model, InvalidValueError for tokens that do not fit their modality.
    """
    numbers = _numbers(given, seed, samples)
    plan = [target.resolved(model.tables.spec(target.name)) for target in plan]
    _check_names(given, plan)
    inputs = GrowingInputs(model.tables, len(numbers), model.token_embedding.weight.device)
    for name, tokens in given.items():
        inputs.add_whole(name, tokens)
    made: dict[str, Any] = {}
    for number, target in enumerate(plan, 1):
        noise = Noise(seed, numbers, target.name)
        if target.scheme == "autoregressive":
            made[target.name] = _sequence(model, inputs, target, noise)
            if number < len(plan):
                inputs.add_whole(target.name, made[target.name])
        else:
            made[target.name] = _grid(model, inputs, target, noise)
    return made


def _numbers(given: Mapping[str, Any], seed: int, samples: Sequence[int] | None) -> list[int]:
    """The samples' numbers."""
    if samples is None:
        if not given:
            raise ConfigError("generate: nothing is given, so `samples` has to say how many to make")
        samples = range(len(next(iter(given.values()))))
    if len(samples) == 0:
        raise ConfigError("generate: expected at least one sample")
    if min(seed, *samples) < 0:
        raise ConfigError(f"generate: expected seed and sample numbers from 0 on, got {min(seed, *samples)}")
    return list(samples)


def _check_names(given: Mapping[str, Any], plan: Sequence[TargetPlan]) -> None:
    """Raise ConfigError where nothing is asked for, or a modality twice."""
    names = [*given, *(target.name for target in plan)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not plan:
        raise ConfigError("generate: expected at least one target")
    if twice:
        raise ConfigError(f"generate: {', '.join(twice)}: given and asked for, or asked for twice")


def target_logits(
    model: FourM,
    name: str,
    read: Tensor,
    ranks: Tensor,
    context: Context,
    caches: Sequence[KeyValueCache] | None = None,
) -> Tensor:
    """float32 logits `batch targets ids` over the vocabulary of `name`; ids that it may not generate are -inf.

    `read` holds rows of the token table, -1 for the mask token; `ranks` the targets' positions within the modality.
    With `caches` the targets are the next ones of a sequence, one at a time.
    """
    tables = model.tables
    x = model.embed_targets(read, ranks + tables.positions[name].start, torch.full_like(read, tables.index(name)))
    # No mask: all targets are of one modality, and a sequence's next token sees all before it.
    hidden = model.decode(x, context, None, caches)
    spec = tables.spec(name)
    logits = model.logits(hidden, tables.table_of(spec)).float()
    if isinstance(spec.layout, SequenceLayout):
        first = spec.layout.sentinel_start
        logits[..., first : first + spec.layout.num_sentinels] = -torch.inf
    return logits


def _grid(model: FourM, inputs: GrowingInputs, plan: TargetPlan, noise: Noise) -> Tensor:
    """Decode a grid or vector in steps; what each step decides is an input of the next. Gives `batch *shape`."""
    layout = model.tables.spec(plan.name).layout
    counts = tokens_per_step(layout.length, plan.steps, plan.schedule)
    tokens = torch.zeros(inputs.batch, layout.length, dtype=torch.int64, device=inputs.device)
    left = torch.arange(layout.length, device=inputs.device).expand(inputs.batch, -1)
    if plan.scheme == "roar":
        left = noise.uniform(ORDER, 0, layout.length).argsort(dim=1).to(inputs.device)
    for step, count in enumerate(counts):
        # A random order is known beforehand: only its next cells are decoded. Confidence has to see all that are left.
        cells = left[:, :count] if plan.scheme == "roar" else left
        logits = target_logits(model, plan.name, torch.full_like(cells, -1), cells, model.context(inputs.packed()))
        uniform = noise.uniform(IDS, step, layout.length).to(inputs.device).gather(1, cells)
        ids = draw(logits, uniform, plan.temperature, plan.top_k, plan.top_p)
        if plan.scheme == "roar":
            left = left[:, count:]
        else:
            score = logits.gather(2, ids.unsqueeze(2)).squeeze(2) - logits.logsumexp(dim=2)
            if plan.confidence_noise:
                scale = plan.confidence_noise * (1 - step / len(counts))
                gumbel = noise.gumbel(CONFIDENCE, step, layout.length).to(inputs.device)
                score = score + scale * gumbel.gather(1, cells)
            chosen = score.argsort(dim=1, descending=True, stable=True)[:, :count]
            rest = torch.ones_like(cells, dtype=torch.bool).scatter(1, chosen, False)
            left = left[rest].view(inputs.batch, -1)
            cells, ids = cells.gather(1, chosen), ids.gather(1, chosen)
        tokens.scatter_(1, cells, ids)
        inputs.add(plan.name, ids, cells)
    return tokens.view(inputs.batch, *fixed_shape(layout)).cpu()


def _sequence(model: FourM, inputs: GrowingInputs, plan: TargetPlan, noise: Noise) -> list[np.ndarray[Any, Any]]:
    """Decode left to right from the first sentinel; each sample stops at its own end."""
    layout = model.tables.spec(plan.name).layout
    assert isinstance(layout, SequenceLayout)
    start = model.tables.token_rows(plan.name).start
    uniform = noise.uniform(IDS, 0, plan.max_length).to(inputs.device)
    context = model.context(inputs.packed())
    caches = [
        KeyValueCache.empty(inputs.batch, plan.max_length, model.config, context.keys_and_values[0][0])
        for _ in model.decoder
    ]
    tokens = torch.full((inputs.batch, plan.max_length), layout.end, device=inputs.device)
    alive = torch.arange(inputs.batch, device=inputs.device)  # samples in the batch of this step
    last = torch.full((inputs.batch,), layout.sentinel_start, device=inputs.device)
    for step in range(plan.max_length):
        ranks = torch.full((len(alive), 1), step, device=inputs.device)
        logits = target_logits(model, plan.name, last.unsqueeze(1) + start, ranks, context, caches)
        last = draw(logits.squeeze(1), uniform[alive, step], plan.temperature, plan.top_k, plan.top_p)
        last = torch.where(tokens[alive, step - 1] == layout.end, layout.end, last) if step else last
        tokens[alive, step] = last
        going = last != layout.end
        if not going.any():
            break
        if 2 * int(going.sum()) <= len(alive):  # the caches are copied only when that halves them
            rows = going.nonzero().squeeze(1)
            alive, last, context = alive[rows], last[rows], context.select(rows)
            caches = [KeyValueCache(cache.keys[rows], cache.values[rows], cache.length) for cache in caches]
    ends = (tokens == layout.end).int()
    lengths = torch.where(ends.any(1), ends.argmax(1), plan.max_length)
    return [row[:length] for row, length in zip(tokens.cpu().numpy(), lengths.tolist(), strict=True)]
