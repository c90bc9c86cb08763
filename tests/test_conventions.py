"""Conventions that every `zoo` command keeps: exit codes, options that all commands take, JSON, suggestions."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from command_world import STAGES, World, the_world

from tokenizers_zoo.cli.main import zoo as group
from tokenizers_zoo.cli.options import command_paths
from tokenizers_zoo.machine import progress
from tokenizers_zoo.machine.device import resolve_device
from tokenizers_zoo.records.io import read_table, write_table

Run = Callable[..., tuple[int, str, str]]


def command_of(path: str) -> click.Command:
    """Return the command that is called by these words."""
    command: click.Command = group
    for word in path.split()[1:]:
        assert isinstance(command, click.Group)
        subcommand = command.get_command(click.Context(command), word)
        assert subcommand is not None
        command = subcommand
    return command


PATHS = list(command_paths(group, "zoo"))
COMMANDS = {path: command for path in PATHS if not isinstance(command := command_of(path), click.Group)}
WITH_JSON = {
    "zoo env": "",
    "zoo list": "",
    "zoo info": "depth",
    "zoo check": "",
    "zoo source list": "",
    "zoo source info": "folder",
    "zoo data info": "data",
    "zoo data verify": "data",
    "zoo vocabulary show": "",
    "zoo tokenizer eval": "depth --data data",
    "zoo doctor": "caption --data data --samples 4",
    "zoo backbone eval": "run --config backbone.toml --input rgb_patches --target depth,caption",
}
"""Words with which commands print facts as JSON in the small world. Tests of other commands read the JSON of these."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The finished pipeline."""
    yield the_world().put_back()


