"""Guidance: the passes, their inputs, and their combined logits against hand-computed sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_samples import WORDS, contents, draw_one, full_logits, given_tokens, only, sharp_model, whole_inputs

from zoo_backbone.batch import PackedInputs
from zoo_backbone.generate import Guidance, TargetPlan, generate
from zoo_backbone.generate.sampler import contexts_of, target_logits
from zoo_backbone.generate.sampling import IDS, Noise, Passes
from zoo_backbone.model import Context, FourM

KNOWN = ("left", "vectors", "bag")


@pytest.fixture(scope="module")
def model() -> FourM:
    return sharp_model()


def as_sets(made: Passes) -> list[tuple[set[str], float]]:
    return [(set(hidden), weight) for hidden, weight in zip(made.hidden, made.weights, strict=True)]


def test_passes_by_hand() -> None:
    everything = {"left", "vectors", "bag"}
    assert as_sets(Passes.of(Guidance(), "right", KNOWN)) == [(set(), 1)]
    assert as_sets(Passes.of(Guidance(scale=3), "right", KNOWN)) == [(everything, -2), (set(), 3)]
    assert as_sets(Passes.of(Guidance(scale=0), "right", KNOWN)) == [(everything, 1)]
    always = Guidance(scale=3, always=("bag",))
    assert as_sets(Passes.of(always, "right", KNOWN)) == [({"left", "vectors"}, -2), (set(), 3)]
    weights = Guidance(weights={"left": 2.0, "bag": -0.5})
    assert as_sets(Passes.of(weights, "right", KNOWN)) == [({"left", "bag"}, -0.5), ({"bag"}, 2), ({"left"}, -0.5)]
    # A weight of 0 hides a condition from all passes; a single condition of weight 1 needs only the pass that sees it.
    assert as_sets(Passes.of(Guidance(weights={"left": 1.0, "bag": 0.0}), "right", KNOWN)) == [({"bag"}, 1)]
    # The target's own tokens are never hidden, and without any condition there is no guidance.
    assert as_sets(Passes.of(Guidance(scale=3), "bag", KNOWN)) == [({"left", "vectors"}, -2), (set(), 3)]
    assert as_sets(Passes.of(Guidance(scale=3), "bag", ["bag"])) == [(set(), 1)]


def test_each_pass_sees_only_inputs_that_are_not_hidden(model: FourM) -> None:
    given = given_tokens(3)
    steered = Passes.of(Guidance(weights={"left": 2.0, "words": 1.5}), "right", tuple(given))
    for hidden in steered.hidden:
        packed = whole_inputs(model, given).packed(hidden)
        alone = {name: tokens for name, tokens in given.items() if name not in hidden}
        assert contents(packed) == contents(whole_inputs(model, alone).packed())
        unused = ~packed.mask
        assert unused.any()
        assert not (packed.ids[unused].any() or packed.positions[unused].any() or packed.modalities[unused].any())


@torch.inference_mode()
@pytest.mark.parametrize(
    "guidance",
    [Guidance(scale=3), Guidance(scale=-1, always=("vectors",)), Guidance(weights={"left": 2.5, "vectors": -1.0})],
)
def test_guided_logits_by_hand(model: FourM, guidance: Guidance) -> None:
    given = {name: tokens for name, tokens in given_tokens(2).items() if name in ("left", "vectors", "pixels")}
    steered = Passes.of(guidance, "right", tuple(given))
    inputs, cells = whole_inputs(model, given), torch.arange(9).expand(2, -1)
    contexts = contexts_of(model, inputs, steered)
    logits = target_logits(model, "right", torch.full_like(cells, -1), cells, contexts, steered)
    for i in range(2):

        def seeing(*names: str, i: int = i) -> torch.Tensor:
            some = whole_inputs(model, {name: only(given, i)[name] for name in names} or only(given, i))
            if not names:
                for name in given:
                    some.remove(name)
            return full_logits(model, some.packed(), "right", [-1] * 9, range(9))

        if guidance.scale == 3:
            u, full = seeing(), seeing("left", "vectors", "pixels")
            wanted = u + 3 * (full - u)
        elif guidance.always:
            u, full = seeing("vectors"), seeing("left", "vectors", "pixels")
            wanted = u - (full - u)
        else:
            u = seeing("pixels")
            wanted = u + 2.5 * (seeing("left", "pixels") - u) - 1.0 * (seeing("vectors", "pixels") - u)
        torch.testing.assert_close(logits[i], wanted, rtol=1e-4, atol=1e-4)


def test_passes_are_not_padded_and_draws_share_their_context(model: FourM, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    context = model.context

    def counted(inputs: PackedInputs) -> Context:
        assert inputs.mask.all()
        shapes.append(tuple(inputs.mask.shape))
        return context(inputs)

    monkeypatch.setattr(model, "context", counted)
    given, guidance = given_tokens(2), Guidance(weights={"left": 2.0})
    given = {name: given[name] for name in ("left", "pixels")}
    generate(model, given, [TargetPlan(name="words", guidance=guidance)], seed=0, draws=3)
    assert shapes == [(2, 4), (2, 10)], "a sequence is encoded once"
    shapes.clear()
    plan = TargetPlan(name="right", scheme="roar", steps=3, schedule="linear", guidance=guidance)
    generate(model, given, [plan], seed=0, draws=3)
    assert shapes == [(2, 4), (2, 10), (6, 7), (6, 13), (6, 10), (6, 16)], "a grid at each step"


def test_no_guidance_is_scale_one_and_full_weight(model: FourM) -> None:
    given = {"left": given_tokens(3)["left"]}
    for target in ("right", "words"):

        def made(guidance: Guidance, given: dict[str, Any], target: str = target) -> list[Any]:
            plan = [TargetPlan(name=target, temperature=4.0, guidance=guidance)]
            return [row.tolist() for row in generate(model, given, plan, seed=3, samples=range(3))[target]]

        plain, none = made(Guidance(), given), made(Guidance(), {})
        assert plain == made(Guidance(weights={"left": 1.0}), given)
        assert none == made(Guidance(scale=0), given) == made(Guidance(weights={"left": 0.0}), given)
        assert len({str(rows) for rows in (plain, none, made(Guidance(scale=3), given))}) == 3


@torch.inference_mode()
def test_guided_sequence_equals_its_slow_twin(model: FourM) -> None:
    """The reference decodes each pass from the whole stream and draws from the combined logits.

    Samples end at different lengths.
    """
    given = {name: tokens for name, tokens in given_tokens(10).items() if name in ("left", "vectors")}
    plan = TargetPlan(name="words", temperature=8.0, guidance=Guidance(weights={"left": 2.0, "vectors": 0.5}))
    made = generate(model, given, [plan], seed=0)["words"]
    start, noise = model.layout.token_rows("words").start, Noise(0, range(10), "words").uniform(IDS, 0, 6)
    for i in range(10):
        left, vectors = ({name: only(given, i)[name]} for name in ("left", "vectors"))
        nothing = whole_inputs(model, left)
        nothing.remove("left")
        slow: list[int] = []
        while len(slow) < 6:
            read = [start + token for token in [WORDS.sentinel_start, *slow]]
            u, a, b = (
                full_logits(model, some.packed(), "words", read, range(len(read)))[-1]
                for some in (nothing, whole_inputs(model, left), whole_inputs(model, vectors))
            )
            logits = u + 2.0 * (a - u) + 0.5 * (b - u)
            logits[WORDS.sentinel_start : WORDS.sentinel_start + WORDS.num_sentinels] = -torch.inf
            slow.append(int(draw_one(logits, noise[i, len(slow)], 8.0, 0, 1.0)))
            if slow[-1] == WORDS.end:
                slow.pop()
                break
        assert made[i].tolist() == slow
    assert len({len(row) for row in made}) >= 2
