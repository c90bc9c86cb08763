"""Values that users will meet and that are not as declared: handled as one would expect, or refused in one line.

One table over all modalities of arrays, one over all that read pictures, and one of what only some can meet. Values of
text-like modalities have theirs in test_text.py, test_boxes.py, test_poses.py, test_metadata.py and test_language.py.
"""

from __future__ import annotations

import io
import json
import tomllib
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.modality import Crop

ROOT = Path(__file__).parent.parent
NAMES = sorted(
    name
    for path in ROOT.glob("plugins/*/pyproject.toml")
    for name in tomllib.loads(path.read_text())["project"].get("entry-points", {}).get("tokenizers_zoo", {})
)
ZOO = Zoo.from_tables({"zoo": {"image_size": 32, "patch_size": 8}, "modalities": {"heightmap": {"png_scale": 0.1}}})
ARRAYS = [name for name in NAMES if ZOO[name].spec.value.kind == "array"]
SPATIAL = [name for name in ARRAYS if len(ZOO[name].spec.value.shape) > 1 and name not in ("palette", "t5_caption")]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def good(name: str) -> np.ndarray:
    """A sound value, in the middle half of the declared range."""
    spec = ZOO[name].spec.value
    shape = tuple(3 if isinstance(size, str) else size for size in spec.shape)
    low, high = -1.0 if spec.low is None else spec.low, 1.0 if spec.high is None else spec.high
    numbers = np.random.default_rng(0).random(shape) * (high - low) / 2 + low + (high - low) / 4
    if name == "normal":
        numbers /= np.linalg.norm(numbers, axis=0, keepdims=True)
    return numbers.astype(spec.dtype)


def refused(name: str, act: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message and len(message) < 500, message
    for part in parts:
        assert part in message, message


# ---------------------------------------------------------------- any array


@pytest.mark.parametrize("name", ARRAYS)
def test_a_sound_array_passes_and_comes_back_from_its_file(name: str) -> None:
    handle, value = ZOO[name], good(name)
    handle.check(value)
    assert handle.read(*handle.write(value)).shape == value.shape


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in ARRAYS if ZOO[name].spec.value.dtype == "float32"])
def test_one_number_that_is_not_finite(name: str, number: float) -> None:
    handle, value = ZOO[name], good(name)
    value.flat[5] = number
    for act in (lambda: handle.check(value), lambda: handle.write(value), lambda: handle.transform(value, Crop())):
        refused(name, act, "every number has to be finite", "1 not finite")
    refused(name, lambda: handle.read(npy(value), "npy"))


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("name", [name for name in ARRAYS if ZOO[name].spec.value.high is not None])
def test_one_number_out_of_range(name: str, side: str) -> None:
    """Another unit, too: 255 for 1, millimetres for metres, ids of other classes."""
    handle, value = ZOO[name], good(name)
    low, high = handle.spec.value.low, handle.spec.value.high
    assert low is not None and high is not None
    value.flat[5] = high + 1 + abs(high) if side == "above" else low - 1 - abs(low)
    for act in (lambda: handle.check(value), lambda: handle.write(value), lambda: handle.transform(value, Crop())):
        refused(name, act, "numbers lie outside the range", f"{value.flat[5]:.6g}")
    refused(name, lambda: handle.read(npy(value), "npy"))


@pytest.mark.parametrize("name", ARRAYS)
def test_another_type_shape_or_nothing(name: str) -> None:
    handle, value = ZOO[name], good(name)
    for bad in (value.astype(np.float64), value > 0, value[..., :-1, None], value[:0], value.tolist(), None, "a cat"):
        refused(name, lambda bad=bad: handle.check(bad), "expected")
        refused(name, lambda bad=bad: handle.write(bad), "expected")
    for data in (b"no array", b"", npy(value)[:-4], npy(np.zeros(0, value.dtype))):
        refused(name, lambda data=data: handle.read(data, "npy"))
    refused(name, lambda: handle.read(b"PK", "docx"), "expected", "docx")


@pytest.mark.parametrize("name", sorted({*SPATIAL, "t5_caption"} - {"semseg", "sam_instance", "multispectral"}))
def test_channels_are_first(name: str) -> None:
    """Class ids and instances have no channels; of a raster with all of its bands the order can be told."""
    handle = ZOO[name]
    last = np.ascontiguousarray(np.moveaxis(good(name), 0, -1))
    refused(name, lambda: handle.read(npy(last), "npy"), "expected", "(")


# ---------------------------------------------------------------- pictures

