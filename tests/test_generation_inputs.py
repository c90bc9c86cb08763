"""Inputs that grow, packed as in training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from generation_samples import CONFIG, PUBLISHED, SPECS, contents, given_tokens, sharp_model, whole_inputs

from zoo_backbone.batch import PackedInputs, RawBatch
from zoo_backbone.config import MaskingConfig, Mixture
from zoo_backbone.generate import Guidance, TargetPlan, generate
from zoo_backbone.masking import Masker
from zoo_backbone.model import FourM
from zoo_backbone.packing import EncoderInputs
from zoo_backbone.published import PublishedLayout


@pytest.mark.parametrize("guidance", [Guidance(scale=2.0), Guidance(weights={"words": 2.0})])
def test_generation_marks_open_and_hidden_sequences(guidance: Guidance, monkeypatch: pytest.MonkeyPatch) -> None:
    """4M marks a hidden sequence if guidance has a scale, but not if it has weights."""
    model = sharp_model(config=PUBLISHED)
    seen: list[list[list[int]]] = []
    packed = EncoderInputs.packed

    def noted(inputs: EncoderInputs, *seen_by: Any) -> PackedInputs:
        found = packed(inputs, *seen_by)
        words = found.mask & (found.modalities == 1)
        start, first = model.layout.token_rows("words").start, model.layout.positions["words"].start
        assert (found.positions[words & (found.ids == start + 2)] == first).all(), "the first sentinel comes first"
        seen.append([(row[used] - start).tolist() for row, used in zip(found.ids, words, strict=True)])
        return found

    monkeypatch.setattr(EncoderInputs, "packed", noted)
    right = TargetPlan(name="right", steps=1)
    generate(model, {"words": [np.array([9, 8])]}, [dataclasses.replace(right, guidance=guidance)], 0)
    assert seen == [[[2] if guidance.weights == {} else []], [[9, 8, 1]]]
    seen.clear()
    words = TargetPlan(name="words", temperature=0.0)
    left, bag = torch.zeros(1, 2, 3, dtype=torch.int64), TargetPlan(name="bag", steps=1)
    made = generate(model, {"left": left}, [right, words, bag], 0)
    assert seen == [[[2]], [[2]], [[*made["words"][0], *([1] if len(made["words"][0]) < 6 else [])]]]
    seen.clear()
    generate(model, {}, [right], 0, partial={"words": [np.array([-1]), np.array([-1, 9])]})
    assert seen == [[[2], [2, 9, 1]]]


def test_hidden_embeddings_become_a_zero_vector_if_the_model_marks_them() -> None:
    layout = PublishedLayout(SPECS, PUBLISHED)
    inputs = EncoderInputs(layout, 2, torch.device("cpu"))
    inputs.mark_open("vectors")
    inputs.add_whole("vectors", [np.full((2, 4), 0.5, np.float32), np.full((1, 4), 2.0, np.float32)])
    first = layout.positions["vectors"].start
    for rows in (2, 4):
        seen, hidden, unmarked = inputs.packed(), inputs.packed(["vectors"], True), inputs.packed(["vectors"])
        assert seen.mask.sum(1).tolist() == {2: [2, 1], 4: [2, 2, 1, 1]}[rows] and not unmarked.mask.any()
        assert hidden.mask.tolist() == [[True]] * rows and not hidden.vectors["vectors"][1].any()
        assert (hidden.positions == first).all() and (hidden.modalities == 5).all() and inputs.names == ("vectors",)
        inputs.draws = 2
        inputs.split_draws()


def test_whole_inputs_are_packed_as_in_training() -> None:
    """With whole modalities as inputs, generation packs the same tokens as the masker in training."""
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
    masker = Masker(model.layout, MaskingConfig(input_budget=40, target_budget=9, min_input=0, mixtures=(mixture,)))
    trained = masker(RawBatch(tokens=tokens, lengths=lengths, present=present), 0, 0).inputs
    generated = whole_inputs(model, given).packed()
    assert contents(trained) == contents(generated)
    assert generated.mask.shape[1] == lengths.sum(1).max() - 9, "no holes"
    assert len(contents(generated)) == lengths.sum() - 9 * batch


def test_growing_inputs_equal_freshly_packed_inputs() -> None:
    """Inputs added step by step equal inputs packed from the finished targets, with and without guidance."""
    model = FourM(CONFIG, SPECS)
    given = given_tokens(3)
    inputs = whole_inputs(model, given)
    grid = torch.randint(0, 11, (3, 3, 3), generator=torch.Generator().manual_seed(0))
    order = torch.stack([torch.randperm(9) for _ in range(3)])
    for cells in order.split(4, dim=1):
        inputs.add("right", grid.flatten(1).gather(1, cells), cells)
    anew = whole_inputs(model, {**given, "right": grid})
    assert contents(inputs.packed()) == contents(anew.packed())
    for hidden in ("words",), ("right", "left"):
        assert contents(inputs.packed(hidden)) == contents(anew.packed(hidden))
    assert inputs.names == anew.names == (*given, "right")
    inputs.remove("right")
    assert contents(inputs.packed()) == contents(whole_inputs(model, given).packed())
