"""Real-world values that differ from the declaration: handled as expected, or refused in one line.

The conformance check `probes` tests for all modalities that every file is read correctly or refused in one line; these
tests check the values and messages for the same files (`tokenizers_zoo.testing.probes`), and for more files, values and
settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import OURS
from PIL import Image
from pose_people import standing

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.errors import ConfigError, InvalidValueError
from tokenizers_zoo.testing import media
from tokenizers_zoo.testing.media import NUMBERS, SIZE, WORDS, readable_picture
from tokenizers_zoo.testing.probe import Probe, bars, npy
from tokenizers_zoo.testing.probes import PICTURE, example_array, probed_files, with_number
from zoo_geometry import body
from zoo_motion.flow import flo_bytes
from zoo_motion.imu import NAMES
from zoo_raster.tiff import tiff_bytes

ROOT = Path(__file__).parent.parent
ZOO = Zoo.from_tables({"zoo": {"image_size": 32, "patch_size": 8}, "modalities": {"heightmap": {"png_scale": 0.1}}})
ARRAYS = [name for name in OURS if ZOO[name].spec.value.kind == "array"]


@cache
def probes(name: str) -> dict[tuple[str, str], Probe]:
    """Return the kit's files of a modality by kind and description."""
    return {(kind, probe.description): probe for kind, probe in probed_files(ZOO[name]).probes}


def valid_value(name: str) -> np.ndarray:
    """Return a valid value."""
    value = example_array(ZOO[name])
    assert value is not None
    return value


def assert_refused(name: str, act: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(name) and "\n" not in message and len(message) < 500, message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_with_wrong_numbers_are_refused(name: str) -> None:
    """Also wrong units: 255 for 1, millimetres for metres, ids of other classes."""
    handle, value = ZOO[name], valid_value(name)
    low, high = handle.spec.value.low, handle.spec.value.high
    numbers = [] if low is None or high is None else [low - 1 - abs(low), high + 1 + abs(high)]
    for number in [*numbers, *((np.nan, -np.inf) if value.dtype.kind == "f" else ())]:
        invalid = with_number(value, number)
        for act in (lambda invalid=invalid: handle.check(invalid), lambda invalid=invalid: handle.write(invalid)):
            assert_refused(name, act, "numbers lie outside the range" if np.isfinite(number) else "1 not finite")
        assert_refused(name, lambda invalid=invalid: handle.read(npy(invalid).data, "npy"))
    assert_refused(name, lambda: handle.read(b"PK", "docx"), "expected", "docx")


LIKE_PLAIN = {
    "8-bit RGB", "8-bit grey", "8-bit indexed colours", "16-bit grey", "RGBA without transparency", "CMYK",
    "turned by EXIF", "extension in capitals",
}  # fmt: skip
ANY = {"turned by EXIF", "extension in capitals"}
READ: dict[str, set[str]] = {
    "rgb": LIKE_PLAIN,
    "rgb_patches": LIKE_PLAIN,
    "hed": LIKE_PLAIN,
    "canny": LIKE_PLAIN,
    "sam_edge": LIKE_PLAIN,
    "depth": {"16-bit grey", *ANY},
    "heightmap": {"16-bit grey", "grey of floats", *ANY},
    "sam_instance": {"8-bit grey", "16-bit grey", "8-bit indexed colours", *ANY},
    "semseg": {"8-bit grey", "16-bit grey", "8-bit indexed colours", *ANY},
    "normal": {"8-bit RGB", *ANY},
}
"""Modalities that read picture files, and the kinds they accept; all other kinds are refused."""
BLENDED = "RGBA half transparent"


@pytest.mark.parametrize("name", READ)
def test_pictures_of_every_kind_are_read_or_refused(name: str) -> None:
    handle, examples = ZOO[name], ZOO[name].example_files()
    pictures = {
        description: probe.file
        for (kind, description), probe in probes(name).items()
        if kind == PICTURE and description not in examples
    }
    plain = readable_picture(handle, valid_value(name))
    assert plain is not None
    assert READ[name] <= {*pictures, WORDS[plain.mode]}
    for description, file in pictures.items():
        if description in READ[name]:
            value = handle.read(file.data, file.extension)
            tolerance = 0.02 if description == "CMYK" else 1 / 255
            np.testing.assert_allclose(value, expected_value(name, description), atol=tolerance, err_msg=description)
            assert len(np.unique(value)) >= 2
        elif description != BLENDED or name in ("depth", "heightmap", "semseg", "sam_instance", "normal"):
            assert_refused(name, lambda file=file: handle.read(file.data, file.extension))


def expected_value(name: str, description: str) -> np.ndarray:
    """Return the content of a picture of the kit: its original value, or numbers times their unit."""
    if name not in ("depth", "heightmap"):
        return valid_value(name)
    scale = {"depth": 0.001, "heightmap": 1.0 if description == "grey of floats" else 0.1}[name]
    return bars((1, *SIZE), NUMBERS) * scale


@pytest.mark.parametrize(
    ("name", "ground"), [("rgb", 1.0), ("rgb_patches", 1.0), ("hed", 0.0), ("canny", 0.0), ("sam_edge", 0.0)]
)
def test_transparent_pixels_are_white_in_pictures_and_no_edges(name: str, ground: float) -> None:
    file = probes(name)[PICTURE, BLENDED].file
    value = ZOO[name].read(file.data, file.extension)
    half = value.shape[-1] // 2
    assert (value[..., :half] == ground).all()
    np.testing.assert_allclose(value[..., half:], valid_value(name)[..., half:], atol=1 / 255)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("human_poses", []),
        ("metadata", {}),
        ("caption", "ein Stuhl, une chaise, стул, 椅子, 🪑"),
        ("sam_instance", np.zeros((32, 32), np.int32)),  # a mask without an object
    ],
)
def test_empty_values_are_valid(name: str, value: Any) -> None:
    """Empty values are valid: no boxes, people, fields, text, objects or edges, and silence."""
    reread = ZOO[name].read(*ZOO[name].write(value))
    assert np.array_equal(reread, value) if isinstance(value, np.ndarray) else reread == value


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    return media.wav(samples[:, None], rate, 0).data


