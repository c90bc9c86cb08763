"""Plans and inputs: defaults for each layout, and errors that name the problem."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from generation_samples import PUBLISHED, SPECS, given_tokens, sharp_model

from tokenizers_zoo.errors import ConfigError, InvalidValueError, UnknownNameError
from zoo_backbone.generate import Guidance, TargetPlan, generate
from zoo_backbone.model import FourM


@pytest.fixture(scope="module")
def model() -> FourM:
    return sharp_model()


def test_plan_defaults_follow_the_layout() -> None:
    grid = TargetPlan(name="left").resolved(SPECS[0])
    assert (grid.scheme, grid.steps) == ("maskgit", 6)
    assert TargetPlan(name="right").resolved(SPECS[2]).steps == 8
    words = TargetPlan(name="words", max_length=99).resolved(SPECS[1])
    assert (words.scheme, words.max_length) == ("autoregressive", 6)


def test_plan_errors_name_the_problem(model: FourM) -> None:
    left, vectors = ({name: given_tokens(1)[name]} for name in ("left", "vectors"))
    part = torch.full((1, 2, 3), -1)
    for message, given, plan, kept in (
        ("words: scheme 'maskgit' is not for a sequence", left, [TargetPlan(name="words", scheme="maskgit")], {}),
        ("words: temperature_schedule 'linear' is not for a sequence", left,
         [TargetPlan(name="words", temperature_schedule="linear")], {}),
        ("pixels: a patches modality is an input only", left, [TargetPlan(name="pixels")], {}),
        ("left: is input and target", left, [TargetPlan(name="left")], {"left": part}),
        ("left: is an input whole and in part", left, [TargetPlan(name="right")], {"left": part}),
        ("vectors: .* modality cannot be inpainted", left, [TargetPlan(name="right")], vectors),
        ("at least one target", left, [], {}),
        ("samples: expected a number for each sample", {}, [TargetPlan(name="left")], {}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            generate(model, given, plan, 0, partial=kept)
    with pytest.raises(UnknownNameError, match=r"rihgt.*did you mean right"):
        generate(model, left, [TargetPlan(name="rihgt")], 0)
    for key, value in (("top_p", 0.0), ("temperature", float("nan"))):
        with pytest.raises(ValueError, match=key):
            TargetPlan(name="left", **{key: value})


def test_input_only_and_output_only_modalities_are_respected() -> None:
    config = dataclasses.replace(PUBLISHED, inputs_only=("left",), targets_only=("right", "words"))
    model, given = sharp_model(config=config), given_tokens(2)
    left, right, bag = given["left"], TargetPlan(name="right", steps=2), TargetPlan(name="bag", steps=2)
    assert model.layout.discrete == ("words", "right", "bag")
    assert model.layout.readable == ("left", "bag", "pixels", "vectors")
    with pytest.raises(ConfigError, match=r"left: it is only an input of this model.* words, right, bag"):
        generate(model, {"pixels": given["pixels"]}, [TargetPlan(name="left")], 0)
    grid = torch.zeros(2, 3, 3, dtype=torch.int64)
    for known, kept in (({"right": grid}, {}), ({"left": left}, {"right": grid.index_fill(1, torch.tensor([0]), -1)})):
        with pytest.raises(ConfigError, match="right: it is only a target of this model, which reads left"):
            generate(model, known, [bag], 0, partial=kept)
    with pytest.raises(ConfigError, match="guidance always: right is neither an input nor an earlier target"):
        generate(model, {"left": left}, [right, dataclasses.replace(bag, guidance=Guidance(always=("right",)))], 0)
    chained = generate(model, {"left": left}, [right, TargetPlan(name="words"), bag], 0)
    assert torch.equal(chained["bag"], generate(model, {"left": left}, [bag], 0)["bag"])
    assert chained["right"].shape == (2, 3, 3) and len(chained["words"]) == 2


def test_given_tokens_are_checked(model: FourM) -> None:
    plan = [TargetPlan(name="right")]
    with pytest.raises(InvalidValueError, match="left: expected int64"):
        generate(model, {"left": torch.full((1, 2, 3), 7)}, plan, 0)
    with pytest.raises(InvalidValueError, match=r"words: .*item 0 .*sentinel"):
        generate(model, {"words": [np.array([3])]}, plan, 0)
    with pytest.raises(InvalidValueError, match="2 samples, and the batch has 1"):
        generate(model, {"left": torch.zeros((1, 2, 3), dtype=torch.int64), "words": [np.array([9])] * 2}, plan, 0)


def test_guidance_by_unknown_condition_is_refused(model: FourM) -> None:
    given = {"left": given_tokens(1)["left"]}
    late = Guidance(weights={"bag": 2.0})
    with pytest.raises(
        ConfigError, match=r"right: guidance weights: bag is neither an input nor an earlier target; expected left"
    ):
        generate(model, given, [TargetPlan(name="right", guidance=late), TargetPlan(name="bag")], 0)
    generate(model, given, [TargetPlan(name="bag"), TargetPlan(name="right", guidance=late)], 0)
    with pytest.raises(ConfigError, match="guidance always: words is neither an input"):
        generate(model, given, [TargetPlan(name="right", guidance=Guidance(scale=2, always=("words",)))], 0)
    with pytest.raises(ValueError, match="weights: expected either scale or weights"):
        Guidance(scale=2, weights={"left": 1.0})
    with pytest.raises(ValueError, match="scale: expected numbers from -1e"):
        Guidance(scale=float("nan"))
