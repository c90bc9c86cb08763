"""Studies and benches: programs that run on existing tokens, resume, and write their results to pages."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_world import the_world

from tokenizers_zoo.records.io import read_table

ROOT = Path(__file__).parent.parent
STUDIES = {path.stem for path in (ROOT / "studies").glob("*.py")} - {"common"}


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests import the programs."""
    for folder in ("bench", "studies"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def test_every_study_is_listed() -> None:
    text = (ROOT / "studies" / "README.md").read_text(encoding="utf-8")
    assert all(f"| `make study-{name}` | `{name}.py` |" in text for name in STUDIES) and len(STUDIES) >= 7


def run_study(name: str, out: Path, *options: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a study on the small world's tokens, within a folder."""
    world = the_world().folder
    small_options = ["--seeds", "2", "--batch", "4", "--samples", "4", "--parts", "1", *options]
    command = [sys.executable, str(ROOT / "studies" / f"{name}.py"), "--tokens", str(world / "tokens"),
               "--registry", str(world / "registry.toml"), "--out", str(out), *small_options]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def check_alphas(out: Path, result: dict[str, Any]) -> None:
    question, picture = result["own question"], result["given the picture"]
    assert question["losses"].keys() == picture["losses"].keys() and len(question["losses"]) == 5
    assert all(run != picture["runs"][variant] for variant, run in question["runs"].items()), "other questions"


def check_transfer(out: Path, result: dict[str, Any]) -> None:
    for row in result["rows"]:
        gain = row["S steps"]["mean"] - row["generalist"]["mean"]
        assert row["gain over S steps"]["mean"] == pytest.approx(gain)


def check_levers(out: Path, result: dict[str, Any]) -> None:
    assert len(list((out.parent / "rivals").rglob("model.safetensors"))) == 6, "a generalist and two specialists"
    gains = result["gains"]
    assert next(iter(gains)) == "as it is" and len(gains) == 8
    assert len({row["depth"]["mean"] for row in gains.values()}) > 4, "settings change what is learnt"


def check_fsq_or_vq(out: Path, result: dict[str, Any]) -> None:
    figures = result["means"]["depth"]
    assert set(figures) == {"codes in use", "reconstructed", "predicted", "skill score"}
    assert figures["reconstructed"]["fsq"] != figures["reconstructed"]["vq"]


def check_scaling(out: Path, result: dict[str, Any]) -> None:
    """The line is a least-squares fit of the logarithms."""
    line, sizes = result["line"], result["sizes"]
    counts = [row["parameters"] for row in sizes]
    fitted = [line["factor"] * count ** line["exponent"] for count in counts]
    errors = [math.log(row["loss"]["mean"] / fit) for row, fit in zip(sizes, fitted, strict=True)]
    assert sum(errors) == pytest.approx(0, abs=1e-9)
    assert sum(error * math.log(count) for error, count in zip(errors, counts, strict=True)) == pytest.approx(0)


def check_growing(out: Path, result: dict[str, Any]) -> None:
    old = result["old"]["held-out loss"]
    assert set(old) == {"caption"}
    assert old["caption"]["change frozen 0.2"] == {"mean": 0, "half": 0} != old["caption"]["change grown 0.2"]
    for share, steps in ((0.2, 10), (0.4, 20)):
        config = read_table(out / f"grown-depth-{share}/seed-1/config.json")["train"]
        assert (config["steps"], config["seed"], config["freeze"]) == (steps, 1, False)


RUNS: dict[str, tuple[int, tuple[str, ...], Callable[[Path, dict[str, Any]], None]]] = {
    "alphas": (10, (), check_alphas),
    "transfer": (10, (), check_transfer),
    "levers": (14, ("--rivals", "rivals"), check_levers),
    "fsq_or_vq": (12, (), check_fsq_or_vq),
    "scaling": (6, ("--sizes", "32,64,96"), check_scaling),
    "growing": (10, ("--steps", "50", "--add", "depth", "--shares", "0.2,0.4"), check_growing),
}
"""Number of models that a study trains with two seeds, its options, and the check of its results."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_study_runs_and_a_second_run_trains_nothing(name: str, tmp_path: Path) -> None:
    the_world().put_back()
    count, options, check = RUNS[name]
    out, outputs = tmp_path / "out", []
    for _ in range(2):
        done = run_study(name, out, "--steps", "4", *options, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        write_times = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
        outputs.append((done.stdout, read_table(out / "results.json"), write_times))
    assert outputs[0] == outputs[1] and len(write_times) == count
    check(out, outputs[0][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("scaling", "--sizes", "64,huge", "--sizes huge"), ("scaling", "--sizes", "nano,128", "two sizes or more"),
        ("scaling", "--tokens", "gone", "gone: no such folder"), ("scaling", "--seeds", "0", "argument --seeds"),
        ("growing", "--add", "rgb_patches", "unknown modality"), ("growing", "--shares", "0.2,2", "--shares 2"),
    ],
)  # fmt: skip
def test_impossible_studies_are_refused(tmp_path: Path, name: str, option: str, value: str, message: str) -> None:
    refused = run_study(name, tmp_path / "other", option, value)
    assert message in refused.stderr.splitlines()[-1] and "Traceback" not in refused.stderr
    assert refused.returncode and not (tmp_path / "other").exists()


# --- benches


def recipe(target: str) -> str:
    """The commands that make would run."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # those of `make test`
    command = ["make", "--no-print-directory", "--dry-run", target]
    return subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout


def test_table_replaces_the_previous_table_or_is_appended(tmp_path: Path) -> None:
    from pages import write_table

    page = tmp_path / "page.md"
    page.write_text("# Page\n\nText.\n", encoding="utf-8")
    before = "# Page\n\nText.\n\n<!-- speed: made by bench/speed.py -->\n"
    write_table(page, "speed", [{"name": "a", "seconds": 3}], "Once.")
    table = "| name | seconds |\n| --- | --- |\n| a | {} |\n<!-- end of speed -->\n"
    assert page.read_text(encoding="utf-8") == f"{before}Once.\n\n{table.format(3)}"
    page.write_text(page.read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    write_table(page, "speed", [{"name": "a", "seconds": 2}], "Again.")
    assert page.read_text(encoding="utf-8") == f"{before}Again.\n\n{table.format(2)}\nMore.\n"


def test_make_runs_every_bench_except_the_long_ones() -> None:
    programs = {path.name for path in (ROOT / "bench").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert set(re.findall(r"bench/(\w+\.py)", recipe("bench"))) == programs - {"defaults.py", "scale.py"}


def test_make_clean_keeps_trained_checkpoints() -> None:
    assert ".venv" in recipe("clean").split() and "runs" not in recipe("clean").split()
    assert recipe("clean-runs").split() == ["rm", "-rf", "runs"]


@pytest.mark.slow
def test_every_command_of_the_bench_of_scale_runs(tmp_path: Path) -> None:
    command = [sys.executable, "bench/scale.py", "--samples", "1000", "--json", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    commands = json.loads((tmp_path / "found.json").read_text())["commands"]
    assert len(commands) == 7 and all(command_result["at"]["1000"]["MiB"] > 0 for command_result in commands.values())
