"""Inputs of a generation: packed as in training, in part, and regions described in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_samples import (
    CONFIG,
    PUBLISHED,
    SPECS,
    WORDS,
    contents,
    draw_one,
    full_logits,
    only,
    random_inputs,
    sharp_model,
    whole_inputs,
)
from PIL import Image

from tokenizers_zoo.contract.layouts import GridLayout
from tokenizers_zoo.errors import ConfigError, InvalidValueError
from zoo_backbone.generate import Guidance, TargetPlan, generate
from zoo_backbone.generate.inpainting import add_partial, checked_partial, partial_of, region_mask, with_gaps_filled
from zoo_backbone.generate.sampling import IDS, Noise
from zoo_backbone.generate.schemes import SCHEMES
from zoo_backbone.learn.masking import Masker
from zoo_backbone.model.batch import PackedInputs, RawBatch
from zoo_backbone.model.config import MaskingConfig, Mixture
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.packing import EncoderInputs
from zoo_backbone.model.published import PublishedLayout

LEFT, TEXT, RIGHT, BAG = SPECS[:4]
TABLES = EmbeddingLayout(SPECS)


@pytest.fixture(scope="module")
def model() -> FourM:
    return sharp_model()


@pytest.fixture(scope="module")
def published_model() -> FourM:
    """A model that sees where sequences end, as published models do."""
    return sharp_model(config=PUBLISHED)


# --- packing


@pytest.mark.parametrize("guidance", [Guidance(scale=2.0), Guidance(weights={"words": 2.0})])
def test_generation_marks_open_and_hidden_sequences(guidance: Guidance, monkeypatch: pytest.MonkeyPatch) -> None:
    """4M marks a hidden sequence if guidance has a scale, but not if it has weights."""
    model = sharp_model(config=PUBLISHED)
    word_inputs: list[list[list[int]]] = []
    packed = EncoderInputs.packed

    def noted(inputs: EncoderInputs, *seen_by: Any) -> PackedInputs:
        packed_inputs = packed(inputs, *seen_by)
        words = packed_inputs.mask & (packed_inputs.modalities == 1)
        start, first = model.layout.token_rows("words").start, model.layout.positions["words"].start
        assert (packed_inputs.positions[words & (packed_inputs.ids == start + 2)] == first).all(), (
            "the first sentinel comes first"
        )
        word_inputs.append([(row[used] - start).tolist() for row, used in zip(packed_inputs.ids, words, strict=True)])
        return packed_inputs

    monkeypatch.setattr(EncoderInputs, "packed", noted)
    right = TargetPlan(name="right", steps=1)
    generate(model, {"words": [np.array([9, 8])]}, [dataclasses.replace(right, guidance=guidance)], 0)
    assert word_inputs == [[[2] if guidance.weights == {} else []], [[9, 8, 1]]]
    word_inputs.clear()
    words = TargetPlan(name="words", temperature=0.0)
    left, bag = torch.zeros(1, 2, 3, dtype=torch.int64), TargetPlan(name="bag", steps=1)
    generated = generate(model, {"left": left}, [right, words, bag], 0)
    assert word_inputs == [[[2]], [[2]], [[*generated["words"][0], *([1] if len(generated["words"][0]) < 6 else [])]]]
    word_inputs.clear()
    parts = [[-1], [-1, 9], [-1, 9, 9, 9, 9, 9]]  # kept parts that reach the end, except at the full length
    generate(model, {}, [right], 0, partial={"words": [np.array(part) for part in parts]})
    assert word_inputs == [[[2], [2, 9, 1], [2, 9, 9, 9, 9, 9]]]
    word_inputs.clear()
    generate(model, {"words": [np.array([7, 8]), np.array([], np.int64), np.array([9] * 6)]}, [right], 0)
    assert word_inputs == [[[7, 8, 1], [1], [9] * 6]], "whole sequences"


def test_hidden_embeddings_become_a_zero_vector_if_the_model_marks_them() -> None:
    layout = PublishedLayout(SPECS, PUBLISHED)
    inputs = EncoderInputs(layout, 2, torch.device("cpu"))
    inputs.mark_open("vectors")
    inputs.add_whole("vectors", [np.full((2, 4), 0.5, np.float32), np.full((1, 4), 2.0, np.float32)])
    first = layout.positions["vectors"].start
    for rows in (2, 4):
        visible, hidden, unmarked = inputs.packed(), inputs.packed(["vectors"], True), inputs.packed(["vectors"])
        assert visible.mask.sum(1).tolist() == {2: [2, 1], 4: [2, 2, 1, 1]}[rows] and not unmarked.mask.any()
        assert hidden.mask.tolist() == [[True]] * rows and not hidden.vectors["vectors"][1].any()
        assert (hidden.positions == first).all() and (hidden.modalities == 5).all() and inputs.names == ("vectors",)
        inputs.draws = 2
        inputs.split_draws()


def test_whole_inputs_are_packed_as_in_training() -> None:
    """With whole modalities as inputs, generation packs the same tokens as the masker in training."""
    model = FourM(CONFIG, SPECS)
    input_tokens, batch = random_inputs(6), 6
    lengths, present = np.zeros((batch, len(SPECS)), np.int64), np.zeros((batch, len(SPECS)), bool)
    tokens: dict[str, Any] = {}
    for column, item in enumerate(SPECS):
        shape = (batch, item.layout.length, getattr(item.layout, "dim", 1))
        tokens[item.name] = np.zeros(shape, np.float32 if item.continuous else np.int64)
        if item.name in input_tokens:
            rows = [np.asarray(row).reshape(-1, shape[2]) for row in input_tokens[item.name]]
            lengths[:, column] = [len(row) for row in rows]
            for number, row in enumerate(rows):
                tokens[item.name][number, : len(row)] = row
        elif item.name == "right":
            lengths[:, column] = 9
        present[:, column] = item.name in input_tokens or item.name == "right"
        if not item.continuous:
            tokens[item.name] = tokens[item.name][..., 0]
    mixture = Mixture(inputs=tuple(input_tokens), targets=("right",))
    masker = Masker(model.layout, MaskingConfig(input_budget=40, target_budget=9, min_input=0, mixtures=(mixture,)))
    trained = masker(RawBatch(tokens=tokens, lengths=lengths, present=present), 0, 0).inputs
    generated = whole_inputs(model, input_tokens).packed()
    assert contents(trained) == contents(generated)
    assert generated.mask.shape[1] == lengths.sum(1).max() - 9, "no holes"
    assert len(contents(generated)) == lengths.sum() - 9 * batch


# --- grids


@torch.inference_mode()
def test_one_step_of_in_painting_by_hand(model: FourM) -> None:
    part = torch.tensor([[[4, -1, 7], [-1, -1, 0], [10, 3, -1]]])
    generated = generate(model, {}, [TargetPlan(name="right", steps=1, temperature=0)], seed=0, partial={"right": part})
    inputs = EncoderInputs(model.layout, 1, torch.device("cpu"))
    inputs.add("right", torch.tensor([[4, 7, 0, 10, 3]]), torch.tensor([[0, 2, 5, 6, 7]]))
    ids = full_logits(model, inputs.packed(), "right", [-1] * 4, [1, 3, 4, 8]).argmax(1)
    expected = part.flatten().index_copy(0, torch.tensor([1, 3, 4, 8]), ids).view(1, 3, 3)
    assert torch.equal(generated["right"], expected)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=2.5)], ids=["plain", "guided"])
def test_samples_may_have_different_gaps(model: FourM, scheme: Any, guidance: Guidance) -> None:
    """Known tokens stay. The others do not depend on the batch."""
    partial: dict[str, Any] = {
        "right": torch.arange(45).reshape(5, 3, 3) % 11,
        "bag": torch.arange(20).reshape(5, 4) % 5,
        "words": [np.array([9, 8, -1]), np.array([-1, 7]), np.array([-1]), np.array([6, -1, 9]), np.array([-1, 8, -1])],
    }
    partial["right"][0, 0, 0] = partial["right"][1, 0] = partial["right"][2, :, 0] = -1
    partial["right"][3, :2] = partial["right"][4, 1:] = -1  # equally many cells as in another sample, but others
    partial["bag"][:3, 0] = partial["bag"][3:, 1:3] = -1
    plan = [
        TargetPlan(name="right", scheme=scheme, steps=3, temperature=4.0, guidance=guidance),
        TargetPlan(name="bag", scheme=scheme, steps=3),
        TargetPlan(name="words"),
    ]
    inputs = {"left": random_inputs(5)["left"]}
    together = generate(model, inputs, plan, seed=5, samples=range(5), partial=partial)
    for i in range(5):
        alone = generate(model, only(inputs, i), plan, seed=5, samples=[i], partial=only(partial, i))
        for name in ("bag", "right"):
            assert torch.equal(together[name][i], alone[name][0])
            fixed = partial[name][i] >= 0
            assert torch.equal(together[name][i][fixed], partial[name][i][fixed]) and together[name][i].min() >= 0
        assert together["words"][i].tolist() == alone["words"][0].tolist()
    assert not together["right"].is_inference(), "results may be edited in place, and learned from"


@pytest.mark.parametrize(
    ("name", "tokens", "message"),
    [
        ("right", torch.zeros(1, 3, 3, dtype=torch.int64), "sample 0 is complete"),
        ("right", torch.full((1, 3, 3), -2), "int64"),
        ("words", [np.array([-1, 9, -1, 9, -1, 9, -1, 9, -1])], "5 gaps, .* sentinels for 4"),
        ("words", [np.array([3, -1])], "sentinel"),
    ],
    ids=["complete", "id", "gaps", "sentinel"],
)
def test_invalid_partial_targets_are_refused(name: str, tokens: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{name}: .*{message}"):
        checked_partial(TABLES, name, tokens, 1)


# --- sequences


def test_gaps_become_sentinels_and_adjacent_gaps_merge(model: FourM) -> None:
    rows = checked_partial(TABLES, "words", [np.array([-1, -1, 9, 8, -1, -1, 7, -1]), np.array([-1, -1])], 2)
    assert [row.tolist() for row in rows] == [[-1, 9, 8, -1, 7, -1], [-1]]
    inputs = EncoderInputs(model.layout, 2, torch.device("cpu"))
    add_partial(inputs, TEXT, rows)
    packed, start = inputs.packed(), model.layout.token_rows("words").start
    assert (packed.ids[0] - start).tolist() == [2, 9, 8, 3, 7, 4]  # sentinels are 2, 3, ...
    assert packed.mask.tolist() == [[True] * 6, [False] * 6]  # a sequence without kept tokens is no input
    assert packed.positions[0].diff().tolist() == [1] * 5


def test_streams_fill_gaps_by_hand() -> None:
    row = np.array([-1, 9, 8, -1, 7, -1])
    assert with_gaps_filled(row, [10, 11, 3, 12, 4], WORDS).tolist() == [10, 11, 9, 8, 12, 7]
    assert with_gaps_filled(row, [3, 4, 13], WORDS).tolist() == [9, 8, 7, 13]
    assert with_gaps_filled(row, [], WORDS).tolist() == [9, 8, 7]


@torch.inference_mode()
def slow_filling(model: FourM, input_tokens: dict[str, Any], row: np.ndarray, plan: TargetPlan, seed: int) -> list[int]:
    """Decode each token without a cache, with the choice of allowed tokens written out."""
    inputs = whole_inputs(model, input_tokens)
    add_partial(inputs, TEXT, [row])
    packed, start = inputs.packed(), model.layout.token_rows("words").start
    uniform = Noise(seed, [0], "words").uniform(IDS, 0, 20)[0]
    gaps, room = int((row < 0).sum()), 6 - int((row >= 0).sum())
    closing = 2 + gaps if isinstance(model.layout, PublishedLayout) and row[-1] >= 0 else WORDS.end
    gap, stream = 0, list[int]()
    while sum(token > 5 or token == 0 for token in stream) < room:
        read = [start + token for token in [2, *stream]]
        logits = full_logits(model, packed, "words", read, range(len(read)))[-1]
        onward = 2 + gap + 1
        content = [token for token in range(20) if token == 0 or token > 5]
        over = onward if gap + 1 < gaps else closing
        ends = [over] if isinstance(model.layout, PublishedLayout) else [WORDS.end, *range(onward, 2 + gaps)]
        masked = torch.full_like(logits, -torch.inf)
        masked[content] = logits[content]
        masked[over] = logits[ends].logsumexp(0)
        token = int(draw_one(masked, uniform[len(stream)], plan.temperature, plan.top_k, plan.top_p))
        if gap + 1 == gaps and token == closing:
            break
        gap += token == onward
        stream.append(token)
    return with_gaps_filled(row, stream, WORDS).tolist()


@pytest.mark.parametrize("temperature", [0.0, 2.0, 8.0])
@pytest.mark.parametrize("fixture_name", ["model", "published_model"])
def test_filled_sequences_equal_their_slow_twin(
    fixture_name: str, temperature: float, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(fixture_name)
    rows = [
        np.array(row)
        for row in ([9, 8, -1], [-1, 9], [9, -1, 8, -1], [-1, 7, -1, 9, -1], [9, 9, 9, 9, 9, 9, -1], [12, -1, 13])
    ]
    input_tokens, plan = {"left": random_inputs(6)["left"]}, TargetPlan(name="words", temperature=temperature)
    separate = []
    for i, row in enumerate(rows):
        alone = generate(model, only(input_tokens, i), [plan], seed=3, samples=[0], partial={"words": [row]})["words"][
            0
        ]
        assert alone.tolist() == slow_filling(model, only(input_tokens, i), row, plan, 3)
        separate.append(alone)
    together = generate(model, input_tokens, [plan], seed=3, samples=[0] * 6, partial={"words": rows})["words"]
    assert [row.tolist() for row in together] == [row.tolist() for row in separate]
    for row, filling in zip(rows, together, strict=True):
        remaining_tokens = iter(filling.tolist())
        assert all(token in remaining_tokens for token in row[row >= 0])  # in order
        assert len(filling) <= 6
    assert separate[4].tolist() == [9] * 6  # no room


def test_passes_follow_their_samples_when_finished_samples_leave(model: FourM) -> None:
    input_tokens = {name: tokens for name, tokens in random_inputs(6).items() if name in ("left", "vectors")}
    full = np.array([9] * 6 + [-1])  # no room
    short = np.array([9] * 5 + [-1])  # room for a token: it leaves the batch after the first one
    partial = [full, short, np.array([-1]), short, np.array([-1]), full]
    guidance = Guidance(weights={"left": 4.0, "vectors": -2.0})
    plan = [TargetPlan(name="words", temperature=8.0, guidance=guidance)]
    lengths = 0
    for seed in range(4):
        together = generate(model, input_tokens, plan, seed, partial={"words": partial})["words"]
        for i in (2, 4):
            alone = generate(model, only(input_tokens, i), plan, seed, [i])["words"][0]
            assert together[i].tolist() == alone.tolist()
            lengths += len(alone)
        assert together[0].tolist() == [9] * 6
    assert lengths > 12


@pytest.mark.parametrize("sentinels", [1, 2, 4])
def test_with_all_sentinels_used_the_next_id_is_content(sentinels: int) -> None:
    layout = dataclasses.replace(WORDS, num_sentinels=sentinels)
    model = sharp_model([dataclasses.replace(TEXT, layout=layout)])
    row = np.array([-1] + [9, -1] * (sentinels - 1))
    plan, room, after = [TargetPlan(name="words", temperature=50.0)], 6 - (sentinels - 1), 2 + sentinels
    rows = generate(model, {}, plan, seed=0, samples=range(64), partial={"words": [row] * 64})["words"]
    assert max(map(len, rows)) == room + sentinels - 1 and any(after in filled for filled in rows)
    assert not any(set(filled.tolist()) & {1, *range(2, after)} for filled in rows)


def test_end_token_closes_the_last_gap_if_no_sentinel_is_left() -> None:
    layout = dataclasses.replace(WORDS, num_sentinels=2)
    model = sharp_model([dataclasses.replace(TEXT, layout=layout)], PUBLISHED)
    with torch.no_grad():  # most likely: the sentinel that closes the first gap, then the id after the sentinels
        model.output["words"].zero_()
        model.decode = lambda x, *rest: torch.ones_like(x)  # type: ignore[method-assign]
        model.output["words"][4] = 1.0
        model.output["words"][2:4] = 2.0
    plan, row = [TargetPlan(name="words", temperature=0.0)], np.array([-1, 9, -1, 9])
    ids = generate(model, {}, plan, 0, [0], partial={"words": [row]})["words"][0]
    assert ids.tolist() == [9, 4, 4, 4, 4, 9]


@pytest.mark.parametrize("passes", [Guidance(), Guidance(scale=2.0)])
def test_unique_tokens_are_written_once(model: FourM, passes: Guidance) -> None:
    """Unique ids may lie beyond the model's vocabulary, which may have grown since."""
    once = {7, 8, 9, 13, SPECS[1].vocab_size}
    plan = [TargetPlan(name="words", temperature=20.0, guidance=passes)]
    partial = {"words": [np.array(row) for row in ([-1], [-1, 9, -1], [8, -1, 7, -1], [-1, 9]) for _ in range(8)]}
    input_tokens = {"left": random_inputs(32)["left"]}
    free, rows = (
        generate(model, input_tokens, plan, 2, partial=partial, once=ids)["words"] for ids in (None, {"words": once})
    )
    assert any(len(named := [token for token in row.tolist() if token in once]) > len(set(named)) for row in free)
    for row, part in zip(rows, partial["words"], strict=True):
        named = [token for token in row.tolist() if token in once]
        assert len(named) == len(set(named)) and {9} & set(part.tolist()) <= set(named)
    assert any(set(row.tolist()) & once - {7, 8, 9} for row in rows)


