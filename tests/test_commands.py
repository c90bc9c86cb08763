"""Commands that write a folder: resume after a kill, one writer, finished runs, changed settings, foreign files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from command_world import STAGES, Files, World, results, the_world

from tokenizers_zoo.files.run_folder import locked, replacing_folder

STEPS = "--set steps=2 --set batch_size=4"
SMALL = f"backbone train --tokens tokens --out small --modalities depth,rgb_patches --config backbone.toml {STEPS}"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, the folder that it writes, and how its settings change."""

    words: str
    folder: str
    changes: str = ""
    """Options that make it another run."""
    key: str = ""
    """The key that the error names."""
    unique_file: str = ""
    """A file that only this command writes."""

    @property
    def overwrites(self) -> bool:
        return self.folder != "made" and bool(self.changes)


COMMANDS = {
    "make": Command(words=STAGES["make"], folder="data"),
    "derive": Command(words=STAGES["derive"], folder="data"),
    "tokenizer": Command(
        words=STAGES["train"],
        folder="tokenizers/depth", changes="--seed 1", key="seed", unique_file="model.safetensors",
    ),
    "statistics": Command(
        words=STAGES["statistics"],
        folder="tokenizers/rgb_patches", changes="--seed 1", key="seed", unique_file="model.safetensors",
    ),
    "tokenize": Command(words=STAGES["tokenize"], folder="tokens"),
    "backbone": Command(
        words=STAGES["backbone"], folder="run", changes="--set masking.span_length=2", key="train.masking.span_length"
    ),
    "eval": Command(words=STAGES["eval"], folder="run/evaluation"),
    "generate": Command(
        words=STAGES["generate"], folder="made", changes="--seed 7", key="seed", unique_file="plan.toml"
    ),
    "grow": Command(
        words=f"backbone grow small --add caption --tokens tokens --out grown {STEPS}",
        folder="grown", changes="--seed 5", key="train.seed", unique_file="model.safetensors",
    ),
    "transfer": Command(
        words=f"transfer train run --task depth --input rgb_patches --out probe {STEPS}",
        folder="probe", changes="--seed 5", key="seed", unique_file="model.safetensors",
    ),
    "retrieve": Command(
        words="retrieve build run --out index", folder="index", changes="--space centred", key="space",
    ),
}  # fmt: skip
SETTINGS = [name for name, command in COMMANDS.items() if command.changes]
EXTRA_COMMANDS = ("grow", "transfer", "retrieve")


@pytest.fixture(scope="module")
def finished_files() -> Files:
    """The files of a world in which every command has finished."""
    world = the_world().put_back()
    for words in (SMALL, *(COMMANDS[name].words for name in EXTRA_COMMANDS)):
        ended = world(words)
        assert ended.code == 0, (words, ended.complaint)
    return world.files()


@pytest.fixture
def world(finished_files: Files) -> Iterator[World]:
    yield the_world().put_back(finished_files)
    the_world().put_back()


def without(files: Files, folder: str) -> Files:
    return {name: data for name, data in files.items() if not name.startswith(f"{folder}/")}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_writer_is_refused(world: World, name: str) -> None:
    command = COMMANDS[name]
    folder = world.folder / command.folder
    if command.unique_file:
        (folder / command.unique_file).unlink()  # a finished run needs no lock
    words = f"{command.words} {command.changes if command.overwrites else ''}"
    with locked(folder):
        before = results(world.files())
        world(f"{words} --overwrite" if command.overwrites else words).refused("right now")
        assert results(world.files()) == before


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (f"{STAGES['vocabulary']} --overwrite", "tokenizers/text"),
        ("data repair data", "data"),
        ("retrieve eval run --out recall", "recall"),
        ("backbone export run bundle", "bundle"),
        ("export-onnx depth --format torch --out exported", "exported"),
        ("transfer predict probe --out predicted", "predicted"),
        ("retrieve query index --keys test00 --out found", "found"),
        ("report run --out pages/run.html", "pages/pictures"),
        ("report --out pages/all.html", "pages/pictures"),
    ],
)
def test_a_second_writer_of_a_simple_folder_is_refused(world: World, words: str, folder: str) -> None:
    path = world.folder / folder
    with replacing_folder(path) if {"export", "export-onnx", "predict"} & {*words.split()} else locked(path):
        world(words).refused(folder, "right now")


@pytest.mark.parametrize("name", EXTRA_COMMANDS)
def test_a_killed_command_resumes(world: World, finished_files: Files, name: str) -> None:
    command = COMMANDS[name]
    for number in (0, 5):
        world.put_back(without(finished_files, command.folder))
        assert world(command.words, kill_after=number).code == -signal.SIGKILL
        rerun = world(command.words)
        assert rerun.code == 0, rerun.complaint
        assert results(world.files()) == results(finished_files)


@pytest.mark.parametrize("name", EXTRA_COMMANDS)
def test_a_finished_command_has_nothing_to_do(world: World, finished_files: Files, name: str) -> None:
    assert world(COMMANDS[name].words).code == 0
    assert results(world.files()) == results(finished_files)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "generate"])
def test_other_settings_are_refused_with_their_key_and_replaced_with_overwrite(
    world: World, finished_files: Files, name: str
) -> None:
    command = COMMANDS[name]
    world(f"{command.words} {command.changes}").refused(command.folder, command.key, "--overwrite")
    assert results(world.files()) == results(finished_files)
    (world.folder / command.folder / "notes.txt").write_text("mine")
    world(f"{command.words} {command.changes} --overwrite").refused(command.folder, "notes.txt")
    (world.folder / command.folder / "notes.txt").unlink()
    replaced = world(f"{command.words} {command.changes} --overwrite")
    assert replaced.code == 0, replaced.complaint
    assert world(f"{command.words} {command.changes}").code == 0


@pytest.mark.parametrize("name", SETTINGS)
def test_folder_with_foreign_files_is_refused(world: World, finished_files: Files, name: str) -> None:
    command = COMMANDS[name]
    world.put_back({**without(finished_files, command.folder), f"{command.folder}/notes.txt": b"mine"})
    world(command.words).refused(command.folder, "notes.txt")
    assert [path.name for path in (world.folder / command.folder).iterdir()] == ["notes.txt"]
