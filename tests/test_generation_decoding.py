"""Decoding, guidance and several draws, against slow references without caches, shared work or batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from generation_samples import WORDS, draw_one, full_logits, only, random_inputs, sharp_model, whole_inputs

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.generate import Guidance, TargetPlan, generate, sampler
from zoo_backbone.generate.sampler import rows_of
from zoo_backbone.generate.sampling import (
    CONFIDENCE,
    IDS,
    ORDER,
    Noise,
    Passes,
    temperatures,
    tempered,
    tokens_per_step,
)
from zoo_backbone.generate.schemes import SCHEMES, Scheme
from zoo_backbone.model.batch import PackedInputs
from zoo_backbone.model.fourm import Context, FourM

GuidancePasses = Sequence[tuple[float, Sequence[str]]]
"""The passes of a guidance: the weight of their logits, and the inputs that they see."""
BOTH = ("left", "vectors")
GUIDANCES: list[tuple[Guidance, GuidancePasses]] = [
    (Guidance(scale=3), [(-2, ()), (3, BOTH)]),
    (Guidance(scale=-1, always=("vectors",)), [(2, ("vectors",)), (-1, BOTH)]),
    (Guidance(weights={"left": 2.0, "vectors": 0.5}), [(-1.5, ()), (2, ("left",)), (0.5, ("vectors",))]),
]


@pytest.fixture(scope="module")
def model() -> FourM:
    return sharp_model()


def both_inputs(samples: int) -> dict[str, Any]:
    input_tokens = random_inputs(samples)
    return {name: input_tokens[name] for name in BOTH}


# --- slow references


@torch.inference_mode()
def slow_sequence(
    model: FourM, input_tokens: dict[str, Any], plan: TargetPlan, passes: GuidancePasses, seed: int, sample: int
) -> list[int]:
    """Decode each token of each pass from the whole stream so far, without a cache."""
    packed = [(weight, whole_inputs(model, input_tokens, names).packed()) for weight, names in passes]
    uniform = Noise(seed, [sample], plan.name).uniform(IDS, 0, 6)[0]
    start = model.layout.token_rows(plan.name).start
    tokens: list[int] = []
    while len(tokens) < 6:
        read = [start + token for token in [WORDS.sentinel_start, *tokens]]
        logits = torch.zeros(20)
        for weight, inputs in packed:
            logits += weight * full_logits(model, inputs, plan.name, read, range(len(read)))[-1]
        logits[WORDS.sentinel_start : WORDS.sentinel_start + WORDS.num_sentinels] = -torch.inf
        draw = uniform[len(tokens)]
        token = int(draw_one(logits, draw, plan.temperature, plan.top_k, plan.top_p, plan.filter_before_temperature))
        if token == WORDS.end:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize(
    ("plan", "passes"),
    [
        *((TargetPlan(name="words", temperature=temperature, top_p=0.95, filter_before_temperature=early), [(1, BOTH)])
          for temperature, early in ((0.0, False), (1.0, False), (3.0, False), (3.0, True))),
        *((TargetPlan(name="words", temperature=8.0, top_p=1, guidance=guidance), passes)
          for guidance, passes in GUIDANCES),
    ],
)  # fmt: skip
def test_sequences_equal_their_slow_twin(model: FourM, plan: TargetPlan, passes: GuidancePasses) -> None:
    input_tokens = both_inputs(12)
    rows = generate(model, input_tokens, [plan], seed=4)["words"]
    slow = [slow_sequence(model, only(input_tokens, i), plan, passes, 4, i) for i in range(12)]
    assert [row.tolist() for row in rows] == slow
    assert all(row.dtype == np.int64 for row in rows)
    if plan.temperature == 3 or len(passes) == 3:  # samples end at different lengths, so the batch shrinks
        assert len({len(row) for row in rows}) >= 2


@torch.inference_mode()
def slow_maskgit(
    model: FourM, input_tokens: dict[str, Any], plan: TargetPlan, passes: GuidancePasses, seed: int, sample: int
) -> torch.Tensor:
    """Run MaskGIT for one sample, cell by cell, and pack the inputs again at each step."""
    tokens_by_cell: dict[int, int] = {}
    counts = tokens_per_step(9, plan.steps, plan.schedule)
    noise = Noise(seed, [sample], plan.name)
    filters = plan.temperature, plan.top_k, plan.top_p, plan.filter_before_temperature
    for step, count in enumerate(counts):
        undecided = [cell for cell in range(9) if cell not in tokens_by_cell]
        logits = torch.zeros(len(undecided), 11)
        for weight, names in passes:
            inputs = whole_inputs(model, input_tokens, names)
            if tokens_by_cell:
                inputs.add(
                    plan.name, torch.tensor([list(tokens_by_cell.values())]), torch.tensor([list(tokens_by_cell)])
                )
            logits += weight * full_logits(model, inputs.packed(), plan.name, [-1] * len(undecided), undecided)
        uniform, gumbel = noise.uniform(IDS, step, 9)[0], noise.gumbel(CONFIDENCE, step, 9)[0]
        scored = []
        for row, cell in enumerate(undecided):
            token = int(draw_one(logits[row], uniform[cell], *filters))
            noisy = plan.confidence_noise * (1 - step / len(counts)) * gumbel[cell]
            ranked = tempered(logits[row], *filters) if plan.filter_before_temperature else logits[row]
            scored.append((-float(ranked.log_softmax(0)[token] + noisy), cell, token))
        tokens_by_cell.update({cell: token for _, cell, token in sorted(scored)[:count]})
    return torch.tensor([tokens_by_cell[cell] for cell in range(9)]).view(3, 3)


@pytest.mark.parametrize(
    ("plan", "passes"),
    [
        (TargetPlan(name="right", steps=4, temperature=0), [(1, BOTH)]),
        (TargetPlan(name="right", steps=5, schedule="linear", top_k=4), [(1, BOTH)]),
        (TargetPlan(name="right", steps=9, confidence_noise=2.0), [(1, BOTH)]),
        (TargetPlan(name="right", steps=9, temperature=5.0, top_p=0.6, filter_before_temperature=True), [(1, BOTH)]),
        *((TargetPlan(name="right", steps=4, guidance=guidance), passes) for guidance, passes in GUIDANCES),
    ],
)
def test_maskgit_equals_its_slow_twin(model: FourM, plan: TargetPlan, passes: GuidancePasses) -> None:
    input_tokens = both_inputs(4)
    grids = generate(model, input_tokens, [plan], seed=1)["right"]
    assert grids.shape == (4, 3, 3)
    for i in range(4):
        assert torch.equal(grids[i], slow_maskgit(model, only(input_tokens, i), plan, passes, 1, i))


ROAR = TargetPlan(name="right", scheme="roar", steps=3, schedule="linear", temperature=0)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("plan", "counts"),
    [
        (TargetPlan(name="right", scheme="autoregressive", temperature=0), [1] * 9),
        (ROAR, [3] * 3),
        (dataclasses.replace(ROAR, temperature=5.0, temperature_schedule="linear", final_temperature=0.1), [3] * 3),
    ],
)
def test_cells_in_a_fixed_order_equal_their_slow_twin(model: FourM, plan: TargetPlan, counts: list[int]) -> None:
    """Row by row, or in a random order; each step has its temperature."""
    input_tokens, noise = random_inputs(1), Noise(2, [0], "right")
    tokens = generate(model, input_tokens, [plan], seed=2)["right"].flatten()
    order = noise.uniform(ORDER, 0, 9)[0].argsort() if plan.scheme == "roar" else torch.arange(9)
    heat = temperatures(counts, plan.temperature, plan.final_temperature, plan.temperature_schedule)
    inputs = whole_inputs(model, input_tokens)
    for step, cells in enumerate(order.split(counts)):
        logits = full_logits(model, inputs.packed(), "right", [-1] * len(cells), cells.tolist())
        ids = draw_one(logits, noise.uniform(IDS, step, 9)[0, cells], heat[step], 0, 1.0)
        assert tokens[cells].tolist() == ids.tolist()
        inputs.add("right", ids.unsqueeze(0), cells.unsqueeze(0))


class LeastConfident(Scheme):
    """The least confident of the last three open cells."""

    def next_cells(self, count: int) -> torch.Tensor:
        return self.open_cells[:, -3:]

    def commit(self, cells: torch.Tensor, ids: torch.Tensor, count: int, confidences: Any) -> Any:
        decided = confidences().argsort(dim=1)[:, :count]
        cells, ids = cells.gather(1, decided), ids.gather(1, decided)
        is_open = (self.open_cells.unsqueeze(2) != cells.unsqueeze(1)).all(dim=2)
        self.open_cells = self.open_cells[is_open].view(len(cells), -1)
        return cells, ids


def test_another_order_is_one_class(model: FourM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"scheme: expected .*maskgit.* got least-confident"):
        TargetPlan(name="right", scheme="least-confident")
    monkeypatch.setitem(SCHEMES, "least-confident", LeastConfident)
    plan = TargetPlan(name="right", scheme="least-confident", steps=9, temperature=2.0)
    decided: list[torch.Tensor] = []
    generated = generate(
        model, both_inputs(4), [plan], seed=1, draws=2, samples=range(8),
        on_step=lambda _, tokens: decided.append(tokens.flatten(1) >= 0),
    )["right"]  # fmt: skip
    assert generated.min() >= 0 and torch.stack(decided).sum(2).tolist() == [[step] * 8 for step in range(1, 10)]
    for step, cells in enumerate(decided):
        assert not cells[:, : max(9 - 3 - step, 0)].any(), "only the last three open cells are drawn"
    assert len({str(cells.tolist()) for cells in decided[0]}) > 1, "the order depends on the confidences"


# --- chains and batches


CHAIN = [
    TargetPlan(name="right", steps=3),
    TargetPlan(name="bag", scheme="roar", steps=2),
    TargetPlan(name="words", temperature=1.5),
]
GUIDED = [
    TargetPlan(name="bag", scheme="autoregressive", guidance=Guidance(scale=2.0)),
    TargetPlan(name="words", temperature=1.5, guidance=Guidance(weights={"left": 2.0, "bag": -0.5})),
    TargetPlan(name="right", steps=3, guidance=Guidance(weights={"words": 3.0, "left": 0.5})),
]


@pytest.mark.parametrize("plan", [CHAIN, GUIDED], ids=["chain", "guided"])
def test_samples_do_not_depend_on_their_batch(model: FourM, plan: list[TargetPlan]) -> None:
    input_tokens = random_inputs(8)
    del input_tokens["words"]
    batch = generate(model, input_tokens, plan, seed=7, samples=range(10, 18))
    for i in range(8):
        alone = generate(model, only(input_tokens, i), plan, seed=7, samples=[10 + i])
        for name in ("bag", "right", "words"):
            assert batch[name][i].tolist() == alone[name][0].tolist(), name


def test_an_empty_sequence_is_no_input(model: FourM) -> None:
    """A sample with an empty sequence sees the same empty slot alone and in a batch with longer sequences."""
    texts = {"words": [np.array([9, 8, 7]), np.array([], np.int64)]}
    plan = [TargetPlan(name="right", temperature=4.0)]
    pair = generate(model, texts, plan, seed=0, samples=[1, 1])["right"]
    empty = generate(model, only(texts, 1), plan, seed=0, samples=[1])["right"]
    unconditional = generate(model, {}, plan, seed=0, samples=[1])["right"]
    assert torch.equal(pair[1], empty[0]) and torch.equal(empty, unconditional) and not torch.equal(pair[0], pair[1])


def test_chain_feeds_finished_targets_to_the_next(model: FourM) -> None:
    input_tokens = random_inputs(5)
    del input_tokens["words"]
    chain = generate(model, input_tokens, CHAIN, seed=7)
    assert list(chain) == ["right", "bag", "words"]
    first = generate(model, input_tokens, CHAIN[:1], seed=7)
    assert torch.equal(chain["right"], first["right"])
    second = generate(model, {**input_tokens, **first}, CHAIN[1:2], seed=7)
    assert torch.equal(chain["bag"], second["bag"])
    third = generate(model, {**input_tokens, **first, **second}, CHAIN[2:], seed=7)
    assert [row.tolist() for row in chain["words"]] == [row.tolist() for row in third["words"]]
    words_first = generate(model, input_tokens, [CHAIN[2], CHAIN[0]], seed=7)
    separate = generate(model, {**input_tokens, "words": words_first["words"]}, [CHAIN[0]], seed=7)
    assert torch.equal(words_first["right"], separate["right"])


def test_sequences_hold_no_sentinels_and_keep_to_their_bound(model: FourM) -> None:
    plan = TargetPlan(name="words", temperature=50.0)
    rows = generate(model, {}, [plan], seed=0, samples=range(64))["words"]
    ids = np.concatenate(rows)
    assert not ((ids >= WORDS.sentinel_start) & (ids < WORDS.sentinel_start + WORDS.num_sentinels)).any()
    assert not (ids == WORDS.end).any()
    assert set(ids) > set(range(10, 20))
    assert max(len(row) for row in rows) == 6
    short = generate(model, {}, [dataclasses.replace(plan, max_length=2)], seed=0, samples=range(64))["words"]
    assert [row.tolist() for row in short] == [row[:2].tolist() for row in rows]


# --- guidance


def as_sets(passes: Passes) -> list[tuple[set[str], float]]:
    return [(set(hidden), weight) for hidden, weight in zip(passes.hidden, passes.weights, strict=True)]


def test_passes_by_hand() -> None:
    modalities = ("left", "vectors", "bag")
    everything = set(modalities)
    assert as_sets(Passes.of(Guidance(), "right", modalities)) == [(set(), 1)]
    assert as_sets(Passes.of(Guidance(scale=3), "right", modalities)) == [(everything, -2), (set(), 3)]
    assert as_sets(Passes.of(Guidance(scale=0), "right", modalities)) == [(everything, 1)]
    always = Guidance(scale=3, always=("bag",))
    assert as_sets(Passes.of(always, "right", modalities)) == [({"left", "vectors"}, -2), (set(), 3)]
    weights = Guidance(weights={"left": 2.0, "bag": -0.5})
    assert as_sets(Passes.of(weights, "right", modalities)) == [({"left", "bag"}, -0.5), ({"bag"}, 2), ({"left"}, -0.5)]
    # A weight of 0 hides a condition from all passes; a single condition of weight 1 needs only the pass that sees it.
    assert as_sets(Passes.of(Guidance(weights={"left": 1.0, "bag": 0.0}), "right", modalities)) == [({"bag"}, 1)]
    # The target's own tokens are never hidden, and without any condition there is no guidance.
    assert as_sets(Passes.of(Guidance(scale=3), "bag", modalities)) == [({"left", "vectors"}, -2), (set(), 3)]
    assert as_sets(Passes.of(Guidance(scale=3), "bag", ["bag"])) == [(set(), 1)]


def test_passes_are_not_padded_and_draws_share_their_context(model: FourM, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    context = model.context

    def counted(inputs: PackedInputs) -> Context:
        assert inputs.mask.all()
        shapes.append(tuple(inputs.mask.shape))
        return context(inputs)

    monkeypatch.setattr(model, "context", counted)
    input_tokens, guidance = random_inputs(2), Guidance(weights={"left": 2.0})
    input_tokens = {name: input_tokens[name] for name in ("left", "pixels")}
    generate(model, input_tokens, [TargetPlan(name="words", guidance=guidance)], seed=0, draws=3)
    assert shapes == [(2, 4), (2, 10)], "a sequence is encoded once"
    shapes.clear()
    generate(model, input_tokens, [dataclasses.replace(ROAR, guidance=guidance)], seed=0, draws=3)
    assert shapes == [(2, 4), (2, 10), (6, 7), (6, 13), (6, 10), (6, 16)], "a grid at each step"


# --- several draws of a sample


DRAWS = 3
WEIGHED = Guidance(weights={"left": 2.0, "vectors": -0.5})
GRIDS = torch.arange(54).reshape(6, 3, 3) % 11
GRIDS[:, 1] = GRIDS[2:, 2] = -1
GAPS = [np.array(row) for row in ([7, -1], [-1, 9, -1], [-1], [8, -1, 8], [-1, 6], [-1])]
ROOM = [np.array([*range(10, 10 + length), -1]) for length in (5, 2, 4, 1, 3, 0)]
PLANS: dict[str, tuple[list[TargetPlan], dict[str, Any]]] = {
    "one step": ([TargetPlan(name="right", steps=1)], {}),
    "maskgit": ([TargetPlan(name="right", steps=4, temperature=4.0, guidance=WEIGHED)], {}),
    "roar": ([TargetPlan(name="right", steps=4, temperature=4.0, scheme="roar", guidance=WEIGHED)], {}),
    "autoregressive": ([TargetPlan(name="right", scheme="autoregressive")], {}),
    "sequence": ([TargetPlan(name="words", temperature=3.0, guidance=WEIGHED)], {}),
    "sequence, then grid": ([TargetPlan(name="words", temperature=3.0), TargetPlan(name="right", steps=2)], {}),
    "grid, then sequence": ([TargetPlan(name="bag", steps=2), TargetPlan(name="words", temperature=3.0)], {}),
    "partial targets of several sizes": (
        [TargetPlan(name="words", temperature=3.0), TargetPlan(name="right", steps=3)], {"right": GRIDS, "words": GAPS}
    ),
    "room for 1 to 6 tokens: the batch is halved twice": ([TargetPlan(name="words", temperature=8.0)], {"words": ROOM}),
}  # fmt: skip


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "copied"])
@pytest.mark.parametrize(("plan", "partial"), PLANS.values(), ids=PLANS)
def test_draws_equal_repeated_samples(
    model: FourM, plan: list[TargetPlan], partial: dict[str, Any], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws of a sample share attention keys on the CPU, and have copies on a GPU."""
    monkeypatch.setattr(sampler, "shares_keys", lambda device: shared)
    input_tokens, rows = random_inputs(6), [row // DRAWS for row in range(6 * DRAWS)]
    input_tokens = {name: input_tokens[name] for name in ("left", "pixels", "vectors")}
    repeated, repeated_partial = (
        {name: rows_of(tokens, rows) for name, tokens in part.items()} for part in (input_tokens, partial)
    )
    numbers = [7 * row for row in range(6 * DRAWS)]
    generated = generate(model, input_tokens, plan, 5, numbers, partial=partial, draws=DRAWS)
    alone = generate(model, repeated, plan, 5, numbers, partial=repeated_partial)
    for name, draw_rows in generated.items():
        ids = [row.tolist() for row in draw_rows]
        assert ids == [row.tolist() for row in alone[name]]
        assert partial or all(len(set(map(str, ids[start : start + DRAWS]))) > 1 for start in range(0, len(ids), DRAWS))
