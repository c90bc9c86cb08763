"""RunFolder: rules for writing, resuming, overwriting and replacing a folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.files.run_folder import (
    LOCK,
    RUN,
    TOKENIZER,
    FolderError,
    OtherRunError,
    RunFolder,
    RunRecord,
    locked,
    read_run,
    replacing,
    replacing_folder,
)
from tokenizers_zoo.records.io import absolute_place, read_table, relative_place, write_table

STATE = TOKENIZER.state
SEED_0, SEED_1 = {"seed": 0, "data": {"train": [1, 2]}}, {"seed": 1, "data": {"train": [1, 3]}}


class Killed(BaseException):
    pass


def run(folder: Path, identity: Any = SEED_0, **paths: str) -> RunFolder:
    return RunFolder(folder, TOKENIZER, identity, paths)


def finish(folder: Path, identity: Any = SEED_0, overwrite: bool = False) -> RunFolder:
    with run(folder, identity).open(overwrite) as opened:
        for name in TOKENIZER.results:
            (folder / name).write_text(str(identity["seed"]))
        opened.finish(steps=3)
    return opened


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def test_places_are_relative_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links of folders are resolved, a link of a file is kept: paths in a registry.toml start at the link."""
    (tmp_path / "real" / "run").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "shared.toml").touch()
    (tmp_path / "real" / "registry.toml").symlink_to(tmp_path / "shared.toml")
    relative = relative_place(tmp_path / "linked" / "registry.toml", tmp_path / "linked" / "run")
    assert relative == "../registry.toml" and relative_place(tmp_path / "real", tmp_path) == "./real"
    monkeypatch.chdir(tmp_path)
    assert absolute_place(relative, Path("linked/run")) == tmp_path.resolve() / "real" / "registry.toml"


def test_a_place_with_nul_is_refused(tmp_path: Path) -> None:
    finish(tmp_path)
    record = read_table(tmp_path / RUN)
    write_table(tmp_path / RUN, record | {"places": {"tokens": "/a\0b"}})
    with pytest.raises(CheckpointError, match=r"run.json: damaged: places.tokens: expected a path"):
        read_run(tmp_path)


def identity_of(steps: int, seed: int = 0) -> dict[str, Any]:
    return {"seed": seed, "training": {"steps": steps}}


def test_a_finished_run_is_lengthened_and_the_record_says_so(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text("of step 3")
    finish(tmp_path / "run", identity_of(3))
    os.replace(tmp_path / STATE, tmp_path / "run" / STATE)
    folder = tmp_path / "run"
    for steps, seed in ((2, 0), (9, 1)):
        with (
            pytest.raises(OtherRunError, match=r"training\.steps was 3, is"),
            run(folder, identity_of(steps, seed)).open(),
        ):
            pass
    for _ in range(2):  # the second one goes on after a kill
        with pytest.raises(Killed), run(folder, identity_of(9)).open() as opened:
            assert opened.resuming and opened.finished is None and opened.lengthened == (3,)
            assert (folder / "config.json").read_text() == "0", "the finished files stay"
            raise Killed
    with pytest.raises(OtherRunError), run(folder, identity_of(12)).open():
        pass
    finish(folder, identity_of(9))
    with run(folder, identity_of(9)).open() as opened:
        assert opened.finished
    assert (record := read_run(folder)) and record.lengthened == (3,)
    (folder / STATE).unlink()
    with pytest.raises(FolderError, match=r"training_state\.safetensors is gone"), run(folder, identity_of(12)).open():
        pass
    with run(folder, identity_of(9)).open() as opened:
        assert opened.finished, "without its state it is as finished as before"
    record = read_run(finish(folder, identity_of(12), overwrite=True).path)
    assert record and not record.lengthened


def test_a_run_that_saved_nothing_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(Killed), run(tmp_path).open():
        (tmp_path / "metrics.jsonl").write_text("")
        raise Killed
    with run(tmp_path, SEED_1).open() as opened:
        assert not opened.resuming
    assert read_run(tmp_path) == RunRecord(kind="tokenizer", identity=SEED_1, places={}, finished=None)


def test_recorded_paths_may_change(tmp_path: Path) -> None:
    finish(tmp_path)
    with run(tmp_path, data="elsewhere").open() as opened:
        assert opened.finished
    record = read_run(tmp_path)
    assert record and record.places == {"data": "elsewhere"} and record.finished


def test_another_kind_is_refused(tmp_path: Path) -> None:
    index_folder = RunFolder(tmp_path, type(TOKENIZER)(name="index", files=(), state="parts"), SEED_0)
    with index_folder.open() as opened:
        opened.finish()
    for overwrite in (False, True):
        with pytest.raises(FolderError, match="holds a index, expected a tokenizer"), run(tmp_path).open(overwrite):
            pass


def test_a_refused_command_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError), run(tmp_path / "new" / "run").open():
        raise CheckpointError("refused")
    assert not (tmp_path / "new" / "run").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fails)
    with pytest.raises(FolderError, match="cannot be locked"), run(tmp_path).open():
        pass


# ---------------------------------------------------------------- replacing


