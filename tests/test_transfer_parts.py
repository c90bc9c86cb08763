"""Heads, targets, label selection and settings, against hand computations and slow references."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backbone_samples import all_layouts
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score
from torch.nn import functional as F

from tokenizers_zoo.contract.layouts import GridLayout, TokenLayout, VectorLayout
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.train.batches import permuted
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import BackboneRecord
from zoo_backbone.use.transfer.config import TransferConfig, transfer_config
from zoo_backbone.use.transfer.head import (
    Attentive,
    Grid,
    MapConvNeXt,
    MapLinear,
    PooledLinear,
    build_head,
)  # fmt: skip
from zoo_backbone.use.transfer.probe import Network, ProbeRecord, StoredTask
from zoo_backbone.use.transfer.targets import (
    IGNORED,
    Classes,
    ClassMap,
    Numbers,
)  # fmt: skip
from zoo_backbone.use.transfer.task import Task, kind_of_values, select_labels, select_validation

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


def test_an_attentive_head_by_hand_ignores_masked_tokens() -> None:
    torch.manual_seed(0)
    config = ModelConfig(dim=DIM, encoder_depth=1, decoder_depth=1, heads=1)
    head, features = Attentive(config, 3), torch.randn(2, 5, DIM)
    key, value = (features @ head.attention.kv.weight.T).chunk(2, -1)
    query = head.query[0] @ head.attention.q.weight.T
    attended = (query @ key.transpose(1, 2) / math.sqrt(DIM)).softmax(-1) @ value @ head.attention.out.weight.T
    normed = F.layer_norm(attended, (DIM,), eps=1e-6)[:, 0]
    assert torch.allclose(head(features, None), normed @ head.out.weight.T + head.out.bias, atol=1e-5)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    changed = features.clone()
    changed[0, 3:] = 100
    assert torch.allclose(head(features, mask), head(changed, mask), atol=1e-5)
    assert torch.allclose(head(features[:1, :3], None), head(features, mask)[:1], atol=1e-5)


def test_a_linear_map_paints_each_patch_from_its_own_token() -> None:
    torch.manual_seed(0)
    head, features = MapLinear(DIM, 2, (3, 2), (6, 4)), torch.randn(1, DIM, 2, 2)
    pixels = head(features, None)
    assert pixels.shape == (1, 2, 6, 4)
    token = features[0, :, 1, 0] @ head.out.weight.T + head.out.bias
    assert torch.allclose(pixels[0, :, 3:, :2], token.reshape(2, 3, 2), atol=1e-6)


def test_patches_lie_on_the_rows_and_columns_of_the_grid() -> None:
    kind, grid = ClassMap(names=("a", "b"), size=(4, 9)), Grid(names=("wide",), shape=(2, 3))
    for name, attribute in (("linear", "patch"), ("convnext", "kernel_size")):
        head = build_head(name, kind, TransferConfig(), CONFIG, grid)  # type: ignore[arg-type]
        assert getattr(head if name == "linear" else head.layers[-1], attribute) == (2, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize(("patch", "size"), [((4, 4), (8, 8)), ((3, 3), (6, 6)), ((4, 4), (7, 8))])
def test_a_convnext_head_gives_maps_of_any_size(patch: tuple[int, int], size: tuple[int, int]) -> None:
    head = MapConvNeXt(DIM, 3, patch, size, DIM, 1)
    features = torch.randn(2, DIM, 2, 2, requires_grad=True)
    pixels = head(features, None)
    assert pixels.shape == (2, 3, *size)
    pixels.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters() if p.ndim > 1)


# ---------------------------------------------------------------- features


def test_maps_use_all_grids_shaped_like_the_first() -> None:
    layout = EmbeddingLayout(all_layouts())
    assert Grid.of(layout, ["words", "pixels", "picture"]) == Grid(names=("pixels", "picture"), shape=(6, 6))
    with pytest.raises(ConfigError, match="--input words,clip"):
        Grid.of(layout, ["words", "clip"])
    sound = dataclasses.replace(layout.spec("picture"), name="sound", layout=GridLayout(shape=(16, 4)), num_codebooks=4)
    layout = EmbeddingLayout([sound, *all_layouts()])
    assert Grid.of(layout, ["sound", "picture"]) == Grid(names=("picture",), shape=(6, 6)), "codes are no axis"
    with pytest.raises(ConfigError, match="--input sound"):
        Grid.of(layout, ["sound"])


def test_a_map_has_the_rows_and_columns_of_its_grids() -> None:
    wide = spec(ValueSpec(), GridLayout(shape=(2, 3)))
    names = ["first", "second"]
    record = ProbeRecord(
        task=StoredTask(), target=ClassMap(names=("a", "b"), size=(2, 3)), inputs=tuple(names),
        head="linear", settings=TransferConfig(), backbone=BackboneRecord(architecture="FourM", model={}, specs=()),
    )  # fmt: skip
    network = Network(FourM.seeded(CONFIG, [dataclasses.replace(wide, name=name) for name in names], 0), record)
    encoder = network.encoder
    tokens, token_mask = encoder.prepare({name: torch.arange(6).reshape(1, 2, 3) for name in names})
    features, _ = encoder.forward_features(tokens, token_mask)
    maps, _ = network.features(tokens, token_mask)
    assert maps.shape == (1, 2 * DIM, 2, 3)
    for cell in range(6):
        cell_features = maps[:, :, cell // 3, cell % 3]
        assert torch.equal(cell_features, torch.cat([features[:, cell], features[:, 6 + cell]], 1))


# ---------------------------------------------------------------- kinds


def test_encoding_baseline_and_loss_of_classes_by_hand() -> None:
    kind = Classes(names=("a", "b", "c"))
    assert kind.encode(["c", "a"]).tolist() == [2, 0]
    assert kind.decode(torch.tensor([[0.0, 2, 1], [3, 2, 1]])) == ["b", "a"]
    assert kind.constant_baseline(["b", "c", "c", "b", "a"]) == "b"
    outputs = torch.tensor([[1.0, 0, 0]])
    assert float(kind.loss(outputs, torch.tensor([0]))) == pytest.approx(-math.log(math.e / (math.e + 2)))


def test_encoding_baseline_and_loss_of_numbers_by_hand() -> None:
    kind = Numbers.fit([1, 3, 8])
    assert kind.mean == (4.0,) and kind.std == (pytest.approx(np.std([1, 3, 8])),)
    assert kind.decode(kind.encode([1, 8])) == [pytest.approx(1), pytest.approx(8)]
    assert kind.constant_baseline([1, 3, 8, 9]) == 5.5
    # Smooth L1: half the square up to 1, the absolute error less a half above.
    assert float(kind.loss(torch.tensor([[0.5], [-2]]), torch.zeros(2, 1))) == (0.125 + 1.5) / 2
    value = ValueSpec(shape=(2,), low=0, high=1)
    vectors = Numbers.fit([np.array([0, 0.5], np.float32), np.array([1, 0.5], np.float32)], spec(value))
    answer = vectors.decode(torch.tensor([[9.0, 0.0]]))[0]
    assert answer.dtype == np.float32 and answer.tolist() == [1.0, 0.5]  # within the bounds, also for a constant number
    assert vectors.constant_baseline([np.zeros(2), np.ones(2), np.ones(2)]).tolist() == [1, 1]


VOID = ClassMap(names=("a", "void", "b"), size=(1, 3), dtype="uint8", unscored=("void",))
"""A class map with an unscored class."""


def test_unscored_pixels_are_neither_learned_nor_predicted() -> None:
    targets = VOID.encode([np.array([[0, 1, 2]], np.uint8)])
    assert targets.dtype == torch.int64 and targets.tolist() == [[[0, IGNORED, 2]]]
    outputs = torch.tensor([[[[1.0, 5, 0]], [[0, 7, 0]], [[0, 9, 2]]]], requires_grad=True)  # a, void, b
    loss = VOID.loss(outputs, targets)
    loss.backward()
    expected = (-math.log(math.e / (math.e + 2)) - math.log(math.e**2 / (math.e**2 + 2))) / 2
    assert float(loss.detach()) == pytest.approx(expected)
    assert outputs.grad is not None and outputs.grad[..., 1].abs().max() == 0 < outputs.grad[..., 0].abs().max()
    assert VOID.decode(torch.tensor([[[[0.0, 1, -3]], [[9, 9, 9]], [[1, 0, -2]]]]))[0].tolist() == [[2, 0, 2]]
    unscored_loss = VOID.loss(outputs, VOID.encode([np.ones((1, 3), np.uint8)]))
    assert float(unscored_loss.detach()) == 0 and not torch.autograd.grad(unscored_loss, outputs)[0].any()


def test_a_class_map_ignores_unscored_classes() -> None:
    value = ValueSpec(shape=(1, 3), dtype="uint8", classes=VOID.names, unscored=("void",))
    task = Task(text="asked", handle=SimpleNamespace(spec=spec(value)))  # type: ignore[arg-type]
    assert task.fit([np.zeros((1, 3), np.uint8)]) == VOID


def test_baseline_and_score_of_maps_ignore_unscored_pixels() -> None:
    maps = [np.array([row], np.uint8) for row in ([1, 1, 0], [1, 1, 2], [2, 1, 2])]
    assert VOID.constant_baseline(maps).tolist() == [[2, 2, 2]]  # b is the most frequent scored class
    guess = [np.array([[0, 0, 0]], np.uint8)]
    assert VOID.score(guess, [np.array([[0, 1, 2]], np.uint8)]) == {"accuracy": 0.5, "balanced_accuracy": 0.5}
    unscored = VOID.score(guess, [np.array([[1, 1, 1]], np.uint8)])
    assert list(unscored) == ["accuracy", "balanced_accuracy"] and all(map(math.isnan, unscored.values()))


@pytest.mark.parametrize(("low", "scale"), [(0.1, "log"), (0, "linear")])
def test_maps_of_numbers_are_learned_on_the_scale_that_fits(low: float, scale: str) -> None:
    metres = spec(ValueSpec(shape=(1, 2, 2), low=low, high=50))
    maps = [np.array([[[1, 2], [3, 4]]], np.float32), np.array([[[5, 6], [7, 8]]], np.float32)]
    kind = Numbers.fit(maps, metres)
    assert kind.scale == scale
    numbers = np.log(np.arange(1, 9)) if scale == "log" else np.arange(1, 9)
    assert (kind.mean[0], kind.std[0]) == (pytest.approx(numbers.mean()), pytest.approx(numbers.std()))
    assert np.allclose(kind.decode(kind.encode(maps))[1], maps[1], rtol=1e-5)
    assert kind.decode(torch.full((1, 1, 2, 2), 1e6))[0].max() == 50
    assert kind.constant_baseline([*maps, maps[1]]).tolist() == maps[1].tolist()


def test_maps_of_numbers_are_standardised_by_channel() -> None:
    signs = np.array([[1, -1, 1], [-1, 1, -1]], np.float32)
    maps = [np.stack([signs, 100 + 4 * signs]), np.stack([-signs, 100 - 4 * signs])]
    kind = Numbers.fit(maps, spec(ValueSpec(shape=(2, 2, 3))))
    assert (kind.mean, kind.std, kind.size, kind.outputs) == ((0, 100), (1, 4), (2, 3), 2)
    zeros = torch.zeros(1, 2, 2, 3)
    assert kind.decode(zeros)[0].tolist() == [[[0] * 3] * 2, [[100] * 3] * 2]
    targets = kind.encode(maps)
    assert torch.equal(targets[0], torch.from_numpy(signs).expand(2, 2, 3))
    np.testing.assert_array_equal(kind.decode(targets), maps)
    apart = torch.tensor([0.5, -2]).reshape(2, 1, 1).expand(1, 2, 2, 3)
    assert float(kind.loss(apart, zeros)) == (0.125 + 1.5) / 2


def test_scores_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    expected = {
        "accuracy": pytest.approx(accuracy_score(truth, guess)),
        "balanced_accuracy": pytest.approx(balanced_accuracy_score(truth, guess)),
    }
    assert Classes(names=("0", "1")).score(list(map(str, guess)), list(map(str, truth))) == expected
    maps = ClassMap(names=tuple("abcdef"), size=(5, 2))
    assert maps.score(list(guess.reshape(5, 5, 2)), list(truth.reshape(5, 5, 2))) == expected
    numbers = Numbers(mean=(0.0,), std=(1.0,))
    assert numbers.score(list(guess), list(truth))["r2"] == pytest.approx(r2_score(truth, guess))
    pairs = np.stack([truth, 9 * guess], 1).reshape(25, 2, 2)  # the variance is around the mean of each number
    total = np.square(pairs[1:] - pairs[1:].mean(0)).sum()
    residual, error = np.square(pairs[1:] - pairs[:-1]).sum(), np.abs(pairs[1:] - pairs[:-1]).mean()
    assert numbers.score(list(pairs[:-1]), list(pairs[1:])) == pytest.approx({"mae": error, "r2": 1 - residual / total})
    assert numbers.score([1, 5], [2, 3]) == {"mae": 1.5, "r2": pytest.approx(1 - 5 / 0.5)}
    assert math.isnan(numbers.score([1, 2], [3, 3])["r2"])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (ValueSpec(kind="text", classes=("a", "b")), "classes"),
        (ValueSpec(shape=(4, 4), dtype="uint8", classes=("a", "b")), "class map"),
        (ValueSpec(shape=(3, 4, 4)), "number map"),
        (ValueSpec(shape=(7,)), "numbers"),
    ],
)
def test_the_kind_of_target_follows_from_the_values(value: ValueSpec, kind: str) -> None:
    assert kind_of_values(spec(value), False, "asked") == kind


@pytest.mark.parametrize("value", [ValueSpec(kind="text"), ValueSpec(shape=(3, "height", "width"))])
def test_values_without_a_head_name_the_backbone(value: ValueSpec) -> None:
    with pytest.raises(ConfigError, match=r"asked: .* zoo backbone grow"):
        kind_of_values(spec(value), False, "asked")


# ---------------------------------------------------------------- labels, settings, intervals


def chosen(count: int, amount: int | float, seed: int, classes: list[str] | None = None) -> list[int]:
    return select_labels(permuted(np.arange(count), count, seed), amount, classes).tolist()


@pytest.mark.parametrize("amount", [1, 2, 0.001])
def test_few_labels_have_each_class_once(amount: int | float) -> None:
    classes = [f"class {n % 7}" for n in range(100)]
    assert sorted(classes[index] for index in chosen(100, amount, 0, classes)) == sorted(set(classes))


@pytest.mark.parametrize("share", [0.2, 0.25, 0.5])
@pytest.mark.parametrize("period", [0, 5])
def test_smaller_label_sets_are_subsets_of_larger_ones(share: float, period: int) -> None:
    """Each class is in both, even if it repeats with the same period as the validation samples."""
    classes = ["rare" if n == 17 else "some" if period and n % period == 0 else "most" for n in range(1000)]
    before: tuple[set[int], set[int]] = set(), set()
    for labels in (50, 100, 0.5, 1.0):
        order = chosen(1000, labels, 0, classes if period else None)
        names = [classes[index] for index in order]
        mask = select_validation(len(order), share, 200, 0, names if period else None)
        validation = {index for index, is_validation in zip(order, mask, strict=True) if is_validation}
        training = set(order) - validation
        for name in set(names) if period else ():
            size, validation_count = names.count(name), sum(classes[index] == name for index in validation)
            assert len(validation) == 200 or abs(validation_count - share * size) < 1, (labels, name)
            assert name in {classes[index] for index in training}
        assert len(validation) == 200 or abs(len(validation) - share * len(order)) < 3
        assert before[0] <= training and before[1] <= validation
        before = training, validation


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"labels": 1.5}, "labels"), ({"labels": 0}, "labels"), ({"labels": math.nan}, "labels"),
        ({"tuning": "half"}, "tuning"), ({"validation": 1.0}, "validation"),
        ({"head": "knn"}, "head"), ({"layer_decay": 0.0}, "layer_decay"), ({"step": 3}, "step"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(table: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\b{field}:"):
        transfer_config(table)