BARS = np.array([[51, 204], [204, 51], [204, 204]], np.uint8).repeat(8, 0).repeat(8, 1)
"""Grey 24 x 16 pixels, a fifth and four fifths of white."""


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    return saved(Image.fromarray(np.rot90(BARS)).convert("RGB"), exif=exif)


def coloured() -> Image.Image:
    return Image.fromarray(BARS).convert("RGB")


PICTURES: dict[str, tuple[bytes, str]] = {
    "grey": (saved(Image.fromarray(BARS)), "png"),
    "rgb": (saved(coloured()), "png"),
    "16 bits": (saved(Image.fromarray(BARS.astype(np.uint16) * 257)), "png"),
    "palette": (saved(coloured().quantize(4)), "png"),
    "rgba": (saved(coloured().convert("RGBA")), "png"),
    "grey with alpha": (saved(Image.fromarray(BARS).convert("LA")), "png"),
    "cmyk": (saved(coloured().convert("CMYK"), "JPEG", quality=100), "jpg"),
    "turned by EXIF": (turned(), "png"),
    "capital extension": (saved(coloured()), "PNG"),
    "floats": (saved(Image.fromarray(BARS.astype(np.float32) / 255), "TIFF"), "tif"),
    "cut off": (saved(coloured())[:-30], "png"),
    "no picture": (b"hello", "png"),
}
LIKE_GREY = {*PICTURES} - {"floats", "cut off", "no picture"}
READ: dict[str, set[str]] = {
    "rgb": LIKE_GREY,
    "rgb_patches": LIKE_GREY,
    "hed": LIKE_GREY,
    "canny": LIKE_GREY,
    "sam_edge": LIKE_GREY,
    "depth": {"16 bits"},
    "heightmap": {"16 bits", "floats"},
    "sam_instance": {"grey", "16 bits", "palette"},
    "semseg": {"grey", "palette"},
    "normal": set(),
}
"""The modalities that read picture files, and what they take; whatever else is refused."""


def test_all_that_read_pictures_are_in_the_table() -> None:
    empty = saved(Image.new("L", (8, 8)))
    reading = set()
    for name in ARRAYS:
        try:
            ZOO[name].read(empty, "png")
        except InvalidValueError as error:
            if "expected" in str(error) and (".npy" in str(error)) and "mode" not in str(error):
                continue
        reading.add(name)
    assert reading - {"video"} == set(READ)  # a video of one frame has a test of its own


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("name", READ)
def test_pictures_of_every_kind(name: str, kind: str) -> None:
    classes = [f"class {number}" for number in range(256)]
    zoo = Zoo.from_tables({"modalities": {"semseg": {"classes": classes}}}) if name == "semseg" else ZOO
    data, extension = PICTURES[kind]
    if kind not in READ[name]:
        refused(name, lambda: zoo[name].read(data, extension))
        return
    value = zoo[name].read(data, extension)
    truth = BARS / 255
    if name in ("canny", "sam_edge"):
        truth = truth > 0.5
    if name in ("rgb", "rgb_patches", "hed", "canny", "sam_edge"):
        np.testing.assert_allclose(value, np.broadcast_to(truth, value.shape), atol=0.01 if kind == "cmyk" else 1e-6)
    elif name == "depth":
        np.testing.assert_allclose(value[0], BARS * 0.257, rtol=1e-6)
    elif name == "heightmap":
        metres = BARS / 255 if kind == "floats" else BARS * 25.7
        np.testing.assert_allclose(value[0], metres, rtol=1e-6)
    elif kind != "palette":  # which numbers its colours as it likes
        np.testing.assert_array_equal(value, BARS.astype(int) * (257 if kind == "16 bits" else 1))
    assert len(np.unique(value)) == 2


@pytest.mark.parametrize(("name", "shade"), [("rgb", 1.0), ("hed", 0.0), ("canny", 0.0)])
def test_what_is_transparent_is_paper_in_a_picture_and_no_edge(name: str, shade: float) -> None:
    clear = Image.new("RGBA", (8, 8), (128, 200, 200, 0))
    assert (ZOO[name].read(saved(clear), "png") == shade).all()


# ---------------------------------------------------------------- what only some can meet


