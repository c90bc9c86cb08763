"""Generation against hand-computed values, slow twins, and a mapping that a tiny model can learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from backbone.batch import PackedBatch, PackedInputs, PackedTargets, RawBatch
from backbone.config import MaskingConfig, Mixture, ModelConfig
from backbone.generation import TargetPlan, generate
from backbone.generation.inputs import GrowingInputs
from backbone.generation.sampler import target_logits
from backbone.generation.sampling import CONFIDENCE, IDS, ORDER, Noise, draw, filtered
from backbone.generation.schedules import tokens_per_step
from backbone.masking import Masker
from backbone.model import FourM
from tokenizers_zoo.errors import ConfigError, InvalidValueError, UnknownNameError
from tokenizers_zoo.modality import (
    EmbeddingsLayout,
    GridLayout,
    ModalitySpec,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    ValueSpec,
    VectorLayout,
)

CONFIG = ModelConfig(dim=32, encoder_depth=2, decoder_depth=2, heads=2)
WORDS = SequenceLayout(max_length=6, end=1, sentinel_start=2, num_sentinels=4)


def spec(name: str, layout: TokenLayout, vocab_size: int, vocabulary: str = "") -> ModalitySpec:
    return ModalitySpec(
        name=name,
        summary="fake",
        value=ValueSpec(kind="object"),
        layout=layout,
        vocab_size=vocab_size,
        vocabulary=vocabulary,
    )


SPECS = [
    spec("left", GridLayout(shape=(2, 3)), 7),
    spec("words", WORDS, 20, "text"),
    spec("right", GridLayout(shape=(3, 3)), 11),
    spec("bag", VectorLayout(length=4), 5),
    spec("pixels", PatchesLayout(shape=(2, 2), dim=3), 0),
    spec("vectors", EmbeddingsLayout(max_length=5, dim=4), 0),
]


@pytest.fixture(scope="module")
def model() -> FourM:
    torch.manual_seed(0)
    made = FourM(CONFIG, SPECS)
    with torch.no_grad():  # sharper than at initialisation, so that inputs matter
        for table in (*made.output.values(), made.token_embedding.weight, made.modality_embedding.weight):
            table.mul_(40)
    return made


def given_tokens(batch: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "left": torch.from_numpy(random.integers(0, 7, (batch, 2, 3))),
        "words": [random.integers(6, 20, length) for length in random.integers(0, 7, batch)],
        "pixels": torch.from_numpy(random.standard_normal((batch, 4, 3), np.float32)),
        "vectors": [random.standard_normal((n, 4), np.float32) for n in random.integers(1, 6, batch)],
    }


def only(given: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: tokens[index : index + 1] for name, tokens in given.items()}


# --- schedules


def test_linear_schedule_is_even() -> None:
    assert tokens_per_step(8, 4, "linear") == [2, 2, 2, 2]
    assert tokens_per_step(9, 1, "linear") == [9]


def test_cosine_schedule_by_hand() -> None:
    # masked after steps 1-4 of 16: floor(16 cos(22.5, 45, 67.5, 90 degrees)) = 14, 11, 6, 0
    assert tokens_per_step(16, 4, "cosine") == [2, 3, 5, 6]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("count", "steps"), [(1, 1), (1, 8), (5, 5), (5, 4), (49, 12), (196, 50), (7, 100)])
def test_every_step_decides_something(count: int, steps: int, schedule: Any) -> None:
    counts = tokens_per_step(count, steps, schedule)
    assert sum(counts) == count
    assert min(counts) >= 1
    assert len(counts) == min(count, steps)


# --- sampling


def log(*shares: float) -> torch.Tensor:
    return torch.tensor(shares).log()


def kept(logits: torch.Tensor) -> list[int]:
    return torch.isfinite(logits).nonzero().flatten().tolist()


def test_top_k_keeps_the_k_likeliest() -> None:
    logits = log(0.1, 0.4, 0.2, 0.3)
    assert kept(filtered(logits, 2, 1.0)) == [1, 3]
    assert kept(filtered(logits, 0, 1.0)) == [0, 1, 2, 3]
    assert kept(filtered(logits, 9, 1.0)) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = log(0.1, 0.4, 0.2, 0.3)
    assert kept(filtered(logits, 0, 0.35)) == [1]
    assert kept(filtered(logits, 0, 0.6)) == [1, 3]
    assert kept(filtered(logits, 0, 0.75)) == [1, 2, 3]
    assert kept(filtered(logits, 0, 0.95)) == [0, 1, 2, 3]
    # After top-k 2 the shares are 4/7 and 3/7.
    assert kept(filtered(logits, 2, 0.5)) == [1]


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = log(0.25, 0.5, 0.25).expand(5, 3)
    uniform = torch.tensor([0.0, 0.2, 0.3, 0.7, 0.99])
    assert draw(logits, uniform, 1.0, 0, 1.0).tolist() == [0, 0, 1, 1, 2]
    assert draw(logits, uniform, 0.0, 0, 1.0).tolist() == [1] * 5
    # At temperature 1/2 the shares are 1/6, 4/6, 1/6.
    assert draw(logits, torch.tensor([0.1, 0.18, 0.5, 0.82, 0.85]), 0.5, 0, 1.0).tolist() == [0, 1, 1, 1, 2]


def test_draw_never_gives_an_id_without_a_share() -> None:
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf, 2.0, -torch.inf]).expand(1000, 6)
    uniform = torch.cat([torch.linspace(0, 1, 998), torch.tensor([0.0, 1 - 2**-24])])
    assert set(draw(logits, uniform, 1.0, 0, 1.0).tolist()) == {1, 2, 4}
    assert set(draw(logits, uniform, 1.0, 2, 1.0).tolist()) == {2, 4}


def test_draw_has_the_frequencies_of_the_distribution() -> None:
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    uniform = Noise(0, [0], "x").uniform(IDS, 0, 20000)[0]
    counts = torch.bincount(draw(shares.log().expand(20000, 4), uniform, 1.0, 0, 1.0), minlength=4) / 20000
    assert torch.allclose(counts, shares, atol=0.015)


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


# --- plans


def test_plans_take_what_the_layout_suits() -> None:
    grid = TargetPlan(name="left").resolved(SPECS[0])
    assert (grid.scheme, grid.steps) == ("maskgit", 6)
    assert TargetPlan(name="right").resolved(SPECS[2]).steps == 8
    words = TargetPlan(name="words", max_length=99).resolved(SPECS[1])
    assert (words.scheme, words.max_length) == ("autoregressive", 6)


def test_plan_errors_name_what_is_wrong(model: FourM) -> None:
    given = given_tokens(1)
    with pytest.raises(ConfigError, match="words: scheme 'maskgit' is not for a sequence; expected autoregressive"):
        generate(model, {"left": given["left"]}, [TargetPlan(name="words", scheme="maskgit")], 0)
    with pytest.raises(ConfigError, match=r"right: scheme 'autoregressive' .* expected maskgit or roar"):
        generate(model, given, [TargetPlan(name="right", scheme="autoregressive")], 0)
    with pytest.raises(ConfigError, match="pixels: a patches modality is an input only"):
        generate(model, {"left": given["left"]}, [TargetPlan(name="pixels")], 0)
    with pytest.raises(ConfigError, match="left: given and asked for"):
        generate(model, given, [TargetPlan(name="left")], 0)
    with pytest.raises(ConfigError, match="at least one target"):
        generate(model, given, [], 0)
    with pytest.raises(ConfigError, match="`samples`"):
        generate(model, {}, [TargetPlan(name="left")], 0)
    with pytest.raises(ConfigError, match="from 0 on, got -1"):
        generate(model, given, [TargetPlan(name="right")], -1)
    with pytest.raises(UnknownNameError, match=r"rihgt.*did you mean right"):
        generate(model, given, [TargetPlan(name="rihgt")], 0)
    with pytest.raises(ValueError, match="top_p"):
        TargetPlan(name="left", top_p=0)
    with pytest.raises(ValueError, match="temperature"):
        TargetPlan(name="left", temperature=-1)


def test_given_tokens_are_checked(model: FourM) -> None:
    plan = [TargetPlan(name="right")]
    with pytest.raises(InvalidValueError, match="left: expected int64"):
        generate(model, {"left": torch.full((1, 2, 3), 7)}, plan, 0)
    with pytest.raises(InvalidValueError, match="left: expected int64"):
        generate(model, {"left": torch.zeros((1, 3, 2), dtype=torch.int64)}, plan, 0)
    with pytest.raises(InvalidValueError, match=r"words: .*item 0 .*sentinel"):
        generate(model, {"words": [np.array([3])]}, plan, 0)
    with pytest.raises(InvalidValueError, match="2 samples, and 1 are generated"):
        generate(model, {"left": torch.zeros((1, 2, 3), dtype=torch.int64), "words": [np.array([9])] * 2}, plan, 0)


# --- inputs


def test_inputs_are_packed_without_holes() -> None:
    tables = FourM(CONFIG, SPECS).tables
    inputs = GrowingInputs(tables, 2, torch.device("cpu"))
    inputs.add_whole("words", [np.array([9, 8]), np.array([7, 6, 10])])
    inputs.add_whole("vectors", [np.full((2, 4), 0.5, np.float32), np.full((1, 4), 2.0, np.float32)])
    inputs.add("left", torch.tensor([[3], [4]]), torch.tensor([[5], [0]]))
    packed = inputs.packed()
    text, words, left = (
        tables.token_rows("words").start,
        tables.positions["words"].start,
        tables.positions["left"].start,
    )
    vectors = tables.positions["vectors"].start
    assert packed.ids.tolist() == [[text + 9, text + 8, 0, 0, 3], [text + 7, text + 6, text + 10, 0, 4]]
    assert packed.positions.tolist() == [
        [words, words + 1, vectors, vectors + 1, left + 5], [words, words + 1, words + 2, vectors, left]
    ]  # fmt: skip
    assert packed.modalities.tolist() == [[1, 1, 5, 5, 0], [1, 1, 1, 5, 0]]
    assert packed.mask.all()
    slots, values = packed.vectors["vectors"]
    assert slots.tolist() == [2, 3, 5 + 3]
    assert values[:, 0].tolist() == [0.5, 0.5, 2.0]


def test_nothing_given_is_one_unused_slot() -> None:
    packed = GrowingInputs(FourM(CONFIG, SPECS).tables, 3, torch.device("cpu")).packed()
    assert packed.ids.shape == (3, 1)
    assert not packed.mask.any()


def test_whole_inputs_read_as_in_training() -> None:
    """What the masker packs where all of some modalities is the input is what generation packs."""
    model = FourM(CONFIG, SPECS)
    given, batch = given_tokens(6), 6
    lengths, present = np.zeros((batch, len(SPECS)), np.int64), np.zeros((batch, len(SPECS)), bool)
    tokens: dict[str, Any] = {}
    for column, item in enumerate(SPECS):
        shape = (batch, item.layout.length, getattr(item.layout, "dim", 1))
        tokens[item.name] = np.zeros(shape, np.float32 if item.continuous else np.int64)
        if item.name in given:
            rows = [np.asarray(row).reshape(-1, shape[2]) for row in given[item.name]]
            lengths[:, column] = [len(row) for row in rows]
            for number, row in enumerate(rows):
                tokens[item.name][number, : len(row)] = row
        elif item.name == "right":
            lengths[:, column] = 9
        present[:, column] = item.name in given or item.name == "right"
        if not item.continuous:
            tokens[item.name] = tokens[item.name][..., 0]
    mixture = Mixture(inputs=tuple(given), targets=("right",))
    masker = Masker(model.tables, MaskingConfig(input_budget=40, target_budget=9, mixtures=(mixture,)))
    trained = masker(RawBatch(tokens=tokens, lengths=lengths, present=present), 0, 0).inputs
    generated = whole_inputs(model, given).packed()
    assert contents(trained) == contents(generated)
    assert len(contents(generated)) == lengths.sum() - 9 * batch


def contents(inputs: PackedInputs) -> set[tuple[Any, ...]]:
    """Every used token: its sample, modality, position, and id or vector."""
    width = inputs.ids.shape[1]
    vectors = {
        int(slot): tuple(row.tolist())
        for slots, rows in inputs.vectors.values()
        for slot, row in zip(slots, rows, strict=True)
    }
    return {
        (
            sample, int(inputs.modalities[sample, slot]), int(inputs.positions[sample, slot]),
            vectors.get(sample * width + slot, int(inputs.ids[sample, slot])),
        )
        for sample, slot in inputs.mask.nonzero().tolist()
    }  # fmt: skip


# --- decoding


def full_logits(model: FourM, inputs: PackedInputs, name: str, read: list[int], ranks: Sequence[int]) -> torch.Tensor:
    """The slow twin: all targets of one sample at once through the training path."""
    tables = model.tables
    row = torch.tensor([read])
    targets = PackedTargets(
        ids=torch.zeros_like(row), read=row, positions=torch.tensor([ranks]) + tables.positions[name].start,
        modalities=torch.full_like(row, tables.index(name)), mask=torch.ones_like(row, dtype=torch.bool),
    )  # fmt: skip
    hidden = model.decode_targets(PackedBatch(inputs=inputs, targets=targets))
    return model.logits(hidden, tables.spec(name).vocabulary)[0]


def whole_inputs(model: FourM, given: dict[str, Any]) -> GrowingInputs:
    inputs = GrowingInputs(model.tables, len(next(iter(given.values()))), torch.device("cpu"))
    for name, tokens in given.items():
        inputs.add_whole(name, tokens)
    return inputs


@torch.inference_mode()
def slow_sequence(model: FourM, given: dict[str, Any], plan: TargetPlan, seed: int, sample: int) -> list[int]:
    """Every token decoded anew from the whole stream so far."""
    inputs = whole_inputs(model, given).packed()
    uniform = Noise(seed, [sample], plan.name).uniform(IDS, 0, 6)[0]
    start = model.tables.token_rows(plan.name).start
    made: list[int] = []
    while len(made) < 6:
        read = [start + token for token in [WORDS.sentinel_start, *made]]
        logits = full_logits(model, inputs, plan.name, read, range(len(read)))[-1]
        logits[WORDS.sentinel_start : WORDS.sentinel_start + WORDS.num_sentinels] = -torch.inf
        token = int(draw(logits, uniform[len(made)], plan.temperature, plan.top_k, plan.top_p))
        if token == WORDS.end:
            break
        made.append(token)
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_cached_decoding_is_full_decoding(model: FourM, temperature: float) -> None:
    given = given_tokens(12)
    del given["words"]
    plan = TargetPlan(name="words", temperature=temperature, top_p=0.95)
    made = generate(model, given, [plan], seed=4)["words"]
    slow = [slow_sequence(model, only(given, i), plan, 4, i) for i in range(12)]
    assert [row.tolist() for row in made] == slow
    assert all(row.dtype == np.int64 for row in made)
    if temperature == 3:  # samples stop each at its own end, so the batch was cut on the way
        assert len({len(row) for row in made}) >= 2


@torch.inference_mode()
def slow_maskgit(model: FourM, given: dict[str, Any], plan: TargetPlan, seed: int, sample: int) -> torch.Tensor:
    """MaskGIT for one sample, cell by cell, with the input packed anew at each step."""
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
            token = int(draw(logits[row], uniform[cell], plan.temperature, plan.top_k, plan.top_p))
            confidence = (
                logits[row].log_softmax(0)[token] + plan.confidence_noise * (1 - step / len(counts)) * gumbel[cell]
            )
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
def test_maskgit_is_its_slow_twin(model: FourM, plan: TargetPlan) -> None:
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


def test_seed_and_sample_number_change_what_is_drawn(model: FourM) -> None:
    plan = [TargetPlan(name="right", temperature=2.0)]
    first = generate(model, {}, plan, seed=0, samples=[0, 1])["right"]
    assert torch.equal(first, generate(model, {}, plan, seed=0, samples=[0, 1])["right"])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, generate(model, {}, plan, seed=1, samples=[0, 1])["right"])


def test_sequences_hold_no_sentinels_and_keep_to_their_bound(model: FourM) -> None:
    made = generate(model, {}, [TargetPlan(name="words", temperature=50.0)], seed=0, samples=range(64))["words"]
    ids = np.concatenate(made)
    assert not ((ids >= WORDS.sentinel_start) & (ids < WORDS.sentinel_start + WORDS.num_sentinels)).any()
    assert not (ids == WORDS.end).any()
    assert set(ids) > set(range(10, 20))
    assert max(len(row) for row in made) == 6
    short = generate(model, {}, [TargetPlan(name="words", temperature=50.0, max_length=2)], seed=0, samples=range(64))[
        "words"
    ]
    assert [row.tolist() for row in short] == [row[:2].tolist() for row in made]


@torch.inference_mode()
def test_logits_forbid_sentinels_only(model: FourM) -> None:
    context = model.context(whole_inputs(model, {"left": given_tokens(1)["left"]}).packed())
    start = model.tables.token_rows("words").start
    logits = target_logits(model, "words", torch.tensor([[start + 2]]), torch.tensor([[0]]), context)
    assert (~torch.isfinite(logits[0, 0])).nonzero().flatten().tolist() == [2, 3, 4, 5]


# --- a mapping that can be learned


SAID = SequenceLayout(max_length=4, end=0, sentinel_start=1, num_sentinels=2)
MAPPED = [spec("a", GridLayout(shape=(2, 2)), 6), spec("b", GridLayout(shape=(2, 2)), 6), spec("c", SAID, 10)]
PERMUTATION = torch.tensor([3, 5, 0, 1, 2, 4])


def mapping_batch(model: FourM, a: torch.Tensor) -> PackedBatch:
    """From a (`batch 4`) to b, a permutation of a's ids, and to c, which says a's ids in words."""
    tables, batch = model.tables, len(a)
    b, c = tables.token_rows("b").start, tables.token_rows("c").start
    stream = c + torch.cat([torch.full((batch, 1), 1), a + 4, torch.zeros(batch, 1, dtype=torch.int64)], 1)
    places = [tables.positions[name].start + torch.arange(n) for name, n in (("b", 4), ("c", 5))]
    return PackedBatch(
        inputs=PackedInputs(
            ids=a,
            positions=torch.arange(4).expand(batch, -1),
            modalities=torch.zeros_like(a),
            mask=torch.ones_like(a, dtype=torch.bool),
        ),
        targets=PackedTargets(
            ids=torch.cat([PERMUTATION[a] + b, stream[:, 1:]], 1),
            read=torch.cat([torch.full_like(a, -1), stream[:, :-1]], 1),
            positions=torch.cat(places).expand(batch, -1),
            modalities=torch.tensor([1] * 4 + [2] * 5).expand(batch, -1),
            mask=torch.ones(batch, 9, dtype=torch.bool),
        ),
    )


def test_a_trained_model_generates_the_mapping_it_saw() -> None:
    torch.manual_seed(0)
    model = FourM(ModelConfig(dim=48, encoder_depth=1, decoder_depth=1, heads=2), MAPPED)
    with torch.no_grad():
        model.token_embedding.weight.normal_()  # as large as the positions: learns in seconds
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(mapping_batch(model, torch.randint(0, 6, (48, 4)))).loss.backward()
        optimizer.step()
    a = torch.randint(0, 6, (64, 2, 2))
    for plan in (TargetPlan(name="b", steps=1, temperature=0), TargetPlan(name="b", steps=1)):
        made = generate(model, {"a": a}, [plan], seed=0)["b"]
        assert (made == PERMUTATION[a]).float().mean() > 0.9
    words = generate(model, {"a": a}, [TargetPlan(name="c", temperature=0)], seed=0)["c"]
    wanted = (a.flatten(1) + 4).tolist()
    assert np.mean([row.tolist() == want for row, want in zip(words, wanted, strict=True)]) > 0.9
