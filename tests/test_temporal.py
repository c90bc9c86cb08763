"""Modalities over time: one model for grids of one, two and three axes; settings, statistics, loading, mirroring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import only
from stores import writing_values

from tokenizers_zoo import Zoo
from tokenizers_zoo.autoencoder.tokenizer import AutoencoderTokenizer
from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.doctor import examine
from tokenizers_zoo.errors import ConfigError, InvalidValueError
from tokenizers_zoo.families.temporal import ClipModality, SeriesModality
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.spec import Crop, Metric
from tokenizers_zoo.testing import check_modality
from tokenizers_zoo.validation import array_bytes

MAE = Metric(name="mae", higher_is_better=False, meaning="mean absolute error")
TINY = {"steps": 2, "eval_every": 2, "batch_size": 2, "width": 16, "depth": 1, "levels": [4, 3], "latent_dim": 8}


class Pulse(SeriesModality):
    summary, channels, metrics = "two channels over time", 2, (MAE,)
    low, high = -5.0, 5.0

    def meaning(self, options: Any) -> dict[str, Any]:
        return {"length": options.length}

    def mirrored(self, value: np.ndarray) -> np.ndarray:
        return value[::-1]

    def measure(self, predicted: list[Any], target: list[Any], options: Any) -> dict[str, float]:
        return {"mae": float(np.mean([np.abs(a - b).mean() for a, b in zip(predicted, target, strict=True)]))}

    def picture(self, value: np.ndarray, options: Any) -> Any:
        from PIL import Image

        return Image.new("RGB", (4, 4))


class Film(ClipModality):
    summary, channels, metrics = "grey pictures over time", 1, (MAE,)
    low, high, measure, picture = -5.0, 5.0, Pulse.measure, Pulse.picture


LEADS = """
import numpy as np
from tokenizers_zoo.families.temporal import SeriesModality
from tokenizers_zoo.spec import Metric

class Leads(SeriesModality):
    summary, channels, low, high = "32 electrodes", 32, -5.0, 5.0
    metrics = (Metric(name="mae", higher_is_better=False, meaning="mean absolute error"),)

    def measure(self, predicted, target, options):
        return {"mae": float(np.mean([np.abs(a - b).mean() for a, b in zip(predicted, target, strict=True)]))}

