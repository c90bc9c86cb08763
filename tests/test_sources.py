"""All sources are reproducible and check their settings; `photos` reads photographs from wheels and crops them."""

from __future__ import annotations

import ast
import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.records.config import Settings
from zoo_photos.photos import PHOTOS, _load

ZOO = Zoo.installed()
SMALL: dict[str, dict[str, Any]] = {
    "bouncing": {"image_size": 32, "frames": 2, "sample_rate": 4000}, "photos": {},
    "scenes": {"image_size": 32}, "terrain": {"image_size": 16},
}  # fmt: skip


def digest(value: Any) -> str:
    if isinstance(value, np.ndarray):
        assert value.dtype in (np.float32, np.int32, np.int64) and np.isfinite(value).all()
    return hashlib.sha256(value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value).encode()).hexdigest()


def digests(source: str, split: str = "train", count: int = 6, seed: int = 0, at: slice | int = slice(None)) -> Any:
    """Return key and digests of the values of some samples of a source."""
    samples = ZOO.source(source).samples(split, count, seed, SMALL[source])
    selected = [samples[at]] if isinstance(at, int) else samples[at]
    return [(key, {name: digest(value) for name, value in values.items()}) for key, values in selected]


@pytest.mark.parametrize("source", SMALL)
def test_a_sample_depends_on_split_seed_and_index_alone(source: str) -> None:
    samples = digests(source)
    assert [digests(source, count=100, at=at)[0] for at in (5, 0, 3)] == [samples[at] for at in (5, 0, 3)]
    assert digests(source, at=-1) == samples[-1:] and digests(source)[1:][1:] == samples[2:]
    splits_and_seeds = [(split, seed) for split in ("train", "test") for seed in (0, 1)]
    other_samples = [sample for split, seed in splits_and_seeds for sample in digests(source, split, 2, seed)]
    assert len({key for key, _ in samples}) == 6
    assert len({key for key, _ in other_samples}) == (4 if source == "photos" else 8)  # whose keys have no seed
    names = ZOO.source(source).spec.modalities
    assert set(samples[0][1]) == set(names)
    for name in (name for name in names if ZOO[name].spec.value.kind == "array"):
        assert len({hashes[name] for _, hashes in samples}) == 6
        assert len({hashes[name] for _, hashes in other_samples}) == 8
    with pytest.raises(IndexError):
        digests(source, at=6)


def test_samples_are_the_same_in_another_process() -> None:
    script = f"import sys; sys.path[:0] = {[*sys.path, str(Path(__file__).parent)]!r}\n"
    script += "from test_sources import SMALL, digests\nprint([digests(source) for source in SMALL])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ast.literal_eval(result.stdout) == [digests(source) for source in SMALL]


@pytest.mark.parametrize(
    ("source", "table", "word"),
    [
        ("scenes", {"image_sise": 64}, "image_size"), ("scenes", {"image_size": 4}, "image_size"),
        ("scenes", {"people": 9}, "people"), ("scenes", {"min_fov": 10.0}, "min_fov"),
        ("scenes", {"min_fov": 90.0}, "up to max_fov (68), got 90"),
        ("scenes", {"max_fov": 50.0}, "up to max_fov (50), got 62"),
        ("bouncing", {"image_size": 4}, "image_size"), ("terrain", {"extent": 4.0}, "extent"),
        ("photos", {"smallest": 0}, "smallest"),
        ("photos", {"image_size": 0}, "image_size"), ("photos", {"size": 3}, "size"),
    ],
)  # fmt: skip
def test_bad_settings_and_counts_of_sources_are_refused(source: str, table: dict[str, Any], word: str) -> None:
    plugin = ZOO.source(source)
    with pytest.raises(ConfigError) as caught:
        plugin.samples("train", 1, 0, table)
    assert word in str(caught.value) and "\n" not in str(caught.value)
    for count, message in ((None, "say how many samples"), (-1, "0 or more")):
        with pytest.raises(ConfigError, match=message):
            plugin.samples("train", count, 0, {})
    with pytest.raises(ConfigError, match="unknown key"):
        Settings(source, {"other": 1}).take(plugin.spec.settings)


# ---------------------------------------------------------------- photographs


def crops(split: str, count: int, **options: Any) -> Any:
    return ZOO.source("photos").samples(split, count, 0, options)


def test_every_photograph_is_in_the_wheels_and_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)  # nothing may be downloaded
    _load.cache_clear()
    assert not set(PHOTOS["train"]) & set(PHOTOS["test"])
    for photo in (*PHOTOS["train"], *PHOTOS["test"]):
        picture = _load(photo)
        assert min(picture.size) >= 300
        pixels = np.asarray(picture.resize((32, 32)), np.float32)
        assert np.abs(pixels - pixels.mean(axis=2, keepdims=True)).mean() > 1, photo
    with pytest.raises(DataError, match=r"skimage/data/none.png"):
        _load("skimage/data/none.png")


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
            differences = (np.abs(pixels[..., s : s + side : 16] - crop[:, ::16, ::16]).mean() for s in shifts)
            distances.append(min(differences))
    matches = [distance < 0.03 for distance in distances]
    assert any(matches[::2])
    assert any(matches[1::2]) == flips


def test_other_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="'valid'; splits: test, train"):
        crops("valid", 3)[0]
