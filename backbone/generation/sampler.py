"""Chained any-to-any generation: each finished target becomes an input of the next (4M, arXiv 2312.06647)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backbone.generation.decoding import Advance, decode_grid, decode_sequence, empty_partial
from backbone.generation.guidance import passes
from backbone.generation.inputs import GrowingInputs, generated, rows_of
from backbone.generation.partial import add_partial, alike, checked_partial
from backbone.generation.plan import TargetPlan, resolved_plan
from backbone.generation.sampling import Noise
from backbone.model import FourM
from backbone.packing import accepted
from tokenizers_zoo.errors import ConfigError


@torch.inference_mode()
def generate(
    model: FourM,
    given: Mapping[str, Any],
    plan: Sequence[TargetPlan],
    seed: int,
    samples: Sequence[int] | None = None,
    *,
    kept: Mapping[str, Any] | None = None,
    advance: Advance = lambda steps: None,
) -> dict[str, Any]:
    """Generate the targets of `plan`, in its order, for a batch of samples.

    `given` maps modalities to all their tokens, as codecs give them: grids `(batch, *shape)` and vectors `(batch, n)`
    int64, sequences a list of 1-D int64 arrays, continuous ones `(batch, n, dim)` float32 or a list of `(n, dim)`.
    `kept` maps targets to the part of their tokens that is kept, with -1 where something is to be made (see
    partial.py); all that is kept is an input from the start, of other targets, too.
    Gives int64 tensors `(batch, *shape)` on the CPU, and for sequences lists of 1-D int64 arrays, without end and
    sentinels.

    `samples` numbers the samples (default: 0, 1, ...; needed where nothing is given). What a sample becomes depends on
    the seed, its number and its own inputs, not on the batch it is in. `advance` is called with the number of decoding
    steps done since, which sum to `plan_steps`. Raises ConfigError for a plan that does not fit the model,
    InvalidValueError for tokens that do not fit their modality.
    """
    kept = kept or {}
    resolved = resolved_plan(model.tables, plan, given, kept)
    numbers = _numbers({**given, **kept}, seed, samples)
    for name, tokens in given.items():
        accepted(model.tables.spec(name), tokens, len(numbers), generated(len(numbers)))
    parts = {name: checked_partial(model.tables.spec(name), part, len(numbers)) for name, part in kept.items()}
    groups = alike(parts, len(numbers))
    if len(groups) == 1:
        return _generate(model, given, parts, resolved, seed, numbers, advance)
    rows: dict[int, dict[str, Any]] = {}
    for number, group in enumerate(groups):
        made = _generate(
            model, _rows(given, group), _rows(parts, group), resolved, seed, [numbers[row] for row in group],
            (lambda steps: None) if number else advance,
        )  # fmt: skip
        rows |= {row: {name: tokens[i] for name, tokens in made.items()} for i, row in enumerate(group)}
    joined = {target.name: [rows[row][target.name] for row in range(len(numbers))] for target in resolved}
    return {name: torch.stack(made) if isinstance(made[0], torch.Tensor) else made for name, made in joined.items()}


def _generate(
    model: FourM,
    given: Mapping[str, Any],
    kept: Mapping[str, Any],
    plan: Sequence[TargetPlan],
    seed: int,
    numbers: Sequence[int],
    advance: Advance,
) -> dict[str, Any]:
    """`generate` for a checked plan, and samples that lack as many cells each."""
    tables = model.tables
    inputs = GrowingInputs(tables, len(numbers), model.token_embedding.weight.device)
    for name, tokens in given.items():
        inputs.add_whole(name, tokens)
    for name, part in kept.items():
        add_partial(inputs, tables.spec(name), part)
    made: dict[str, Any] = {}
    for target in plan:
        noise = Noise(seed, numbers, target.name)
        part = (
            kept[target.name] if target.name in kept else empty_partial(tables.spec(target.name).layout, len(numbers))
        )
        assert target.guidance is not None
        steered = passes(target.guidance, target.name, inputs.names)
        if isinstance(part, list):
            made[target.name] = decode_sequence(model, inputs, target, noise, steered, part, advance)
            inputs.hide(target.name)  # the kept parts with their sentinels
            inputs.add_whole(target.name, made[target.name])
        else:
            made[target.name] = decode_grid(model, inputs, target, noise, steered, part, advance)
    return made


def plan_steps(model: FourM, plan: Sequence[TargetPlan]) -> int:
    """How many steps `generate` counts for a batch: those of grids, and for a sequence one a token at its longest."""
    resolved = [target.resolved(model.tables.spec(target.name)) for target in plan]
    grids = [target.name for target in resolved if not model.tables.causal[model.tables.index(target.name)]]
    return sum(target.steps if target.name in grids else target.max_length for target in resolved)


def _rows(tokens: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    return {name: rows_of(values, rows) for name, values in tokens.items()}


def _numbers(known: Mapping[str, Any], seed: int, samples: Sequence[int] | None) -> list[int]:
    """The samples' numbers."""
    if samples is None:
        if not known:
            raise ConfigError("generate: nothing is given, so `samples` has to say how many to make")
        samples = range(len(next(iter(known.values()))))
    if len(samples) == 0:
        raise ConfigError("generate: expected at least one sample")
    if min(seed, *samples) < 0:
        raise ConfigError(f"generate: expected seed and sample numbers from 0 on, got {min(seed, *samples)}")
    return list(samples)
