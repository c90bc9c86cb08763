"""Patches: normalised, in the right order, and back; statistics against numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenizers_zoo.checkpoint import load_checkpoint
from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError
from tokenizers_zoo.families.continuous import mean_and_deviation
from zoo_images import rgb

plugin = rgb.patches
SETTINGS = Settings("rgb_patches", {"image_size": [8, 12], "patch_size": 4})


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 0.9, (count, 3, 8, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = TrainingSamples(train=list(pictures(6)), test=list(pictures(2, 1)), provenance={"source": "noise"})
    return plugin.train_tokenizer(SETTINGS, samples, tmp_path_factory.mktemp("run") / "rgb_patches", 0)


def test_statistics_equal_numpy_over_all_pixels() -> None:
    values = pictures(6) * np.array([1, 0.5, 0.1], dtype=np.float32)[:, None, None]
    mean, std = mean_and_deviation(map(plugin.rows, values))
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, values.std(axis=(0, 2, 3)), rtol=1e-4)
    assert mean_and_deviation(map(plugin.rows, np.ones((2, 1, 4, 4), np.float32)))[1] == np.float32(1e-6)
    values[:, 1] = 0.5  # a channel that is constant in training gets 1 % of the mean deviation
    std = mean_and_deviation(map(plugin.rows, values))[1]
    assert std[1] == pytest.approx(0.01 * (std[0] + std[2]) / 3, rel=1e-3)


def test_patches_are_normalised_and_in_order(folder: Path) -> None:
    tokenizer = plugin.load_tokenizer(folder, "cpu", SETTINGS)
    tensors, _ = load_checkpoint(folder)
    values = pictures(2, 5)
    tokens = plugin.encode(tokenizer, torch.from_numpy(values))
    assert tokens.shape == (2, 6, 48) and tokens.dtype == torch.float32
    # patch 4 is row 1, column 1: rows 4..7, columns 4..7; number 16 + 4 + 2 of it is channel 1, row 1, column 2
    expected = (values[1, 1, 5, 6] - tensors["mean"][1]) / tensors["std"][1]
    assert tokens[1, 4, 22] == pytest.approx(float(expected), abs=1e-6)
    back = plugin.decode(tokenizer, tokens)
    np.testing.assert_allclose(back.numpy(), values, atol=1e-6)


def test_spec_and_decoding_stay_within_bounds(folder: Path) -> None:
    spec = plugin.modality_spec(SETTINGS)
    assert (spec.layout.shape, spec.layout.dim, spec.vocab_size, spec.continuous) == ((2, 3), 48, 0, True)
    tokenizer = plugin.load_tokenizer(folder, "cpu", SETTINGS)
    decoded = plugin.decode(tokenizer, 100 * torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(0)))
    assert decoded.min() == 0 and decoded.max() == 1


def test_number_of_held_out_values_read_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are evenly spaced, because the first samples of a sorted list may all be alike."""
    monkeypatch.setattr("tokenizers_zoo.train.loop.FINAL_SAMPLES", 3)
    read = []

    class Watched(list[np.ndarray]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    known = {"source": "pictures"}  # otherwise some values are read to identify the data
    samples = TrainingSamples(train=list(pictures(2)), test=Watched(pictures(6, 1)), provenance=known)
    folder = plugin.train_tokenizer(SETTINGS, samples, tmp_path / "rgb_patches", 0)
    assert json.loads((folder / "evaluation.json").read_text())["samples"] == 3
    assert "2 training and 6 held-out samples" in (folder / "README.md").read_text()
    assert read == [0, 2, 4]


def test_errors(folder: Path, tmp_path: Path) -> None:
    tokenizer = plugin.load_tokenizer(folder, "cpu", SETTINGS)
    with pytest.raises(InvalidValueError, match="multiple of the patch size 4"):
        plugin.encode(tokenizer, torch.zeros(1, 3, 8, 10))
    with pytest.raises(InvalidValueError, match="expected 6 patches, got 5"):
        plugin.decode(tokenizer, torch.zeros(1, 5, 48))
    with pytest.raises(DataError, match="held-out"):
        plugin.train_tokenizer(SETTINGS, TrainingSamples(train=list(pictures(1)), test=[]), tmp_path / "x", 0)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="unknown key; did you mean samples"):
        plugin.modality_spec(Settings("rgb_patches", {"tokenizer": {"sample": 3}}))