def test_partial_modality_that_is_no_target_is_an_input(model: FourM) -> None:
    """The result equals a run that completes the part after this target."""
    partial = {
        "words": [np.array([9, 8, -1]), np.array([-1, 7])],
        "left": torch.tensor([[[1, -1, 2], [-1, -1, 3]]] * 2),
    }
    right, words = TargetPlan(name="right", steps=3), TargetPlan(name="words")
    alone = generate(model, {}, [right], 0, partial=partial)
    assert set(alone) == {"right"}
    assert torch.equal(alone["right"], generate(model, {}, [right, words], 0, partial=partial)["right"])
    assert not torch.equal(alone["right"], generate(model, {}, [right], 0, [0, 1])["right"])


@pytest.mark.parametrize("fixture_name", ["model", "published_model"])
def test_a_complete_part_is_a_whole_input(fixture_name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(fixture_name)
    complete = {"words": [np.array([9, 8]), np.array([], np.int64)], "left": torch.ones(2, 2, 3, dtype=torch.int64)}
    from_partial = generate(model, {}, [TargetPlan(name="right")], 0, partial=complete)["right"]
    assert torch.equal(from_partial, generate(model, complete, [TargetPlan(name="right")], 0)["right"])


def test_a_finished_sequence_is_an_input_without_its_sentinels(model: FourM) -> None:
    right = TargetPlan(name="right", steps=1)
    partial = {"words": [np.array([9, -1])]}
    chain = generate(model, {}, [TargetPlan(name="words"), right], 1, [0], partial=partial)
    separate = generate(model, {"words": chain["words"]}, [right], 1, [0])
    assert torch.equal(chain["right"], separate["right"])


# --- regions


def test_all_codes_of_a_position_are_generated_or_none() -> None:
    sound = dataclasses.replace(RIGHT, layout=GridLayout(shape=(4, 2)), num_codebooks=2)
    partial = partial_of(sound, np.arange(8).reshape(1, 4, 2), "box:0,0.5")
    assert partial.tolist() == [[[-1, -1], [-1, -1], [4, 5], [6, 7]]]
    picture = dataclasses.replace(RIGHT, layout=GridLayout(shape=(2, 2, 2)), num_codebooks=2)
    partial = partial_of(picture, np.arange(8).reshape(1, 2, 2, 2), "box:0,0,1,0.5")
    assert partial.tolist() == [[[[-1, -1], [2, 3]], [[-1, -1], [6, 7]]]]


def test_regions_of_grids_by_hand(tmp_path: Path) -> None:
    def mask(region: str, shape: tuple[int, ...] = (2, 4)) -> list[Any]:
        return region_mask("x", shape, region).astype(int).tolist()

    assert mask("box:0,0,1,0.5") == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert mask("box:0.5,0,1,1") == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert mask("box:0,0.3,1,0.6") == [[0, 1, 0, 0], [0, 1, 0, 0]]  # middles at 0.125, 0.375, 0.625, 0.875
    assert mask("not:box:0,0,1,0.5") == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert mask("cells:0,1,1,3") == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert mask("box:0,0.5", (4,)) == [1, 1, 0, 0]
    assert mask("cells:0,1,2,2", (2, 2, 2)) == [[[0, 1], [0, 1]]] * 2  # the last two axes
    np.save(tmp_path / "cells.npy", np.array([[True, False, False, True], [False] * 4]))
    assert mask(f"mask:{tmp_path}/cells.npy") == [[1, 0, 0, 1], [0, 0, 0, 0]]
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:2, :3] = 255  # the first cell whole, the second half
    Image.fromarray(pixels).save(tmp_path / "pixels.png")
    assert mask(f"mask:{tmp_path}/pixels.png") == [[1, 1, 0, 0], [0, 0, 0, 0]]
    half = (np.arange(16) < 8) * np.ones((4, 1))
    for file, values in (  # 2 x 4 pixels per cell; 16 bits, fractions and dark colours are not 0
        ("words.png", half.astype(np.uint16)), ("shares.tif", (half / 4).astype(np.float32)),
        ("dark.png", np.stack([0 * half, 0 * half, 3 * half], 2).astype(np.uint8)),
    ):  # fmt: skip
        Image.fromarray(values).save(tmp_path / file)
        assert mask(f"mask:{tmp_path}/{file}") == [[1, 1, 0, 0], [1, 1, 0, 0]], file
    for region, parts in (
        ("box:0,0,1", "starts"), ("box:0,0,1,2", "<= 1"), ("box:0.5,0,0.5,1", "start < end"),
        ("cells:0,0,1.5,2", "whole"), ("bax:0,0,1,1", "box:TOP"), ("mask:absent.npy", "no such file"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=parts):
            mask(region)
    with pytest.raises(ConfigError, match=r"2 x 3, .* 4 x 8"):
        mask(f"mask:{tmp_path}/pixels.png", (2, 3))


def test_invalid_masks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("another program was started"))
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "none.npy", np.full((2, 4), np.nan))
    for file, parts in (("text.png", "not a picture"), ("page.png", "not a picture"), ("none.npy", "NaN")):
        with pytest.raises(ConfigError, match=f"inpaint x: mask:.*{file}: .*{parts}"):
            region_mask("x", (2, 4), f"mask:{tmp_path}/{file}")


def test_regions_of_sequences_by_hand() -> None:
    def part(region: str) -> list[int]:
        return partial_of(TEXT, [np.array([6, 7, 8, 9, 10])], region)[0].tolist()

    assert part("after") == [6, 7, 8, 9, 10, -1]
    assert part("after:2") == [6, 7, -1]
    assert part("gaps:2") == [-1, 6, 7, -1, 8, 9, -1, 10, -1]
    assert part("tokens:0-1,4") == [-1, -1, 8, 9, -1]
    assert part("not:tokens:0-1,4") == [6, 7, -1, -1, 10]
    for region in ("after:x", "tokens:3-2", "tokens:5", "box:0,0,1,1"):
        with pytest.raises(ConfigError, match="words"):
            part(region)
    with pytest.raises(ConfigError, match="a sample has 2 tokens"):
        partial_of(TEXT, [np.array([6, 7, 8]), np.array([6, 7])], "tokens:2")
    assert partial_of(BAG, torch.tensor([[1, 2, 3, 4]]), "cells:1,3").tolist() == [[1, -1, -1, 4]]
    assert partial_of(LEFT, torch.zeros(1, 2, 3, dtype=torch.int64), "cells:0,0,2,1").tolist() == [[[-1, 0, 0]] * 2]
