"""Heads, kinds of answers, the choice of labels and intervals, against hand computations and slow twins."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import all_layouts
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score
from torch.nn import functional as F

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.intervals import interval
from tokenizers_zoo.spec import (
    EmbeddingsLayout,
    GridLayout,
    ModalitySpec,
    OrderedIds,
    SequenceLayout,
    TokenLayout,
    ValueSpec,
    VectorLayout,
)
from zoo_backbone.config import ModelConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.encoder import FourMEncoder
from zoo_backbone.model import FourM
from zoo_backbone.transfer import judging
from zoo_backbone.transfer.config import HEADS, TUNING, TransferConfig, chosen_head, transfer_config
from zoo_backbone.transfer.decoder import TokenDecoder
from zoo_backbone.transfer.heads import Attentive, MapConvNeXt, MapLinear, Neighbours, PooledLinear, build_head
from zoo_backbone.transfer.judging import accuracies, errors
from zoo_backbone.transfer.kinds import (
    IGNORED,
    KINDS,
    Classes,
    ClassMap,
    NumberMap,
    Numbers,
    Tokens,
    kind_from_json,
    kind_to_json,
)
from zoo_backbone.transfer.reading import Grid, padded_features, read, unpadded
from zoo_backbone.transfer.samples import chosen
from zoo_backbone.transfer.tasks import Task, whole_kind

DIM = 8
ONE = VectorLayout(length=1)
CONFIG = ModelConfig(dim=DIM, encoder_depth=1, decoder_depth=2, heads=2)


def spec(value: ValueSpec, layout: TokenLayout = ONE, vocab_size: int = 9) -> ModalitySpec:
    return ModalitySpec(name="asked", summary="asked", value=value, layout=layout, vocab_size=vocab_size)


# ---------------------------------------------------------------- heads


def test_a_pooled_linear_layer_by_hand() -> None:
    torch.manual_seed(0)
    head, features = PooledLinear(DIM, 3), torch.randn(16, DIM) * 5 + 2
    normed = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    assert torch.allclose(head(features, None), normed @ head.out.weight.T + head.out.bias, atol=1e-5)
    assert [name for name, _ in head.named_parameters()] == ["out.weight", "out.bias"]


def test_an_attentive_head_by_hand_and_blind_to_what_is_not_there() -> None:
    torch.manual_seed(0)
    config = ModelConfig(dim=DIM, encoder_depth=1, decoder_depth=1, heads=1)
    head, features = Attentive(config, 3), torch.randn(2, 5, DIM)
    key, value = (features @ head.attention.kv.weight.T).chunk(2, -1)
    query = head.query[0] @ head.attention.q.weight.T
    found = (query @ key.transpose(1, 2) / math.sqrt(DIM)).softmax(-1) @ value @ head.attention.out.weight.T
    normed = F.layer_norm(found, (DIM,), eps=1e-6)[:, 0]
    assert torch.allclose(head(features, None), normed @ head.out.weight.T + head.out.bias, atol=1e-5)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    changed = features.clone()
    changed[0, 3:] = 100
    assert torch.allclose(head(features, mask), head(changed, mask), atol=1e-5)
    assert torch.allclose(head(features[:1, :3], None), head(features, mask)[:1], atol=1e-5)


@pytest.mark.parametrize("neighbours", [3, 1000])
def test_neighbours_against_a_brute_force(neighbours: int) -> None:
    rng = np.random.default_rng(0)
    bank, asked, answers = rng.normal(3, 1, (30, DIM)), rng.normal(3, 1, (4, DIM)), rng.normal(0, 1, (30, 2))
    head = Neighbours(*(torch.from_numpy(x).float() for x in (bank, answers)), neighbours, 0.1, 2)
    given = head(torch.from_numpy(asked).float(), None).numpy()
    for row, found in zip(asked - bank.mean(0), given, strict=True):
        cosines = [x @ row / np.linalg.norm(x) / np.linalg.norm(row) for x in bank - bank.mean(0)]
        nearest = sorted(range(30), key=lambda i: -cosines[i])[:neighbours]
        weights = [math.exp(cosines[i] / 0.1) for i in nearest]
        wanted = sum(w * answers[i] for w, i in zip(weights, nearest, strict=True)) / sum(weights)
        assert np.allclose(found, wanted, atol=1e-4)


def test_neighbours_vote_for_classes_as_one_hot_answers_would() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, asked = torch.randn(30, DIM, generator=generator), torch.randn(5, DIM, generator=generator)
    classes = torch.randint(0, 7, (30,), generator=generator)
    shares = Neighbours(bank, classes, 9, 0.1, 7)(asked, None)
    assert torch.allclose(shares, Neighbours(bank, F.one_hot(classes, 7).float(), 9, 0.1, 7)(asked, None), atol=1e-6)


def test_a_linear_map_paints_each_patch_from_its_own_token() -> None:
    torch.manual_seed(0)
    head, features = MapLinear(DIM, 2, (3, 2), (6, 4)), torch.randn(1, DIM, 2, 2)
    pixels = head(features, None)
    assert pixels.shape == (1, 2, 6, 4)
    token = features[0, :, 1, 0] @ head.out.weight.T + head.out.bias
    assert torch.allclose(pixels[0, :, 3:, :2], token.reshape(2, 3, 2), atol=1e-6)


@pytest.mark.parametrize(("patch", "size"), [((4, 4), (8, 8)), ((3, 3), (6, 6)), ((4, 4), (7, 8))])
def test_a_convnext_head_gives_maps_of_any_size(patch: tuple[int, int], size: tuple[int, int]) -> None:
    head = MapConvNeXt(DIM, 3, patch, size, DIM, 1)
    features = torch.randn(2, DIM, 2, 2, requires_grad=True)
    pixels = head(features, None)
    assert pixels.shape == (2, 3, *size)
    pixels.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters() if p.ndim > 1)


def test_patches_of_an_answer_lie_on_the_rows_and_columns_of_its_grid() -> None:
    kind, grid = ClassMap(names=("a", "b"), size=(4, 9)), Grid(names=("wide",), shape=(2, 3))
    linear, convnext = (build_head(name, kind, TransferConfig(), CONFIG, grid) for name in ("linear", "convnext"))
    assert isinstance(linear, MapLinear) and linear.patch == (2, 3)
    assert isinstance(convnext, MapConvNeXt) and convnext.layers[-1].kernel_size == (2, 3)


KIND = Tokens(vocab_size=9, shape=(5,), end=0, sentinels=(1, 2))


def test_the_rows_of_neighbouring_numbers_start_alike() -> None:
    wide = dataclasses.replace(CONFIG, dim=256, heads=2)
    kind = Tokens(vocab_size=80, shape=(5,), ordered_ids=(OrderedIds(start=10, count=64),))
    assert kind_from_json(json.loads(json.dumps(kind_to_json(kind)))) == kind
    head = TokenDecoder(wide, kind)
    for table in (head.embedding.weight.detach(), head.out.weight.detach()):
        likeness = torch.corrcoef(table)
        assert likeness[10:74, 10:74].diagonal(1).min() > 0.9 > 0.4 > likeness[10:74, 10:74].diagonal(16).abs().mean()
        assert likeness[:10, 10:].abs().max() < 0.4 and likeness[74:, 10:74].abs().max() < 0.4
        assert table[10:74].std() == pytest.approx(float(table[:10].std()), rel=0.1)


@pytest.mark.parametrize(
    "layout", [SequenceLayout(max_length=5, end=0, sentinel_start=1, num_sentinels=2), VectorLayout(length=5)]
)
def test_what_a_modality_calls_numbers_are_numbers_to_the_head(layout: SequenceLayout | VectorLayout) -> None:
    ids = (OrderedIds(start=10, count=64),)
    boxes = dataclasses.replace(spec(ValueSpec(kind="object"), layout, 80), ordered_ids=ids)
    assert Tokens.of([[10, 11]], boxes, "").ordered_ids == ids


def slow_twin(head: TokenDecoder, features: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The likeliest ids, each by a pass over all before it."""
    rows = []
    for sample in range(len(features)):
        ids: list[int] = []
        while len(ids) < 5 and (not ids or ids[-1] != 0):
            targets = torch.tensor([[*ids, *[IGNORED] * (6 - len(ids))]])
            logits = head.taught(features[sample : sample + 1], mask[sample : sample + 1], targets)[0, len(ids)]
            logits[1:3] = -torch.inf
            ids.append(int(logits.argmax()))
        rows.append([i for i in ids if i != 0])
    return rows


