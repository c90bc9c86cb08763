"""The table [limits] of registry.toml: larger values are refused before they are decoded."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hostile import EMPTY_SCAN, HOSTILE, edited, jpeg_with
from PIL import Image

from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.records.limits import Limits, limited, limits
from tokenizers_zoo.stores.shards import ValueStore
from zoo_backbone.model.run import BUNDLE, Run
from zoo_hub_data.hf import FileRoots
from zoo_raster.tiff import tiff_bytes

ZOO = Zoo.installed()


@contextlib.contextmanager
def at_most(extra_bytes: int) -> Iterator[None]:
    """Refuse the process more than `extra_bytes` bytes of memory beyond the present."""
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + extra_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_limits_come_from_the_registry(tmp_path: Path) -> None:
    (tmp_path / "registry.toml").write_text("[limits]\nimage_pixels = 7\n")
    zoo = Zoo.from_toml(tmp_path / "registry.toml")
    assert zoo.limits == dataclasses.replace(Limits(), image_pixels=7)
    with pytest.raises(InvalidValueError, match=r"at most 7 \(image_pixels in \[limits\] of registry"):
        zoo.limits.check("image_pixels", 8, "8 pixels")
    zoo.limits.check("image_pixels", 7, "7 pixels")


@pytest.mark.parametrize("line", ["image_pixels = 0", "audio_seconds = nan", "frames = 'many'", "pixels = 3"])
def test_odd_limits_are_refused_by_file_and_key(tmp_path: Path, line: str) -> None:
    (tmp_path / "registry.toml").write_text(f"[limits]\n{line}\n")
    with pytest.raises(ConfigError, match=rf"registry.toml.*{line.split()[0]}"):
        Zoo.from_toml(tmp_path / "registry.toml")


def test_limits_hold_inside_the_block_only() -> None:
    with limited(Limits(frames=3)):
        assert limits().frames == 3
    assert limits() == Limits()


def test_a_larger_file_is_not_read(tmp_path: Path) -> None:
    zoo = Zoo({"limits": {"file_bytes": 10}})
    path = tmp_path / "photo.png"
    path.write_bytes(bytes(11))
    for read in (lambda: zoo["rgb"].open(path), lambda: zoo["rgb"].read(bytes(11), "png")):
        with pytest.raises(InvalidValueError, match=r"11 bytes, at most 10 \(file_bytes"):
            read()


def test_raised_limits_hold_for_values_in_memory() -> None:
    value: Any = {}
    for _ in range(250):
        value = {"a": value}
    with pytest.raises(InvalidValueError, match="200 levels at most"):
        Zoo.installed()["metadata"].check(value)
    Zoo({"limits": {"json_depth": 300}})["metadata"].check(value)


def test_compressed_bmp_files_are_read() -> None:
    """Pillow reads them byte by byte."""
    pixels = np.arange(1000 * 1000, dtype=np.uint8).reshape(1000, 1000)
    runs = np.stack([np.ones_like(pixels), pixels], axis=-1).reshape(1000, 2000)
    rows = b"".join(row.tobytes() + b"\0\0" for row in runs) + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 1000, 1000, 1, 8, 1, len(rows), 0, 0, 256, 0)
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    start = 14 + len(header) + len(palette)
    data = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + palette + rows
    assert ZOO["rgb"].read(data, "bmp").shape == (3, 1000, 1000)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"restart_marker_blocks": 3}), ("MPO", {"save_all": True}),
     ("PNG", {}), ("WEBP", {}), ("GIF", {})],
)  # fmt: skip
def test_bytes_after_the_end_of_a_picture_do_not_count(kind: str, options: dict[str, Any]) -> None:
    """Phones append a video to a photo."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8))
    thumbnail, file = io.BytesIO(), io.BytesIO()
    picture.resize((32, 24)).save(thumbnail, "JPEG")
    if kind in ("JPEG", "MPO"):
        options = options | {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0" + thumbnail.getvalue()}
    picture.save(file, kind, **options)
    parts = b"\0\0\0\0iCCP\0\0\0\0" * 100 + b"\xff\xda\0\2" * 100 + b"\xff\xda\xff\xd8\xff\xd9iCCP" * 100
    video = (parts + rng.bytes(1_000_000)) * 3
    alone, followed = (ZOO["rgb"].read(data, "jpg") for data in (file.getvalue(), file.getvalue() + video))
    assert np.array_equal(alone, followed)


@pytest.mark.parametrize("comment", [b"", b"\xff\xfe\0\x04\xff\xd9"], ids=["plain", "end marker in a comment"])
@pytest.mark.parametrize("scans", [64, 65, 1000])
def test_a_jpeg_of_more_than_64_scans_is_refused(scans: int, comment: bytes) -> None:
    """The decoder may refuse empty scans itself, in other words."""
    extra = EMPTY_SCAN * (scans - jpeg_with(b"").count(EMPTY_SCAN[:2]))
    message = ""
    try:
        ZOO["rgb"].read(jpeg_with(comment + extra), "jpg")
    except InvalidValueError as error:
        message = str(error)
    assert ("at most 64" in message) == (scans > 64)
    assert f"{scans:,} scans" in message or scans == 64


@pytest.mark.parametrize("description", HOSTILE)
def test_hostile_files_are_refused_before_they_are_decoded(description: str) -> None:
    """Each in 5 s of processor time, with 400 MB of memory besides the file."""
    modality, extension, build, limit = HOSTILE[description]
    handle, data = ZOO[modality], build()
    with contextlib.suppress(InvalidValueError):
        handle.read(b"", extension)  # imports what the reader needs
    began = time.process_time()
    with at_most(400_000_000), pytest.raises(InvalidValueError) as refusal:
        handle.read(data, extension)
    assert time.process_time() - began < 5
    line = str(refusal.value)
    assert line.startswith(modality) and "\n" not in line and "MemoryError" not in line and len(line) < 400
    assert (f"({limit} in [limits] of registry.toml)" in line) if limit else "in [limits]" not in line


def test_a_sample_above_a_limit_is_dropped_until_the_limit_is_raised(tmp_path: Path) -> None:
    photos, registry = tmp_path / "photos", tmp_path / "registry.toml"
    photos.mkdir()
    for side in (8, 40):
        Image.new("RGB", (side, side)).save(photos / f"{side}.png")
    for limit, keys in ((1000, ["8"]), (2000, ["40", "8"])):
        table = {"zoo": {"image_size": 8, "modalities": ["rgb"]}, "limits": {"image_pixels": limit}}
        registry.write_text(tomli_w.dumps(table))
        zoo = Zoo.from_toml(registry)
        options = {"path": str(photos), "test_fraction": 0}
        make_data(zoo, "folder", tmp_path / "data", train=None, test=0, options=options, workers=1)
        assert ValueStore(tmp_path / "data").keys("train", "rgb") == keys


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder that names itself a bundle."""
    golden = {"files": {}, "input": "rgb", "tokens": {}, "predicted": {}}
    write_table(tmp_path / BUNDLE, {"requires": {}, "files": {}, "golden": golden})
    return tmp_path


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("[limits]\nimage_pixels = 1000000000000\n", r"\[limits\]"),
        ('[zoo]\ncheckpoints = "../private"\n', r"\[zoo\] checkpoints"),
        ("zoo = 3\n", r"\[zoo\] checkpoints"),
        ('[zoo]\ncheckpoints = "tokenizers"\n[modalities.rgb]\ncheckpoint = "a/b"\n', r"\[modalities.rgb\]"),
    ],
    ids=["limits", "checkpoints", "type", "modality"],
)
def test_an_untrusted_bundle_cannot_raise_limits_or_name_other_folders(bundle: Path, text: str, setting: str) -> None:
    (bundle / "registry.toml").write_text(text)
    with pytest.raises(CheckpointError, match=f"registry.toml: .* cannot set {setting}"):
        Run.open(bundle)


@pytest.mark.parametrize("outside_path", [{"data": "../private"}, {"tokens": "/etc"}, {"registry": "./other.toml"}])
def test_an_untrusted_bundle_names_only_its_own_folders(bundle: Path, outside_path: dict[str, str]) -> None:
    usual = {"tokens": "./tokens", "data": "./samples", "registry": "./registry.toml", "start": None}
    for paths in (usual, usual | outside_path):
        record = {"kind": "backbone", "identity": {}, "finished": {}, "places": paths}
        write_table(bundle / "run.json", record)
        error = "its training has not come" if paths is usual else r"run.json: names .* not of the bundle"
        with pytest.raises(CheckpointError, match=error):
            Run.open(bundle)


@pytest.mark.parametrize("name", ["../other.toml", "/etc/passwd"])
def test_an_untrusted_bundle_lists_no_file_of_another_folder(bundle: Path, name: str) -> None:
    record = read_table(bundle / BUNDLE)
    write_table(bundle / BUNDLE, {**record, "files": {name: "0" * 64}})
    with pytest.raises(CheckpointError, match="a file of another folder"):
        Run.open(bundle)


def test_a_zip_member_above_the_limit_is_not_decompressed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.png", bytes(300_000_000))
    locations = FileRoots(root=tmp_path.resolve())
    with at_most(200_000_000), pytest.raises(InvalidValueError, match=r"300,000,000 bytes, at most .*file_bytes"):
        locations.read("zip://large.png::a.zip")


def npy_with_a_long_header() -> bytes:
    data = array_bytes(np.zeros((1, 100, 100)))
    return data[:8] + (23_414).to_bytes(2, "little") + data[10:]


def tiff_of_odd_strips() -> bytes:
    """A file that fails an assertion in tifffile."""
    data = edited(tiff_bytes(np.full((8, 8, 12), 3000, np.uint16)), [("replace", 0.5, b"\0")])
    return edited(data, [("replace", 0.014651502811778261, b"[")])


@pytest.mark.parametrize(
    ("name", "extension", "build"),
    [("heightmap", "npy", npy_with_a_long_header), ("multispectral", "tif", tiff_of_odd_strips)],
)
def test_a_library_error_of_many_lines_or_none_is_one_line(
    name: str, extension: str, build: Callable[[], bytes]
) -> None:
    with pytest.raises(InvalidValueError) as refusal:
        ZOO[name].read(build(), extension)
    assert str(refusal.value).startswith(f"{name}: .{extension} file: ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", [f"[limits]\nframes = {'9' * 5000}", f"[limits]\n{'a' * 5000} = 1"])
def test_long_numbers_and_keys_of_a_registry_are_refused_in_a_short_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "registry.toml").write_text(text)
    with pytest.raises(ConfigError) as refusal:
        Zoo.from_toml(tmp_path / "registry.toml")
    assert len(str(refusal.value)) < 800
