"""The conformance kit's probe files: made from a spec, and judged by their outcome."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.errors import DataError, MachineError, PluginError
from tokenizers_zoo.testing import conformance_results
from tokenizers_zoo.testing.media import picture_probes, tone, wav
from tokenizers_zoo.testing.probe import File, Outcome, Probe, bars, npy, outcome_of
from tokenizers_zoo.testing.probes import as_json, example_array, object_probes, probed_files

Install = Callable[..., Path]
SCORE = "    @hookimpl\n    def score("
READ = "    @hookimpl\n    def read_value(self, data, extension, settings):\n        import io\n        {}\n\n"
PICTURES = (
    READ.format("""from tokenizers_zoo.contract.pictures import read_array, read_grey
        return read_array(data, extension) if extension == "npy" else read_grey(data, extension)""")
    + "    @hookimpl\n    def write_value(self, value):\n"
    "        from PIL import Image\n        from tokenizers_zoo.contract.pictures import png_bytes\n"
    "        return png_bytes(Image.fromarray((value[0] * 255).astype(np.uint8))), 'png'\n\n"
)


def probes_message(name: str) -> str:
    """Return the message of the check `probes`, empty if it passes."""
    check_result = {result.name: result for result in conformance_results(Zoo.installed(), name)}["probes"]
    assert not check_result.skipped and "\n" not in check_result.message
    return "" if check_result.passed else check_result.message


def probe_outcomes(name: str) -> dict[str, Outcome]:
    handle = Zoo.installed()[name]
    return {probe.description: outcome_of(handle, probe) for _, probe in probed_files(handle).probes}


# ---------------------------------------------------------------- plugins that read wrongly


def test_a_plugin_that_leaves_files_to_the_defaults_passes(install_example: Install) -> None:
    install_example("plain_map")
    assert probes_message("plain_map") == ""
    outcomes = probe_outcomes("plain_map")
    assert outcomes["float64"].read and outcomes["float16"].read and outcomes["no axis of channels"].line
    assert outcomes["twice as high and wide"].reading == "resized"
    assert "every number has to be finite" in outcomes["NaN in it"].line
    assert probed_files(Zoo.installed()["plain_map"]).reads == ("npy",)


LOADED = "value = np.load(io.BytesIO(data))\n        "
SOUND = f"{LOADED}if value.ndim == 3 and len(value): return value\n        "
ERRORS = "from tokenizers_zoo.errors import DataError, InvalidValueError\n        "
PICKY = """    @hookimpl
    def write_value(self, value):
        import io
        from tokenizers_zoo.errors import InvalidValueError
        if not value.any(): raise InvalidValueError("nothing on it")
        buffer = io.BytesIO()
        np.save(buffer, value)
        return buffer.getvalue(), "npy"

"""
CHOOSY = """        from tokenizers_zoo.errors import InvalidValueError
        if not values.any(): raise InvalidValueError("nothing on it")
        means = reduce(values,"""
FAULTS = {
    "read_value stumbles over it, and cannot": {SCORE: READ.format(f"{SOUND}raise KeyError('map')") + SCORE},
    "it is met with DataError: nothing": {SCORE: READ.format(f"{ERRORS}{SOUND}raise DataError('nothing')") + SCORE},
    "NaN in it: it is refused in 814 characters": {SCORE: READ.format(
        f"{ERRORS}{LOADED}if not np.isfinite(value).all(): raise InvalidValueError('bad ' * 200)\n        return value"
    ) + SCORE},
    "zeros everywhere: it is read as float32 (1, 16, 16) 0..0, which is no value": {SCORE: PICKY + SCORE},
    "it is read, but not encoded: mistaken_map: nothing on it": {"        means = reduce(values,": CHOOSY},
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_noticed(message: str, install_example: Install) -> None:
    install_example("mistaken_map", FAULTS[message])
    assert message in probes_message("mistaken_map")


def test_running_out_of_memory_is_no_fault_of_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise MachineError("no memory")

    handle = Zoo.installed()["rgb"]
    probe = next(probe for _, probe in probed_files(handle).probes)
    monkeypatch.setattr(handle, "transform", fails)
    with pytest.raises(MachineError):
        outcome_of(handle, probe)
    monkeypatch.setattr(handle, "write", fails)
    with pytest.raises(MachineError):
        example_array(handle)


def test_probe_pictures_are_read_correctly(install_example: Install) -> None:
    install_example("seen_map", {SCORE: PICTURES + SCORE})
    assert probes_message("seen_map") == ""
    outcomes = probe_outcomes("seen_map")
    readings = {
        name: outcomes[name].reading for name in ("16-bit grey", "RGBA half transparent", "turned by EXIF", "CMYK")
    }
    assert readings == {
        "16-bit grey": "brightness, white is 65535", "RGBA half transparent": "the transparent half is black",
        "turned by EXIF": "upright", "CMYK": "the same as 8-bit RGB",
    }  # fmt: skip
    assert {"png", "jpg", "tiff", "npy"} <= set(probed_files(Zoo.installed()["seen_map"]).reads)


def test_ignoring_the_exif_orientation_is_noticed(install_example: Install) -> None:
    wrong_pictures = PICTURES.replace(
        "else read_grey(data, extension)",
        "else np.asarray(__import__('PIL.Image').Image.open(io.BytesIO(data)).convert('L'), np.float32)[None] / 255",
    )
    install_example("lying_map", {SCORE: wrong_pictures + SCORE})
    assert probes_message("lying_map").startswith("picture ")
    assert "it is read, but not as it should be: upright" in probe_outcomes("lying_map")["turned by EXIF"].fault


def test_ids_spread_over_channels_are_read(install_example: Install) -> None:
    """COCO's panoptic pictures store id = red + 256 green + 65536 blue."""
    install_example("panoptic_map", {'low=0, high=1, unit="brightness"': 'dtype="int64", low=0, high=70000'})
    handle = Zoo.installed()["panoptic_map"]
    ids = bars((16, 16), (1, 2), "uint8")
    picture = Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=-1))
    probes = {probe.description: probe for probe in picture_probes(handle, picture)}
    assert probes["8-bit grey"].file.data != probes["16-bit grey"].file.data and "turned by EXIF" in probes