def animation(*greys: int) -> bytes:
    frames = [Image.new("RGB", (16, 16), (grey,) * 3) for grey in greys]
    return media.save_picture(frames[0], "gif", save_all=True, append_images=frames[1:], duration=100).data


def runs(*counts: int) -> bytes:
    return json.dumps([{"segmentation": {"size": [2, 2], "counts": counts}}]).encode()


TONE = np.sin(np.arange(4000) / 9).astype(np.float32)
BANDS, FRAME = (12, 4, 4), (4, 4)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
FILES: list[tuple[str, str, bytes, str]] = [
    ("audio", "mp3", b"ID3 something", "cannot be read"), ("audio", "wav", b"not a wav", "not a WAV"),
    ("audio", "wav", wav(TONE)[:-100], "cut off"), ("audio", "wav", wav(TONE * 40), "peak"),
    ("audio", "wav", wav(np.array([0.1, np.nan], np.float32)), "finite"),
    ("audio", "wav", wav(np.zeros(0)), ".wav file"), ("audio", "wav", wav(TONE, 1000003), "sample rate"),
    ("audio", "npy", array_bytes(np.zeros((2, 100), np.float32)), "one channel"),
    ("audio", "npy", array_bytes(np.zeros(100, np.int64)), "full scale"),
    ("video", "npy", array_bytes(np.zeros((1, 3, 16, 16), np.uint8)), "got 1"),
    ("video", "gif", b"garbage", "not a picture"),
    ("video", "npy", array_bytes(np.zeros((8, 16, 16, 3), np.uint8)), "(time, 3, height, width)"),
    ("video", "gif", animation(5), "one frame"), ("video", "gif", animation(0, 50), "2 frames"),
    ("video", "mp4", b"....ftypmp42", "cannot be read"), ("video", "gif", POSTSCRIPT, "not a picture"),
    ("flow", "flo", flo_bytes(np.full((2, 4, 4), 1e10, np.float32)), "outside the range"), ("flow", "png", b"", ".flo"),
    ("flow", "npy", array_bytes(np.full((2, 4, 4), np.nan, np.float32)), "finite"), ("flow", "flo", b"garbage", ".flo"),
    ("flow", "npy", array_bytes(np.zeros((4, 4, 2), np.float32)), "(2, height, width)"),
    ("flow", "flo", flo_bytes(np.zeros((2, 4, 4), np.float32))[:-1], "4 x 4 vectors"),
    ("imu", "csv", b"0,1,0,0,0,0\n" * 4, "looks like g"), ("imu", "csv", b"0,9.8,0\n" * 4, "(3, 4)"),
    ("imu", "csv", b"0,0,0,0.2,9.8,0\n" * 4, "rotation rate"), ("imu", "csv", b"0,9.8,0,0,0\n1,2\n", "line 2"),
    ("imu", "csv", ",".join(NAMES).encode() + b"\n0,9.8,0\n" * 4, "line 2"), ("imu", "json", b"", ".csv"),
    ("imu", "csv", b"rate_x,rate_y,rate_z,acceleration_x,acceleration_y,a\n" + b"1,2,3,4,5,6\n" * 4, "names"),
    ("multispectral", "npy", array_bytes(np.full(BANDS, 3000.0, np.float32)), "from 0 to 2"),
    ("multispectral", "npy", array_bytes(np.full(BANDS, 25454, np.uint16)), "100% above"),
    ("multispectral", "npy", array_bytes(np.full(BANDS, -9999, np.int16)), "no data"),
    ("multispectral", "npy", array_bytes(np.full(BANDS, -9999, np.float32)), "no data"),
    ("multispectral", "tif", tiff_bytes(np.eye(4)[None] * np.ones((12, 1, 1)), nodata=0), "12 of 16"),
    ("multispectral", "npy", array_bytes(np.kron(np.ones((12, 1, 1)), np.eye(4)).astype(np.uint16) * 3000), "12 of 16"),
    ("multispectral", "tif", tiff_bytes(np.full(BANDS, 3000, np.uint16), scale=0.01), "scale 0.01"),
    ("multispectral", "tif", tiff_bytes(np.full(BANDS, 0.3, np.float32), scale=0.01), "scale"),
    ("multispectral", "npy", array_bytes(np.full(BANDS, np.nan, np.float32)), "finite"),
    ("multispectral", "tif", tiff_bytes(np.full(BANDS, 0.3 + 0.4j, np.complex64)), "complex64"),
    ("multispectral", "npy", array_bytes(np.zeros((3, 4, 4), np.float32)), "12 bands"),
    ("multispectral", "tif", b"garbage", "TIFF"), ("multispectral", "tif", b"II*\0garbage", "no picture"),
    ("multispectral", "png", b"", ".tif"),
    # the place of the pixels (tag 273) as a fraction (type 5)
    ("heightmap", "png", tiff_bytes(np.float32([[7, 8]])).replace(b"\x11\x01\x04\0", b"\x11\x01\x05\0"), "a picture"),
    ("heightmap", "npy", array_bytes(np.array([[1.0, np.nan]])), "finite"),
    ("heightmap", "npy", array_bytes(np.ones(FRAME, bool)), "bool"),
    ("heightmap", "npy", array_bytes(np.array([[1.0, -32768.0]])), "outside the range"),
    ("heightmap", "npy", array_bytes(np.array([[1, -9999]], np.int16)), "-9999 stands"),
    ("heightmap", "tif", tiff_bytes(np.float32([[7, 0, -9999]]), nodata=0), "2 of 3"),
    ("heightmap", "tif", tiff_bytes(np.float32([[7, -9999.9]]), nodata=-9999.9), "-9999.9"),
    ("heightmap", "npy", array_bytes(np.zeros((3, 2, 2))), "(1, height, width)"),
    ("heightmap", "tif", tiff_bytes(np.full(FRAME, 3 + 4j, np.complex64)), "complex64"),
    ("sam_instance", "png", media.save_picture(Image.new("RGB", (4, 4))).data, "one channel"),
    ("sam_instance", "txt", b"", "expected"),
    ("sam_instance", "npy", array_bytes(np.zeros(FRAME, np.float32)), "integer ids"),
    ("sam_instance", "npy", array_bytes(np.full(FRAME, -1)), "[0, 65535]"),
    ("sam_instance", "npy", array_bytes(np.full(FRAME, 70000)), "outside the range"),
    ("sam_instance", "npy", array_bytes(np.zeros(FRAME, bool)), "bool"),
    ("sam_instance", "npy", array_bytes(np.zeros((0, 4, 4), np.int32)), "empty"),
    ("sam_instance", "json", b"{}", "annotations"),
    ("sam_instance", "npy", array_bytes(np.zeros((2, 0, 4), bool)), "empty"), ("sam_instance", "json", b"[]", "masks"),
    ("sam_instance", "json", runs(1, 1), "4 pixels"), ("sam_instance", "json", runs(5, -1), "0 and more"),
    ("sam_instance", "json", b"not json", "Expecting"), ("sam_instance", "png", b"GIF89a", "not a picture"),
    *(("caption", extension, data, "") for extension, data in (
        ("txt", "é".encode("latin-1")), ("txt", "one".encode("utf-16")), ("png", b""), ("txt", b"\x00"),
        ("txt", b"a\rb"), ("json", b'"a\\rb"'), ("json", b"[3]"), ("json", b"[]"), ("json", b"{"), ("json", b"NaN"),
        ("json", b"[" * 10**5),
    )),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "extension", "data", "word"), FILES, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(FILES)]
)
def test_bad_files_are_refused(name: str, extension: str, data: bytes, word: str) -> None:
    assert_refused(name, lambda: ZOO[name].read(data, extension), word)


