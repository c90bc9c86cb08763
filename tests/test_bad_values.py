"""Real-world values that differ from the declaration: handled as expected, or refused in one line.

The conformance check `probes` tests for all modalities that every file is read correctly or refused in one line; these
tests check the values and messages for the same files (`tokenizers_zoo.testing.probes`). Text-like modalities have more
such tests in test_text.py, test_boxes.py, test_poses.py, test_metadata.py and test_language.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import OURS

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.spec import Crop
from tokenizers_zoo.testing.media import NUMBERS, SIZE, WORDS, plain_picture
from tokenizers_zoo.testing.probe import Probe, bars, npy
from tokenizers_zoo.testing.probes import PICTURE, made_up, probed_files, with_one

ROOT = Path(__file__).parent.parent
ZOO = Zoo.from_tables({"zoo": {"image_size": 32, "patch_size": 8}, "modalities": {"heightmap": {"png_scale": 0.1}}})
ARRAYS = [name for name in OURS if ZOO[name].spec.value.kind == "array"]


@cache
def probes(name: str) -> dict[tuple[str, str], Probe]:
    """Return the kit's files of a modality by kind and description."""
    return {(kind, probe.what): probe for kind, probe in probed_files(ZOO[name]).probes}


def good(name: str) -> np.ndarray:
    """Return a valid value."""
    value = made_up(ZOO[name])
    assert value is not None
    return value


def refused(name: str, act: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message and len(message) < 500, message
    for part in parts:
        assert part in message, message


# ---------------------------------------------------------------- any array


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_with_wrong_numbers_and_damaged_files_are_refused(name: str) -> None:
    """Also wrong units: 255 for 1, millimetres for metres, ids of other classes."""
    handle, value = ZOO[name], good(name)
    low, high = handle.spec.value.low, handle.spec.value.high
    numbers = [] if low is None or high is None else [low - 1 - abs(low), high + 1 + abs(high)]
    for number in [*numbers, *((np.nan, -np.inf) if value.dtype.kind == "f" else ())]:
        wrong = with_one(value, number)
        for act in (lambda wrong=wrong: handle.check(wrong), lambda wrong=wrong: handle.write(wrong)):
            refused(name, act, "numbers lie outside the range" if np.isfinite(number) else "1 not finite")
        refused(name, lambda wrong=wrong: handle.read(npy(wrong).data, "npy"))
    refused(name, lambda: handle.read(b"PK", "docx"), "expected", "docx")
    refused(name, lambda: handle.read(b"", "npy"))
    for what in ("no array", "an empty array", "cut off", "Python objects in it"):
        refused(name, lambda what=what: handle.read(probes(name)["`.npy`", what].file.data, "npy"))


@pytest.mark.parametrize("name", ARRAYS)
def test_other_float_and_integer_widths_are_converted(name: str) -> None:
    handle, value = ZOO[name], good(name)
    for other in ("float64", "float16") if value.dtype.kind == "f" else ("uint8", "int16"):
        found = handle.read(npy(value.astype(other)).data, "npy")
        assert found.dtype == value.dtype
        np.testing.assert_allclose(found.reshape(value.shape), value, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in ARRAYS if ("`.npy`", "channels last") in probes(name)])
def test_channels_are_first(name: str) -> None:
    """A raster with all its bands is accepted, because the order of its axes is unambiguous."""
    file = probes(name)["`.npy`", "channels last"].file
    if name == "multispectral":
        np.testing.assert_array_equal(ZOO[name].read(file.data, "npy"), good(name))
        return
    refused(name, lambda: ZOO[name].read(file.data, "npy"), "expected", "(")


# ---------------------------------------------------------------- pictures

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
def test_pictures_of_every_kind(name: str) -> None:
    handle, examples = ZOO[name], ZOO[name].example_files()
    pictures = {
        what: probe.file for (kind, what), probe in probes(name).items() if kind == PICTURE and what not in examples
    }
    plain = plain_picture(handle, good(name))
    assert plain is not None
    assert READ[name] <= {*pictures, WORDS[plain.mode]}
    for what, file in pictures.items():
        if what in READ[name]:
            value = handle.read(file.data, file.extension)
            tolerance = 0.02 if what == "CMYK" else 1 / 255
            np.testing.assert_allclose(value, shown(name, what), atol=tolerance, err_msg=what)
            assert len(np.unique(value)) >= 2
        elif what != BLENDED or name in ("depth", "heightmap", "semseg", "sam_instance", "normal"):
            refused(name, lambda file=file: handle.read(file.data, file.extension))


def shown(name: str, what: str) -> np.ndarray:
    """Return the content of a picture of the kit: its original value, or numbers times their unit."""
    if name not in ("depth", "heightmap"):
        return good(name)
    scale = {"depth": 0.001, "heightmap": 1.0 if what == "grey of floats" else 0.1}[name]
    return bars((1, *SIZE), NUMBERS) * scale


@pytest.mark.parametrize(
    ("name", "ground"), [("rgb", 1.0), ("rgb_patches", 1.0), ("hed", 0.0), ("canny", 0.0), ("sam_edge", 0.0)]
)
def test_transparent_pixels_are_white_in_pictures_and_no_edges(name: str, ground: float) -> None:
    file = probes(name)[PICTURE, BLENDED].file
    value = ZOO[name].read(file.data, file.extension)
    half = value.shape[-1] // 2
    assert (value[..., :half] == ground).all()
    np.testing.assert_allclose(value[..., half:], good(name)[..., half:], atol=1 / 255)


# ---------------------------------------------------------------- values of some modalities only


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boxes", []),
        ("human_poses", []),
        ("metadata", {}),
        ("caption", ""),
        ("caption", "ein Stuhl, une chaise, стул, 椅子, 🪑"),
        ("sam_instance", np.zeros((32, 32), np.int32)),  # a mask without an object
    ],
)
def test_empty_values_are_valid(name: str, value: Any) -> None:
    """Empty values are valid: no boxes, people, fields, text, objects or edges, and silence."""
    back = ZOO[name].read(*ZOO[name].write(value))
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value


@pytest.mark.parametrize(
    ("name", "kind", "what", "part"),
    [
        ("video", "`.npy`", "7 instead of 8 along the first axis", "expected at least 8 frames, got 7"),
        ("semseg", "picture", "JPEG", "JPEG changes numbers at every border"),
        ("sam_instance", "`.json`", "a polygon instead of a mask", "a polygon is no mask"),
        ("depth", "picture", "a pixel of 0, where nothing was measured", "got 1 of 64 pixels that are 0"),
    ],
)
def test_files_of_the_kit_that_are_refused(name: str, kind: str, what: str, part: str) -> None:
    file = probes(name)[kind, what].file
    refused(name, lambda: ZOO[name].transform(ZOO[name].read(file.data, file.extension), Crop()), part)
