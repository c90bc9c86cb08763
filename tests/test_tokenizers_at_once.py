"""`zoo tokenizer train --workers 2`: parallel training gives the same results as sequential training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from command_world import World, shared_server

from tokenizers_zoo import Zoo
from tokenizers_zoo.build import tokenizers, workers
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.build.tokenizers import TokenizerJob, train_tokenizers
from tokenizers_zoo.build.workers import WorkerError, Workers, run_jobs
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.files.checkpoint import fingerprint
from tokenizers_zoo.files.run_folder import TOKENIZER
from tokenizers_zoo.records.io import read_lines, read_numbers

REGISTRY = """[zoo]
image_size = 32
patch_size = 8
checkpoints = "{}"
modalities = ["boxes", "caption", "depth", "normal", "semseg"]
[vocabularies.text]
size = 1024
sentinels = 16
coordinate_bins = 32
"""
TRAIN = "--registry {}.toml tokenizer train --all --data data --set steps=3 --set batch_size=4 --workers {}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of scenes, and the registries one.toml to three.toml, each with its own tokenizers."""
    folder = tmp_path_factory.mktemp("at_once")
    for name in ("one", "two", "three"):
        (folder / f"{name}.toml").write_text(REGISTRY.format(name))
    zoo, options = Zoo.from_toml(folder / "one.toml"), {"image_size": 32}
    make_data(zoo, "scenes", folder / "data", train=12, test=4, workers=0, options=options)
    return folder


def test_parallel_training_gives_the_same_weights(workspace: Path) -> None:
    """Weights are equal bit for bit, and one process writes the shared vocabulary."""
    world = World(folder=workspace, server=shared_server())
    one_worker, two_workers = world(TRAIN.format("one", 1)), world(TRAIN.format("two", 2))
    assert one_worker.code == two_workers.code == 0, two_workers.complaint
    names = {"boxes", "caption", "depth", "normal", "semseg"}
    order = [line.partition(":")[0] for line in two_workers.printed.splitlines()]
    assert order[:2] == ["boxes", "caption"] and sorted(order) == sorted(names)
    for name in names - {"boxes", "caption"}:
        assert f"tokenizer {name}: step 3 of 3, " in two_workers.complaint
        assert fingerprint(workspace / "two" / name) == fingerprint(workspace / "one" / name)
    assert [line.partition(":")[0] for line in one_worker.printed.splitlines()] == sorted(names)


LONG = "{ steps = 100000, eval_every = 100000, batch_size = 4 }"


@pytest.mark.parametrize(
    ("words", "number"),
    [("tokenizer train --all --workers 2 --data", signal.SIGINT), ("run pipeline.toml", signal.SIGTERM)],
)
def test_an_interrupt_waits_until_all_is_saved(workspace: Path, tmp_path: Path, words: str, number: int) -> None:
    """Ctrl-C reaches all processes of a command, SIGTERM the first one only."""
    names = ["depth", "normal"]
    registry = REGISTRY.format(tmp_path).replace('["boxes", "caption", "depth", "normal", "semseg"]', str(names))
    registry += "".join(f"[modalities.{name}]\ntokenizer = {LONG}\n" for name in names)
    (tmp_path / "pipeline.toml").write_text(
        f'[pipeline]\nfolder = "{workspace}"\n[tokenizers]\nworkers = 2\n{registry}'
    )
    options = [] if words.startswith("run") else ["--registry", str(tmp_path / "pipeline.toml")]
    data = [str(workspace / "data")] if words.endswith("--data") else []
    command = [sys.executable, "-m", "tokenizers_zoo.cli.main", *options, *words.split(), *data]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    logs = [tmp_path / name / "metrics.jsonl" for name in names]
    while process.poll() is None and not all(read_lines(log, finished=False) for log in logs):
        time.sleep(0.1)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, complaint = process.communicate()
    assert process.returncode == 128 + number, complaint
    line = complaint.strip().splitlines()[-1]
    assert line.startswith("interrupted; the same command goes on from step ") and "Traceback" not in complaint
    for name in names:
        step = read_numbers(tmp_path / name / TOKENIZER.state, "")["step"]
        assert step >= 10 and f"step {step:.0f} of 100000 ({name})" in line


