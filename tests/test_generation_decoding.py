"""Decoding against slow references without caches, and samples that do not depend on their batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from generation_samples import WORDS, draw_one, full_logits, given_tokens, only, sharp_model, whole_inputs

from zoo_backbone.generate import Guidance, TargetPlan, generate, sampler
from zoo_backbone.generate.sampling import CONFIDENCE, IDS, ORDER, Noise, temperatures, tokens_per_step
from zoo_backbone.model import FourM
from zoo_backbone.packing import EncoderInputs


@pytest.fixture(scope="module")
def model() -> FourM:
    return sharp_model()


@torch.inference_mode()
def slow_sequence(model: FourM, given: dict[str, Any], plan: TargetPlan, seed: int, sample: int) -> list[int]:
    """Decode each token from the whole stream so far, without a cache."""
    inputs = whole_inputs(model, given).packed()
    uniform = Noise(seed, [sample], plan.name).uniform(IDS, 0, 6)[0]
    start = model.layout.token_rows(plan.name).start
    made: list[int] = []
    while len(made) < 6:
        read = [start + token for token in [WORDS.sentinel_start, *made]]
        logits = full_logits(model, inputs, plan.name, read, range(len(read)))[-1]
        logits[WORDS.sentinel_start : WORDS.sentinel_start + WORDS.num_sentinels] = -torch.inf
        at = uniform[len(made)]
        token = int(draw_one(logits, at, plan.temperature, plan.top_k, plan.top_p, plan.filter_before_temperature))
        if token == WORDS.end:
            break
        made.append(token)
    return made


@pytest.mark.parametrize(("temperature", "early"), [(0.0, False), (1.0, False), (3.0, False), (3.0, True)])
def test_cached_decoding_equals_full_decoding(model: FourM, temperature: float, early: bool) -> None:
    given = given_tokens(12)
    del given["words"]
    plan = TargetPlan(name="words", temperature=temperature, top_p=0.95, filter_before_temperature=early)
    made = generate(model, given, [plan], seed=4)["words"]
    slow = [slow_sequence(model, only(given, i), plan, 4, i) for i in range(12)]
    assert [row.tolist() for row in made] == slow
    assert all(row.dtype == np.int64 for row in made)
    if temperature == 3:  # samples end at different lengths, so the batch became smaller on the way
        assert len({len(row) for row in made}) >= 2


@torch.inference_mode()
def slow_maskgit(model: FourM, given: dict[str, Any], plan: TargetPlan, seed: int, sample: int) -> torch.Tensor:
    """Run MaskGIT for one sample, cell by cell, and pack the input again at each step."""
    made: dict[int, int] = {}
    counts = tokens_per_step(9, plan.steps, plan.schedule)
    noise = Noise(seed, [sample], plan.name)
    for step, count in enumerate(counts):
        inputs = whole_inputs(model, given)
        if made:
            inputs.add(plan.name, torch.tensor([list(made.values())]), torch.tensor([list(made)]))
        left = [cell for cell in range(9) if cell not in made]
        logits = full_logits(model, inputs.packed(), plan.name, [-1] * len(left), left)
        uniform, gumbel = noise.uniform(IDS, step, 9)[0], noise.gumbel(CONFIDENCE, step, 9)[0]
        scored = []
        for row, cell in enumerate(left):
            token = int(draw_one(logits[row], uniform[cell], plan.temperature, plan.top_k, plan.top_p))
            noisy = plan.confidence_noise * (1 - step / len(counts)) * gumbel[cell]
            confidence = logits[row].log_softmax(0)[token] + noisy
            scored.append((-float(confidence), cell, token))
        made.update({cell: token for _, cell, token in sorted(scored)[:count]})
    return torch.tensor([made[cell] for cell in range(9)]).view(3, 3)


@pytest.mark.parametrize(
    "plan",
    [
        TargetPlan(name="right", steps=4, temperature=0),
        TargetPlan(name="right", steps=5, schedule="linear", top_k=4),
        TargetPlan(name="right", steps=9, confidence_noise=2.0),
    ],
)
def test_maskgit_equals_its_slow_twin(model: FourM, plan: TargetPlan) -> None:
    given = given_tokens(4)
    made = generate(model, given, [plan], seed=1)["right"]
    assert made.shape == (4, 3, 3)
    for i in range(4):
        assert torch.equal(made[i], slow_maskgit(model, only(given, i), plan, 1, i))


@torch.inference_mode()
def test_roar_decodes_its_random_order(model: FourM) -> None:
    given = given_tokens(1)
    plan = TargetPlan(name="right", scheme="roar", steps=3, schedule="linear", temperature=0)
    made = generate(model, given, [plan], seed=2)["right"].flatten()
    order = Noise(2, [0], "right").uniform(ORDER, 0, 9)[0].argsort().tolist()
    inputs = whole_inputs(model, given)
    for start in (0, 3, 6):
        cells = order[start : start + 3]
        ids = full_logits(model, inputs.packed(), "right", [-1] * 3, cells).argmax(1)
        assert made[cells].tolist() == ids.tolist()
        inputs.add("right", ids.unsqueeze(0), torch.tensor([cells]))


CHAIN = [
    TargetPlan(name="right", steps=3),
    TargetPlan(name="bag", scheme="roar", steps=2),
    TargetPlan(name="words", temperature=1.5),
]


def test_samples_do_not_depend_on_their_batch(model: FourM) -> None:
    given = given_tokens(8)
    del given["words"]
    batch = generate(model, given, CHAIN, seed=7, samples=range(10, 18))
    for i in range(8):
        alone = generate(model, only(given, i), CHAIN, seed=7, samples=[10 + i])
        assert torch.equal(batch["right"][i], alone["right"][0])
        assert torch.equal(batch["bag"][i], alone["bag"][0])
        assert batch["words"][i].tolist() == alone["words"][0].tolist()


def test_chain_feeds_finished_targets_to_the_next(model: FourM) -> None:
    given = given_tokens(5)
    del given["words"]
    chain = generate(model, given, CHAIN, seed=7)
    assert list(chain) == ["right", "bag", "words"]
    first = generate(model, given, CHAIN[:1], seed=7)
    assert torch.equal(chain["right"], first["right"])
    second = generate(model, {**given, **first}, CHAIN[1:2], seed=7)
    assert torch.equal(chain["bag"], second["bag"])
    third = generate(model, {**given, **first, **second}, CHAIN[2:], seed=7)
    assert [row.tolist() for row in chain["words"]] == [row.tolist() for row in third["words"]]
    words_first = generate(model, given, [CHAIN[2], CHAIN[0]], seed=7)
    again = generate(model, {**given, "words": words_first["words"]}, [CHAIN[0]], seed=7)
    assert torch.equal(words_first["right"], again["right"])


def test_seed_and_sample_number_change_the_draws(model: FourM) -> None:
    plan = [TargetPlan(name="right", temperature=2.0)]
    first = generate(model, {}, plan, seed=0, samples=[0, 1])["right"]
    assert torch.equal(first, generate(model, {}, plan, seed=0, samples=[0, 1])["right"])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, generate(model, {}, plan, seed=1, samples=[0, 1])["right"])


def test_sequences_hold_no_sentinels_and_keep_to_their_bound(model: FourM) -> None:
    plan = TargetPlan(name="words", temperature=50.0)
    made = generate(model, {}, [plan], seed=0, samples=range(64))["words"]
    ids = np.concatenate(made)
    assert not ((ids >= WORDS.sentinel_start) & (ids < WORDS.sentinel_start + WORDS.num_sentinels)).any()
    assert not (ids == WORDS.end).any()
    assert set(ids) > set(range(10, 20))
    assert max(len(row) for row in made) == 6
    short = generate(model, {}, [dataclasses.replace(plan, max_length=2)], seed=0, samples=range(64))["words"]
    assert [row.tolist() for row in short] == [row[:2].tolist() for row in made]


# --- other orders, temperatures, kept inputs


@torch.inference_mode()
def test_an_autoregressive_grid_is_row_by_row(model: FourM) -> None:
    given = given_tokens(1)
    plan = TargetPlan(name="right", scheme="autoregressive", temperature=0)
    made = generate(model, given, [plan], seed=2)["right"].flatten()
    inputs = whole_inputs(model, given)
    for cell in range(9):
        token = full_logits(model, inputs.packed(), "right", [-1], [cell]).argmax(1)
        assert int(made[cell]) == int(token)
        inputs.add("right", token.unsqueeze(0), torch.tensor([[cell]]))


@torch.inference_mode()
def test_temperature_schedule_is_applied_at_each_step(model: FourM) -> None:
    given, counts = given_tokens(1), [3, 3, 3]
    even = TargetPlan(name="right", scheme="roar", steps=3, schedule="linear", temperature=5.0)
    plan = dataclasses.replace(even, temperature_schedule="linear", final_temperature=0.1)
    made = generate(model, given, [plan], seed=6)["right"].flatten()
    noise = Noise(6, [0], "right")
    order = noise.uniform(ORDER, 0, 9)[0].argsort().tolist()
    inputs = whole_inputs(model, given)
    for step, temperature in enumerate(temperatures(counts, 5.0, 0.1, "linear")):
        cells = order[3 * step : 3 * step + 3]
        logits = full_logits(model, inputs.packed(), "right", [-1] * 3, cells)
        ids = draw_one(logits, noise.uniform(IDS, step, 9)[0, cells], temperature, 0, 1.0)
        assert made[cells].tolist() == ids.tolist()
        inputs.add("right", ids.unsqueeze(0), torch.tensor([cells]))
    assert made.tolist() != generate(model, given, [even], 6)["right"].flatten().tolist()


GUIDED = [
    TargetPlan(name="bag", scheme="autoregressive", guidance=Guidance(scale=2.0)),
    TargetPlan(name="words", temperature=1.5, guidance=Guidance(weights={"left": 2.0, "bag": -0.5})),
    TargetPlan(name="right", steps=3, guidance=Guidance(weights={"words": 3.0, "left": 0.5})),
]


def test_guided_samples_do_not_depend_on_their_batch(model: FourM) -> None:
    """A sample with an empty sequence sees the same empty slot alone and in a batch with longer sequences."""
    given = given_tokens(6)
    del given["words"]
    batch = generate(model, given, GUIDED, seed=7, samples=range(10, 16))
    for i in range(6):
        alone = generate(model, only(given, i), GUIDED, seed=7, samples=[10 + i])
        for name in ("bag", "right", "words"):
            assert batch[name][i].tolist() == alone[name][0].tolist(), name
    texts = {"words": [np.array([9, 8, 7]), np.array([], np.int64)]}
    plan = [TargetPlan(name="right", temperature=4.0)]
    pair = generate(model, texts, plan, seed=0, samples=[1, 1])["right"]
    empty = generate(model, only(texts, 1), plan, seed=0, samples=[1])["right"]
    none = generate(model, {}, plan, seed=0, samples=[1])["right"]
    assert torch.equal(pair[1], empty[0]) and torch.equal(empty, none) and not torch.equal(pair[0], pair[1])


@pytest.mark.parametrize("early", [False, True])
def test_cells_are_ranked_by_model_or_filtered_probabilities(
    model: FourM, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """The top id is less likely in the first cell than in others, but it is alone in the nucleus of every cell."""
    logits = torch.full((1, 9, 11), -20.0)
    logits[:, :, 0], logits[:, :, 1] = 1.0, 0.5
    logits[:, 0, 1:3] = 0.8

    def of_cells(*arguments: Any) -> torch.Tensor:
        return logits.gather(1, arguments[3].unsqueeze(2).expand(-1, -1, 11))

    monkeypatch.setattr(sampler, "target_logits", of_cells)
    decided: list[int] = []
    monkeypatch.setattr(EncoderInputs, "add", lambda inputs, name, ids, cells: decided.append(int(cells[0, 0])))
    plan = TargetPlan(name="right", steps=9, schedule="linear", top_p=0.3, filter_before_temperature=early)
    generate(model, {}, [plan], 0, [0])
    assert decided == (list(range(9)) if early else [*range(1, 9), 0])