@pytest.fixture
def zoo(run_zoo: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`zoo(words)` in the folder in which the whole pipeline ran."""
    monkeypatch.chdir(the_world().put_back().folder)
    return run_zoo


@pytest.mark.parametrize("path", COMMANDS)
def test_an_unknown_option_is_a_usage_error(path: str, run_zoo: Run) -> None:
    code, printed, complaint = run_zoo(*path.split()[1:], "--no-such-option")
    assert code == 2 and not printed and complaint.startswith(f"error: {path}: no such option")
    assert len(complaint.splitlines()) == 1 and f"{path} --help" in complaint


@pytest.mark.parametrize("path", [path for path in PATHS if path not in COMMANDS] + ["zoo"])
def test_help_of_groups_shows_whole_first_sentences(path: str, run_zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = run_zoo(*path.split()[1:], "--help")[1]
    assert "..." not in printed.partition("\nCommands:\n")[2]


@pytest.mark.parametrize(
    "path", [path for path, command in COMMANDS.items() if any(p.required for p in command.params)]
)
def test_a_missing_argument_is_a_usage_error(path: str, run_zoo: Run) -> None:
    code, _, complaint = run_zoo(*path.split()[1:])
    assert code == 2 and complaint.startswith(f"error: {path}: missing ") and len(complaint.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "offer"),
    [
        ("train", "did you mean zoo tokenizer train or zoo backbone train or zoo transfer train?"),
        ("lst", "did you mean zoo list?"),
        ("list depth", "did you mean zoo info depth?"),
        ("tokenizer trian depth", "did you mean zoo tokenizer train?"),
        ("data generate", "did you mean zoo backbone generate?"),
        ("tokenizer train --data data", "--all"),
        ("backbone generate run --out new", "--target NAMES or --plan FILE"),
        ("retrieve query index", "--input NAME=FILE, or --keys"),
        ("backbone train --steps", "zoo backbone train: option '--steps'"),
        ("list --registry", "zoo list: option '--registry'"),
        ("backbone train --tokens tokens --out new --set steps", "key=value"),
        ("tokenize data --out new --device gpu", "auto, cpu, cuda, mps"),
    ],
)
def test_wrong_usage_suggests_the_right_command(words: str, offer: str, zoo: Run) -> None:
    code, _, complaint = zoo(*words.split())
    assert code == 2 and offer in complaint and len(complaint.splitlines()) == 1


def test_an_error_that_is_no_usage_error_has_code_1(zoo: Run) -> None:
    assert zoo("info", "dept")[0] == 1 and zoo("data", "info", "absent")[0] == 1


RUNS_NETWORKS = (
    "check", "doctor", "data derive", "data repair", "tokenizer train", "tokenizer eval", "tokenize", "encode",
    "decode", "backbone train", "backbone grow", "backbone eval", "backbone generate", "backbone export",
    "backbone verify", "transfer train", "transfer eval", "transfer predict", "retrieve build", "retrieve query",
    "retrieve eval", "serve",
)  # fmt: skip


@pytest.mark.parametrize(("devices", "expected"), [({"cuda", "mps"}, "cuda"), ({"mps"}, "mps"), (set(), "cpu")])
def test_networks_run_on_the_first_available_device(
    devices: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in devices)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: "mps" in devices)
    device_options = {path: option for path in PATHS for option in command_of(path).params if option.name == "device"}
    assert set(RUNS_NETWORKS) <= {path.removeprefix("zoo ") for path in device_options}
    assert {option.default for option in device_options.values()} == {"auto"}
    assert resolve_device("auto") == expected


@pytest.mark.parametrize("path", PATHS)
def test_options_of_zoo_may_stand_after_every_command(path: str) -> None:
    names = {name for parameter in command_of(path).params for name in parameter.opts}
    assert {"--registry", "--quiet", "-q", "--verbose", "-v", "--debug"} <= names


def test_registry_before_or_after_the_command_or_in_the_environment(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("few.toml").write_text('[zoo]\nmodalities = ["rgb"]\n')

    def listed(*words: str) -> list[str]:
        return [modality["name"] for modality in json.loads(zoo(*words, "--json")[1])["modalities"]]

    assert listed("--registry", "few.toml", "list") == listed("list", "--registry", "few.toml") == ["rgb"]
    assert zoo("tokenizer", "--registry", "few.toml", "eval", "depth", "--data", "data")[0] == 1
    monkeypatch.setenv("ZOO_REGISTRY", "few.toml")
    assert listed("list") == ["rgb"]
    assert "depth" in listed("list", "--registry", "registry.toml")


def test_quiet_prints_results_only(world: World) -> None:
    verbose = world("tokenizer train depth --data data --overwrite")
    assert "step 6 of 6" in verbose.complaint and "tokenizer in" in verbose.printed
    quiet = world("tokenizer train depth --data data --overwrite -q")
    assert not quiet.complaint and quiet.printed == verbose.printed
    world.put_back()


def test_quiet_reaches_the_workers(zoo: Run) -> None:
    """The level of a command ends with it, and each new process gets it."""
    from tokenizers_zoo.build.workers import run_jobs
    from tokenizers_zoo.contract.registry import Zoo

    zoo("list", "--quiet")
    assert progress.verbosity() == progress.QUIET
    assert list(run_jobs(Zoo.installed(), level, [1, 2], 2)) == [progress.QUIET] * 2
    zoo("list")
    assert progress.verbosity() == progress.NORMAL


def level(zoo: Any, job: int) -> int:
    """A job: the level of the process that runs it."""
    return progress.verbosity()


@pytest.mark.parametrize("path", WITH_JSON)
def test_json_is_the_whole_output(path: str, world: World) -> None:
    ended = world(f"{path.removeprefix('zoo ')} {WITH_JSON[path]} --json")
    assert ended.code in (0, 1) and json.loads(ended.printed), ended.complaint
    assert "next:" not in ended.complaint and "error:" not in ended.complaint


PLANS = {
    "data make folder new --set path=files": "train/depth: 24 to write",
    "data make folder data --set path=files": "train/depth: 0 to write, 24 unchanged",
    "data derive data": "train/rgb_patches: 0 to write, 24 unchanged",
    "data derive fresh": "train/rgb_patches: 24 to write",
    "tokenize data --out new": "train/depth: 24 to write",
    "tokenize data --out tokens": "train/depth: 0 to write, 24 unchanged",
    "tokenizer train depth --data data": "depth: tokenizers/depth is there",
    "tokenizer train depth --data data --out new --steps 9": "depth: train for 9 steps in new",
    "backbone train --tokens tokens --out new --config backbone.toml --steps 9": "train new: 9 steps of 4 samples over",
}


@pytest.mark.parametrize("words", PLANS)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(words: str, world: World) -> None:
    world.put_back()
    if "fresh" in words:
        assert world("data make folder fresh --set path=files --workers 0").code == 0
    before = world.files()
    ended = world(f"{words} --dry-run")
    assert ended.code == 0 and PLANS[words] in ended.printed, (ended.printed, ended.complaint)
    assert world.files() == before and not (world.folder / "new").exists()


CONFIGS = {
    "tokenizer train depth --data data --set width=32 --steps 9": [
        ("modalities", "depth", "image_size", 16, "registry.toml:2"),
        ("modalities", "depth", "tokenizer", "steps", 9, "--steps"),
        ("modalities", "depth", "tokenizer", "width", 32, "--set"),
        ("modalities", "depth", "tokenizer", "depth", 1, "registry.toml:11"),
        ("modalities", "depth", "tokenizer", "learning_rate", 0.004, "default"),
    ],
    "backbone train --tokens tokens --out new --config backbone.toml --set masking.input_budget=9 --preset tiny": [
        ("model", "dim", 32, "backbone.toml:2"),
        ("model", "mlp_ratio", 4.0, "default"),
        ("model", "rotary", True, "preset tiny"),
        ("train", "batch_size", 4, "backbone.toml:8"),
        ("train", "masking", "input_budget", 9, "--set"),
        ("train", "masking", "target_budget", 16, "backbone.toml:11"),
    ],
    "backbone eval run --config backbone.toml --samples 3 --target depth": [
        ("eval", "samples", 3, "--samples"),
        ("eval", "targets", ["depth"], "--targets"),
        ("eval", "draws", 1, "backbone.toml:14"),
    ],
    "transfer train run --task caption --input depth --tuning full --set steps=7": [
        ("transfer", "steps", 7, "--set"),
        ("transfer", "tuning", "full", "--tuning"),
        ("transfer", "batch_size", 32, "default"),
    ],
}


@pytest.mark.parametrize("words", CONFIGS)
def test_print_config_says_where_each_setting_comes_from(words: str, zoo: Run) -> None:
    code, printed, complaint = zoo(*words.split(), "--print-config")
    assert code == 0, complaint
    for *path, value, origin in CONFIGS[words]:
        table = tomllib.loads(printed)
        for key in path:
            table = table[key]
        assert table == value, path
        header = f"[{'.'.join(path[:-1])}]\n"
        lines = printed[printed.index(header) :].removeprefix(header).partition("\n[")[0].splitlines()
        assert f"# {origin}" in next(line for line in lines if line.startswith(f"{path[-1]} = ")), path
    if " run " in words:  # also before the run is finished
        assert zoo(*words.replace(" run ", " unfinished ").split(), "--print-config")[:2] == (0, printed)
    assert not Path("new").exists()


def test_pipeline_commands_name_the_next_command(world: World) -> None:
    """Each next command is one of zoo, and takes the words as they are."""
    for words in (STAGES[name] for name in ("make", "derive", "tokenize", "train", "backbone")):
        ended = world.put_back()(f"{words} --registry registry.toml")
        (line,) = [line for line in ended.complaint.splitlines() if line.startswith("next: zoo ")] or [str(ended)]
        assert line.endswith(" --registry registry.toml")
        assert world(f"{line.removeprefix('next: zoo ')} --help").code == 0
        assert "next:" not in world(f"{words} -q").complaint


def test_growing_before_there_are_tokens_names_the_next_commands(world: World) -> None:
    data = world.folder / "data"
    commands = f"zoo tokenizer train normal --data {data}", f"zoo tokenize {data} --out tokens"
    world.put_back()("backbone grow run --add normal --tokens tokens --out grown").refused("normal", *commands)


def test_changed_modalities_are_described_in_words(world: World) -> None:
    refused = world.put_back()(f"{STAGES['backbone']} --modalities depth,rgb_patches").refused("modalities.caption")
    assert "modalities.caption is left out" in refused and "{" not in refused


def test_an_uninstalled_modality_is_not_taken_for_a_misspelt_one(world: World) -> None:
    for name in ("thermal", "normal_map_of_mars"):
        assert "did you mean" not in world(f"info {name}").refused("nothing installed has this name", "pip install")
    for words in ("backbone generate run --target thermal --out new", "tokenize data --out new --modalities thermal"):
        assert "did you mean" not in world(words).refused("thermal")
    world("info nomral").refused("did you mean normal?")


def test_a_modality_whose_special_tokens_are_missing_is_not_trained(zoo: Run) -> None:
    def trained() -> dict[str, bool]:
        return {
            modality["name"]: modality["trained"] for modality in json.loads(zoo("list", "--json")[1])["modalities"]
        }

    assert trained()["caption"] and trained()["metadata"]
    config = Path("tokenizers/text/config.json")
    write_table(config, read_table(config) | {"special_tokens": []})
    assert trained()["caption"] and not trained()["metadata"]


def test_list_shows_vocabularies_learned_without_the_modality(world: World) -> None:
    """Boxes write their labels in the vocabulary of captions."""
    world.put_back()

    def states() -> dict[str, tuple[bool, Any]]:
        modalities = json.loads(world("list --json").printed)["modalities"]
        return {modality["name"]: (modality["trained"], modality["learned_on_others"]) for modality in modalities}

    assert states()["caption"] == (True, None) and states()["boxes"] == (True, ["caption"])
    assert states()["palette"] == (True, None), "it writes no text"
    lines = {line.split()[0]: line for line in world("list").printed.splitlines()}
    assert "on caption" in lines["boxes"] and " yes " in lines["caption"] and " no " in lines["rgb"]
    assert "trained on caption" in " ".join(world("info boxes").printed.split())


def test_list_has_a_line_per_modality_in_pipes_and_at_80_columns(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [modality["name"] for modality in json.loads(zoo("list", "--json")[1])["modalities"]]
    for columns in (None, "80"):
        monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
        lines = zoo("list")[1].splitlines()[1:]
        assert [line.split()[0] for line in lines] == names
        assert columns is None or max(map(len, lines)) <= 80


def test_other_sample_counts_rescore_only_the_chosen_pairs(world: World) -> None:
    world.put_back()
    words = "backbone eval run --config backbone.toml --input rgb_patches"

    def pairs(options: str) -> dict[str, Any]:
        ended = world(f"{words} {options} --json")
        assert ended.code == 0, ended.complaint
        return {entry["target"]: entry for entry in json.loads(ended.printed)["pairs"]}

    before = pairs("--target depth,caption")
    after = pairs("--target depth --samples 3")
    assert (before["depth"]["samples"], after["depth"]["samples"]) == (4, 3)
    assert after["caption"] == before["caption"]
    assert pairs("--target depth --samples 4") == before
    world.put_back()


def test_nothing_is_imported_before_an_interrupt_is_one_line() -> None:
    program = "import sys, tokenizers_zoo.cli; assert 'typing' not in sys.modules and 'click' not in sys.modules"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-S", "-c", program], cwd=root, check=True)


@pytest.mark.parametrize("module", ["tokenizers_zoo.cli.main", "tokenizers_zoo.contract.registry"])
def test_an_interrupt_while_a_module_is_imported_is_one_line(module: str) -> None:
    program = f"""
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from tokenizers_zoo.cli import run
run()
"""
    ended = subprocess.run([sys.executable, "-c", program, "list"], capture_output=True, text=True)
    assert ended.returncode == 130 and not ended.stdout
    assert ended.stderr.strip().startswith("interrupted") and len(ended.stderr.strip().splitlines()) == 1