def test_the_old_run_stays_until_the_new_one_has_a_state(tmp_path: Path) -> None:
    finish(tmp_path)
    with pytest.raises(CheckpointError), run(tmp_path, SEED_1).open(overwrite=True) as opened:
        assert opened.finished is None and file_names(tmp_path) == [".replaced", RUN]
        raise CheckpointError("refused")
    assert finish(tmp_path).finished and file_names(tmp_path) == ["config.json", "model.safetensors", RUN]
    with pytest.raises(Killed), run(tmp_path, SEED_1).open(overwrite=True):
        (tmp_path / STATE).write_text("half")
        raise Killed
    with run(tmp_path, SEED_1).open() as opened:
        assert opened.resuming
        assert (tmp_path / ".replaced" / RUN).is_file()
    finish(tmp_path, SEED_1)
    assert file_names(tmp_path) == ["config.json", "model.safetensors", RUN, STATE]
    assert (tmp_path / "config.json").read_text() == "1"


@pytest.mark.parametrize("foreign", [
    "README.md", "store.json", "notes/plan.txt", "notes.txt", ".git/HEAD", "metrics.json", "depth/config.txt",
    "mine/00.png",
])  # fmt: skip
def test_files_of_others_are_refused(tmp_path: Path, foreign: str) -> None:
    """Also in the folder of a finished run, whose README.md is ours."""
    finish(tmp_path / "old")
    first = foreign.partition("/")[0]
    for folder, overwrite in (("new", False), ("new", True), ("old", True)):
        if (folder, foreign) != ("old", "README.md"):
            (tmp_path / folder / foreign).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / foreign).write_text("mine")
            refusal = pytest.raises(FolderError, match="replaced" if overwrite and foreign == "README.md" else first)
            with refusal, run(tmp_path / folder).open(overwrite):
                pass
            assert (tmp_path / folder / foreign).read_text() == "mine"
    assert finish(tmp_path / "old").finished and file_names(tmp_path / "new") == [first]


def test_overwrite_removes_what_training_and_evaluation_wrote(tmp_path: Path) -> None:
    finish(tmp_path)
    for file in (
        ".config.json.x.tmp", "caption/evaluation.json", "caption/samples/00.txt", "caption/samples-train/00.txt",
        "evaluation-train.json", "samples-train/00.txt", "tensorboard/events", "metrics.jsonl",
    ):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("of an evaluation")
    with (
        replacing(tmp_path, TOKENIZER, overwrite=True),
        run(tmp_path).open() as opened,
    ):  # as in a plugin that trains here
        assert opened.finished is None
        assert file_names(tmp_path) in (
            [".config.json.x.tmp", ".replaced", RUN], [".replaced", RUN],
        )  # fmt: skip
        opened.finish()
    assert ".replaced" not in file_names(tmp_path)


@pytest.mark.parametrize("moves", range(6))
def test_a_kill_while_setting_aside_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    finish(tmp_path)
    left, replace = [moves], os.replace

    def killed(source: Any, target: Any) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed), run(tmp_path, SEED_1).open(overwrite=True):
            raise Killed
    assert finish(tmp_path).finished and file_names(tmp_path) == ["config.json", "model.safetensors", RUN]
    assert (tmp_path / "config.json").read_text() == "0"


# ---------------------------------------------------------------- two writers

PROCESSES, ROUNDS = 6, 60


def take_turns(write: Callable[[Path, str], None], folder: Path, seed: int, results: Any) -> None:
    """Write the folder many times, with short pauses, and report how often it was written, refused and failed."""
    rng, outcomes = random.Random(seed), Counter[str]()
    for number in range(ROUNDS):
        try:
            write(folder, f"{seed}-{number}")
            outcomes["written"] += 1
        except FolderError as error:
            outcomes["refused" if "another process writes it" in str(error) else str(error)] += 1
        except Exception as error:
            outcomes[repr(error)] += 1
        time.sleep(rng.choice([0, rng.uniform(0, 0.002)]))
    results.put(outcomes)


def hold(folder: Path, name: str) -> None:
    with locked(folder):
        marker = folder.with_name("alone")
        marker.touch(exist_ok=False)
        marker.unlink()


def replace(folder: Path, name: str) -> None:
    with replacing_folder(folder, "record", overwrite=True) as new:
        for file in ("record", "weights"):
            (new / file).write_text(name)
            time.sleep(0)


@pytest.mark.parametrize("write", [hold, replace])
def test_one_of_many_processes_writes_at_a_time(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    """The lock file and the folder are removed by each writer, and made again by the next."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=take_turns, args=(write, tmp_path / "out", seed, results)) for seed in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    outcomes = sum((results.get() for _ in processes), Counter[str]())
    for process in processes:
        process.join()
    assert "written" in outcomes and outcomes.keys() <= {"written", "refused"}, outcomes
    assert outcomes.total() == PROCESSES * ROUNDS, outcomes
    assert set(os.listdir(tmp_path)) <= {"out"} and not (tmp_path / "out" / LOCK).exists()
    if write is replace:
        assert (tmp_path / "out/record").read_text() == (tmp_path / "out/weights").read_text()


def test_the_old_folder_returns_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    out, working_folder = tmp_path / "out", tmp_path / ".out.tmp"
    replace(working_folder / "old", "first")
    message = "out: is there already; replace it with --overwrite"
    with pytest.raises(FolderError, match=message), replacing_folder(out, "record"):
        pass
    assert (out / "weights").read_text() == "first" and not working_folder.exists()
