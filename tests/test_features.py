"""Feature maps and global vectors: metrics by hand, constants, pictures, files, and tokenizers that learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tokenizers_zoo.contract.layouts import VectorLayout
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import in_declared_width
from tokenizers_zoo.families.features import FeatureMapModality, agreement, central_value, main_colours
from tokenizers_zoo.families.vectors import NUMBER_METRICS, VectorModality
from tokenizers_zoo.records.config import Settings

TINY = {"width": 32, "batch_size": 16, "eval_every": 60, "eval_samples": 16, "codebook_size": 64, "warmup_steps": 5}


class SmallMap(FeatureMapModality):
    """Maps of 12 channels."""

    summary = "a small map"
    channels = 12


class SmallVector(VectorModality):
    """Vectors of 24 numbers."""

    summary = "a small vector"
    dim = 24


MAPS, VECTORS = SmallMap(), SmallVector()


def map_settings(**settings: object) -> Settings:
    return Settings(
        "small_map",
        {"map_size": [4, 6], "tokenizer": {**TINY, "heads": 2, "steps": 60, "learning_rate": 5e-3}, **settings},
    )


def vector_settings(**table: object) -> Settings:
    tokenizer = {**TINY, "num_codebooks": 4, "latent_dim": 16, "steps": 120, **table}
    return Settings("small_vector", {"tokenizer": tokenizer})


def vectors(count: int, seed: int) -> list[np.ndarray]:
    """Return vectors around a common mean, with 3 degrees of freedom."""
    basis = np.random.default_rng(99).standard_normal((4, VECTORS.dim))
    freedom = np.random.default_rng(seed).standard_normal((count, 3))
    return list((basis[0] + freedom @ basis[1:]).astype(np.float32))


def maps(count: int, seed: int) -> list[np.ndarray]:
    """Return maps of vectors with 2 degrees of freedom."""
    basis = np.random.default_rng(98).standard_normal((2, MAPS.channels))
    freedom = np.random.default_rng(seed).standard_normal((count, 4, 6, 2))
    return list(np.moveaxis(freedom @ basis, -1, 1).astype(np.float32))


def test_agreement_by_hand() -> None:
    """cos((3,4),(4,3)) = 24/25; the true vectors (4,3) and (0,1) are 2, 1 and -2, -1 from their mean (2, 2)."""
    target = [np.array([4.0, 3.0]), np.array([0.0, 1.0])]
    predicted = [np.array([3.0, 4.0]), np.array([0.0, 2.0])]
    metrics = agreement(predicted, target)
    assert metrics["cosine"] == pytest.approx((24 / 25 + 1) / 2)
    assert metrics["variance_explained"] == pytest.approx(1 - (1 + 1 + 1) / (4 + 1 + 4 + 1))
    as_map = agreement([np.array(predicted).T[:, None]], [np.array(target).T[:, None]])
    assert as_map == pytest.approx(metrics)
    perfect = agreement(target, target)
    assert perfect == pytest.approx({"cosine": 1.0, "variance_explained": 1.0})


@pytest.mark.parametrize("unit", [1e-13, 1e-9, 1e6])
def test_agreement_does_not_depend_on_the_unit(unit: float) -> None:
    rng = np.random.default_rng(0)
    target, predicted = rng.normal(size=(2, 5, 3))
    assert agreement(unit * predicted, unit * target) == pytest.approx(agreement(predicted, target))
    np.testing.assert_allclose(central_value(unit * target), unit * central_value(target), rtol=1e-5)


def test_agreement_of_zeros_and_of_a_single_vector() -> None:
    zero, unit = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert agreement([zero, unit], [zero, unit])["cosine"] == pytest.approx(1)
    assert agreement([unit], [zero])["cosine"] == 0
    assert agreement([zero], [unit]) == pytest.approx({"cosine": 0, "variance_explained": 0})
    assert agreement([unit], [unit])["variance_explained"] == 1


def test_the_constant_baseline_is_the_best_of_many_by_cosine() -> None:
    values = vectors(50, 1)
    values[0] = values[0] * 100  # long vectors count no more than short ones
    answer = VECTORS.constant_baseline(values)
    best = agreement([answer] * 50, values)["cosine"]
    rng = np.random.default_rng(0)
    rivals = [answer + 0.2 * rng.standard_normal(answer.shape) for _ in range(50)] + [np.mean(values, axis=0)]
    assert all(agreement([rival] * 50, values)["cosine"] <= best for rival in rivals)
    lengths = np.linalg.norm(values, axis=1)
    assert np.linalg.norm(answer) == pytest.approx(lengths.mean(), rel=1e-5)


def test_constant_map_is_computed_per_position() -> None:
    values = maps(20, 1)
    answer = MAPS.constant_baseline(values, map_settings())
    assert answer.shape == values[0].shape and answer.dtype == np.float32
    position_value = central_value([value[:, 2:3, 3:4] for value in values])
    mean = agreement([np.mean(values, axis=0)] * 20, values)["cosine"]
    np.testing.assert_allclose(answer[:, 2:3, 3:4], position_value, rtol=1e-5)
    assert agreement([answer] * 20, values)["cosine"] >= mean


def test_the_constant_map_stays_within_the_bounds() -> None:
    """For values that are mostly 0, the mean direction scaled to the mean length may exceed every single value."""

    class Bounded(SmallMap):
        low, high = 0.0, 1.0

    values = [np.zeros((12, 4, 6), np.float32) for _ in range(2)]
    values[0][0], values[1][:] = 1, 1
    answer = Bounded().constant_baseline(values, map_settings())
    assert central_value(values).max() > 1 >= answer.max()


def test_maps_are_stored_as_halves_and_read_as_singles() -> None:
    value = maps(1, 0)[0]
    value[0, 0, 0] = 1e6  # beyond float16
    data, extension = MAPS.write_value(value, map_settings())
    spec = MAPS.value_spec(MAPS.options(map_settings()))
    loaded = in_declared_width(spec, MAPS.read_value(data, extension, map_settings()))
    assert extension == "npy" and loaded.dtype == np.float32 and loaded[0, 0, 0] == 65504
    np.testing.assert_allclose(loaded.ravel()[1:], value.ravel()[1:], rtol=5e-4, atol=1e-7)
    assert len(data) < value.nbytes


def test_a_map_is_cropped_and_mirrored_like_its_picture() -> None:
    value = np.broadcast_to(np.arange(6, dtype=np.float32), (12, 4, 6)).copy()
    mirrored = MAPS.transform(value, Crop(flip=True), map_settings())
    np.testing.assert_array_equal(mirrored, value[..., ::-1])
    half = MAPS.transform(value, Crop(left=0.5, width=0.5), map_settings())
    assert half.shape == value.shape
    np.testing.assert_allclose(half[0, 0], [2.75, 3.25, 3.75, 4.25, 4.75, 5], atol=1e-5)


def test_a_map_is_shown_by_its_main_directions() -> None:
    value = np.zeros((12, 4, 6), np.float32)
    value[3, :, 3:] = 5  # two halves: one direction
    colours = main_colours(value)
    assert colours.shape == (4, 6, 3) and (colours[..., 1:] == 128).all()
    assert (colours[:, 3:, 0] > 128).all() and (colours[:, :3, 0] < 128).all()
    assert (main_colours(np.ones((12, 4, 6), np.float32)) == 128).all()
    assert main_colours(np.ones((2, 1, 1), np.float32)).shape == (1, 1, 3)
    assert MAPS.render(value, map_settings()).size == (6 * 21, 4 * 21)


def test_a_vector_is_shown_by_the_signs_of_its_numbers() -> None:
    value = np.zeros(24, np.float32)
    value[0], value[1] = 1, -1
    pixels = np.asarray(VECTORS.render(value))
    assert pixels.shape == (5, 24 * 5, 3)
    assert [pixels[0, x].tolist() for x in (0, 5, 10)] == [[255, 0, 0], [0, 0, 255], [255, 255, 255]]
    assert VECTORS.render(value[:3]).size == (126, 42), "few numbers are large"
    assert VECTORS.render(np.tile(value, 2)).size == (128, 8), "32 of them to a row"


def test_vector_with_an_absolute_metric_has_the_mean_as_constant_baseline() -> None:
    class State(VectorModality):
        summary, dim, loss, metrics = "a state", 2, "smooth_l1", NUMBER_METRICS

    values = [np.array(value, np.float32) for value in ([1, 0], [9, 0], [5, 6])]
    constant = State().constant_baseline(values)
    assert constant.tolist() == [5, 2] and constant.dtype == np.float32
    assert State().score([constant] * 3, values)["variance_explained"] == 0
    assert VECTORS.constant_baseline(values).tolist() != [5, 2], "by direction alone it is another"


def test_a_vector_tokenizer_learns_and_keeps_the_length(tmp_path: Path) -> None:
    samples = TrainingSamples(train=vectors(400, 1), test=vectors(64, 2), provenance={"source": "noise"})
    VECTORS.train_tokenizer(vector_settings(), samples, tmp_path, 0, "cpu")
    tokenizer = VECTORS.load_tokenizer(tmp_path, "cpu", vector_settings())
    held_out = vectors(70, 3)
    tokens = VECTORS.encode(tokenizer, torch.from_numpy(np.stack(held_out)))
    assert tokens.shape == (70, 4) and tokens.dtype == torch.int64 and tokens.min() >= 0 and tokens.max() < 64
    decoded = list(VECTORS.decode(tokenizer, tokens).numpy())
    floor = VECTORS.score([VECTORS.constant_baseline(held_out)] * 70, held_out)["cosine"]
    assert VECTORS.score(decoded, held_out)["cosine"] > 0.5 + 0.5 * floor
    lengths = np.linalg.norm(decoded, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(vectors(400, 1), axis=1).mean(), rtol=1e-3)


def test_channels_of_different_units_are_standardised() -> None:
    units = np.where(np.arange(24) % 2, 1e5, 1e-3)
    values = [(units * value).astype(np.float32) for value in vectors(200, 1)]
    for value in values:
        value[5] = 3.0  # never varies
    settings = vector_settings(loss="smooth_l1")
    module = VECTORS.task(settings).build(values, np.random.default_rng(0))
    standardised = module.standardise(torch.from_numpy(np.stack(values)))
    expected = (np.arange(24) != 5).astype(np.float32)
    np.testing.assert_allclose(standardised.std(dim=0, correction=0).numpy(), expected, rtol=1e-3, atol=1e-3)
    # A cosine loss depends on the direction of the whole vector, so small channels stay small.
    module = VECTORS.task(vector_settings(loss="cosine")).build(values, np.random.default_rng(0))
    standardised = module.standardise(torch.from_numpy(np.stack(values)))
    assert standardised[:, units < 1].std(dim=0).max() < 1e-3


def test_channels_of_a_map_share_one_scale() -> None:

    values = maps(50, 1)
    for value in values:
        value[0] = 3 + value[0] * 100
    module = MAPS.task(map_settings()).build(values, np.random.default_rng(0))
    stack = np.stack(values)
    np.testing.assert_allclose(module.mean[:, 0, 0].numpy(), stack.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    scale = np.sqrt(stack.var(axis=(0, 2, 3)).mean())
    np.testing.assert_allclose(module.std.numpy().ravel(), np.full(12, scale), rtol=1e-4)


@pytest.mark.slow
def test_the_published_vector_tokenizer_runs_forward_and_back() -> None:
    settings = Settings("published", {"preset": "4m"})
    task = VECTORS.task(settings)
    assert task.spec.vocab_size == 8192 and task.spec.layout == VectorLayout(length=16)
    rng = np.random.default_rng(0)
    module = task.build(vectors(50, 1), rng)
    losses = task.losses(module, task.batch(vectors(4, 1), rng))
    losses["loss"].backward()
    assert module.encoder[0].weight.grad.abs().sum() > 0