JOINTS = standing() + np.array([0, 0, -4])
PERSON: dict[str, Any] = {
    "joint_rotations": np.zeros((24, 3)).tolist(), "joints_camera": JOINTS.tolist(), "box": [0.2, 0.1, 0.8, 0.9],
    "joints_image": (0.5 + 0.8 * body.directions(JOINTS)).tolist(),
}  # fmt: skip
FLAT: dict[str, Any] = {"label": "a", "box": [0, 0, 1, 1]}
SOLID: dict[str, Any] = {"label": "a", "center": [0, 0, -3], "size": [1, 1, 1], "yaw": 0.0}


def changed(value: dict[str, Any], **entries: Any) -> list[Any]:
    return [{key: entry for key, entry in (value | entries).items() if entry is not None}]


def rotated(matrix: np.ndarray) -> list[Any]:
    return [PERSON, {**PERSON, "joint_rotations": [np.eye(3).tolist()] * 23 + [matrix.tolist()]}]


NAN = math.nan
VALUES: list[tuple[str, Any, str]] = [
    ("human_poses", {"people": []}, "list of tables"), ("human_poses", [[]], "person 0"),
    ("human_poses", [PERSON, 3], "person 1"),
    *(("human_poses", changed(PERSON, **entries), word) for entries, word in (
        ({"joints_camera": None}, "lacks joints_camera"),
        ({"box": None, "joint_rotations": None}, "lacks box, joint_rot"),
        ({"label": "person"}, "unknown keys label"), ({"joint_rotations": [[0.0] * 3] * 23}, "24 x 3"),
        ({"joints_image": [[0.5] * 3] * 24}, "joints_image"), ({"joints_image": [[0.5], [0.5, 0.5]]}, "joints_image"),
        ({"joints_camera": [["left", 0, 0]] * 24}, "joints_camera"), ({"joints_camera": [[0, 0, 4]] * 24}, "z < 0"),
        ({"joint_rotations": [[90.0, 0, 0]] * 24}, "radians"), ({"joints_camera": [[0, 0, -4000]] * 24}, "metres"),
        ({"box": [0, 0, 64, 64]}, "fractions"), ({"box": [0.5, 0.2, 0.5, 0.6]}, "xmin < xmax"),
        ({"box": [0.5, 0.2, 0.6]}, "box"), ({"shape": [[0.0]]}, "shape"), ({"shape": "tall"}, "shape"),
        ({"joints_image": [[500.0, 500.0]] * 24}, "divide pixels"),
    )),
    *(("human_poses", rotated(matrix), "person 1: joint_rotations") for matrix in (
        np.zeros((3, 3)), np.diag([-1.0, 1, 1]), 2 * np.eye(3), np.eye(3)[[1, 0, 2]]
    )),
    ("boxes", {}, "list of tables"), ("boxes", [3], "box 0"), ("boxes", [FLAT, {"label": "a"}], "box 1: lacks box"),
    ("boxes", changed(FLAT, **{"b" * 90000: 1}), "unknown keys"),
    *((name, changed(value, label=label), "label") for name, value in (("boxes", FLAT), ("boxes_3d", SOLID))
      for label in ("", " a", "a\x07", "a" * 101, 3, "a  " * 90000)),
    *(("boxes", changed(FLAT, box=edges), "fractions") for edges in (
        [0, 0, 64, 64], [0, 0, 1.00001, 1], [0, 0, True, 1], [0, 0, 1], list(range(90000))
    )),
    ("boxes", changed(FLAT, box=[0.5, 0, 0.5, 1]), "xmin < xmax"),
    ("boxes_3d", {}, "list of tables"), ("boxes_3d", [3], "box 0"),
    ("boxes_3d", changed(SOLID, roll=0), "unknown keys"),
    ("boxes_3d", [SOLID, changed(SOLID, yaw=None, center=None)[0]], "box 1: lacks center, yaw"),
    *(("boxes_3d", changed(SOLID, center=value), "center") for value in (
        [0, 0], [0, "1", 0], 3, [0, 20_000, 0], [0, True, 0]
    )),
    *(("boxes_3d", changed(SOLID, size=value), "size") for value in ([1, -1, 1], [1, 0, 1], [1, 1], [1, 1, 1e5])),
    *(("boxes_3d", changed(SOLID, yaw=value), "yaw") for value in (90, 3.15, "left")),
    ("metadata", [], "dict"), ("metadata", {"camera_hight": 1}, "camera_hight"),
    *(("metadata", {"camera_height": value}, "camera_height") for value in (3.5, "tall", True)),
    ("metadata", {"num_people": 1.5}, "num_people"), ("metadata", {"camera_fov": 27.5}, "camera_fov"),
    ("caption", "x" * 10_000_000, "at most 2000"), ("caption", "bell \x07", "U+0007 at character 5"),
    ("caption", "next\x85line", "U+0085"), ("caption", "\ud800", ""), ("caption", 3, "int"),
    *((name, value, "") for name, values in (
        ("caption", (None, 2.5, True, ["a"], {"text": "a"}, b"a")),
        ("web_text", (None, 3, ["a"], b"a", "a" * 10_000_000, "a\x1b[2J", "\udfff")),
        ("human_poses", [changed(PERSON, joints_camera=[[number, 0, -4]] * 24) for number in (NAN, math.inf)]),
        ("boxes_3d", [changed(SOLID, size=[1, number, 1]) for number in (NAN, math.inf)]),
        ("boxes", [changed(FLAT, box=[0, 0, number, 1]) for number in (NAN, math.inf)]),
        ("boxes", (None, "a", [None], [{"label": "\ud800", "box": [0, 0, 1, 1]}])),
        ("metadata", (None, "a", 3, {"num_people": None}, {"brightness": math.inf}, {"brightness": NAN})),
        ("semantic_metadata", ({"num_people": 21}, {"num_people": "2"}, {"camera_fov": 60}, {"caption_words": 0})),
        ("geometric_metadata", ({"median_depth": 0}, {"median_depth": -1.0}, {"occlusion_score": 2}, {"x\ny": 1})),
        ("image_metadata", ({"entropy": 8.5}, {"brightness": [0.5]}, {"brightness": 10**400}, {1: 2})),
    ) for value in values),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "word"), VALUES, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(VALUES)])
