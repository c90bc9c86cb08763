"""The tutorials, executed: a new modality, an own sensor, and a plugin that wraps all others."""

from __future__ import annotations

import hashlib
import inspect
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import only, trained, values
from labeller_networks import dpt
from page_shell import BLOCK, Shell, page_files, page_steps
from PIL import Image

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.contract.pictures import png_bytes
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.errors import InvalidValueError, PluginError
from tokenizers_zoo.families.spatial import SpatialModality
from tokenizers_zoo.families.temporal import SeriesModality, TemporalModality
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.testing import check_modality
from zoo_raster.tiff import tiff_bytes

Install = Callable[..., Path]
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "writing-a-plugin.md"
SENSOR_PAGE = ROOT / "docs" / "own-sensor.md"
PHOTOGRAPHS_PAGE = ROOT / "docs" / "own-photographs.md"
LOOP_PAGE = ROOT / "docs" / "own-training-loop.md"
WRAPPING_PAGE = ROOT / "docs" / "wrapping.md"
NAME = "elevation"
SENSOR = "backscatter"


def core_digest() -> str:
    """Return one digest of all files of the core and the backbone."""
    digest = hashlib.sha256()
    for package in ("tokenizers_zoo", "backbone"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def run_page(page: Path, shell: Shell) -> dict[str, str]:
    """Write the files of a page and run its commands; return their output."""
    outputs = {}
    for path, text in page_steps(page):
        if path:
            assert page != PAGE or (shell.folder / path).is_file(), "the page changes files that zoo new-plugin wrote"
            assert len(text.splitlines()) < 60
            (shell.folder / path).write_text(text, encoding="utf-8")
        else:
            outputs[text] = shell.run(text, *((0, 1) if text.startswith("zoo doctor") else ()))
    return outputs


@pytest.mark.slow
def test_the_pipeline_runs_with_an_external_plugin(tmp_path: Path) -> None:
    before = core_digest()
    shell = Shell(tmp_path)
    assert NAME not in shell.run("zoo list")

    # Train a small model without the plugin in a separate folder; it is loaded again after the installation.
    old = tmp_path / "old"
    tokenize = "zoo tokenize data --out tokens --modalities rgb_patches,depth"
    train = "zoo backbone train --tokens tokens --out run --preset nano --set steps=4 --set batch_size=8"
    for command in (
        "zoo data make scenes data --train 256 --test 64", "zoo data derive data --modalities rgb_patches",
        "zoo tokenizer train rgb_patches --data data", "zoo tokenizer train depth --data data --steps 20",
        tokenize, train,
    ):  # fmt: skip
        shell.run(command, within="old")
    old_model = (old / "run" / "model.safetensors").read_bytes()
    old_tokens = {path: path.read_bytes() for path in (old / "tokens").rglob("*.tokens")}
    assert old_tokens

    outputs = run_page(PAGE, shell)
    assert NAME in outputs["zoo list"]
    check_output = next(text for command, text in outputs.items() if command.startswith("zoo check"))
    assert "problem" not in check_output and check_output.count("ok ") > 8
    doctor_output = next(text for command, text in outputs.items() if command.startswith("zoo doctor"))
    for part in ("trained for 50 steps", "edges lie on those of", "best constant"):
        assert part in doctor_output
    generated_files = sorted(path.name for path in (tmp_path / "generated").rglob("*.npy"))
    assert generated_files == [f"{NAME}.npy"] * 2
    evaluation = read_table(tmp_path / "run" / "evaluation" / "evaluation.json")
    assert [pair["target"] for pair in evaluation["pairs"]] == [NAME]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert NAME in page and "zoo-elevation 0.1.0" in page

    # Old checkpoints still load and give the same values.
    generated = "zoo backbone generate run --input rgb_patches --target depth --samples 2 --out made"
    shell.run(generated, within="old")
    shell.run(train, within="old")
    assert (old / "run" / "model.safetensors").read_bytes() == old_model
    shell.run(tokenize, within="old")
    assert {path: path.read_bytes() for path in (old / "tokens").rglob("*.tokens")} == old_tokens

    # Without the plugin all other plugins work, and commands that need it name it.
    shell.run("pip uninstall --yes zoo-elevation")
    assert NAME not in shell.run("zoo list")
    shell.run(f"{generated}_again", within="old")
    first, second = (sorted((old / name).rglob("*.npy")) for name in ("made", "made_again"))
    assert first and [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    refused = shell.run("zoo backbone generate run --input rgb_patches --target elevation --out no", 1)
    assert "elevation" in refused and len(refused.strip().splitlines()) == 1
    assert core_digest() == before, "a file of the core or the backbone was changed"


@pytest.fixture
def example(install: Install) -> Callable[[str], Zoo]:
    """Return a function that installs a plugin of the page by its class name."""
    texts = [text for path, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if not path]

    def add(name: str) -> Zoo:
        (module,) = (text for text in texts if f"plugin = {name}()" in text)
        key = name.lower()
        install(f"zoo-{key}", {"tokenizers_zoo": {key: f"zoo_{key}:plugin"}}, {f"zoo_{key}": module})
        return Zoo.installed()

    return add


@pytest.mark.parametrize("name", ["Joints", "Reach", "Landmarks", "Weather", "Spectrogram"])
def test_the_other_plugins_of_the_page_keep_the_contract(name: str, example: Callable[[str], Zoo]) -> None:
    results = check_modality(example(name), name.lower())
    assert ("long_inputs" in {result.name for result in results if result.skipped}) == (name != "Landmarks")


def test_a_spectrogram_is_not_a_view_of_the_picture(example: Callable[[str], Zoo], tmp_path: Path) -> None:
    """Its files may have other proportions than the picture, and image crops do not apply to it."""
    example("Spectrogram")
    names = ["rgb", "spectrogram"]
    zoo = Zoo.from_tables({"zoo": {"image_size": 16, "patch_size": 8, "modalities": names}})
    handle = zoo["spectrogram"]
    assert not handle.implements("transform") and zoo["rgb"].implements("transform")
    for number, key in enumerate(("a", "b")):
        sound = np.random.default_rng(number).uniform(-100, 0, (1, 40, 97)).astype(np.float32)
        picture = Image.new("RGB", (24, 24), (number, 0, 0))
        for name, file, data in (
            ("rgb", f"{key}.png", png_bytes(picture)),
            ("spectrogram", f"{key}.npy", array_bytes(sound)),
        ):
            (tmp_path / "files" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "files" / name / file).write_bytes(data)
    options = {"path": str(tmp_path / "files"), "test_fraction": 0}
    result = make_data(zoo, "folder", tmp_path / "data", train=None, test=0, options=options, workers=0)
    assert {outcome.modality: (outcome.written, outcome.dropped) for outcome in result.outcomes} == {
        "rgb": (2, 0), "spectrogram": (2, 0),
    }  # fmt: skip
    value = ValueStore(tmp_path / "data").read_key(handle, "train", "b")
    assert value.shape == (1, 16, 16)
    assert np.array_equal(handle.transform(value, Crop(top=0.2, left=0.1, height=0.5, width=0.5, flip=True)), value)


def test_a_series_is_read_as_the_page_says(example: Callable[[str], Zoo]) -> None:
    reach = example("Reach")["reach"]
    steps = np.random.default_rng(0).uniform(-1, 1, (11, 7)).round(2)
    value = reach.read(array_bytes(steps), "npy")
    assert np.array_equal(value, np.concatenate([steps, steps[-1:].repeat(5, 0)]).T.astype(np.float32))
    for columns, message in (
        (steps.T, r"expected \(time, 7\), got \(7, 11\)"),
        (np.full((16, 7), np.nan), "has to be finite"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            reach.read(array_bytes(columns), "npy")


def test_an_instance_needs_no_plugin() -> None:
    (tables,) = (text for _, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if 'plugin = "semseg"' in text)
    value = Zoo.from_tables(tomllib.loads(tables))["organs"].spec.value
    assert value.classes == ("void", "background", "liver", "kidney", "spleen") and value.unscored == ("void",)


def test_all_options_of_a_series_plugin_are_documented() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## A time series")[1].split("\n## ")[0].split("Attributes ")[1]
    documented = set(re.findall(r"`([a-z_]+)[`(]", section))
    picture_options = set(re.findall(r"`([a-z_]+)[`(]", PAGE.with_name("own-sensor.md").read_text(encoding="utf-8")))
    declared = {name for base in SeriesModality.__mro__ for name in inspect.get_annotations(base)}
    assert documented <= {*dir(SeriesModality), *declared}
    public = {
        name for base in (SeriesModality, TemporalModality) for name, member in vars(base).items()
        if inspect.isfunction(member) and not hasattr(member, "tokenizers_zoo_impl")
    }  # fmt: skip
    assert public <= documented | picture_options


# ---------------------------------------------------------------- an own sensor


@pytest.fixture
def sensor(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """Install the page's plugin and write its files into the current folder."""
    (module,) = (text for path, text in page_files(SENSOR_PAGE).items() if path.endswith("modality.py"))
    assert len(module.splitlines()) < 60
    install("zoo-backscatter", {"tokenizers_zoo": {SENSOR: "zoo_backscatter:plugin"}}, {"zoo_backscatter": module})
    monkeypatch.chdir(tmp_path)
    for name in ("make_files.py", "registry.toml"):
        Path(name).write_text(page_files(SENSOR_PAGE)[name], encoding="utf-8")
    return Zoo.from_toml("registry.toml")


def test_few_holes_are_filled_and_many_refused(sensor: Zoo) -> None:
    handle = sensor[SENSOR]
    bands = np.array([[-9999, -10, -20, -30], [-5, -6, np.nan, -8]], np.float32)[:, None].repeat(8, 1)  # (2, 8, 4)
    filled = np.array([[-20, -10, -20, -30], [-5, -6, -6, -8]], np.float32)[:, None].repeat(8, 1)
    wide = Zoo.from_tables({"modalities": {SENSOR: {"max_missing": 0.25}}})[SENSOR]
    for data, extension in (
        (tiff_bytes(bands), "tif"),
        (tiff_bytes(bands.transpose(1, 2, 0)), "tiff"),
        (array_bytes(bands.astype(np.float64)), "npy"),
    ):
        np.testing.assert_array_equal(wide.read(data, extension), filled)
        with pytest.raises(InvalidValueError, match=r"25% of a band .*max_missing 0\.1"):
            handle.read(data, extension)
    for data, extension, message in (
        (tiff_bytes(np.zeros((8, 8, 3), np.float32)), "tif", "expected 2 bands"),
        (tiff_bytes(np.full((8, 8, 2), 200, np.uint16)), "tif", "numbers lie outside the range"),
        (b"", "png", r"expected \.tif or \.npy"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            handle.read(data, extension)


def test_files_become_values_and_a_raster_of_holes_is_named(sensor: Zoo, tmp_path: Path) -> None:
    runpy.run_path("make_files.py")
    options = {"path": "files", "test_fraction": 0.2}
    result = make_data(sensor, "folder", tmp_path / "data", train=None, test=None, options=options, workers=0)
    written, failed = ({SENSOR: 0, "rgb": 0} for _ in range(2))
    for outcome in result.outcomes:
        written[outcome.modality] += outcome.written
        failed[outcome.modality] += outcome.dropped
    assert written == {SENSOR: 46, "rgb": 48} and failed == {SENSOR: 1, "rgb": 0}
    (reason,) = (outcome.first_dropped for outcome in result.outcomes if outcome.dropped)
    assert "50% of a band is without data" in reason and "field-46" in reason


def test_all_options_of_a_sensor_plugin_are_documented() -> None:
    text = SENSOR_PAGE.read_text(encoding="utf-8")
    section_text = text.split("## What SpatialModality lets a plugin say")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section_text.splitlines() if line.startswith("| `")]
    listed = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    options = {
        name for name, member in inspect.getmembers_static(SpatialModality)
        if not name.startswith("_") and not hasattr(member, "tokenizers_zoo_impl")
    }  # fmt: skip
    declared = {name for base in SpatialModality.__mro__ for name in inspect.get_annotations(base)}
    assert listed == options | declared


@pytest.mark.slow
def test_the_page_about_a_sensor_runs_as_it_stands(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    outputs = run_page(SENSOR_PAGE, shell)
    check_output = outputs[f"zoo check {SENSOR} --data data"]
    assert "problem" not in check_output and check_output.count("ok ") > 8
    assert "field-46: backscatter: .tif file: 50% of a band" in outputs["zoo data info data"]
    generated = np.load(tmp_path / "generated" / "field-47" / "0" / f"{SENSOR}.npy")
    assert (generated.shape, generated.dtype) == ((2, 64, 64), np.float32) and abs(generated + 10).max() <= 40
    assert SENSOR in (tmp_path / "run" / "report" / "index.html").read_text()
    assert len(list((tmp_path / "land-generated").rglob("heightmap.npy"))) == 2


# ---------------------------------------------------------------- five minutes


@pytest.mark.slow
def test_the_first_page_runs_as_it_stands(tmp_path: Path) -> None:
    run_page(ROOT / "docs" / "quickstart.md", Shell(tmp_path))
    for picture in ("made/sheet.png", "depth.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.height >= 64


# ---------------------------------------------------------------- own photographs


@pytest.mark.slow
def test_the_page_about_photographs_runs_as_it_stands(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    outputs = run_page(PHOTOGRAPHS_PAGE, shell)
    assert "2 modalities of photos, 112 samples" in outputs["zoo init photos"]
    output = outputs["zoo data make folder data --set path=photos"]
    assert "train/rgb: 96 written" in output and "train/caption: 48 written" in output
    assert "rgb: stored at 128 x 128 pixels" in output and "crop=whole" in output
    files = tmp_path / "made" / "new" / "0"
    assert (files / "caption.txt").is_file() and outputs["python generate.py"].strip()
    assert np.load(files / "palette.npy").ndim == 2 and (tmp_path / "made" / "sheet.png").is_file()
    assert len(list((tmp_path / "drawn").rglob("rgb.png"))) == 2

    # The labeller of the page, from a local folder.
    dpt(tmp_path / "networks" / "Depth-Anything-V2-Small-hf")
    (tables,) = (text for path, text in BLOCK.findall(PHOTOGRAPHS_PAGE.read_text()) if not path and "labeller" in text)
    registry = tmp_path / "registry.toml"
    depth = tables[tables.index("[modalities.depth]") :]
    registry.write_text(registry.read_text().replace('"canny", ', '"canny", "depth", ') + depth)
    assert "train/depth: 96 written" in shell.run("zoo data derive data --modalities depth")


# ---------------------------------------------------------------- an own training loop


@pytest.mark.slow
def test_the_page_about_training_loops_runs_as_it_stands(tmp_path: Path) -> None:
    outputs = run_page(LOOP_PAGE, Shell(tmp_path))
    for name in ("caption", "depth"):
        first, *_, last = map(float, re.findall(rf": {name} ([\d.]+)", outputs["python train.py"]))
        assert last < first
    assert "(1, 64, 64)" in outputs["python train.py"] and "(4, 8, 8)" in outputs["python arrays.py"]
    assert read_table(tmp_path / "own-run" / "evaluation" / "evaluation.json")["pairs"]
    single, batched = (
        [float(loss) for loss in re.findall(r"'(?:caption|depth)': ([\d.]+)", output)]
        for command, output in outputs.items() if command.startswith("torchrun")
    )  # fmt: skip
    assert len(single) == 6 and single == pytest.approx(batched, abs=1e-4)


# ---------------------------------------------------------------- wrappers


@pytest.fixture
def timing(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the page's distribution with its entry points; its report at exit is disabled."""
    monkeypatch.setattr("atexit.register", lambda function: function)
    files = page_files(WRAPPING_PAGE)
    project = tomllib.loads(files["zoo-timing/pyproject.toml"])["project"]
    module = files["zoo-timing/zoo_timing/__init__.py"]
    install(project["name"], project["entry-points"], {"zoo_timing": module}, project["version"])


def test_the_wrapper_of_the_page_knows_which_modality_is_called(
    timing: None, install_example: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_example("one")
    install_example("two")
    zoo = only({"three": {"plugin": "one"}}, zoo={"checkpoints": str(tmp_path)})
    for name in ("one", "two", "three"):
        trained(zoo, name, zoo[name].checkpoint)
    assert "wrapper timing" not in zoo.problems()
    tokens = zoo["one"].encode(values(3))
    zoo["three"].encode(values(2))
    zoo["two"].decode(tokens)
    zoo["two"].decode(tokens)
    plugin = sys.modules["zoo_timing"].plugin
    assert plugin.samples == {("one", "encode"): 3, ("three", "encode"): 2, ("two", "decode"): 6}
    assert plugin.seconds.keys() == plugin.samples.keys() and min(plugin.seconds.values()) > 0
    plugin.tell()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" samples")[0] for line in lines] == ["one: encode: 3", "three: encode: 2", "two: decode: 6"]


def test_results_and_errors_pass_through_the_wrapper(timing: None, install_example: Install, tmp_path: Path) -> None:
    install_example("one")
    install_example("torn", {"return (means * (len(tokenizer) - 1)).round().long()": "raise ValueError('torn')"})
    zoo = only(zoo={"checkpoints": str(tmp_path)})
    for name in ("one", "torn"):
        trained(zoo, name, zoo[name].checkpoint)
    with pytest.raises(PluginError, match=r"torn: encode .* ValueError: torn"):
        zoo["torn"].encode(values(2))
    assert sys.modules["zoo_timing"].plugin.samples == {("torn", "encode"): 2}
    batch = torch.stack([torch.from_numpy(value) for value in values(1)])
    means = batch.reshape(1, 4, 4, 4, 4).mean(dim=(2, 4))
    assert torch.equal(zoo["one"].encode(batch), (means * 15).round().long())
