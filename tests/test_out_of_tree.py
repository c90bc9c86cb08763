"""The tutorial, executed: an external plugin is installed, used by every command, and uninstalled."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from page_shell import BLOCK, Shell, page_files, page_steps
from PIL import Image

from tokenizers_zoo import Zoo
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.images import png_bytes
from tokenizers_zoo.families.temporal import SeriesModality, TemporalModality
from tokenizers_zoo.pipeline.make import make_data
from tokenizers_zoo.spec import Crop
from tokenizers_zoo.testing import check_modality
from tokenizers_zoo.validation import array_bytes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "writing-a-plugin.md"
NAME = "elevation"


def core_digest() -> str:
    """Return one digest of all files of the core and the backbone."""
    digest = hashlib.sha256()
    for package in ("tokenizers_zoo", "backbone"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_plugin_is_short() -> None:
    module = next(text for path, text in page_files(PAGE).items() if path.endswith(".py"))
    assert len(module.splitlines()) < 60


def test_the_road_with_a_plugin_from_outside(tmp_path: Path) -> None:
    before = core_digest()
    shell = Shell(tmp_path)
    assert NAME not in shell.run("zoo list")

    # Train a small model without the plugin in a separate folder; it is loaded again after the installation.
    def earlier(command: str) -> None:
        shell.run(command, within="old")

    old = tmp_path / "old"
    earlier("zoo data make scenes data --train 256 --test 64")
    earlier("zoo data derive data --only rgb_patches")
    earlier("zoo tokenizer train rgb_patches --data data")
    earlier("zoo tokenizer train depth --data data --steps 20")
    tokenize = "zoo tokenize data --out tokens --only rgb_patches,depth"
    earlier(tokenize)
    train = "zoo backbone train --tokens tokens --out run --preset nano --set steps=4 --set batch_size=8"
    earlier(train)
    old_model = (old / "run" / "model.safetensors").read_bytes()
    old_tokens = {path: path.read_bytes() for path in (old / "tokens").rglob("*.arrow")}
    assert old_tokens

    printed = {}
    for path, text in page_steps(PAGE):
        if path:
            assert (tmp_path / path).is_file(), "the page changes files that zoo new-plugin wrote"
            (tmp_path / path).write_text(text, encoding="utf-8")
        else:
            printed[text] = shell.run(text, *((0, 1) if text.startswith("zoo doctor") else ()))

    listed = next(text for command, text in printed.items() if command == "zoo list")
    assert NAME in listed
    checked = next(text for command, text in printed.items() if command.startswith("zoo check"))
    assert "problem" not in checked and checked.count("ok ") > 8
    examined = next(text for command, text in printed.items() if command.startswith("zoo doctor"))
    assert "trained for 50 steps" in examined and "edges lie on those of" in examined and "best constant" in examined
    made = sorted(path.name for path in (tmp_path / "generated").rglob("*.npy"))
    assert made == [f"{NAME}.npy"] * 2
    evaluation = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert [pair["target"] for pair in evaluation["pairs"]] == [NAME]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert NAME in page and "zoo-elevation 0.1.0" in page

    # Old checkpoints still load and give the same values.
    generated = "zoo backbone generate run --input rgb_patches --target depth --samples 2 --out made"
    earlier(generated)
    earlier(train)
    assert (old / "run" / "model.safetensors").read_bytes() == old_model
    earlier(tokenize)
    assert {path: path.read_bytes() for path in (old / "tokens").rglob("*.arrow")} == old_tokens

    # Without the plugin all other plugins work, and commands that need it name it.
    shell.run("pip uninstall --yes zoo-elevation")
    assert NAME not in shell.run("zoo list")
    earlier(f"{generated}_again")
    first, second = (sorted((old / name).rglob("*.npy")) for name in ("made", "made_again"))
    assert first and [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    refused = shell.run("zoo backbone generate run --input rgb_patches --target elevation --out no", 1)
    assert "elevation" in refused and len(refused.strip().splitlines()) == 1
    assert core_digest() == before, "a file of the core or the backbone was changed"


@pytest.fixture
def example(install: Callable[..., Path]) -> Callable[[str], Zoo]:
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
    result = make_data(zoo, "folder", tmp_path / "data", train=None, test=0, options=options, workers=1)
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
    for wrong, message in (
        (steps.T, r"expected \(time, 7\), got \(7, 11\)"),
        (np.full((16, 7), np.nan), "has to be finite"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            reach.read(array_bytes(wrong), "npy")


def test_an_instance_needs_no_plugin() -> None:
    (tables,) = (text for _, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if 'plugin = "semseg"' in text)
    value = Zoo.from_tables(tomllib.loads(tables))["organs"].spec.value
    assert value.classes == ("void", "background", "liver", "kidney", "spleen") and value.unscored == ("void",)


def test_all_options_of_a_series_plugin_are_documented() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## A time series")[1].split("\n## ")[0].split("Attributes ")[1]
    named = set(re.findall(r"`([a-z_]+)[`(]", section))
    as_of_pictures = set(re.findall(r"`([a-z_]+)[`(]", PAGE.with_name("own-sensor.md").read_text(encoding="utf-8")))
    declared = {name for base in SeriesModality.__mro__ for name in inspect.get_annotations(base)}
    assert named <= {*dir(SeriesModality), *declared}
    public = {
        name for base in (SeriesModality, TemporalModality) for name, member in vars(base).items()
        if inspect.isfunction(member) and not hasattr(member, "tokenizers_zoo_impl")
    }  # fmt: skip
    assert public <= named | as_of_pictures


def test_no_file_of_the_core_knows_the_plugin() -> None:
    for package in ("tokenizers_zoo", "backbone"):
        for path in (ROOT / package).rglob("*.py"):
            assert NAME not in path.read_text(encoding="utf-8"), path
