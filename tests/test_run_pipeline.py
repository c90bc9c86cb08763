"""zoo run: a pipeline of one file prints and runs its commands, resumes, and stops at the first failure."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from command_world import BACKBONE, REGISTRY, World, the_world

from tokenizers_zoo.cli.main import zoo as group
from tokenizers_zoo.cli.pipeline import STEPS, commands_of

ROOT = Path(__file__).parent.parent
STEPS_TOML = """
[pipeline]
folder = "all"
[data]
source = "folder"
set = { path = "files" }
workers = 1
[derive]
modalities = ["rgb_patches"]
[tokenizers]
[tokenize]
modalities = ["depth", "rgb_patches", "caption"]
batch_size = 16
[backbone]
[report]
"""
MODALITIES = '[zoo]\nmodalities = ["rgb", "rgb_patches", "depth", "caption"]\n'
RGB = "[modalities.rgb]\ntokenizer = { steps = 1, batch_size = 4, width = 16, depth = 1, levels = [4, 4] }\n"
PIPELINE = STEPS_TOML + REGISTRY.replace("[zoo]\n", MODALITIES) + RGB + BACKBONE


@pytest.fixture
def world() -> World:
    """The test folder with its files, and a pipeline that writes to the folder `all`."""
    world = the_world().put_back()
    (world.folder / "pipeline.toml").write_text(PIPELINE)
    return world


def test_a_pipeline_runs_its_steps_and_skips_finished_work(world: World) -> None:
    """In the folder of the test, where values, tokenizers and tokens are made already."""
    text = PIPELINE.replace('folder = "all"', 'folder = "."').replace('[derive]\nmodalities = ["rgb_patches"]\n', "")
    (world.folder / "pipeline.toml").write_text(text.replace("samples = 4\n", 'samples = 4\ninputs = [["depth"]]\n'))
    before = world.files()
    result = world("run pipeline.toml")
    assert result.code == 0, result.complaint
    printed = [line for line in result.printed.splitlines() if line.startswith("zoo ")]
    assert [line.split()[3] for line in printed] == [
        "list", "data", "tokenizer", "tokenize", "backbone", "backbone", "report"
    ]  # fmt: skip
    after = world.files()
    for name in (name for name in before if name.startswith(("data/", "tokens/")) or name.endswith(".safetensors")):
        assert after[name] == before[name], name
    weights = "model.safetensors"
    assert after[f"backbone/{weights}"] == before[f"run/{weights}"], "the same as by zoo backbone train"
    assert {"backbone/evaluation/evaluation.json", "backbone/report/index.html"} <= after.keys()
    assert printed == world("run pipeline.toml --dry-run").printed.splitlines()


def test_the_first_failure_stops_the_pipeline(world: World) -> None:
    (world.folder / "pipeline.toml").write_text(PIPELINE.replace('path = "files"', 'path = "nothing"'))
    result = world("run pipeline.toml")
    assert result.code == 1 and "nothing: no such folder" in result.complaint
    assert "zoo run pipeline.toml" in result.complaint
    assert result.printed.rstrip().splitlines()[-1].startswith("zoo --registry pipeline.toml data make folder")
    assert not (world.folder / "all" / "tokens").exists()


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("[pipeline]", "[pipe]", ("no table [pipeline]",)),
        ("[derive]", "[derived]", ("derived: unknown key; did you mean derive",)),
        ("[derive]", "derive = 3\n[x]", ("x: unknown key",)),
        ("workers = 1\n[derive]", "wrkers = 1\n[derive]", ("[data] wrkers", "did you mean workers")),
        ("batch_size = 16", "batch_size = 0", ("[tokenize] batch_size", "0 is not in the range")),
        ("batch_size = 16", "batch_size = [1, 2]", ("[tokenize] batch_size: expected one value",)),
        ("batch_size = 16", "overwrite = 1", ("[tokenize] overwrite: expected true or false",)),
        ("batch_size = 16", "out = 'there'", ("[tokenize] out: unknown key",)),
        ('source = "folder"\n', "", ("[data] source: expected the name of a source",)),
        ('folder = "all"\n', "", ("[pipeline] folder: required",)),
        ('folder = "all"\n', 'folder = ""\n', ("[pipeline] folder: expected a path", "got ''")),
        ('folder = "all"\n', 'folder = "--help"\n', ("[pipeline] folder: expected a path", "got '--help'")),
        ('folder = "all"\n', 'folder = "a\\u0000b"\n', ("has a text with a NUL character",)),
        ("[backbone]\n", "[backbone]\nconfig = 'backbone.toml'\n", ("[backbone] config", "would not be read")),
        ("steps = 6\nbatch_size = 4\nsave_every", "stepz = 6\nsave_every", ("[train] stepz", "did you mean steps")),
        ("gallery_samples = 2", "gallery_samples = 'a'", ("[eval] gallery_samples",)),
        ("[model]\n", "[model]\ndimm = 8\n", ("[model] dimm", "did you mean dim")),
        ("[backbone]\n", "[backbone]\nset = { batch_sise = 4 }\n", ("[train] batch_sise", "did you mean batch_size")),
        ("[backbone]\n", "[backbone]\nset = ['batch_size']\n", ("[backbone]", "expected key=value")),
        ('path = "files"', 'pathh = "files"', ("[data] pathh", "did you mean path")),
        ('source = "folder"', 'source = "foldr"', ("[data]", "unknown source", "did you mean folder")),
    ],
)
def test_the_file_is_checked_before_the_first_command(world: World, old: str, new: str, parts: tuple[str, ...]) -> None:
    assert old in PIPELINE
    (world.folder / "pipeline.toml").write_text(PIPELINE.replace(old, new, 1))
    result = world("run pipeline.toml")
    result.refused("pipeline.toml", *parts)
    assert not result.printed


def test_settings_and_registry_in_named_files(world: World) -> None:
    text = STEPS_TOML.replace("[pipeline]", '[pipeline]\nregistry = "registry.toml"')
    text = text.replace("[backbone]", "[backbone]\nconfig = 'backbone.toml'\nseed = 3\n[eval]")
    (world.folder / "named.toml").write_text(text)
    lines = world("run named.toml --dry-run").printed.splitlines()
    assert all(line.startswith("zoo --registry registry.toml ") for line in lines)
    assert lines[5].endswith("--out all/backbone --config backbone.toml --seed 3")
    assert lines[6].endswith("eval all/backbone --config backbone.toml")
    for value in ("true", "false"):
        flags = text.replace("batch_size = 16", f"overwrite = {value}")
        (world.folder / "flags.toml").write_text(flags)
        lines = world("run flags.toml --dry-run").printed.splitlines()
        assert lines[4].endswith(" --overwrite") == (value == "true")
    (world.folder / "other.toml").write_text(REGISTRY)
    lines = world("--registry other.toml run named.toml --dry-run").printed.splitlines()
    assert all(line.startswith("zoo --registry other.toml ") for line in lines)


@pytest.mark.parametrize("table", ["zoo", "vocabularies", "modalities"])
def test_any_table_of_a_registry_makes_the_file_the_registry(table: str, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(f'[pipeline]\nfolder = "runs"\n[report]\n[{table}]\n')
    assert next(commands_of(file, group, None)) == ["--registry", str(file), "list"]


def test_flags_and_lists_become_options(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        '[pipeline]\nfolder = "my runs"\n[tokenize]\noverwrite = true\nmodalities = ["a", "b"]\n[tokenizers]\n'
        'overwrite = false\nset = { levels = [8, 5], quantizer = "vq" }\n[report]\nout = "page.html"\n'
    )
    commands = {shlex.join(words) for words in commands_of(tmp_path / "p.toml", group, None)}
    assert commands == {
        "list",
        "tokenizer train --all --data 'my runs/data' --set 'levels=[8, 5]' --set quantizer=vq",
        "tokenize 'my runs/data' --out 'my runs/tokens' --overwrite --modalities a --modalities b",
        "report 'my runs/backbone' --out page.html",
    }


@pytest.mark.parametrize("target", re.findall(r"^demo[-\w]*(?=:)", (ROOT / "Makefile").read_text(), re.MULTILINE))
def test_demos_are_whole_pipelines(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    match = re.search(rf"^{target}:.*\n\tzoo run (\S+)\n", Path("Makefile").read_text(), re.MULTILINE)
    assert match is not None
    commands = list(commands_of(Path(match[1]), group, None))
    assert len(commands) == 1 + len(STEPS)
    folders = {word.rsplit("/", 1)[0] for words in commands for word in words if word.startswith("runs/")}
    assert len(folders) == 1
    tokenizers = tomllib.loads(Path(commands[0][1]).read_text())["zoo"]["checkpoints"]
    assert tokenizers.endswith(f"{folders.pop()}/tokenizers")


def test_the_example_of_the_documentation_is_a_pipeline(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "pipelines.md").read_text(), re.DOTALL)
    (tmp_path / "p.toml").write_text(example)
    commands = list(commands_of(tmp_path / "p.toml", group, None))
    assert len(commands) == 1 + len(STEPS)
    assert commands[1][2:] == ["data", "make", "scenes", "runs/rooms/data", "--train", "2000", "--test", "200"]