def test_the_longest_trainings_start_first(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (workspace / "one.toml").read_text() + "".join(
        f"[modalities.{name}]\ntokenizer = {{ steps = {steps}, batch_size = 2 }}\n"
        for name, steps in (("depth", 3), ("normal", 5), ("semseg", 4))
    )
    zoo = Zoo.from_tables(tomllib.loads(text))
    jobs = [TokenizerJob(name=name, data=workspace / "data") for name in ("semseg", "normal")]
    jobs.append(TokenizerJob(name="depth", data=workspace / "data", overrides={"steps": 9, "batch_size": 1}))
    order: list[str] = []
    monkeypatch.setattr(tokenizers, "run_jobs", lambda _, __, jobs, *___: order.extend(job.name for job in jobs) or ())
    assert not list(tokenizers.train_tokenizers(zoo, jobs, 2)) and order == ["normal", "depth", "semseg"]


def fails_first(zoo: Zoo, job: Path) -> str:
    job.touch()
    if job.name == "0":
        raise ZooError("no more")
    time.sleep(1)  # the error arrives while other jobs run
    return job.name


def test_after_an_error_no_job_starts_and_running_ones_finish(tmp_path: Path) -> None:
    """Waiting jobs are not started; results of running jobs are returned, so that their work is not lost."""
    results = []
    with pytest.raises(ZooError, match="no more"):
        for name in run_jobs(Zoo.installed(), fails_first, [tmp_path / str(n) for n in range(6)], 2):
            results.append(name)
    assert results == ["1"] and {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def dies_at_first(zoo: Zoo, job: Path) -> str:
    with job.open("a") as attempts:
        attempts.write("x")
    if len(job.read_text()) <= int(job.name):
        os.kill(os.getpid(), signal.SIGKILL)
    return job.name


def test_a_job_whose_process_dies_is_repeated_once(tmp_path: Path) -> None:
    assert sorted(run_jobs(Zoo.installed(), dies_at_first, [tmp_path / "0", tmp_path / "1"], 2)) == ["0", "1"]
    with pytest.raises(WorkerError, match=r"its process was killed \(SIGKILL"):
        list(run_jobs(Zoo.installed(), dies_at_first, [tmp_path / "9", tmp_path / "8"], 2))
    assert (tmp_path / "1").read_text() == "xx" and (tmp_path / "9").read_text() == "xx"


def environment_of(zoo: Zoo, job: int) -> tuple[str, str]:
    return os.environ["TERM"], os.environ["OMP_NUM_THREADS"]


def test_workers_share_the_cores_and_draw_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remaining jobs of a killed run use the same number of threads, which changes the last bits of a network."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    monkeypatch.setattr(workers, "QUOTA", Path("/nowhere"))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert set(run_jobs(Zoo.installed(), environment_of, [1, 2], 2)) == {("dumb", "4")}
    assert os.environ["TERM"] == "xterm" and "OMP_NUM_THREADS" not in os.environ
    with Workers(Zoo.installed(), None, 4) as pool:
        for jobs in ([1, 2], [1], []):
            assert {threads for _, threads in pool.run(environment_of, jobs)} == ({"2"} if jobs else set())


def test_workers_default_to_the_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert Workers(Zoo.installed(), None, 2).count == 1


@pytest.mark.parametrize(
    ("quota", "core_count"),
    [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 9), ("900000 50000", 9)],
)
def test_a_container_may_have_less_than_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, core_count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    monkeypatch.setattr(workers, "QUOTA", tmp_path / "cpu.max")
    assert workers.cores() == 9
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert workers.cores() == core_count


@pytest.mark.slow
def test_an_open_zoo_sees_newly_trained_tokenizers(workspace: Path) -> None:
    """The tokenizers are trained by workers; test_handle.py has the same for a training in this process."""
    open_zoo = Zoo.from_toml(workspace / "three.toml")
    jobs = [TokenizerJob(name=name, data=workspace / "data", overrides={"steps": 1}) for name in ("depth", "normal")]
    list(train_tokenizers(open_zoo, jobs, workers=2))
    before = {job.name: open_zoo[job.name].fingerprint for job in jobs}
    overwriting = [replace(job, overrides={"steps": 2}, overwrite=True) for job in jobs]
    list(train_tokenizers(open_zoo, overwriting, workers=2))
    for name, old in before.items():
        assert open_zoo[name].fingerprint == fingerprint(workspace / "three" / name) != old
