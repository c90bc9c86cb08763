"""Chained any-to-any generation: each finished target becomes an input of the next (4M, arXiv 2312.06647)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.generate.decoding import Advance, decode_grid, decode_sequence
from zoo_backbone.generate.guidance import Passes
from zoo_backbone.generate.inputs import GrowingInputs, generated_text, rows_of
from zoo_backbone.generate.partial import add_partial, alike, checked_partial, empty_partial
from zoo_backbone.generate.plan import TargetPlan, resolved_plan
from zoo_backbone.generate.sampling import Noise
from zoo_backbone.model import FourM
from zoo_backbone.packing import accepted


@torch.no_grad()
def generate(
    model: FourM,
    given: Mapping[str, Any],
    plan: Sequence[TargetPlan],
    seed: int,
    samples: Sequence[int] | None = None,
    *,
    kept: Mapping[str, Any] | None = None,
    draws: int = 1,
    once: Mapping[str, Collection[int]] | None = None,
    advance: Advance = lambda steps: None,
) -> dict[str, Any]:
    """Generate the targets of `plan`, in its order, for a batch of samples.

    `given` maps modalities to all their tokens, as codecs give them: grids `(batch, *shape)` and vectors `(batch, n)`
    int64, sequences a list of 1-D int64 arrays, continuous ones `(batch, n, dim)` float32 or a list of `(n, dim)`.
    `kept` maps modalities to the part of their tokens that is kept, with -1 elsewhere (see partial.py): of a target the
    rest is made; of others it stays open. All that is kept is an input from the start, of all targets. `once` are ids
    of sequences, by modality, that none has twice (`ModalityHandle.single_ids`).
    Gives int64 tensors `(batch, *shape)` on the CPU, and for sequences lists of 1-D int64 arrays, without end and
    sentinels.

    Of each sample `draws` are made, which follow one another; what they share is computed once. `samples` numbers all
    that is made (default: 0, 1, ...; needed where nothing is given). What a draw becomes depends on the seed, its
    number and its own inputs, not on the batch it is in. `advance` is called with the number of decoding steps done
    since, which sum to `plan_steps`. Raises ConfigError for a plan that does not fit the model, InvalidValueError for
    tokens that do not fit their modality.
    """
    kept = kept or {}
    resolved = resolved_plan(model.layout, plan, given, kept)
    numbers = _numbers({**given, **kept}, seed, samples, draws)
    count = len(numbers) // draws
    for name, tokens in given.items():
        accepted(model.layout.spec(name), tokens, count, generated_text(count))
    asked = {target.name for target in resolved}
    parts = {name: checked_partial(model.layout, name, part, count, name in asked) for name, part in kept.items()}
    groups = alike(parts, count)
    if len(groups) == 1:
        return _generate(model, given, parts, resolved, seed, numbers, draws, once or {}, advance)
    rows: dict[int, dict[str, Any]] = {}
    for number, group in enumerate(groups):
        drawn = [row * draws + draw for row in group for draw in range(draws)]
        made = _generate(
            model, _rows(given, group), _rows(parts, group), resolved, seed, [numbers[row] for row in drawn], draws,
            once or {}, (lambda steps: None) if number else advance,
        )  # fmt: skip
        rows |= {row: {name: tokens[i] for name, tokens in made.items()} for i, row in enumerate(drawn)}
    joined = {target.name: [rows[row][target.name] for row in range(len(numbers))] for target in resolved}
    return {name: torch.stack(made) if isinstance(made[0], torch.Tensor) else made for name, made in joined.items()}


def _generate(
    model: FourM,
    given: Mapping[str, Any],
    kept: Mapping[str, Any],
    plan: Sequence[TargetPlan],
    seed: int,
    numbers: Sequence[int],
    draws: int,
    once: Mapping[str, Collection[int]],
    advance: Advance,
) -> dict[str, Any]:
    """`generate` for a checked plan, and samples that lack as many cells each."""
    layout = model.layout
    inputs = GrowingInputs(layout, len(numbers) // draws, model.token_embedding.weight.device, draws)
    for name in (*given, *kept, *(target.name for target in plan)):
        inputs.mark_open(name)
    for name, tokens in given.items():
        inputs.add_whole(name, tokens)
    for name, part in kept.items():
        add_partial(inputs, layout.spec(name), part)
    made: dict[str, Any] = {}
    for target in plan:
        noise = Noise(seed, numbers, target.name)
        if target.name in kept:
            part = rows_of(kept[target.name], [number // draws for number in range(len(numbers))])
        else:
            part = empty_partial(layout.spec(target.name).layout, len(numbers))
        assert target.guidance is not None
        passes = Passes.of(target.guidance, target.name, inputs.names)
        if isinstance(part, list):
            single = once.get(target.name, ())
            made[target.name] = decode_sequence(model, inputs, target, noise, passes, part, advance, single)
            inputs.hide(target.name)  # the kept parts with their sentinels
            inputs.add_whole(target.name, made[target.name])
        else:
            made[target.name] = decode_grid(model, inputs, target, noise, passes, part, advance)
    return made


def plan_steps(model: FourM, plan: Sequence[TargetPlan]) -> int:
    """How many steps `generate` counts for a batch: those of grids, and for a sequence one a token at its longest."""
    layout = model.layout
    resolved = [target.resolved(layout.spec(target.name)) for target in plan]
    return sum(target.max_length if layout.causal[layout.index(target.name)] else target.steps for target in resolved)


def _rows(tokens: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    return {name: rows_of(values, rows) for name, values in tokens.items()}


def _numbers(known: Mapping[str, Any], seed: int, samples: Sequence[int] | None, draws: int) -> list[int]:
    """The draws' numbers."""
    if draws < 1:
        raise ConfigError(f"generate: draws: expected a number from 1 on, got {draws}")
    if samples is None:
        if not known:
            raise ConfigError("generate: nothing is given, so `samples` has to say how many to make")
        samples = range(len(next(iter(known.values()))) * draws)
    if len(samples) == 0:
        raise ConfigError("generate: expected at least one sample")
    if len(samples) % draws:
        raise ConfigError(f"generate: samples: expected a number for each of {draws} draws, got {len(samples)}")
    if min(seed, *samples) < 0:
        raise ConfigError(f"generate: expected seed and sample numbers from 0 on, got {min(seed, *samples)}")
    return list(samples)
