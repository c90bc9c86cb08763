"""A user's own files: a folder of pictures of any size, usual folder names, the crop, and the stored size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenizers_zoo import Zoo
from tokenizers_zoo.stores.shards import ValueStore

Run = Callable[..., tuple[int, str, str]]
REGISTRY = """[zoo]
image_size = 32
patch_size = 8
modalities = ["boxes", "caption", "depth", "palette", "rgb", "rgb_patches"]
"""


def bands(width: int, height: int) -> Image.Image:
    """Return a picture with a blue middle between two red quarters, along its longer side."""
    long = max(width, height)
    row = np.zeros((1, long, 3), np.uint8)
    row[:, :, 0], row[:, long // 4 : long - long // 4] = 255, (0, 0, 255)
    pixels = np.broadcast_to(row, (height, width, 3)) if width >= height else row.transpose(1, 0, 2)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3))))


@pytest.fixture
def zoo(tmp_path: Path, run_zoo: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `zoo` in a folder with a registry and `photos`: pictures of several sizes, captions for some."""
    (tmp_path / "registry.toml").write_text(REGISTRY)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, size in enumerate([(80, 40), (40, 80), (64, 64), (100, 75)] * 3):
        bands(*size).save(photos / f"IMG.{number:02}.jpg", quality=95)
    for number in (0, 3, 4):
        (photos / f"IMG.{number:02}.txt").write_text(f"number {number}\n")
    (photos / "README.txt").write_text("not a caption")
    (photos / "raw.cr2").write_bytes(b"raw")
    monkeypatch.chdir(tmp_path)
    return run_zoo


def make_data(zoo: Run, *words: str, out: str = "data", path: str = "photos") -> str:
    """Import everything for training and return the output."""
    options = ("--test", "0", "--workers", "0", "--set", f"path={path}", "--set", "test_fraction=0")
    code, output, complaint = zoo("data", "make", "folder", out, *options, *words)
    assert code == 0, complaint
    return output


def stored_values(name: str = "rgb", data: str = "data") -> dict[str, np.ndarray]:
    """Return the stored values by key."""
    handle, store = Zoo.from_toml("registry.toml")[name], ValueStore(Path(data))
    return {key: store.read_key(handle, "train", key) for key in store.keys("train", name)}


def test_a_folder_of_pictures_with_captions_for_some(zoo: Run) -> None:
    output = make_data(zoo)
    assert "train/rgb: 12 written" in output and "train/caption: 3 written" in output
    assert "texts without another file of the same name are not used: 1, such as README" in output
    assert "1 .cr2" in output
    assert "rgb: stored at 32 x 32 pixels (registry.toml:2 [zoo] image_size), cropped" in output
    assert set(stored_values()) == {f"IMG_{number:02}" for number in range(12)}
    assert stored_values("caption")["IMG_03"] == "number 3"
    assert "12 unchanged" in make_data(zoo)


@pytest.mark.parametrize("crop", ["middle", "whole"])
def test_pictures_of_other_proportions_are_cropped_or_squeezed(zoo: Run, crop: str) -> None:
    output = make_data(zoo, "--set", f"crop={crop}")
    assert f"--set crop={'whole' if crop == 'middle' else 'middle'} " in output
    pictures = stored_values()
    for key in ("IMG_00", "IMG_01"):  # twice as wide as high, and the other way round
        red = (pictures[key][0] > 0.5).mean()
        assert red == pytest.approx(0 if crop == "middle" else 0.5, abs=0.05)
    assert (pictures["IMG_02"][0] > 0.5).mean() == pytest.approx(0.5, abs=0.05)


def test_an_unknown_crop_is_refused(zoo: Run) -> None:
    code, _, complaint = zoo("data", "make", "folder", "data", "--set", "path=photos", "--set", "crop=left")
    assert code == 1 and "crop" in complaint and "middle" in complaint and "whole" in complaint