def test_bad_values_are_refused(name: str, value: Any, word: str) -> None:
    assert_refused("", lambda: ZOO[name].write(value), word)
    if name not in ("caption", "web_text") and "\\ud800" not in repr(value):
        assert_refused(name, lambda: ZOO[name].read(json.dumps(value).encode(), "json"))


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("audio", {"length": 16100}, "hop"), ("audio", {"patch_length": 5}, "patch_length"),
    ("audio", {"window": 400}, "window"),
    ("audio", {"window": 1001}, "window"), ("audio", {"sample_rate": 0}, "sample_rate"),
    ("audio", {"length": 500}, "length"),
    ("audio", {"tokenizer": {"flip": True}}, "flip"), ("video", {"frame_rate": 0.0}, "frame_rate"),
    ("imu", {"sample_rate": math.inf}, "sample_rate"),
    ("sam_instance", {"tokenizer": {"blocks": "mlp"}}, "blocks"), ("sam_instance", {"mask_size": 40}, "patch_size"),
    ("sam_instance", {"mask_size": 0}, "mask_size"), ("sam_instance", {"image_size": [0, 3]}, "image_size"),
    ("sam_instance", {"max_instances": 0}, "max_instances"), ("sam_instance", {"sentinels": 0}, "sentinels"),
    ("sam_instance", {"tokenizer": {"patch_size": 0}}, "patch_size"),
    ("human_poses", {"tokenizer": {"blocks": "conv"}}, "blocks"), ("human_poses", {"tokenizer": {"heads": 2}}, "heads"),
    ("human_poses", {"tokenizer": {"latent_dim": 0}}, "latent_dim"),
    ("human_poses", {"tokenizer": {"depth": -1}}, "depth"),
    ("human_poses", {"tokenizer": {"levels": [8, 8]}}, "levels"), ("human_poses", {"bins": 1}, "bins"),
    ("human_poses", {"max_people": 0}, "max_people"),
    ("human_poses", {"min_visible": 0.0}, "min_visible"), ("human_poses", {"preset": "5m"}, "preset"),
    *(("human_poses", {"labeller": table}, word) for table, word in (
        ({}, "model"), ({"model": ""}, "model"), ({"model": "a", "threshold": 0}, "threshold"),
        ({"model": "a", "camera_fov": 180}, "camera_fov"),
        ({"model": "a", "camera_fov": [50, 0]}, "camera_fov"), ({"model": "a", "landmarks": "huge"}, "landmarks"),
    )),
    *(("boxes_3d", settings, next(iter(settings))) for settings in (
        {"max_boxes": 0}, {"max_length": 0}, {"x": [1, 1]}, {"z": [0, -8]}, {"y": [0, math.inf]}, {"size": [0, 4]},
        {"size": [0.05, 150.0]}, {"x": [1, 2, 3]}, {"order": "left"},
    )),
    *(("metadata", {"fields": {"x": field}}, word) for field, word in (
        ({"low": 2}, "high"), ({"kind": "choice"}, "choices"), ({"kind": "int", "low": 0.5}, "whole numbers"),
        ({"bins": 1}, "bins"), ({"unit": "m s"}, "unit"), ({"kind": "log"}, "low"), ({"kind": "word"}, "kind"),
        ({"hihg": 2}, "did you mean high"), ({"kind": "int", "rounding": "down"}, "rounding"),
        ({"kind": "choice", "choices": ["a", "b"], "clip": True}, "clip"), ({"thresholds": [1]}, "thresholds"),
        ({"kind": "choice", "choices": ["a", "b"], "thresholds": [1, 2]}, "thresholds"),
        ({"kind": "choice", "choices": ["a", "b", "c"], "thresholds": [1, 1]}, "thresholds"),
        ({"kind": "int", "high": 1000}, "field x needs 1001 levels"), ({"number": 1000}, "field x needs 1001 levels"),
    )),
    ("metadata", {"fields": {"X y": {}}}, "fields"), ("metadata", {"default_fields": False}, "at least one"),
    *(("semantic_metadata", {"inputs": inputs}, "inputs") for inputs in ([], ["rgb"], ["boxes", "boxes"])),
    ("caption", {"max_length": 0}, "max_length"), ("web_text", {"max_characters": -1}, "max_characters"),
    ("palette", {"colours": 17}, "colours"), ("canny", {"sigma": -1.0}, "sigma: expected float in [0, 100)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "word"), SETTINGS, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(SETTINGS)])
def test_bad_settings_are_refused(name: str, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _ = Zoo.from_tables({"modalities": {name: settings}})[name].spec
    assert word in str(caught.value) and "\n" not in str(caught.value)
