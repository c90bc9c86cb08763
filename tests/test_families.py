"""All families in one suite: training, exact resuming, tokens, batches, checkpoints, losses; the grammar of objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from spatial_samples import PLUGINS
from spatial_samples import settings as spatial_settings
from spatial_samples import values as pictures
from torch.nn import functional as F

from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.families.continuous import EmbeddingsModality, PatchesModality
from tokenizers_zoo.families.features import FeatureMapModality
from tokenizers_zoo.families.object_tokens import Axis, ObjectGrammar, box_seen_through, levels_of, numbers_of
from tokenizers_zoo.families.objects import ObjectModality
from tokenizers_zoo.families.temporal import ClipModality, SeriesModality
from tokenizers_zoo.families.vectors import VectorModality
from tokenizers_zoo.run_folder import FolderError
from tokenizers_zoo.spec import Crop, EmbeddingsLayout, Metric, PatchesLayout, ValueSpec
from tokenizers_zoo.train.loop import train

MAE = Metric(name="mae", higher_is_better=False, meaning="mean absolute error")
TINY = {"steps": 4, "eval_every": 2, "batch_size": 4, "width": 16, "depth": 1}


class Errors:
    """Score and picture of a modality of numbers."""

    summary, metrics, low, high = "numbers", (MAE,), -5.0, 5.0

    def measure(self, predicted: Any, target: Any, options: Any) -> dict[str, float]:
        return {"mae": float(np.mean([np.abs(a - b).mean() for a, b in zip(predicted, target, strict=True)]))}

    def picture(self, value: Any, options: Any) -> Any:
        from PIL import Image

        return Image.new("RGB", (4, 4))


class Pulse(Errors, SeriesModality):
    channels = 2


class Film(Errors, ClipModality):
    channels = 1


class Pixels(Errors, PatchesModality):
    channels = 2


class Map(FeatureMapModality):
    summary, channels = "a map", 12


class Vector(VectorModality):
    summary, dim = "a vector", 6


class Letters(EmbeddingsModality):
    summary, source = "letters", "caption"


class Rows(ObjectModality):
    """Tables whose rows of four numbers are objects."""

    summary, loss, metrics = "rows", "smooth_l1", (MAE,)
    measure, picture = Errors.measure, Errors.picture

    def value_spec(self, options: Any) -> ValueSpec:
        return ValueSpec(shape=(3, 4))

    def axes(self, options: Any) -> tuple[Axis, ...]:
        return (Axis(name="first", low=-2, high=2),)

    def item_shape(self, options: Any) -> tuple[int, ...]:
        return (4,)

    def max_objects(self, options: Any) -> int:
        return 3

    def split(self, value: Any, options: Any) -> list[Any]:
        return list(value)

    def seen(self, value: Any, crop: Any, options: Any) -> Any:
        return value

    def items(self, objects: Any, options: Any) -> np.ndarray:
        return np.stack(objects).astype(np.float32)

    def coordinates(self, objects: Any, fitted: Any, options: Any) -> np.ndarray:
        return np.stack(objects)[:, :1]

    def join(self, coordinates: Any, items: Any, fitted: Any, options: Any) -> np.ndarray:
        table = np.concatenate([items.reshape(-1, 4), np.zeros((3, 4))])[:3]
        return table.astype(np.float32)


class Marks(Rows):
    """Rows of 0 and 1."""

    loss = "bce"


class Case(NamedTuple):
    modality: Any
    settings: Settings
    other: dict[str, Any]
    """Changed settings, with which its checkpoint has to be refused."""


def case(modality: Any, own: dict[str, Any], other: dict[str, Any], **table: Any) -> Case:
    return Case(modality, Settings("x", {**own, "tokenizer": {**TINY, **table}}), other)


FSQ, LARGER = {"tokenizer": {"levels": [3, 4]}}, {"tokenizer": {"codebook_size": 16}}
CASES = {
    **{name: Case(plugin, spatial_settings(name), {"patch_size": 4}) for name, plugin in PLUGINS.items()},
    "series": case(Pulse(), {"length": 16, "patch_length": 4}, {"patch_length": 8}, levels=[4, 3], latent_dim=8),
    "series of codes": case(
        Pulse(), {"length": 16, "patch_length": 4}, FSQ, quantizer="residual_fsq", levels=[4, 3], num_codebooks=3
    ),
    "vit": case(Pulse(), {"length": 16, "patch_length": 4}, {"patch_length": 8}, blocks="vit", heads=2),
    "clip": case(
        Film(), {"frames": 4, "image_size": 8, "patch_size": 4}, {"patch_frames": 1}, levels=[4, 3], latent_dim=8
    ),
    "map": case(Map(), {"map_size": [2, 3]}, LARGER, heads=2, codebook_size=8),
    "vector": case(Vector(), {}, LARGER, num_codebooks=2, codebook_size=8),
    "objects": case(Rows(), {}, {"bins": 16}, levels=[4, 3], latent_dim=8),
    "patches": Case(Pixels(), Settings("x", {"image_size": [4, 6], "patch_size": 2}), {}),
    "embeddings": Case(Letters(), Settings("x", {"dim": 3, "max_length": 4}), {"dim": 4}),
}
TRAINED = [name for name in CASES if name not in ("patches", "embeddings")]


def values(name: str, count: int, seed: int = 0) -> list[np.ndarray]:
    if name in PLUGINS:
        return pictures(name, count, seed=seed)
    modality, settings, _ = CASES[name]
    rng, shape = np.random.default_rng(seed), modality.modality_spec(settings).value.shape
    shapes = [tuple(side if isinstance(side, int) else 1 + number % 5 for side in shape) for number in range(count)]
    return [rng.uniform(-2, 2, one).astype(np.float32) for one in shapes]


def batch_of(spec: Any, items: list[Any]) -> Any:
    fixed = all(isinstance(side, int) for side in spec.value.shape)
    return torch.from_numpy(np.stack(items)) if fixed else items


def load(modality: Any, folder: Path, settings: Settings) -> Any:
    more = {"vocabulary": folder} if isinstance(modality, ObjectModality) else {}
    return modality.load_tokenizer(folder, "cpu", settings, **more)


def samples(name: str) -> TrainingSamples:
    return TrainingSamples(train=values(name, 8), test=values(name, 4, seed=1), provenance={"source": "noise"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("families")
    return {
        name: modality.train_tokenizer(settings, samples(name), made / name, 0)
        for name, (modality, settings, _) in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_values_have_the_declared_form_in_any_batch(folders: dict[str, Path], name: str) -> None:
    modality, settings, _ = CASES[name]
    spec, tokenizer = modality.modality_spec(settings), load(modality, folders[name], settings)
    items = values(name, 5, seed=2)
    tokens = modality.encode(tokenizer, batch_of(spec, items))
    for number, item in enumerate(items):
        assert np.array_equal(modality.encode(tokenizer, batch_of(spec, [item]))[0], tokens[number])
    if isinstance(spec.layout, PatchesLayout | EmbeddingsLayout):
        assert {str(np.asarray(row).dtype) for row in tokens} == {"float32"} and tokens[0].shape[1] == spec.layout.dim
        given = tokens
    elif name == "objects":
        given = [np.random.default_rng(0).integers(0, spec.vocab_size, 40) for _ in range(3)]
    else:
        assert tokens.dtype == torch.int64 and tokens.min() >= 0 and tokens.max() < spec.vocab_size
        shape = getattr(spec.layout, "shape", (spec.layout.length,))
        assert tokens.shape == (5, *shape)
        given = torch.randint(0, spec.vocab_size, (3, *shape), generator=torch.Generator().manual_seed(0))
    decoded = [np.asarray(value) for value in modality.decode(tokenizer, given)]
    for number, value in enumerate(decoded):
        assert np.array_equal(np.asarray(modality.decode(tokenizer, given[number : number + 1])[0]), value)
        assert str(value.dtype) == spec.value.dtype and np.isfinite(value).all()
        assert spec.value.low is None or spec.value.low <= value.min()
        assert spec.value.high is None or value.max() <= spec.value.high
        assert all(isinstance(side, str) or side == n for side, n in zip(spec.value.shape, value.shape, strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_a_killed_training_ends_in_the_same_weights(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    modality, settings, _ = CASES[name]

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(modality.task(settings), samples(name), modality.options(settings).tokenizer, tmp_path, 0, on_step=kill)
    modality.train_tokenizer(settings, samples(name), tmp_path, 0)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / file).read_bytes() == (folders[name] / file).read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_a_finished_folder_is_complete_and_kept(folders: dict[str, Path], name: str) -> None:
    modality, settings, _ = CASES[name]
    weights = folders[name] / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert modality.train_tokenizer(settings, samples(name), folders[name], 0) == folders[name]
    assert weights.stat().st_mtime_ns == before and "Zoo.from_toml" in (folders[name] / "README.md").read_text()
    metrics = json.loads((folders[name] / "evaluation.json").read_text())["metrics"]
    assert list(metrics) == [metric.name for metric in modality.modality_spec(settings).metrics]
    with pytest.raises(FolderError, match="seed was 0, is 1"):
        modality.train_tokenizer(settings, samples(name), folders[name], 1)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].other])
def test_a_checkpoint_of_other_settings_or_another_class_is_refused(folders: dict[str, Path], name: str) -> None:
    modality, settings, other = CASES[name]
    with pytest.raises(CheckpointError, match=r"asks for .*; change the settings|do not fit|expected mean and std"):
        load(modality, folders[name], settings.changed(**other))
    with pytest.raises(CheckpointError, match="expected a "):
        load(type("Stranger", (type(modality),), {})(), folders[name], settings)


@pytest.mark.parametrize("name", CASES)
def test_equal_values_score_best_and_the_constant_baseline_no_better(name: str) -> None:
    modality, settings, _ = CASES[name]
    truth = values(name, 4)

    def score(predicted: list[Any]) -> dict[str, float]:
        try:
            return modality.score(predicted, truth, settings)
        except TypeError:  # a hook takes only the arguments that it uses
            return modality.score(predicted, truth)

    perfect, shuffled = score(truth), score(truth[::-1])
    for metric in modality.modality_spec(settings).metrics:
        better = perfect[metric.name] - shuffled[metric.name]
        assert (better if metric.higher_is_better else -better) > 0


LFQ = {"width": 16, "depth": 1, "latent_dim": 8, "quantizer": "lfq", "codebook_size": 16, "flip": False}
LOSSES = {
    "smooth_l1": (Vector(), {"loss": "smooth_l1"}, lambda out, x, m: F.smooth_l1_loss(out, (x - m.mean) / m.std)),
    "cosine": (
        Vector(), {"loss": "cosine"}, lambda out, x, m: 1 - F.cosine_similarity(out * m.std + m.mean, x).mean()
    ),
    "objects": (Rows(), {}, lambda out, x, m: F.smooth_l1_loss(out, (x - x.mean(dim=0)) / m.std)),
    "bce": (Marks(), {}, lambda out, x, m: F.binary_cross_entropy(out.sigmoid(), x)),
    "l1 and l2": (
        Pulse(), {"l2_weight": 0.5},
        lambda out, x, m: (out - m.standardise(x)).abs().mean() + 0.5 * (out - m.standardise(x)).square().mean(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_that_of_the_values_and_of_the_quantizer(name: str) -> None:
    modality, own, formula = LOSSES[name]
    table = {**LFQ, **own}
    if isinstance(modality, Vector):
        del table["flip"]
    settings = Settings("x", {"tokenizer": table})
    shape = modality.modality_spec(settings).value.shape
    rng = np.random.default_rng(0)
    data = [
        rng.integers(0, 2, shape) if name == "bce" else rng.normal(1, 2, shape).astype(np.float32) for _ in range(9)
    ]
    task = modality.task(settings)
    module, batch = task.build(data, np.random.default_rng(0)), task.batch(data, np.random.default_rng(0))
    outputs, quantizer_loss = module(batch)
    losses = task.losses(module, batch)
    torch.testing.assert_close(losses["reconstruction_loss"], formula(outputs, batch, module))
    torch.testing.assert_close(losses["loss"], losses["reconstruction_loss"] + quantizer_loss)
    assert quantizer_loss.abs() > 0.01


SMALL = ObjectGrammar(sentinels=2, axes=2, bins=10, positions=2, codebooks=2, codebook_size=5)
FIRST = [3, 13, 23, 28, 24, 29]  # levels 0 0, codes 0 0 | 1 1


def test_ids_by_hand() -> None:
    assert (SMALL.coordinate_start, SMALL.code_start, SMALL.vocab_size, SMALL.object_length) == (3, 23, 33, 6)
    ids = SMALL.write(np.array([[0, 0], [9, 4]]), np.array([[0, 0, 1, 1], [4, 3, 2, 1]]))
    assert ids.tolist() == [*FIRST, 12, 17, 27, 31, 25, 29]


@pytest.mark.parametrize(
    ("ids", "objects"),
    [
        ([], 0),
        (FIRST, 1),
        ([*FIRST, *FIRST], 2),
        ([*FIRST[:4], *FIRST], 1),  # the first object is cut off, the second is complete
        ([13, 23, *FIRST], 1),  # starts in the middle of an object
        ([*FIRST[:2], 3, *FIRST[1:]], 1),  # a first coordinate starts a new object
        ([*FIRST[:3], 24, *FIRST[4:]], 0),  # a code of the first codebook in place of the second codebook's
        ([0, 1, 2, *FIRST, 0], 1),  # the end token and sentinels are ignored
        ([-5, 99, *FIRST], 1),
    ],
)
def test_ids_that_form_no_object_are_skipped(ids: list[int], objects: int) -> None:
    levels, codes = SMALL.read(ids)
    assert levels.tolist() == [[0, 0]] * objects and codes.tolist() == [[0, 0, 1, 1]] * objects


sizes = strategies.integers(1, 5)


@given(strategies.data())
def test_written_objects_are_read_back(data: strategies.DataObject) -> None:
    names = ("sentinels", "axes", "positions", "codebooks", "codebook_size")
    grammar = ObjectGrammar(bins=data.draw(strategies.integers(2, 9)), **{name: data.draw(sizes) for name in names})
    rng = np.random.default_rng(data.draw(strategies.integers(0, 99)))
    count = data.draw(strategies.integers(0, 4))
    levels = rng.integers(0, grammar.bins, (count, grammar.axes))
    codes = rng.integers(0, grammar.codebook_size, (count, grammar.codes))
    ids = grammar.write(levels, codes)
    assert ((ids > grammar.sentinels) & (ids < grammar.vocab_size)).all()
    ordered = [(ids.start, ids.stop) for ids in grammar.ordered_ids]
    assert ordered == list(zip(grammar.starts[: grammar.axes], grammar.stops[: grammar.axes], strict=True))
    cut = data.draw(strategies.integers(0, grammar.object_length - 1))
    for noise in ([], ids[:cut].tolist(), [grammar.end]):
        found = grammar.read([*noise, *ids.tolist()])
        np.testing.assert_array_equal(found[0], levels)
        np.testing.assert_array_equal(found[1], codes)


@given(strategies.lists(strategies.integers(-1, 40), max_size=60))
def test_any_ids_are_read(ids: list[int]) -> None:
    levels, codes = SMALL.read(ids)
    assert levels.shape[1:] == (2,) and codes.shape == (len(levels), 4)


def test_ends_of_an_axis_are_exact_and_numbers_beyond_are_clipped() -> None:
    axes = (Axis(name="a", low=-2, high=0.3), Axis(name="b"))
    levels = levels_of(axes, np.array([[-2, 0], [0.3, 1], [-9, 9], [-0.85, 0.5]]), 11)
    assert levels.tolist() == [[0, 0], [10, 10], [0, 10], [5, 5]]
    assert numbers_of(axes, levels, 11)[:2].tolist() == [[-2, 0], [0.3, 1]]


@given(strategies.floats(-1.5, 2.5), strategies.integers(2, 1000))
def test_numbers_are_exact_to_half_a_level(number: float, bins: int) -> None:
    axis = (Axis(name="a", low=-1.5, high=2.5),)
    found = numbers_of(axis, levels_of(axis, np.array([[number]]), bins), bins)
    assert abs(found[0, 0] - number) <= 0.5 * 4 / (bins - 1) + 1e-12


def test_boxes_through_crops_by_hand() -> None:
    right = Crop(left=0.5, width=0.5)
    assert box_seen_through(right, [0.25, 0.2, 0.75, 0.6], 0.5) == [0, 0.2, 0.5, 0.6]
    assert box_seen_through(right, [0.25, 0.2, 0.75, 0.6], 0.51) is None
    assert box_seen_through(right, [0.0, 0.2, 0.5, 0.6], 0.01) is None
    mirrored = box_seen_through(Crop(left=0.5, width=0.5, flip=True), [0.75, 0.0, 1.0, 0.5], 1.0)
    assert mirrored == [0, 0, 0.5, 0.5]