def wav(rate: int, samples: np.ndarray) -> bytes:
    """int16 (time, channels) as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def test_sound_of_two_channels_and_of_another_rate_is_mixed_and_resampled() -> None:
    def tone(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    handle, wanted = ZOO["audio"], tone(16000) * 0.25
    for rate in (16000, 8000, 44100, 48000):
        stereo = np.stack([tone(rate) * 0.5, 0 * tone(rate)], axis=1) * 32767
        found = handle.read(wav(rate, stereo), "wav")
        assert found.shape == (16000,) and found.dtype == np.float32
        np.testing.assert_allclose(found[200:-200], wanted[200:-200], atol=0.01)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boxes", []),
        ("human_poses", []),
        ("metadata", {}),
        ("caption", ""),
        ("caption", "ein Stuhl, une chaise, стул, 椅子, 🪑"),
        ("sam_instance", np.zeros((32, 32), np.int32)),  # a mask without an object
        ("canny", np.zeros((1, 32, 32), np.float32)),
        ("audio", np.zeros(16000, np.float32)),
        ("palette", np.ones((5, 3), np.float32)),
    ],
)
def test_nothing_is_a_value(name: str, value: Any) -> None:
    """No boxes, nobody, no field, no text, no object, no edge, silence."""
    back = ZOO[name].read(*ZOO[name].write(value))
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value


def box(*corners: float) -> list[dict[str, Any]]:
    return [{"label": "chair", "box": list(corners)}]


@pytest.mark.parametrize(
    ("name", "data", "extension", "part"),
    [
        ("video", saved(Image.new("RGB", (32, 32))), "png", "one frame, which is a picture"),
        ("video", npy(np.zeros((1, 3, 32, 32), np.uint8)), "npy", "expected at least 8 frames, got 1"),
        ("audio", wav(16000, np.zeros((0, 1))), "wav", "it holds no sound"),
        ("boxes", json.dumps(box(-0.1, 0, 0.5, 0.5)).encode(), "json", "fractions of width and height in [0, 1]"),
        ("boxes", json.dumps(box(0, 0, 1.01, 0.5)).encode(), "json", "fractions of width and height in [0, 1]"),
        ("boxes", json.dumps(box(0, 0, 640, 480)).encode(), "json", "fractions of width and height in [0, 1]"),
        ("boxes", b'[{"label": "a", "box": [0, 0, Infinity, 1]}]', "json", ""),
        ("boxes", b'[{"label": "a", "box": [0, 0, 0, 1]}]', "json", "xmin < xmax"),
        ("semseg", npy(np.full((8, 8), 255)), "npy", "expected class ids 0 to"),
        ("semseg", npy(np.full((8, 8), -1)), "npy", "expected class ids 0 to"),
        ("semseg", npy(np.ones((8, 8), np.float32)), "npy", "expected integer class ids"),
        ("sam_instance", npy(np.full((8, 8), -1)), "npy", "number them from 1"),
        ("depth", npy(np.full((1, 8, 8), 2500.0, np.float32)), "npy", "numbers lie outside the range"),  # millimetres
        ("depth", npy(np.zeros((1, 8, 8), np.float32)), "npy", "expected metres above 0"),
        ("normal", npy(np.zeros((3, 8, 8), np.float32)), "npy", "expected unit vectors"),
        ("flow", npy(np.zeros((2, 8, 8), np.uint8)), "npy", "expected floats in pixels per frame, got uint8"),
        ("heightmap", npy(np.full((1, 8, 8), -32768, np.int16)), "npy", "64 of 64 pixels are no height"),
        ("multispectral", npy(np.zeros((12, 8, 8), np.uint8)), "npy", "integers of 16 bits, got uint8"),
        ("multispectral", npy(np.full((12, 8, 8), 3000.0)), "npy", "save integers, or divide by 10000"),
        ("imu", b"0,1,0,0,0,0\n" * 128, "csv", "looks like g; multiply by 9.81"),
        ("clip", npy(np.zeros((512, 14, 14), np.uint8)), "npy", "expected floats"),
        ("palette", npy(np.full((5, 3), 255, np.uint8)), "npy", "convert it to float32 sRGB"),
        ("caption", "caf\u00e9".encode("latin-1"), "txt", "not UTF-8 at byte 3"),
        ("web_text", "\u65e5\u672c".encode("shift-jis"), "txt", "not UTF-8 at byte 0"),
        ("caption", "text".encode("utf-16"), "txt", "not UTF-8 at byte 0"),
        ("metadata", b'{"camera_height": NaN}', "json", ""),
        ("metadata", b'{"camera_height": 170}', "json", "outside its range"),  # centimetres
        ("human_poses", b"[{}]", "json", "lacks"),
    ],
)
def test_files_that_are_refused(name: str, data: bytes, extension: str, part: str) -> None:
    refused(name, lambda: ZOO[name].read(data, extension), part)


@pytest.mark.parametrize("value", [np.ones((3, 5), np.float32), np.ones((7, 3), np.float32)])
def test_a_palette_of_other_colours_than_set(value: np.ndarray) -> None:
    refused("palette", lambda: ZOO["palette"].transform(value, Crop()), "the shape is not (5, 3)")
