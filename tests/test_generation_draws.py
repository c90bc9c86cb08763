"""Several draws of a sample: each equals a single draw, whether or not draws share their context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from generation_samples import given_tokens, sharp_model

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.config import ModelConfig
from zoo_backbone.generate import Guidance, TargetPlan, generate, sampler
from zoo_backbone.generate.sampler import rows_of
from zoo_backbone.model import Context, FourM
from zoo_backbone.transformer import CrossAttention

DRAWS = 3
WEIGHED = Guidance(weights={"left": 2.0, "vectors": -0.5})
PLANS: dict[str, list[TargetPlan]] = {
    "one step": [TargetPlan(name="right", steps=1)],
    "maskgit": [TargetPlan(name="right", steps=4, temperature=4.0, guidance=WEIGHED)],
    "roar": [TargetPlan(name="right", steps=4, temperature=4.0, scheme="roar", guidance=WEIGHED)],
    "autoregressive": [TargetPlan(name="right", scheme="autoregressive")],
    "sequence": [TargetPlan(name="words", temperature=3.0, guidance=WEIGHED)],
    "sequence, then grid": [TargetPlan(name="words", temperature=3.0), TargetPlan(name="right", steps=2)],
    "grid, then sequence": [TargetPlan(name="bag", steps=2), TargetPlan(name="words", temperature=3.0)],
}


@pytest.fixture(scope="module")
def model() -> FourM:
    return sharp_model()


def given(samples: int) -> dict[str, Any]:
    tokens = given_tokens(samples)
    return {name: tokens[name] for name in ("left", "pixels", "vectors")}


def listed(made: dict[str, Any]) -> dict[str, list[list[int]]]:
    return {name: [row.flatten().tolist() for row in rows] for name, rows in made.items()}


@pytest.fixture(params=[True, False], ids=["shared", "copied"])
def keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether draws of a sample share attention keys, as on the CPU, or have copies, as on a GPU."""
    monkeypatch.setattr(sampler, "shares_keys", lambda device: request.param)


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_draws_equal_repeated_samples(model: FourM, plan: list[TargetPlan]) -> None:
    tokens = given(4)
    repeated = {name: rows_of(rows, [row // DRAWS for row in range(4 * DRAWS)]) for name, rows in tokens.items()}
    numbers = [7 * row for row in range(4 * DRAWS)]
    made = listed(generate(model, tokens, plan, 5, numbers, draws=DRAWS))
    assert made == listed(generate(model, repeated, plan, 5, numbers))
    for rows in made.values():
        assert all(len({tuple(row) for row in rows[at : at + DRAWS]}) > 1 for at in range(0, len(rows), DRAWS))


def test_partial_targets_of_different_sizes_have_several_draws(model: FourM) -> None:
    right = torch.arange(36).reshape(4, 3, 3) % 11
    right[:, 1] = -1
    right[2:, 2] = -1
    words = [np.array(row) for row in ([7, -1], [-1, 9, -1], [-1], [8, -1, 8])]
    plan = [TargetPlan(name="words", temperature=3.0), TargetPlan(name="right", steps=3)]
    kept = {"right": right, "words": words}
    made = generate(model, given(4), plan, 5, partial=kept, draws=DRAWS)
    rows = [row // DRAWS for row in range(4 * DRAWS)]
    repeated = {name: rows_of(tokens, rows) for name, tokens in given(4).items()}
    alone = generate(model, repeated, plan, 5, partial={name: rows_of(part, rows) for name, part in kept.items()})
    assert listed(made) == listed(alone)
    assert (made["right"][:, 0] == right[rows, 0]).all()


def test_draws_keep_to_their_sample_when_the_batch_is_cut(model: FourM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples have room for 1 to 6 tokens, so the batch is halved twice."""
    tokens, select, cuts = given(6), Context.select, list[int]()
    monkeypatch.setattr(Context, "select", lambda self, rows: cuts.append(len(rows)) or select(self, rows))
    plan = [TargetPlan(name="words", temperature=8.0)]
    kept = [np.array([*range(10, 10 + length), -1]) for length in (5, 2, 4, 1, 3, 0)]
    made = listed(generate(model, tokens, plan, 5, partial={"words": kept}, draws=DRAWS))
    assert len(cuts) == 2
    rows = [row // DRAWS for row in range(6 * DRAWS)]
    repeated = {name: rows_of(values, rows) for name, values in tokens.items()}
    assert made == listed(generate(model, repeated, plan, 5, partial={"words": rows_of(kept, rows)}))


def test_partial_targets_of_one_size_may_keep_different_cells(model: FourM) -> None:
    right = torch.arange(36).reshape(4, 3, 3) % 11
    right[:2, 1] = -1
    right[2:, :, 2] = -1
    plan = [TargetPlan(name="right", steps=2, temperature=4.0)]
    made = generate(model, given(4), plan, 5, partial={"right": right})["right"]
    for i in range(4):
        alone = {name: rows[i : i + 1] for name, rows in given(4).items()}
        assert torch.equal(
            made[i], generate(model, alone, plan, 5, [i], partial={"right": right[i : i + 1]})["right"][0]
        )


@pytest.mark.parametrize("used", [None, 0.5])
def test_shared_context_equals_copied_context(used: float | None) -> None:
    torch.manual_seed(0)
    attention = CrossAttention(ModelConfig(dim=48, heads=4))
    keys_and_values = attention.keys_and_values(torch.randn(4, 30, 48), None)
    mask = None if used is None else (torch.rand(4, 1, 1, 30) < used) | (torch.arange(30) == 0)
    for targets in (1, 6):
        x = torch.randn(4 * DRAWS, targets, 48)
        copies = [None if part is None else part.repeat_interleave(DRAWS, 0) for part in (*keys_and_values, mask)]
        assert torch.equal(attention(x, None, [(*keys_and_values, mask)]), attention(x, None, [copies]))


def test_draws_need_a_number_each(model: FourM) -> None:
    plan = [TargetPlan(name="right")]
    with pytest.raises(ConfigError, match="draws 0"):
        generate(model, given(2), plan, 0, draws=0)
    with pytest.raises(ConfigError, match="draws 3, 4 numbers"):
        generate(model, given(2), plan, 0, range(4), draws=3)