@torch.no_grad()
def test_a_decoder_with_caches_writes_what_its_slow_twin_writes() -> None:
    torch.manual_seed(1)
    head = TokenDecoder(CONFIG, KIND)
    head.out.weight.normal_()  # answers that differ
    features = torch.randn(12, 4, DIM)
    mask = torch.arange(4) < torch.randint(1, 5, (12, 1))
    written = KIND.decode(head(features, mask))
    assert [row.tolist() for row in written] == slow_twin(head, features, mask)
    assert len({len(row) for row in written}) > 1  # some end earlier
    assert not any(((row == 1) | (row == 2)).any() for row in written)


def test_a_decoder_learns_a_sequence_that_its_features_say() -> None:
    torch.manual_seed(0)
    head, codes = TokenDecoder(CONFIG, KIND), torch.randn(4, DIM)
    rows = [[3, 4], [4, 3, 5, 6, 7], [], [8]]
    targets = KIND.encode([np.array(row, np.int64) for row in rows])
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        KIND.loss(head.taught(codes[:, None], None, targets), targets).backward()
        optimizer.step()
    assert [row.tolist() for row in KIND.decode(head(codes[:, None], None))] == rows


# ---------------------------------------------------------------- features


def test_samples_are_kept_without_padding_and_padded_again() -> None:
    features, mask = torch.randn(3, 4, DIM), torch.arange(4) < torch.tensor([[2], [4], [1]])
    again, seen = padded_features(unpadded(features, mask))
    assert seen is not None and torch.equal(seen, mask)
    assert torch.equal(again[mask], features[mask])
    whole, none = padded_features(unpadded(features, None))
    assert torch.equal(whole, features) and none is None