def test_all_modalities_share_the_crop_of_the_picture(zoo: Run, tmp_path: Path) -> None:
    files = tmp_path / "files"
    for name in ("images", "depth", "boxes", "captions"):
        (files / name).mkdir(parents=True)
    bands(80, 40).save(files / "images/a.png")
    depth = np.asarray(bands(40, 20))[None, :, :, 2].astype(np.float32) / 255 * 4 + 1  # half the size, same proportions
    np.save(files / "depth/a.npy", depth)
    (files / "captions/a.txt").write_text("bands")
    (files / "boxes/a.json").write_text(json.dumps([{"label": "chair", "box": [0.25, 0.0, 0.75, 1.0]}]))
    output = make_data(zoo, path="files")
    assert "depth, rgb: stored at 32 x 32" in output
    for name in ("rgb", "depth", "boxes", "caption"):
        assert f"train/{name}: 1 written" in output
    assert (stored_values()["a"][0] < 0.5).all() and (stored_values("depth")["a"] > 3).all()
    assert stored_values("boxes")["a"][0]["box"] == pytest.approx([0, 0, 1, 1])


def test_modalities_follow_the_crop_of_a_new_picture(zoo: Run, tmp_path: Path) -> None:
    for name in ("rgb", "depth"):
        (tmp_path / "files" / name).mkdir(parents=True)
    bands(80, 40).save("files/rgb/a.png")
    make_data(zoo, path="files")
    np.save("files/depth/a.npy", np.ones((1, 20, 40), np.float32))
    output = make_data(zoo, path="files")
    assert "train/depth: 1 written" in output
    bands(64, 64).save("files/rgb/a.png")
    assert "depth" in zoo("data", "make", "folder", "data", "--test", "0", "--set", "path=files",
                          "--set", "test_fraction=0", "--workers", "0")[2]  # fmt: skip


def test_pictures_below_folders_of_other_names_are_explained(zoo: Run) -> None:
    Path("albums/2023").mkdir(parents=True)
    bands(40, 40).save("albums/2023/a.png")
    code, _, complaint = zoo("data", "make", "folder", "data", "--set", "path=albums")
    assert code == 1 and "2023/a.png" in complaint and "albums/rgb" in complaint and complaint.count("\n") == 1
    Path("albums/rgb").mkdir()
    Path("albums/2023").rename("albums/rgb/2023")
    make_data(zoo, path="albums")
    assert list(stored_values()) == ["2023/a"]


def test_pictures_in_split_folders_keep_their_split(zoo: Run) -> None:
    for split, count in (("train", 3), ("test", 2)):
        Path("mine", split).mkdir(parents=True)
        for number in range(count):
            bands(40, 40).save(f"mine/{split}/{number}.png")
    Path("mine/train/masks").mkdir()
    bands(40, 40).save("mine/train/masks/0.png")
    code, output, complaint = zoo("data", "make", "folder", "data", "--set", "path=mine", "--workers", "0")
    assert code == 0, complaint
    assert "train/rgb: 3 written" in output and "test/rgb: 2 written" in output and "(masks)" in output


# ---------------------------------------------------------------- stored sizes


def test_small_stored_pictures_are_never_enlarged(zoo: Run) -> None:
    make_data(zoo)
    code, _, complaint = zoo("data", "derive", "data", "--modalities", "palette", "--workers", "0")
    assert code == 0, complaint
    Path("registry.toml").write_text(REGISTRY.replace("32", "64"))
    for words in (
        ("data", "derive", "data", "--modalities", "palette"), ("tokenizer", "train", "rgb", "--data", "data"),
    ):  # fmt: skip
        code, _, complaint = zoo(*words)
        assert code == 1 and complaint.count("\n") == 1 and "stored at 32 x 32" in complaint
        assert "now 64 x 64" in complaint
        assert "zoo data make folder data-new --set path=photos --set test_fraction=0" in complaint
    make_data(zoo, out="data-new")
    assert stored_values(data="data-new")["IMG_00"].shape == (3, 64, 64)


def test_large_stored_pictures_are_reduced(zoo: Run) -> None:
    Path("registry.toml").write_text(REGISTRY.replace("32", "64"))
    make_data(zoo)
    Path("registry.toml").write_text(REGISTRY)
    assert stored_values()["IMG_00"].shape == (3, 32, 32)
    assert zoo("data", "derive", "data", "--modalities", "palette", "--workers", "0")[0] == 0
