"""All families in one suite: exact resuming, batches, checkpoints, losses; the grammar of objects; series and clips."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from examples import only
from hypothesis import given, strategies
from PIL import Image
from spatial_samples import PLUGINS, train_killed
from spatial_samples import settings as spatial_settings
from spatial_samples import values as pictures
from stores import writing_values
from torch.nn import functional as F

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop, Metric, ValueSpec
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.families.continuous import EmbeddingsModality, PatchesModality
from tokenizers_zoo.families.features import FeatureMapModality
from tokenizers_zoo.families.object_tokens import Axis, ObjectGrammar, levels_of, numbers_of
from tokenizers_zoo.families.objects import ObjectModality
from tokenizers_zoo.families.temporal import ClipModality, SeriesModality
from tokenizers_zoo.families.vectors import VectorModality
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.testing import check_modality
from tokenizers_zoo.testing.doctor import examine

MAE = Metric(name="mae", higher_is_better=False, meaning="mean absolute error")
TINY = {"steps": 4, "eval_every": 2, "batch_size": 4, "width": 16, "depth": 1}


class Errors:
    """Score and picture of a modality of numbers."""

    summary, metrics, low, high = "numbers", (MAE,), -5.0, 5.0

    def measure(self, predicted: Any, target: Any, options: Any) -> dict[str, float]:
        return {"mae": float(np.mean([np.abs(a - b).mean() for a, b in zip(predicted, target, strict=True)]))}

    def picture(self, value: Any, options: Any) -> Any:
        return Image.new("RGB", (4, 4))


class Pulse(Errors, SeriesModality):
    channels = 2

    def mirrored(self, value: np.ndarray) -> np.ndarray:
        return value[::-1]


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

    def crop_value(self, value: Any, crop: Any, options: Any) -> Any:
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
    changed: dict[str, Any]
    """Changed settings, with which its checkpoint has to be refused."""


def case(modality: Any, settings: dict[str, Any], changed: dict[str, Any], **table: Any) -> Case:
    return Case(modality, Settings("x", {**settings, "tokenizer": {**TINY, **table}}), changed)


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


def values(name: str, count: int, seed: int = 0) -> list[np.ndarray]:
    if name in PLUGINS:
        return pictures(name, count, seed=seed)
    modality, settings, _ = CASES[name]
    rng, shape = np.random.default_rng(seed), modality.modality_spec(settings).value.shape
    shapes = [tuple(side if isinstance(side, int) else 1 + number % 5 for side in shape) for number in range(count)]
    return [rng.uniform(-2, 2, value_shape).astype(np.float32) for value_shape in shapes]


def batch_of(spec: Any, items: list[Any]) -> Any:
    fixed = all(isinstance(side, int) for side in spec.value.shape)
    return torch.from_numpy(np.stack(items)) if fixed else items


def load(modality: Any, folder: Path, settings: Settings) -> Any:
    options = {"vocabulary": folder} if isinstance(modality, ObjectModality) else {}
    return modality.load_tokenizer(folder, "cpu", settings, **options)


def samples(name: str) -> TrainingSamples:
    return TrainingSamples(train=values(name, 8), test=values(name, 4, seed=1), provenance={"source": "noise"})


def trained(modality: Any, settings: Settings, samples: TrainingSamples, folder: Path) -> Path:
    """Train a tokenizer on the CPU; modalities without a network take no device."""
    device = {"device": "cpu"} if "device" in inspect.signature(modality.train_tokenizer).parameters else {}
    checkpoint: Path = modality.train_tokenizer(settings, samples, folder, 0, **device)
    return checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        name: trained(modality, settings, samples(name), root / name) for name, (modality, settings, _) in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_batch_changes_no_bit(folders: dict[str, Path], name: str) -> None:
    """The conformance checks look at the form of tokens and values of all installed modalities."""
    modality, settings, _ = CASES[name]
    spec, tokenizer = modality.modality_spec(settings), load(modality, folders[name], settings)
    items = values(name, 5, seed=2)
    tokens = modality.encode(tokenizer, batch_of(spec, items))
    decoded = modality.decode(tokenizer, tokens)
    for number, item in enumerate(items):
        alone = modality.encode(tokenizer, batch_of(spec, [item]))
        assert np.array_equal(alone[0], tokens[number])
        assert np.array_equal(modality.decode(tokenizer, alone)[0], decoded[number])


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("patches", "embeddings")])
def test_a_killed_training_ends_in_the_same_weights(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    modality, settings, _ = CASES[name]
    train_killed(modality, settings, samples(name), tmp_path, 3)
    trained(modality, settings, samples(name), tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / file).read_bytes() == (folders[name] / file).read_bytes()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].changed])
def test_a_checkpoint_of_other_settings_or_another_class_is_refused(folders: dict[str, Path], name: str) -> None:
    modality, settings, changed = CASES[name]
    with pytest.raises(CheckpointError, match=r"asks for|do not fit|expected mean and std"):
        load(modality, folders[name], settings.changed(**changed))
    with pytest.raises(CheckpointError, match="expected a "):
        load(type("Stranger", (type(modality),), {})(), folders[name], settings)


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        ("series", {"patch_length": 5}, "patch_length: 5 .*16"), ("series", {"length": 0}, "length: .*0"),
        ("clip", {"frames": 1}, "frames: .*1"), ("clip", {"patch_frames": 3}, "patch_frames: 3 .*4"),
        ("clip", {"tokenizer": {"quantizer": "residual_vq"}}, "fourth axis"),
        ("series", {"tokenizer": {"loss": "bce"}}, "loss: .*l1, l2, smooth_l1"),
        ("series", {"tokenizer": {"perceptual_weight": 1.0}}, "perceptual_weight: "),
        ("series", {"tokenizer": {"diffusion": {}}}, "diffusion: "), ("map", {"map_size": 0}, "map_size: .*0"),
        ("map", {"preset": "4m"}, "preset: "), ("map", {"tokenizer": {"diffusion": {}}}, "diffusion: "),
        ("vector", {"tokenizer": {"width": 0}}, "width: .*0"), ("map", {"tokenizer": {"depth": 0}}, "depth: .*0"),
        ("vector", {"tokenizer": {"loss": "l1"}}, "loss: .*cosine.*smooth_l1"),
        ("vector", {"preset": "5m"}, 'preset: .*"4m"'), ("vector", {"tokenizer": {"patch_size": 4}}, "patch_size"),
        ("depth", {"tokenizer": {"step": 3}}, "tokenizer] step: .*did you mean steps"),
        ("depth", {"tokenizer": {"quantizer": "vqq"}}, "vqq"),
        ("depth", {"tokenizer": {"quantizer": "vq", "levels": [8, 8]}}, "levels: .*fsq, residual_fsq"),
        ("depth", {"tokenizer": {"heads": 3}}, "heads: .*vit"), ("depth", {"image_size": [64]}, "image_size: .*of 2"),
        ("depth", {"image_size": 65, "patch_size": None}, "image_size: .*8 .*65"),
        ("depth", {"png_scale": -1.0}, "png_scale: "),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(case: str, changed: dict[str, Any], message: str) -> None:
    modality, settings, _ = CASES[case]
    table = {key: value for key, value in (settings.table | changed).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        modality.modality_spec(Settings("x", table))


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
def test_the_loss_is_reconstruction_plus_quantizer_loss(name: str) -> None:
    modality, options, formula = LOSSES[name]
    table = {**LFQ, **options}
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
        parsed = grammar.read([*noise, *ids.tolist()])
        np.testing.assert_array_equal(parsed[0], levels)
        np.testing.assert_array_equal(parsed[1], codes)


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
    numbers = numbers_of(axis, levels_of(axis, np.array([[number]]), bins), bins)
    assert abs(numbers[0, 0] - number) <= 0.5 * 4 / (bins - 1) + 1e-12


SERIES = CASES["series"].settings
LEADS = """from test_families import Pulse