# ---------------------------------------------------------------- probes provided by plugins


def examples(files: str) -> dict[str, str]:
    return {SCORE: f"    @hookimpl\n    def example_files(self):\n        return {files}\n\n{SCORE}"}


def test_files_that_a_plugin_gives_are_among_the_probes(install_example: Install) -> None:
    install_example("given_files", examples("{'a map of old': (b'P5', 'pgm')}"))
    kind, probe = probed_files(Zoo.installed()["given_files"]).probes[-1]
    assert (kind, probe) == ("`.pgm`", Probe(description="a map of old", file=File(data=b"P5", extension="pgm")))
    assert probe_outcomes("given_files")["a map of old"].line == "given_files: expected a .npy file, got .pgm"


@pytest.mark.parametrize("files", ["[]", "{'a map': b'P5'}", "{'a map': ('P5', 'pgm')}", "{'a map': (b'P5', 'p', 1)}"])
def test_files_of_another_form_are_refused(files: str, install_example: Install) -> None:
    install_example("misgiven_files", examples(files))
    with pytest.raises(PluginError, match=r"misgiven_files: example_files"):
        Zoo.installed()["misgiven_files"].example_files()


def test_objects_need_an_example_or_a_sample(install_example: Install) -> None:
    kind = {
        'ValueSpec(shape=(1, side, side), low=0, high=1, unit="brightness")': "ValueSpec(kind='object', items='table')",
        "    @hookimpl\n    def transform(": "    def transform(",
    }
    install_example("free_tables", kind)
    handle = Zoo.installed()["free_tables"]
    with pytest.raises(DataError, match="free_tables: "):
        probed_files(handle)
    names = [probe.description for _, probe in probed_files(handle, sample=[{"a": 1.5}]).probes]
    assert {"without `a`", "`a` is 1000 times larger", "NaN in it", "an empty list"} <= set(names)


# ---------------------------------------------------------------- how files are made


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4])
def test_sound_files_hold_what_they_should(width: int) -> None:
    from scipy.io import wavfile

    samples = np.hstack([tone(8000, 0.1), -tone(8000, 0.1)])
    rate, recorded = wavfile.read(io.BytesIO(wav(samples, 8000, width).data))
    scale = 1.0 if width == 0 else 2.0 ** (31 if width == 3 else 8 * width - 1)
    shift = 128 if width == 1 else 0
    assert rate == 8000
    np.testing.assert_allclose((recorded.astype(float) - shift) / scale, samples, atol=0.005)


def test_objects_differ_in_what_they_say() -> None:
    person = {"name": "Ada", "box": [0.1, 0.2], "age": 36}
    texts = {probe.description: probe.file.data for probe in object_probes([person])}
    assert json.loads(texts["without `box`"]) == [{"name": "Ada", "age": 36}]
    assert json.loads(texts["`box` is 1000 times larger"]) == [{**person, "box": [100.0, 200.0]}]
    assert json.loads(texts["`box` lacks its last"]) == [{**person, "box": [0.1]}]
    assert json.loads(texts["`name` is a number"]) == [{**person, "name": 3}]
    assert b"[NaN, NaN]" in texts["NaN in it"] and person["box"] == [0.1, 0.2]
    assert json.loads(texts["one without a list around it"]) == person
    table = {probe.description: probe.file.data for probe in object_probes({"a": 1, "b": 2})}
    assert json.loads(table["a key more, `remark`"]) == {"a": 1, "b": 2, "remark": "ok"}
    assert "without `a`" not in table and "`b` is a text" not in table  # any field of a table may be absent
    gap = {"points": [[0.5, 1], None, {"x": 2}], "seen": [1, True]}
    texts = {probe.description: probe.file.data for probe in object_probes([gap])}
    assert json.loads(texts["`points` is 1000 times larger"]) == [{**gap, "points": [[500.0, 1000], None, {"x": 2}]}]
    assert json.loads(texts["`seen` is 1000 times larger"]) == [{**gap, "seen": [1000, True]}]


# ---------------------------------------------------------------- pages and comparisons


def test_readings_are_compared_with_a_tolerance(install_example: Install) -> None:
    install_example("told_map")
    handle: ModalityHandle = Zoo.installed()["told_map"]
    value = bars((1, 16, 16), (0.25, 0.75))
    near, far = value + np.float32(0.001), 1 - value
    for array, reading in ((near, "so"), (far, "")):
        probe = Probe(description="x", file=npy(array), readings=(("so", npy(value)),))
        assert outcome_of(handle, probe).reading == reading
    strict = Probe(description="x", file=npy(far), readings=(("so", npy(value)),), must_match=True)
    assert outcome_of(handle, strict).fault == "it is read, but not as it should be: so"
    incomparable = Probe(description="x", file=npy(far), readings=(("so", as_json(1)),), must_match=True)
    assert outcome_of(handle, incomparable).read  # nothing to compare with
