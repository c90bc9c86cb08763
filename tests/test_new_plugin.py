"""`zoo new-plugin`: each family's distribution is clean, keeps the contract and runs the commands of its README."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_modalities import write_metadata

from tokenizers_zoo import Zoo
from tokenizers_zoo.cli.new_plugin import FAMILIES, write_distribution
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.files.run_folder import FolderError
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.testing import check_modality

ROOT = Path(__file__).parent.parent
NAME = "made_up_field"


def installable(folder: Path, family: str, name: str = NAME) -> Path:
    """Write a distribution of a family and the metadata that pip would write; return the folder of its packages."""
    write_distribution(name, family, folder)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    write_metadata(folder / "src", project["name"], project["version"], project["entry-points"])
    return folder / "src"


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes a distribution of a family and makes it importable during the test."""

    def make(family: str) -> Path:
        folder = tmp_path / "new"
        monkeypatch.syspath_prepend(str(installable(folder, family)))
        for module in [name for name in sys.modules if name.startswith(f"zoo_{NAME}")]:
            monkeypatch.delitem(sys.modules, module)
        return folder

    return make


def test_new_plugins_are_clean_and_listed_without_torch(tmp_path: Path) -> None:
    packages = {f"field_{family}": tmp_path / family for family in FAMILIES}
    for (name, folder), family in zip(packages.items(), FAMILIES, strict=True):
        installable(folder, family, name)
        write_distribution("long_" * 5 + "names", family, tmp_path / "long" / family)
    for words in ("check", "format --check"):
        command = [sys.executable, "-m", "ruff", *words.split(), "--config", ROOT / "pyproject.toml", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(path / "src") for path in packages.values())}
    program = "import sys; from tokenizers_zoo import Zoo; zoo = Zoo.installed()\n"
    program += f"for name in {list(packages)}:\n    zoo[name].spec, zoo.source(name)\n"
    program += "assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_plugin_keeps_the_contract(family: str, new: Callable[[str], Path]) -> None:
    folder = new(family)
    readme = (folder / "README.md").read_text()
    assert f"The modality `{NAME}` of tokenizers-zoo: " in readme
    assert not [line for line in readme.splitlines() if line != line.rstrip()]
    module = (folder / "src" / f"zoo_{NAME}" / "modality.py").read_text()
    assert len(module.splitlines()) < (110 if family == "free" else 64)
    zoo = Zoo.installed()
    assert NAME in zoo.names() and NAME in zoo.source_names()
    assert zoo[NAME].distribution == "zoo-made-up-field 0.1.0" and "made up field" in zoo[NAME].spec.summary
    if family in ("spatial", "features", "vector", "series"):
        zoo = Zoo.from_tables({"modalities": {NAME: {"tokenizer": {"width": 32, "depth": 1}}}})
    results = check_modality(zoo, NAME)
    assert "derive" in {result.name for result in results if result.skipped}
    text = (folder / "tests" / f"test_{NAME}.py").read_text()
    scope: dict[str, Callable[[], None]] = {}
    exec(compile(text, "test", "exec"), scope)
    scope["test_the_metric_by_hand"]()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_commented_hook_derives_values(family: str, new: Callable[[str], Path]) -> None:
    path = new(family) / "src" / f"zoo_{NAME}" / "modality.py"
    before, _, stub = path.read_text().partition("    # Values computed from other modalities")
    hook, end = stub.split("\n\n\nplugin = ")
    hook = hook[re.search(r"^    # (derived_from = |@)", hook, re.MULTILINE).start() :]  # type: ignore[union-attr]
    lines = [f"    {line.removeprefix('    # ')}" for line in hook.splitlines() if line.strip() != "#"]
    before = before.replace("            vocab_size=", "            derived_from=('rgb',),\n            vocab_size=")
    text = "\n".join([before, "    from tokenizers_zoo import hookimpl", *lines, "", "", f"plugin = {end}"])
    path.write_text(text.replace("my_network(", "(lambda rgb: np.zeros(16 if VECTOR else (16, 8, 8), np.float32))("))
    path.write_text(path.read_text() + f"\nimport numpy as np\nVECTOR = {family == 'vector'}\n")
    zoo = Zoo.installed()
    sample = {"rgb": np.full((3, 64, 64), 0.25, np.float32), "imu": np.full((6, 128), 4, np.float32)}
    handle = zoo[NAME]
    assert set(handle.spec.derived_from) <= set(sample)
    handle.check(handle.derive(sample))


def test_a_series_reads_tables_with_a_header(new: Callable[[str], Path]) -> None:
    new("series")
    handle = Zoo.installed()[NAME]
    rows = [f"{number},{number / 100},0.5,x" for number in range(130)]
    value = handle.read("\n".join(["time,second,first,note", *rows]).encode(), "csv")
    assert value.shape == (2, 130) and value[1].tolist() == pytest.approx([number / 100 for number in range(130)])
    assert (value[0] == 0.5).all()
    plain = handle.read(b"0.5,1\n0.25,2\n", "csv")
    assert plain.tolist() == [[0.5, 0.25], [1, 2]]
    for data, words in (
        (b"", "is empty"), (b"first,second\n", "no row"), (b"\n", "no row"),
        (b"second,third\n1,2\n", "line 1: expected the names first, second"),
        (b"first,second\n1,two\n", "line 2"), (b"first,second\n1\n", "line 2"),
    ):  # fmt: skip
        with pytest.raises(InvalidValueError, match=words) as caught:
            handle.read(data, "csv")
        assert "picture" not in str(caught.value)