class Leads(Pulse):
    channels = 32

plugin = Leads()
"""


def test_statistics_of_a_series_by_hand() -> None:
    data = [np.stack([np.full(16, level), np.arange(16.0)]).astype(np.float32) for level in (1.0, 3.0)]
    module = Pulse().task(SERIES).build(data, np.random.default_rng(0))
    assert module.mean.flatten().tolist() == pytest.approx([2, 7.5])
    assert module.std.flatten().tolist() == pytest.approx([1, np.sqrt((16**2 - 1) / 12)])
    for parameter in module.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    decoded = module.decode(module.encode(torch.from_numpy(np.stack(data))))
    torch.testing.assert_close(decoded, torch.tensor([2, 7.5])[None, :, None].expand(2, 2, 16))


@pytest.mark.parametrize(("second", "expected"), [(0.0, 0.005), (1e-4, 1e-4)])
def test_a_constant_channel_does_not_dominate_standardised_values(second: float, expected: float) -> None:
    """A channel that varies little keeps its scale, because it may have another unit."""
    data = [np.stack([np.full(16, sign), np.full(16, sign * second)]).astype(np.float32) for sign in (-1, 1)]
    module = Pulse().task(SERIES).build(data, np.random.default_rng(0))
    assert module.std.flatten().tolist() == pytest.approx([1, expected])


def test_series_and_clips_are_mirrored_and_cut() -> None:
    value = np.random.default_rng(0).uniform(-2, 2, (2, 20)).astype(np.float32)
    assert np.array_equal(Pulse().transform(value, Crop(), SERIES), value[:, :16])
    assert np.array_equal(Pulse().transform(value, Crop(flip=True, left=0.5, width=0.5), SERIES), value[::-1, :16])
    with pytest.raises(InvalidValueError, match=r"16 time steps .*got 2 of 15"):
        Pulse().transform(value[:, :15], Crop(), SERIES)
    film = values("clip", 1)[0]
    np.testing.assert_allclose(
        Film().transform(film, Crop(flip=True), CASES["clip"].settings), film[..., ::-1], atol=1e-6
    )


def test_one_channel_series_are_read_with_or_without_channel_axis() -> None:
    class Lead(Pulse):
        channels = 1

    wave = np.linspace(0, 1, 20, dtype=np.float32)
    for array in (wave, wave[None]):
        read = Lead().read_value(array_bytes(array), "npy", SERIES)
        assert read.shape == (1, 20)
        assert np.array_equal(Lead().transform(read, Crop(), SERIES), wave[None, :16])
    assert Pulse().read_value(array_bytes(np.stack([wave, wave])), "npy", SERIES).shape == (2, 20)


def test_the_picture_of_a_series_has_a_curve_for_each_channel() -> None:
    class Drawn(Pulse):
        picture = SeriesModality.picture

    value = np.stack([np.linspace(-3, 5, 16), np.full(16, 2.0)]).astype(np.float32)
    is_curve = np.asarray(Drawn().render(value, SERIES).convert("L")) < 255
    assert is_curve.shape == (64, 256)
    rising, flat = is_curve[:32], is_curve[32:]
    first, last = rising[:, 0].nonzero()[0], rising[:, -1].nonzero()[0]
    assert first.min() > 25 and last.max() < 5 and len(np.unique(flat.nonzero()[0])) == 1
    assert Drawn().render(value.repeat(40, 0), SERIES).size == (256, 80 * 8)


@pytest.mark.parametrize("quantizer", ["fsq", "residual_fsq"])
def test_a_series_of_many_channels_is_no_picture(quantizer: str, install: Callable[..., Path], tmp_path: Path) -> None:
    """Checks of image crops and shifts do not apply to a series, even if its tokens form a grid."""
    install("zoo-leads", {"tokenizers_zoo": {"leads": "zoo_leads:plugin"}}, {"zoo_leads": LEADS})
    table = {"checkpoints": str(tmp_path / "tokenizers")}
    zoo = only(zoo=table, modalities={"leads": {"tokenizer": {"quantizer": quantizer}}})
    results = {result.name: result for result in check_modality(zoo, "leads")}
    assert results["crop_geometry"].message == "its values are no pictures that are cropped"
    for split in ("train", "test"):
        with writing_values(tmp_path / "data", split, "leads") as shard:
            for number, value in enumerate(np.random.default_rng(0).uniform(-2, 2, (6, 32, 128)).astype(np.float32)):
                shard.add(f"{split}-{number}", *zoo["leads"].write(value))
    gates = {finding.name: finding for finding in examine(zoo, "leads", tmp_path / "data", steps=2)}
    assert gates["crops"].skipped and gates["crops"].message == "its values are no pictures that are cropped"
    assert zoo["leads"].spec.grid_shape == (zoo["leads"].spec.layout.shape[0],)


def test_series_with_several_codes_have_no_aspect_ratio(tmp_path: Path) -> None:
    """Channels and time steps are not compared with a picture's height and width, although tokens have two axes."""
    table = {"length": 32, "patch_length": 8, "tokenizer": {"quantizer": "residual_fsq"}}
    sizes = {"image_size": 16, "patch_size": 8, "modalities": ["rgb", "imu"]}
    zoo = Zoo.from_tables({"zoo": sizes, "modalities": {"imu": table}})
    rng = np.random.default_rng(0)
    for name, shape in (("rgb", (3, 16, 16)), ("imu", zoo["imu"].spec.value.shape)):
        folder, unit = tmp_path / "own" / name, 20 if name == "imu" else 1
        folder.mkdir(parents=True)
        for number in range(2):
            data, extension = zoo[name].write(rng.uniform(0, unit, shape).astype(np.float32))
            (folder / f"{number}.{extension}").write_bytes(data)
    options = {"path": str(tmp_path / "own"), "test_fraction": 0}
    report = make_data(zoo, "folder", tmp_path / "data", train=None, test=0, options=options, workers=0)
    assert [(outcome.modality, outcome.written) for outcome in report.outcomes] == [("imu", 2), ("rgb", 2)]