def test_a_map_is_read_from_all_grids_like_the_first() -> None:
    layout = EmbeddingLayout(all_layouts())
    assert Grid.of(layout, ["words", "pixels", "picture"]) == Grid(names=("pixels", "picture"), shape=(6, 6))
    with pytest.raises(ConfigError, match="words,clip: a map is read from a grid of two axes"):
        Grid.of(layout, ["words", "clip"])
    sound = dataclasses.replace(layout.spec("picture"), name="sound", layout=GridLayout(shape=(16, 4)), num_codebooks=4)
    layout = EmbeddingLayout([sound, *all_layouts()])
    assert Grid.of(layout, ["sound", "picture"]) == Grid(names=("picture",), shape=(6, 6)), "codes are no axis"
    with pytest.raises(ConfigError, match="sound: a map is read from a grid of two axes"):
        Grid.of(layout, ["sound"])


def test_a_map_has_the_rows_and_columns_of_its_grids() -> None:
    wide = spec(ValueSpec(), GridLayout(shape=(2, 3)))
    names = ["first", "second"]
    encoder = FourMEncoder(FourM.seeded(CONFIG, [dataclasses.replace(wide, name=name) for name in names], 0))
    tokens, used = encoder.prepare({name: torch.arange(6).reshape(1, 2, 3) for name in names})
    features, _ = encoder.forward_features(tokens, used)
    maps, _ = read(encoder, tokens, used, "map", Grid.of(encoder.layout, names))
    assert maps.shape == (1, 2 * DIM, 2, 3)
    for place in range(6):
        found = maps[:, :, place // 3, place % 3]
        assert torch.equal(found, torch.cat([features[:, place], features[:, 6 + place]], 1))


# ---------------------------------------------------------------- kinds


def test_classes_by_hand() -> None:
    kind = Classes(names=("a", "b", "c"))
    assert kind.encode(["c", "a"]).tolist() == [2, 0]
    assert kind.decode(torch.tensor([[0.0, 2, 1], [3, 2, 1]])) == ["b", "a"]
    assert kind.constant(["b", "c", "c", "b", "a"]) == "b"
    outputs = torch.tensor([[1.0, 0, 0]])
    assert float(kind.loss(outputs, torch.tensor([0]))) == pytest.approx(-math.log(math.e / (math.e + 2)))


def test_numbers_by_hand() -> None:
    kind = Numbers.of([1, 3, 8])
    assert kind.mean == (4.0,) and kind.std == (pytest.approx(np.std([1, 3, 8])),)
    assert kind.decode(kind.encode([1, 8])) == [pytest.approx(1), pytest.approx(8)]
    assert kind.constant([1, 3, 8, 9]) == 5.5
    # Smooth L1: half the square up to 1, the absolute error less a half above.
    assert float(kind.loss(torch.tensor([[0.5], [-2]]), torch.zeros(2, 1))) == (0.125 + 1.5) / 2
    value = ValueSpec(shape=(2,), low=0, high=1)
    vectors = Numbers.of([np.array([0, 0.5], np.float32), np.array([1, 0.5], np.float32)], spec(value))
    answer = vectors.decode(torch.tensor([[9.0, 0.0]]))[0]
    assert answer.dtype == np.float32 and answer.tolist() == [1.0, 0.5]  # within the bounds; what never varies, too
    assert vectors.constant([np.zeros(2), np.ones(2), np.ones(2)]).tolist() == [1, 1]


def test_maps_of_classes_by_hand() -> None:
    kind = ClassMap(names=("a", "b"), size=(1, 2), dtype="uint8")
    maps = [np.array([row], np.uint8) for row in ([0, 1], [0, 1], [1, 0])]
    assert kind.encode(maps).dtype == torch.int64 and kind.encode(maps).shape == (3, 1, 2)
    assert kind.constant(maps).tolist() == [[0, 1]]
    answer = kind.decode(torch.tensor([[[[0.0, 1]], [[1.0, 0]]]]))[0]
    assert answer.dtype == np.uint8 and answer.tolist() == [[1, 0]]
    assert kind.score(maps[:1], maps[2:]) == {"accuracy": 0.0, "balanced_accuracy": 0.0}


VOID = ClassMap(names=("a", "void", "b"), size=(1, 3), dtype="uint8", unscored=("void",))
"""A class map with a class that is not scored."""


def test_unscored_pixels_are_not_learned() -> None:
    targets = VOID.encode([np.array([[0, 1, 2]], np.uint8)])
    assert targets.dtype == torch.int64 and targets.tolist() == [[[0, IGNORED, 2]]]
    outputs = torch.tensor([[[[1.0, 5, 0]], [[0, 7, 0]], [[0, 9, 2]]]], requires_grad=True)  # a, void, b
    loss = VOID.loss(outputs, targets)
    loss.backward()
    expected = (-math.log(math.e / (math.e + 2)) - math.log(math.e**2 / (math.e**2 + 2))) / 2
    assert float(loss.detach()) == pytest.approx(expected)
    assert outputs.grad is not None and outputs.grad[..., 1].abs().max() == 0 < outputs.grad[..., 0].abs().max()


def test_a_batch_without_a_scored_pixel_teaches_nothing() -> None:
    outputs = torch.randn(2, 3, 1, 3, requires_grad=True)
    loss = VOID.loss(outputs, VOID.encode([np.ones((1, 3), np.uint8)] * 2))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(outputs.grad, torch.zeros_like(outputs))


def test_where_all_classes_are_scored_the_loss_is_that_of_torch() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(4, 5, 8, 8), torch.randint(5, (4, 8, 8))
    kind = ClassMap(names=tuple("abcde"), size=(8, 8))
    assert torch.equal(kind.loss(outputs, targets), F.cross_entropy(outputs, targets))


def test_an_answer_is_never_an_unscored_class() -> None:
    outputs = torch.tensor([[[[0.0, 1, -3]], [[9, 9, 9]], [[1, 0, -2]]]])
    answer = VOID.decode(outputs)[0]
    assert answer.dtype == np.uint8 and answer.tolist() == [[2, 0, 2]]
    assert outputs[0, 1].tolist() == [[9, 9, 9]], "outputs are left as they are"
    every = dataclasses.replace(VOID, unscored=())  # as a probe of before has it
    assert every.decode(outputs)[0].tolist() == [[1, 1, 1]]


def test_the_constant_map_and_the_score_leave_unscored_pixels_out() -> None:
    maps = [np.array([row], np.uint8) for row in ([1, 1, 0], [1, 1, 2], [2, 1, 2])]
    assert VOID.constant(maps).tolist() == [[2, 2, 2]]  # b where there is one of it, and b is the commonest of all
    assert VOID.constant(maps).dtype == np.uint8
    guess = [np.array([[0, 0, 0]], np.uint8)]
    assert VOID.score(guess, [np.array([[0, 1, 2]], np.uint8)]) == {"accuracy": 0.5, "balanced_accuracy": 0.5}
    nothing = VOID.score(guess, [np.array([[1, 1, 1]], np.uint8)])
    assert list(nothing) == ["accuracy", "balanced_accuracy"] and all(map(math.isnan, nothing.values()))


def test_what_a_modality_does_not_score_is_in_the_kind_and_only_there_on_disk() -> None:
    value = ValueSpec(shape=(1, 3), dtype="uint8", classes=("a", "void", "b"), unscored=("void",))
    handle: Any = SimpleNamespace(spec=spec(value))
    assert Task(text="asked", handle=handle).fitted([np.zeros((1, 3), np.uint8)], "auto")[0] == VOID
    assert kind_to_json(VOID)["unscored"] == ("void",)
    assert "unscored" not in kind_to_json(dataclasses.replace(VOID, unscored=()))


@pytest.mark.parametrize(
    ("low", "scale", "chosen"), [(0.1, "auto", "log"), (0.1, "linear", "linear"), (0, "auto", "linear")]
)
def test_maps_of_numbers_are_learned_on_the_scale_that_fits(low: float, scale: str, chosen: str) -> None:
    metres = spec(ValueSpec(shape=(1, 2, 2), low=low, high=50))
    maps = [np.array([[[1, 2], [3, 4]]], np.float32), np.array([[[5, 6], [7, 8]]], np.float32)]
    kind = NumberMap.of(maps, metres, scale)  # type: ignore[arg-type]
    assert kind.scale == chosen
    numbers = np.log(np.arange(1, 9)) if chosen == "log" else np.arange(1, 9)
    assert (kind.mean[0], kind.std[0]) == (pytest.approx(numbers.mean()), pytest.approx(numbers.std()))
    assert np.allclose(kind.decode(kind.encode(maps))[1], maps[1], rtol=1e-5)
    assert kind.decode(torch.full((1, 1, 2, 2), 1e6))[0].max() == 50
    assert kind.constant([*maps, maps[1]]).tolist() == maps[1].tolist()
    with pytest.raises(ValueError, match="scale log: needs numbers that are declared to be above 0"):
        NumberMap.of(maps, spec(ValueSpec(shape=(1, 2, 2), low=0)), "log")


def test_maps_of_numbers_are_standardised_by_channel() -> None:
    signs = np.array([[1, -1, 1], [-1, 1, -1]], np.float32)
    maps = [np.stack([signs, 100 + 4 * signs]), np.stack([-signs, 100 - 4 * signs])]
    kind = NumberMap.of(maps, spec(ValueSpec(shape=(2, 2, 3))), "linear")
    assert (kind.mean, kind.std, kind.size, kind.outputs) == ((0, 100), (1, 4), (2, 3), 2)
    nothing = torch.zeros(1, 2, 2, 3)
    assert kind.decode(nothing)[0].tolist() == [[[0] * 3] * 2, [[100] * 3] * 2]
    targets = kind.encode(maps)
    assert torch.equal(targets[0], torch.from_numpy(signs).expand(2, 2, 3))
    np.testing.assert_array_equal(kind.decode(targets), maps)
    apart = torch.tensor([0.5, -2]).reshape(2, 1, 1).expand(1, 2, 2, 3)
    assert float(kind.loss(apart, nothing)) == (0.125 + 1.5) / 2


def test_tokens_end_where_they_end() -> None:
    layout = SequenceLayout(max_length=50, end=0, sentinel_start=1, num_sentinels=2)
    rows = [np.array([5, 6]), np.array([7, 8, 3]), np.array([], np.int64)]
    kind = Tokens.of(rows, spec(ValueSpec(kind="text"), layout), "codec")
    assert (kind.length, kind.sentinels) == (4, (1, 2))
    targets = kind.encode(rows)
    assert targets.tolist() == [[5, 6, 0, IGNORED], [7, 8, 3, 0], [0, IGNORED, IGNORED, IGNORED]]
    assert [row.tolist() for row in kind.decode(targets[:2, :3])] == [[5, 6], [7, 8, 3]]
    grid = Tokens.of([np.zeros((2, 3))], spec(ValueSpec(shape=(4, 4)), GridLayout(shape=(2, 3))), "codec")
    assert (grid.length, grid.end) == (6, None)
    assert grid.decode(torch.arange(12).reshape(2, 6))[1].tolist() == [[6, 7, 8], [9, 10, 11]]
    logits = torch.zeros(1, 6, 9)
    assert float(grid.loss(logits, grid.encode([np.zeros((2, 3))]))) == pytest.approx(math.log(9))


def test_kinds_come_back_from_json() -> None:
    kinds = [
        Classes(names=("a", "b")), Numbers(mean=(1.0, 2.0), std=(3.0, 4.0), shape=(2,), low=0.0),
        ClassMap(names=("a",), size=(4, 4)), VOID, NumberMap(mean=(1.0,), std=(2.0,), size=(4, 4), scale="log"), KIND,
    ]  # fmt: skip
    assert {kind.kind for kind in kinds} == set(KINDS) == set(HEADS)
    assert [kind_from_json(kind_to_json(kind)) for kind in kinds] == kinds


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 50), rng.integers(0, 5, 50)
    assert accuracies(guess, truth) == {
        "accuracy": pytest.approx(accuracy_score(truth, guess)),
        "balanced_accuracy": pytest.approx(np.mean([(guess == truth)[truth == name].mean() for name in range(4)])),
    }
    inside = np.minimum(guess, 3)
    assert accuracies(inside, truth)["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, inside))
    assert errors(guess, truth)["r2"] == pytest.approx(r2_score(truth, guess))
    assert errors([1, 5], [2, 3]) == {"mae": 1.5, "r2": pytest.approx(1 - 5 / 0.5)}
    assert math.isnan(errors([1, 2], [3, 3])["r2"])


@pytest.mark.parametrize("dtype", ["uint8", "int64", "str"])
def test_accuracies_are_the_same_in_any_number_of_pieces(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth, guess = (rng.integers(3, 9, 50).astype(dtype) for _ in range(2))
    whole = accuracies(guess, truth)
    assert whole["balanced_accuracy"] == np.mean([np.mean(guess[truth == name] == name) for name in np.unique(truth)])
    monkeypatch.setattr(judging, "AT_A_TIME", 7)
    assert accuracies(guess, truth) == whole


@pytest.mark.parametrize(
    ("value", "wanted", "kind"),
    [
        (ValueSpec(kind="text"), None, "tokens"),
        (ValueSpec(kind="text"), "classes", "classes"),
        (ValueSpec(kind="text", classes=("a", "b")), None, "classes"),
        (ValueSpec(kind="object"), None, "tokens"),
        (ValueSpec(shape=(4, 4), dtype="uint8", classes=("a", "b")), None, "class map"),
        (ValueSpec(shape=(4, 4), dtype="uint8", classes=("a", "b")), "tokens", "tokens"),
        (ValueSpec(shape=(4, 4), dtype="int32"), None, "tokens"),
        (ValueSpec(shape=(3, 4, 4)), None, "number map"),
        (ValueSpec(shape=(3, "height", "width")), None, "tokens"),
        (ValueSpec(shape=(7,)), None, "numbers"),
        (ValueSpec(shape=()), None, "numbers"),
        (ValueSpec(shape=(5, 3)), None, "tokens"),
    ],
)
def test_the_kind_is_told_from_the_values(value: ValueSpec, wanted: str | None, kind: str) -> None:
    assert whole_kind(spec(value), wanted, "asked") == kind  # type: ignore[arg-type]


def test_a_kind_that_values_are_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--as numbers: asked is .*, whose answers are number map; leave --as out"):
        whole_kind(spec(ValueSpec(shape=(3, 4, 4))), "numbers", "asked")
    inputs = spec(ValueSpec(kind="text"), EmbeddingsLayout(max_length=3, dim=2), 0)
    with pytest.raises(ConfigError, match="--task asked: is an input only"):
        whole_kind(inputs, None, "asked")


# ---------------------------------------------------------------- labels, settings, intervals


def test_fewer_labels_are_among_more_and_seeds_differ() -> None:
    keys = [f"k{number}" for number in range(200)]
    few, more, all_of_them = (chosen(keys, share, 0) for share in (0.01, 0.1, 1.0))
    assert (len(few), len(more), len(all_of_them)) == (2, 20, 200)
    assert set(few) < set(more) < set(all_of_them) == set(keys)
    assert chosen(keys, 20, 0) == more == chosen(keys[::-1], 20, 0)
    assert set(chosen(keys, 20, 1)) != set(more)
    assert len(chosen(keys, 500, 0)) == 200 and len(chosen(keys, 0.001, 0)) == 1


def test_classes_keep_their_shares_and_none_is_lost() -> None:
    keys = [f"k{number}" for number in range(200)]
    classes = ["rare" if number == 17 else "some" if number % 4 == 0 else "most" for number in range(200)]
    of = dict(zip(keys, classes, strict=True))
    before: list[str] = []
    for share in (0.005, 0.05, 0.2, 0.5):
        found = chosen(keys, share, 3, classes)
        assert {of[key] for key in found} == {"rare", "some", "most"}
        assert found[: len(before)] == before
        before = found
    assert abs(sum(of[key] == "some" for key in before) - 25) <= 1


def test_places_are_spread_evenly() -> None:
    assert spread(5, 10) == [0, 1, 2, 3, 4] and spread(99, 3) == [0, 33, 66]


def test_defaults_follow_the_tuning_and_what_is_said_goes_first() -> None:
    for tuning, table in TUNING.items():
        found = transfer_config({"tuning": tuning})
        assert all(getattr(found, key) == value for key, value in table.items())
    assert transfer_config({"tuning": "scratch", "layer_decay": 0.5}).layer_decay == 0.5
    assert chosen_head("numbers", TransferConfig()) == "attentive"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"labels": 1.5}, "labels: expected a share such as 0.1, 1.0 for all, or a number of samples"),
        ({"labels": 0}, "labels: expected a share"),
        ({"labels": math.nan}, "labels: expected a share .*, got nan"),
        ({"labels": True}, "labels: expected int, got bool True"),
        ({"tuning": "half"}, "tuning: expected one of"),
        ({"patience": 3, "validation": 0.0}, "patience: watches the validation samples, and validation is 0"),
        ({"patience": 3, "head": "knn"}, "patience: knn trains nothing that could stop early"),
        ({"validation": 1.0}, "validation and dropout: expected shares from 0 to below 1, got 1.0 and 0.0"),
        ({"dropout": -0.1}, "validation and dropout: expected shares from 0 to below 1, got 0.2 and -0.1"),
        ({"eval_samples": 7}, "eval_samples: bounds the validation samples, which have to be 8 at least, got 7"),
        ({"head": "knn", "tuning": "full"}, "head: knn trains nothing"),
        ({"layer_decay": 0.0}, "layer_decay: expected a number above 0"),
        ({"neighbours": 0}, "neighbours, lora_rank and head_blocks: expected at least 1"),
        ({"temperature": 0.0}, "temperature and lora_alpha: expected numbers above 0"),
        ({"temperature": math.nan}, "temperature and lora_alpha: expected numbers above 0, got nan and 16"),
        ({"temperature": math.inf}, "temperature and lora_alpha: expected numbers above 0, got inf and 16"),
        ({"step": 3}, "unknown key; did you mean steps"),
    ],
)
def test_settings_that_mean_nothing_are_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        transfer_config(table)


def test_an_interval_by_hand() -> None:
    # Student's t with two degrees of freedom: 4.303 (any table); the standard deviation of 1, 2, 3 is 1.
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / math.sqrt(3), rel=1e-3))
    assert interval([5.0]) == (5.0, None)
