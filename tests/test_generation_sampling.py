"""Schedules, temperatures and draws against hand-computed values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from generation_samples import draw_one

from zoo_backbone.generate.sampling import (
    CONFIDENCE,
    IDS,
    ORDER,
    Noise,
    draw,
    filtered,
    rising,
    temperatures,
    tokens_per_step,
)


def test_schedules_by_hand() -> None:
    # masked after steps 1-4 of 16: cosine floor(16 cos(22.5, 45, 67.5, 90 degrees)) = 14, 11, 6, 0;
    # s-curve floor(8 (1 + cos(45, 90, 135, 180 degrees))) = 13, 8, 2, 0
    assert tokens_per_step(16, 4, "cosine") == [2, 3, 5, 6] and tokens_per_step(16, 4, "s-curve") == [3, 5, 6, 2]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("count", "steps"), [(1, 1), (1, 8), (5, 5), (5, 4), (49, 12), (196, 50), (7, 100)])
def test_every_step_decides_something(count: int, steps: int, schedule: Any) -> None:
    counts = tokens_per_step(count, steps, schedule)
    assert sum(counts) == count
    assert min(counts) >= 1
    assert len(counts) == min(count, steps)


def log(*shares: float) -> torch.Tensor:
    return torch.tensor(shares).log()


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (2, 1.0, [1, 3]), (0, 1.0, [0, 1, 2, 3]), (9, 1.0, [0, 1, 2, 3]),
        (0, 0.35, [1]), (0, 0.6, [1, 3]), (0, 0.75, [1, 2, 3]), (0, 0.95, [0, 1, 2, 3]),
        (2, 0.5, [1]),  # after top-k 2 the shares are 4/7 and 3/7
    ],
)  # fmt: skip
def test_top_k_keeps_the_likeliest_and_top_p_the_smallest_set(top_k: int, top_p: float, kept: list[int]) -> None:
    logits = filtered(log(0.1, 0.4, 0.2, 0.3), top_k, top_p)
    assert torch.isfinite(logits).nonzero().flatten().tolist() == kept


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = log(0.25, 0.5, 0.25).expand(5, 3)
    uniform = torch.tensor([0.0, 0.2, 0.3, 0.7, 0.99])
    assert draw_one(logits, uniform, 1.0, 0, 1.0).tolist() == [0, 0, 1, 1, 2]
    for cold in (0.0, 1e-45, 1e-12):
        assert draw_one(logits, uniform, cold, 0, 1.0).tolist() == [1] * 5
    # At temperature 1/2 the shares are 1/6, 4/6, 1/6.
    assert draw_one(logits, torch.tensor([0.1, 0.18, 0.5, 0.82, 0.85]), 0.5, 0, 1.0).tolist() == [0, 1, 1, 1, 2]


def test_draw_never_returns_an_id_of_probability_0() -> None:
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf, 2.0, -torch.inf]).expand(1000, 6)
    uniform = torch.cat([torch.linspace(0, 1, 998), torch.tensor([0.0, 1 - 2**-24])])
    assert set(draw_one(logits, uniform, 1.0, 0, 1.0).tolist()) == {1, 2, 4}
    assert set(draw_one(logits, uniform, 1.0, 2, 1.0).tolist()) == {2, 4}


def test_parallel_cumulative_sums_never_return_an_id_of_probability_0() -> None:
    """Cumulative sums may fall by a rounding error, or rise at an id of probability 0."""
    shares = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.0, 0.0, 0.25, 0.0]])
    sums = torch.tensor([[0.0, 0.5, 0.5 + 1e-6, 0.75 + 1e-6, 0.75, 0.75 + 2e-6, 1.0, 1.0 + 1e-6]])
    expected = torch.tensor([[0.0, 0.5, 0.5, 0.75 + 1e-6, 0.75 + 1e-6, 0.75 + 1e-6, 1.0, 1.0]])
    assert torch.equal(rising(sums, shares), expected)
    exact = log(*(i % 7 / 99 for i in range(500))).softmax(dim=-1)
    assert torch.equal(rising(exact.cumsum(dim=-1), exact), exact.cumsum(dim=-1)), "as the CPU adds them"


def test_draw_has_the_frequencies_of_the_distribution() -> None:
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    uniform = Noise(0, [0], "x").uniform(IDS, 0, 20000)[0]
    counts = torch.bincount(draw_one(shares.log().expand(20000, 4), uniform, 1.0, 0, 1.0), minlength=4) / 20000
    assert torch.allclose(counts, shares, atol=0.015)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "filter_first"),
    [(0.7, 0, 1.0, False), (0.0, 0, 1.0, False), (1.0, 5, 1.0, False), (1.0, 0, 0.8, False), (3.0, 9, 0.5, True)],
)
def test_several_draws_of_a_row_equal_draws_of_its_copies(
    temperature: float, top_k: int, top_p: float, filter_first: bool
) -> None:
    torch.manual_seed(0)
    logits, uniform = 3 * torch.randn(4, 5, 50), torch.rand(4, 5, 16)
    logits[torch.rand_like(logits) < 0.3] = -torch.inf
    copies = logits.unsqueeze(2).repeat(1, 1, 16, 1)
    several = draw(logits, uniform, temperature, top_k, top_p, filter_first)
    assert torch.equal(several, draw_one(copies, uniform, temperature, top_k, top_p, filter_first))
    if temperature:
        assert len(several[0, 0].unique()) > 1


def test_noise_belongs_to_the_sample() -> None:
    batch, alone = Noise(3, [0, 5, 9], "x"), Noise(3, [5], "x")
    assert torch.equal(batch.uniform(IDS, 2, 10)[1], alone.uniform(IDS, 2, 10)[0])
    first = alone.uniform(IDS, 2, 10)
    others = [
        alone.uniform(IDS, 3, 10), alone.uniform(ORDER, 2, 10), alone.uniform(CONFIDENCE, 2, 10),
        Noise(4, [5], "x").uniform(IDS, 2, 10), Noise(3, [6], "x").uniform(IDS, 2, 10),
        Noise(3, [5], "y").uniform(IDS, 2, 10),
    ]  # fmt: skip
    assert all(not torch.equal(first, other) for other in others)


def test_gumbel_moments() -> None:
    gumbel = Noise(0, [0], "x").gumbel(CONFIDENCE, 0, 50000)
    assert torch.isfinite(gumbel).all()
    assert gumbel.mean().item() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert gumbel.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


def test_temperatures_by_hand() -> None:
    counts = [2, 3, 5, 6]
    assert temperatures(counts, 3.0, 0.5, "constant") == [3.0] * 4
    assert temperatures(counts, 4.0, 1.0, "linear") == [4.0, 3.0, 2.0, 1.0]
    assert temperatures(counts, 3.0, 0.0, "linear")[-1] == 0
    assert temperatures([9], 4.0, 1.0, "linear") == [4.0]
    # 16 points from 1 to 100 are 6.6 apart: 1, 7.6, 14.2, 20.8; 1/sqrt of them, from 0.1 to 1 scaled to 0 to 1.
    curve = [(x**-0.5 - 0.1) / 0.9 for x in (1, 7.6, 14.2, 20.8)]
    left = [14 / 16, 11 / 16, 6 / 16, 0]
    wanted = [0.5 + 5.5 * a * b for a, b in zip(left, curve, strict=True)]
    assert temperatures(counts, 6.0, 0.5, "inverse") == pytest.approx(wanted)


def test_the_filter_comes_before_or_after_the_temperature() -> None:
    """At temperature 10 the shares 0.7, 0.2, 0.1 become about 0.37, 0.33, 0.30: top_p 0.65 keeps one or two."""
    logits, uniform = log(0.7, 0.2, 0.1).expand(200, 3), torch.linspace(0, 0.999, 200)
    assert set(draw_one(logits, uniform, 10.0, 0, 0.65).tolist()) == {0, 1}
    assert set(draw_one(logits, uniform, 10.0, 0, 0.65, filter_first=True).tolist()) == {0}
    both = draw_one(logits, uniform, 10.0, 2, 1.0), draw_one(logits, uniform, 10.0, 2, 1.0, filter_first=True)
    assert torch.equal(*both)  # the two most likely ids remain the two most likely
