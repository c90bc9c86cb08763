"""The tutorial about a custom sensor: rasters with holes are read, tables are complete, and commands run."""

from __future__ import annotations

import inspect
import io
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from page_shell import Shell, page_files, page_steps

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.spatial import SpatialModality
from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.validation import array_bytes

tifffile = pytest.importorskip("tifffile")

PAGE = Path(__file__).parent.parent / "docs" / "own-sensor.md"
NAME = "backscatter"


def tiff(array: np.ndarray, planar: str = "contig") -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="minisblack", planarconfig=planar)
    return buffer.getvalue()


@pytest.fixture
def sensor(install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """Install the page's plugin and write its files into the current folder."""
    (module,) = (text for path, text in page_files(PAGE).items() if path.endswith("modality.py"))
    assert len(module.splitlines()) < 60
    install("zoo-backscatter", {"tokenizers_zoo": {NAME: "zoo_backscatter:plugin"}}, {"zoo_backscatter": module})
    monkeypatch.chdir(tmp_path)
    for name in ("make_files.py", "registry.toml"):
        Path(name).write_text(page_files(PAGE)[name], encoding="utf-8")
    return Zoo.from_toml("registry.toml")


def test_few_holes_are_filled_and_many_refused(sensor: Zoo) -> None:
    handle: ModalityHandle = sensor[NAME]
    bands = np.array([[-9999, -10, -20, -30], [-5, -6, np.nan, -8]], np.float32)[:, None].repeat(8, 1)  # (2, 8, 4)
    filled = np.array([[-20, -10, -20, -30], [-5, -6, -6, -8]], np.float32)[:, None].repeat(8, 1)
    wide = Zoo.from_tables({"modalities": {NAME: {"max_missing": 0.25}}})[NAME]
    for data, extension in (
        (tiff(bands, "separate"), "tif"),
        (tiff(bands.transpose(1, 2, 0)), "tiff"),
        (array_bytes(bands.astype(np.float64)), "npy"),
    ):
        np.testing.assert_array_equal(wide.read(data, extension), filled)
        with pytest.raises(InvalidValueError, match=r"25% of a band is without data, more than max_missing 0\.1"):
            handle.read(data, extension)
    for data, extension, message in (
        (tiff(np.zeros((8, 8, 3), np.float32)), "tif", "expected 2 bands"),
        (tiff(np.full((8, 8, 2), 200, np.uint16)), "tif", "numbers lie outside the range"),
        (b"", "png", r"expected \.tif or \.npy"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            handle.read(data, extension)


def test_files_become_values_and_a_raster_of_holes_is_named(sensor: Zoo, tmp_path: Path) -> None:
    runpy.run_path("make_files.py")
    options = {"path": "files", "test_fraction": 0.2}
    result = make_data(sensor, "folder", tmp_path / "data", train=None, test=None, options=options, workers=1)
    written, failed = ({NAME: 0, "rgb": 0} for _ in range(2))
    for outcome in result.outcomes:
        written[outcome.modality] += outcome.written
        failed[outcome.modality] += outcome.dropped
    assert written == {NAME: 46, "rgb": 48} and failed == {NAME: 1, "rgb": 0}
    (reason,) = (outcome.first_dropped for outcome in result.outcomes if outcome.dropped)
    assert "50% of a band is without data" in reason and "field-46" in reason


def test_all_options_of_the_family_are_documented() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## What SpatialModality lets a plugin say")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    there = {
        name for name, member in inspect.getmembers_static(SpatialModality)
        if not name.startswith("_") and not hasattr(member, "tokenizers_zoo_impl")
    }  # fmt: skip
    declared = {name for base in SpatialModality.__mro__ for name in inspect.get_annotations(base)}
    assert listed == there | declared


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    printed = {}
    for path, text in page_steps(PAGE):
        if path:
            (tmp_path / path).write_text(text, encoding="utf-8")
        else:
            printed[text] = shell.run(text, *((0, 1) if text.startswith("zoo doctor") else ()))
    checked = printed[f"zoo check {NAME} --data data"]
    assert "problem" not in checked and checked.count("ok ") > 8
    assert "field-46: backscatter: .tif file: 50% of a band" in printed["zoo data info data"]
    made = np.load(tmp_path / "generated" / "files" / "0" / f"{NAME}.npy")
    assert (made.shape, made.dtype) == ((2, 64, 64), np.float32) and abs(made + 10).max() <= 40
    assert NAME in (tmp_path / "run" / "report" / "index.html").read_text()
    assert len(list((tmp_path / "land-generated").rglob("heightmap.npy"))) == 2