@pytest.mark.slow
def test_a_type_checker_finds_nothing_in_a_new_plugin(tmp_path: Path) -> None:
    packages = []
    for family in FAMILIES:
        write_distribution(f"field_{family}", family, tmp_path / family)
        packages.append(str(tmp_path / family / "src" / f"zoo_field_{family}"))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path / "cache")]
    # Third-party packages have no types, except numpy and torch; ours are read like an installed package.
    result = subprocess.run(
        [*command, "--ignore-missing-imports", *packages], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["metric", "value_spec", "class"])
def test_no_name_hides_what_the_plugin_needs(
    name: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(name, family, tmp_path / "new")
    monkeypatch.syspath_prepend(str(tmp_path / "new" / "src"))
    for module_name in (f"zoo_{name}", f"zoo_{name}.modality"):
        sys.modules.pop(module_name, None)  # left over from another family
    module = importlib.import_module(f"zoo_{name}.modality")
    assert type(module.plugin).__name__ == f"{name.title().replace('_', '')}Modality"
    assert module.plugin.modality_spec(Settings(name)).name == name
    if family == "free":
        train, folder = module.plugin.train_tokenizer, tmp_path / "tokenizer"
        samples = TrainingSamples(train=[np.arange(16, dtype=np.float32)], test=[], provenance={"contents": "a"})
        assert train(Settings(name), samples, folder) == folder
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        train(Settings(name), dataclasses.replace(samples, train=[np.zeros(16, np.float32)]), folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "it is finished"
        with pytest.raises(FolderError, match=r"data\.provenance\.contents"):
            train(Settings(name), dataclasses.replace(samples, provenance={"contents": "b"}), folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_readme_runs_as_it_stands(family: str, tmp_path: Path) -> None:
    packages = installable(tmp_path / "zoo-made-up-field", family)
    readme = (tmp_path / "zoo-made-up-field" / "README.md").read_text()
    commands = re.findall(r"^    (\S.*)$", readme, re.M)
    assert commands[0] == 'pip install -e "zoo-made-up-field[test]"' and len(commands) == 9
    environment = {**os.environ, "PYTHONPATH": str(packages)}  # as after pip install -e
    for command in commands[1:]:
        words = shlex.split(command)
        module = "tokenizers_zoo.cli.main" if words[0] == "zoo" else "pytest"
        result = subprocess.run(
            [sys.executable, "-m", module, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
    assert NAME in (tmp_path / "run" / "report" / "index.html").read_text()


def assert_refused(outcome: tuple[int, str, str], reason: str) -> None:
    """Assert that `zoo new-plugin` failed with one line."""
    code, _, complaint = outcome
    assert code in (1, 2) and complaint.startswith("error: ") and complaint.count("\n") == 1
    assert reason in complaint


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Heat", "lower-case letters"), ("2d", "a letter first"), ("heat-map", "underscores"), ("heat__map", "single"),
        ("heat_", "lower-case"), ("../heat", "lower-case"), ("h" * 31, "up to 30"), ("normal", "zoo-geometry"),
        ("text", "'text' is the vocabulary or "), ("edge", "another name of canny (zoo-images"),
        ("scenes", "a source of zoo-scenes"), ("geometry", "installed already: zoo-geometry 0.1.0"),
    ],
)  # fmt: skip
def test_an_impossible_name_is_refused(
    name: str, reason: str, tmp_path: Path, run_zoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run_zoo("new-plugin", name), reason)
    assert list(tmp_path.iterdir()) == []


def test_the_registry_in_use_may_have_the_name(
    tmp_path: Path, run_zoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = tmp_path / "registry.toml"
    registry.write_text('[modalities.organs]\nplugin = "semseg"\n[modalities.heat]\nimage_size = 32\n')
    reason = "registry.toml:2 [modalities.organs] plugin: 'organs' is an instance of semseg already; take another name"
    assert_refused(run_zoo("new-plugin", "organs"), reason)
    assert list(tmp_path.iterdir()) == [registry]

    def next_hint(name: str, *before: str) -> str:
        code, output, hint = run_zoo(*before, "new-plugin", name)
        assert code == 0 and "next:" not in output
        return str(hint)

    assert next_hint("heat").endswith("&& pytest zoo-heat; zoo-heat/README.md goes on from there\n")
    registry.write_text('[zoo]\nmodalities = ["rgb", "warmth"]\n')
    line = 'add "cold" to the list modalities of registry.toml; zoo-cold/README.md goes on from there'
    assert f"&& pytest zoo-cold; {line}" in next_hint("cold")
    assert "to the list modalities" not in next_hint("warmth"), "which is in it"
    registry.rename(tmp_path / "other.toml")
    assert "to the list modalities" not in next_hint("frost")
    assert 'add "ice" to the list modalities of other.toml; ' in next_hint("ice", "--registry", "other.toml")


def test_an_existing_folder_is_not_overwritten(
    tmp_path: Path, run_zoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo-heat").mkdir()
    assert_refused(run_zoo("new-plugin", "heat"), "zoo-heat: is there already, and is not overwritten")
    assert list((tmp_path / "zoo-heat").iterdir()) == []
    code, _, hint = run_zoo("new-plugin", "heat", "--out", "deep/er still")
    assert code == 0
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"er still"}
    assert """pip install -e "deep/er still[test]" && pytest 'deep/er still';""" in hint
    assert_refused(run_zoo("new-plugin", "warmth", "--family", "picture"), "--family")