plugin = Leads()
"""
SERIES, CLIP = {"length": 16, "patch_length": 4}, {"frames": 4, "patch_frames": 2, "image_size": 8, "patch_size": 4}
CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "one axis": (Pulse(), {**SERIES, "tokenizer": TINY}, (2, 16), (4,)),
    "time and codes": (
        Pulse(), {**SERIES, "tokenizer": {**TINY, "quantizer": "residual_fsq", "num_codebooks": 3}}, (2, 16), (4, 3),
    ),
    "vit": (Pulse(), {**SERIES, "tokenizer": {**TINY, "blocks": "vit", "heads": 2}}, (2, 16), (4,)),
    "space and time": (Film(), {**CLIP, "tokenizer": TINY}, (4, 1, 8, 8), (2, 2, 2)),
}  # fmt: skip


def settings(own: dict[str, Any]) -> Settings:
    return Settings("pulse", own)


def values(shape: tuple[int, ...], count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).uniform(-2, 2, (count, *shape)).astype(np.float32))


def train(case: str, folder: Path) -> tuple[Any, Settings, list[np.ndarray], AutoencoderTokenizer]:
    modality, own, shape, _ = CASES[case]
    data = values(shape, 5)
    path = modality.train_tokenizer(settings(own), TrainingSamples(train=data[:3], test=data[3:]), folder, 0)
    return modality, settings(own), data, modality.load_tokenizer(path, "cpu", settings(own))


def test_statistics_by_hand() -> None:
    modality, own, _, _ = CASES["one axis"]
    data = [np.stack([np.full(16, level), np.arange(16.0)]).astype(np.float32) for level in (1.0, 3.0)]
    module = modality.task(settings(own)).build(data, np.random.default_rng(0))
    assert module.mean.flatten().tolist() == pytest.approx([2, 7.5])
    assert module.std.flatten().tolist() == pytest.approx([1, np.sqrt((16**2 - 1) / 12)])
    for parameter in module.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    decoded = module.decode(module.encode(torch.from_numpy(np.stack(data))))
    torch.testing.assert_close(decoded, torch.tensor([2, 7.5])[None, :, None].expand(2, 2, 16))


@pytest.mark.parametrize(("second", "expected"), [(0.0, 0.005), (1e-4, 1e-4)])
def test_a_constant_channel_does_not_dominate_standardised_values(second: float, expected: float) -> None:
    """A channel that varies little keeps its scale, because it may have another unit."""
    modality, own, _, _ = CASES["one axis"]
    data = [np.stack([np.full(16, sign), np.full(16, sign * second)]).astype(np.float32) for sign in (-1, 1)]
    module = modality.task(settings(own)).build(data, np.random.default_rng(0))
    assert module.std.flatten().tolist() == pytest.approx([1, expected])


def test_mirroring_and_cutting() -> None:
    given = settings(CASES["one axis"][1])
    value = values((2, 20), 1)[0]
    assert np.array_equal(Pulse().transform(value, Crop(), given), value[:, :16])
    assert np.array_equal(Pulse().transform(value, Crop(flip=True, left=0.5, width=0.5), given), value[::-1, :16])
    with pytest.raises(InvalidValueError, match=r"2 channels of at least 16 time steps .*got 2 of 15"):
        Pulse().transform(value[:, :15], Crop(), given)
    film = values((4, 1, 8, 8), 1)[0]
    mirrored = Film().transform(film, Crop(flip=True), settings(CASES["space and time"][1]))
    np.testing.assert_allclose(mirrored, film[..., ::-1], atol=1e-6)


def test_a_series_of_one_channel_is_read_from_a_file_with_and_without_its_axis() -> None:
    class Lead(Pulse):
        channels = 1

    wave = np.linspace(0, 1, 20, dtype=np.float32)
    for array in (wave, wave[None]):
        read = Lead().read_value(array_bytes(array), "npy", settings(SERIES))
        assert read.shape == (1, 20)
        assert np.array_equal(Lead().transform(read, Crop(), settings(SERIES)), wave[None, :16])
    assert Pulse().read_value(array_bytes(np.stack([wave, wave])), "npy", settings(SERIES)).shape == (2, 20)


def test_the_picture_of_a_series_has_a_curve_for_each_channel() -> None:
    class Drawn(Pulse):
        picture = SeriesModality.picture

    value = np.stack([np.linspace(-3, 5, 16), np.full(16, 2.0)]).astype(np.float32)
    drawn = np.asarray(Drawn().render(value, settings(CASES["one axis"][1])).convert("L")) < 255
    assert drawn.shape == (64, 256)
    rising, flat = drawn[:32], drawn[32:]
    first, last = rising[:, 0].nonzero()[0], rising[:, -1].nonzero()[0]
    assert first.min() > 25 and last.max() < 5 and len(np.unique(flat.nonzero()[0])) == 1
    assert Drawn().render(value.repeat(40, 0), settings(CASES["one axis"][1])).size == (256, 80 * 8)


@pytest.mark.parametrize("quantizer", ["fsq", "residual_fsq"])
def test_a_series_of_many_channels_is_no_picture(quantizer: str, install: Callable[..., Path], tmp_path: Path) -> None:
    """Checks of image crops and shifts do not apply to a series, even if its tokens form a grid."""
    install("zoo-leads", {"tokenizers_zoo": {"leads": "zoo_leads:plugin"}}, {"zoo_leads": LEADS})
    table = {"checkpoints": str(tmp_path / "tokenizers")}
    zoo = only(zoo=table, modalities={"leads": {"tokenizer": {"quantizer": quantizer}}})
    found = {result.name: result for result in check_modality(zoo, "leads")}
    assert found["crop_geometry"].message == "skipped: its values are no pictures that are cropped"
    for split in ("train", "test"):
        with writing_values(tmp_path / "data", split, "leads") as shard:
            for number, value in enumerate(values((32, 128), 6)):
                shard.add(f"{split}-{number}", *zoo["leads"].write(value))
    gates = {finding.gate: finding for finding in examine(zoo, "leads", tmp_path / "data", steps=2)}
    assert gates["crops"].skipped and gates["crops"].figure == "its values are no pictures that are cropped"
    assert zoo["leads"].spec.places == (zoo["leads"].spec.layout.shape[0],)


def test_a_series_with_several_codes_per_place_has_no_proportions(tmp_path: Path) -> None:
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
    made = make_data(zoo, "folder", tmp_path / "data", train=None, test=0, options=options, workers=1)
    assert [(outcome.modality, outcome.written) for outcome in made.outcomes] == [("imu", 2), ("rgb", 2)]


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        ("one axis", {"patch_length": 5}, "patch_length: 5 does not divide 16"),
        ("one axis", {"length": 0}, "patch_length: 4 does not divide 0"),
        ("space and time", {"frames": 1}, "frames: expected at least 2, got 1; one frame is a picture"),
        ("space and time", {"patch_frames": 3}, "patch_frames: 3 does not divide 4"),
        ("space and time", {"tokenizer": {"quantizer": "residual_vq"}}, "a fourth axis"),
        ("one axis", {"tokenizer": {"loss": "bce"}}, "loss: expected one of l1, l2, smooth_l1"),
        ("one axis", {"tokenizer": {"perceptual_weight": 1.0}}, "perceptual_weight: "),
        ("one axis", {"tokenizer": {"diffusion": {}}}, "diffusion: "),
    ],
)
def test_settings_that_cannot_be_are_refused(case: str, changed: dict[str, Any], message: str) -> None:
    modality, own, _, _ = CASES[case]
    with pytest.raises(ConfigError, match=message):
        modality.modality_spec(settings({**own, **changed}))
