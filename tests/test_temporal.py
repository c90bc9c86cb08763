"""Modalities over time: grids of one, two and three axes by one model; settings, statistics, loading, mirroring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.families.temporal import ClipModality, SeriesModality
from tokenizers_zoo.families.temporal.model import TemporalCodec, TemporalTask, TemporalVQ
from tokenizers_zoo.modality import Crop, Metric

MAE = Metric(name="mae", higher_is_better=False, meaning="mean absolute error")
TINY = {"steps": 2, "eval_every": 2, "batch_size": 2, "width": 16, "depth": 1, "levels": [4, 3], "latent_dim": 8}


class Pulse(SeriesModality):
    summary, channels, metrics = "two channels over time", 2, (MAE,)
    low, high = -5.0, 5.0

    def signal(self, options: Any) -> dict[str, Any]:
        return {"length": options.length}

    def mirrored(self, value: np.ndarray) -> np.ndarray:
        return value[::-1]

    def measure(self, predicted: list[Any], target: list[Any], options: Any) -> dict[str, float]:
        return {"mae": float(np.mean([np.abs(a - b).mean() for a, b in zip(predicted, target, strict=True)]))}

    def picture(self, value: np.ndarray, options: Any) -> Any:
        from PIL import Image

        return Image.new("RGB", (4, 4))


class Film(ClipModality, Pulse):
    summary, channels = "grey pictures over time", 1

    def signal(self, options: Any) -> dict[str, Any]:
        return {}


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


def train(case: str, folder: Path) -> tuple[Any, Settings, list[np.ndarray], TemporalCodec]:
    modality, own, shape, _ = CASES[case]
    data = values(shape, 5)
    path = modality.train_tokenizer(settings(own), TrainingSamples(train=data[:3], test=data[3:]), folder, 0)
    return modality, settings(own), data, modality.load_tokenizer(path, "cpu", settings(own))


@pytest.mark.parametrize("case", CASES)
def test_the_road_of_a_tokenizer(case: str, tmp_path: Path) -> None:
    modality, given, data, codec = train(case, tmp_path)
    spec = modality.modality_spec(given)
    assert spec.layout.shape == CASES[case][3] and spec.vocab_size == 12
    batch = torch.from_numpy(np.stack(data))
    tokens = modality.encode(codec, batch)
    assert tokens.dtype == torch.int64 and tokens.shape == (5, *spec.layout.shape)
    assert torch.equal(torch.cat([modality.encode(codec, value[None]) for value in batch]), tokens)
    decoded = modality.decode(codec, tokens)
    assert decoded.shape == batch.shape and decoded.dtype == torch.float32 and decoded.abs().max() <= 5


def test_a_codec_runs_at_another_length(tmp_path: Path) -> None:
    modality, _, _, codec = train("one axis", tmp_path)
    tokens = modality.encode(codec, torch.zeros(2, 2, 40))
    assert tokens.shape == (2, 10) and modality.decode(codec, tokens).shape == (2, 2, 40)
    with pytest.raises(InvalidValueError, match="18 is not a multiple of the patch size 4"):
        modality.encode(codec, torch.zeros(1, 2, 18))
    with pytest.raises(InvalidValueError, match="at least one sample"):
        modality.encode(codec, torch.zeros(1, 2, 16)[:0])


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"patch_length": 8}, "patch"),
        ({"length": 32}, "length"),
        ({"tokenizer": {**TINY, "levels": [3, 4]}}, "quantizer"),
    ],
)
def test_a_codec_of_other_settings_is_refused(changed: dict[str, Any], what: str, tmp_path: Path) -> None:
    modality, own, _, _ = CASES["one axis"]
    train("one axis", tmp_path)
    with pytest.raises(CheckpointError, match=rf"has {what} .* asks for .*; change the settings, or train another"):
        modality.load_tokenizer(tmp_path, "cpu", settings({**own, **changed}))


def test_statistics_by_hand() -> None:
    modality, own, _, _ = CASES["one axis"]
    data = [np.stack([np.full(16, level), np.arange(16.0)]).astype(np.float32) for level in (1.0, 3.0)]
    module = TemporalTask(modality, settings(own)).build(data, np.random.default_rng(0))
    assert isinstance(module, TemporalVQ)
    assert module.mean.flatten().tolist() == pytest.approx([2, 7.5])
    assert module.std.flatten().tolist() == pytest.approx([1, np.sqrt((16**2 - 1) / 12)])
    for parameter in module.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    decoded = module.decode(module.encode(torch.from_numpy(np.stack(data))))
    torch.testing.assert_close(decoded, torch.tensor([2, 7.5])[None, :, None].expand(2, 2, 16))


@pytest.mark.parametrize(("second", "expected"), [(0.0, 0.005), (1e-4, 1e-4)])
def test_a_channel_that_never_varies_in_training_is_not_all_that_the_model_sees(second: float, expected: float) -> None:
    """One that varies little is another matter: it may be of another unit."""
    modality, own, _, _ = CASES["one axis"]
    data = [np.stack([np.full(16, sign), np.full(16, sign * second)]).astype(np.float32) for sign in (-1, 1)]
    module = TemporalTask(modality, settings(own)).build(data, np.random.default_rng(0))
    assert module.std.flatten().tolist() == pytest.approx([1, expected])


@pytest.mark.parametrize("unit", [1e-13, 1e-9, 1e-3, 1e6])
def test_statistics_do_not_depend_on_the_unit(unit: float) -> None:
    """Magnetic fields in tesla are that small, and what a model is to see of them is not."""
    modality, own, _, _ = CASES["one axis"]
    data = [(unit * np.stack([np.full(16, sign), np.full(16, 0.1)])).astype(np.float32) for sign in (-1, 1)]
    module = TemporalTask(modality, settings(own)).build(data, np.random.default_rng(0))
    assert (module.std.flatten() / unit).tolist() == pytest.approx([1, 0.005])


def test_weighted_losses_by_hand() -> None:
    modality, own, shape, _ = CASES["one axis"]
    table = {**TINY, "loss": "l1", "l2_weight": 0.5}
    task = TemporalTask(modality, settings({**own, "tokenizer": table}))
    module = TemporalVQ(modality.model_config(task.options))
    batch = task.batch(values(shape, 2), np.random.default_rng(0))
    outputs, _ = module(batch)
    error = outputs - batch
    expected = error.abs().mean() + 0.5 * error.square().mean()
    assert task.losses(module, batch)["reconstruction_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


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


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        ("one axis", {"patch_length": 5}, "patch_length: 5 does not divide 16"),
        ("one axis", {"length": 0}, "patch_length: 4 does not divide 0"),
        ("space and time", {"frames": 1}, "frames: expected at least 2, got 1; one frame is a picture"),
        ("space and time", {"patch_frames": 3}, "patch_frames: 3 does not divide 4"),
        ("space and time", {"tokenizer": {"quantizer": "residual_vq"}}, "a fourth axis"),
        ("one axis", {"tokenizer": {"loss": "bce"}}, "loss: expected one of l1, l2, smooth_l1"),
        ("one axis", {"tokenizer": {"perceptual_weight": 1.0}}, "perceptual_weight: fits pictures"),
        ("one axis", {"tokenizer": {"diffusion": {}}}, "diffusion: draws pictures only"),
    ],
)
def test_settings_that_cannot_be_are_refused(case: str, changed: dict[str, Any], message: str) -> None:
    modality, own, _, _ = CASES[case]
    with pytest.raises(ConfigError, match=message):
        modality.modality_spec(settings({**own, **changed}))
