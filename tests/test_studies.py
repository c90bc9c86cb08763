"""Studies and benches: programs that run on existing tokens, resume, and write their results to pages."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_world import the_world

from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.families.spatial import TokenizerConfig
from tokenizers_zoo.families.vectors import VectorTokenizerConfig
from tokenizers_zoo.io import read_table, write_table

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


def run_study(name: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a study on the small world's tokens."""
    folder = the_world().folder
    small_options = ["--seeds", "2", "--batch", "4", "--samples", "4", "--parts", "1", *options]
    command = [sys.executable, str(ROOT / "studies" / f"{name}.py"), "--tokens", str(folder / "tokens"),
               "--registry", str(folder / "registry.toml"), "--out", str(out), *small_options]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def run_twice(name: str, out: Path, *options: str, word: str = "depth") -> tuple[str, dict[str, Any], list[str]]:
    """Return output, results and models. A second run gives the same and trains nothing."""
    the_world().put_back()
    results = []
    for _ in range(2):
        done = run_study(name, out, *options)
        assert done.returncode == 0, done.stderr[-3000:]
        write_times = {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
        results.append((done.stdout, read_table(out / "results.json"), write_times))
    assert results[0] == results[1] and word in results[0][0], "finished runs are left alone"
    printed, result, write_times = results[0]
    return printed, result, sorted(write_times)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alphas", "transfer"])
def test_a_study_runs_and_runs_again(name: str, tmp_path: Path) -> None:
    printed, result, models = run_twice(name, tmp_path / "out", "--steps", "4")
    assert len(models) == 10, "five runs, two seeds"
    if name == "alphas":
        question, picture = result["own question"], result["given the picture"]
        assert question["losses"].keys() == picture["losses"].keys() and len(question["losses"]) == 5
        assert all(run != picture["runs"][variant] for variant, run in question["runs"].items()), "other questions"
        assert "alphas, given the picture" in printed
    if name == "transfer":
        rows = result["rows"]
        assert {(row["modalities"], row["target"]) for row in rows} == {(3, "depth"), (3, "caption")}
        for row in rows:
            gain = row["S steps"]["mean"] - row["generalist"]["mean"]
            assert row["gain over S steps"]["mean"] == pytest.approx(gain)


@pytest.mark.slow
def test_levers_are_measured_by_the_specialists_of_the_other_study(tmp_path: Path) -> None:
    specialists = tmp_path / "transfer"
    _, result, models = run_twice("levers", tmp_path / "out", "--steps", "4", "--rivals", str(specialists))
    assert len(models) == 14, "seven settings, two seeds"
    assert len(list(specialists.rglob("model.safetensors"))) == 6, "the generalist and a specialist for each of two"
    gains = result["gains"]
    assert next(iter(gains)) == "as it is" and len(gains) == 8
    for row in gains.values():
        assert row["mean"]["mean"] == pytest.approx((row["depth"]["mean"] + row["caption"]["mean"]) / 2)
    assert len({row["depth"]["mean"] for row in gains.values()}) > 4, "settings change what is learnt"


@pytest.mark.slow
def test_tokens_of_two_kinds_are_judged_as_values(tmp_path: Path) -> None:
    printed, result, models = run_twice("fsq_or_vq", tmp_path / "out", "--steps", "4")
    parts = "backbone", "tokenizers/depth", "tokenizers/rgb_patches"
    folders = [f"{kind}/seed-{seed}/{part}" for kind in ("fsq", "vq") for seed in (0, 1) for part in parts]
    assert models == sorted(f"{folder}/model.safetensors" for folder in folders)
    for kind in "fsq", "vq":
        codes = read_table(tmp_path / f"out/{kind}/seed-0/tokenizers/depth/evaluation.json")["codebook"]
        assert codes["size"] == 240
    figures = result["means"]["depth"]
    assert set(figures) == {"codes in use", "reconstructed", "predicted", "skill score"}
    assert figures["reconstructed"]["fsq"] != figures["reconstructed"]["vq"]
    assert "abs_rel, reconstructed" in printed and list(result["means"]) == ["depth"], "what there are tokens of"


@pytest.mark.slow
def test_a_line_through_the_losses_of_three_widths(tmp_path: Path) -> None:
    printed, result, models = run_twice(
        "scaling", tmp_path / "out", "--steps", "4", "--sizes", "32,64,96", word="the line"
    )
    assert models == sorted(f"{width}/seed-{seed}/model.safetensors" for width in (32, 64, 96) for seed in (0, 1))
    sizes, line = result["sizes"], result["line"]
    parameters, losses = ([row[key] for row in sizes] for key in ("parameters", "loss"))
    assert parameters[1] == pytest.approx(4 * parameters[0], rel=0.02), "matrices, but for norms"
    fitted = [line["factor"] * count ** line["exponent"] for count in parameters]
    errors = [math.log(loss["mean"] / fit) for loss, fit in zip(losses, fitted, strict=True)]
    assert sum(errors) == pytest.approx(0, abs=1e-9)
    assert sum(error * math.log(count) for error, count in zip(errors, parameters, strict=True)) == pytest.approx(0)
    assert f"parameters ^ {line['exponent']:.4f}" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--sizes", "64,huge", "error: --sizes huge: expected one of nano, tiny"),
        ("--sizes", "nano,128", "error: --sizes nano,128: expected models of two sizes or more, for a line"),
        ("--tokens", "gone", "error: gone: no such folder"),
        ("--seeds", "0", "scaling.py: error: argument --seeds: invalid positive value: '0'"),
    ],
)
def test_impossible_studies_are_refused_in_one_line(tmp_path: Path, option: str, value: str, message: str) -> None:
    refused = run_study("scaling", tmp_path / "other", option, value)
    assert message in refused.stderr.splitlines()[-1] and "Traceback" not in refused.stderr
    assert refused.returncode and not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_study_of_growing_compares_shares_and_frozen_models(tmp_path: Path) -> None:
    options = ("--steps", "50", "--add", "depth", "--shares", "0.2,0.4")
    printed, result, models = run_twice("growing", tmp_path / "out", *options)
    runs = ["all-depth", "frozen-depth-0.2", "grown-depth-0.2", "grown-depth-0.4", "without-depth"]
    assert models == sorted(f"{run}/seed-{seed}/model.safetensors" for run in runs for seed in (0, 1))
    rows = [line for line in printed.splitlines() if line.startswith("caption ")]
    assert rows[0].count(" ± ") == 3 and len(rows) == 2, "the frozen one's change is none; no row is wrapped"
    words = " ".join(printed.split())  # undo line wrapping
    assert "aim: none below -0.01" in words and "aim: at most 0.2 S" in words
    old = result["old"]["held-out loss"]
    assert set(old) == {"caption"}
    assert old["caption"]["change frozen 0.2"] == {"mean": 0, "half": 0} != old["caption"]["change grown 0.2"]
    for share, steps in ((0.2, 10), (0.4, 20)):
        grown = tmp_path / f"out/grown-depth-{share}/seed-1"
        report = read_table(grown / "growth.json")
        losses = result["runs"][1]["old"][f"grown {share}"]["held-out loss"]
        assert losses["caption"].items() <= report["losses"]["caption"].items()
        assert [gap["target"] for gap in report["skills"]] == ["caption"]
        config = read_table(grown / "config.json")["train"]
        assert (config["steps"], config["seed"], config["freeze"]) == (steps, 1, False)
        assert [dataset["weight"] for dataset in config["datasets"]] == [1.0], "half of the samples are old ones"
    for run in result["runs"]:
        assert len({figures["held-out loss"] for figures in run["new"].values()}) == 4, "each a run of its own"
    for option, value, message in (
        ("--add", "rgb_patches", "error: unknown modality"),
        ("--shares", "0.2,2", "--shares 2: expected numbers above 0, up to 1"),
        ("--shares", "0.2,", "--shares : expected numbers above 0, up to 1"),
    ):
        refused = run_study("growing", tmp_path / "other", option, value)
        assert message in refused.stderr.splitlines()[-1]
        assert refused.returncode and not (tmp_path / "other").exists()


Figures = tuple[float, float | None]
"""A loss, and a skill score."""


def seed_result(grown: Mapping[float, Figures], end: Figures) -> dict[str, Any]:
    """Return one seed's figures: `grown` by share of steps, `end` of the joint run.

    Growing moves `a` up and `b` down by 0.1.
    """

    def figures(values: Figures) -> dict[str, float | None]:
        return dict(zip(("held-out loss", "skill score"), values, strict=True))

    changes = {"a": {"before": 1.0, "after": 1.1}, "b": {"before": 1.0, "after": 0.9}}
    rows = {"held-out loss": changes, "skill score": {**changes, "none": {"before": None, "after": None}}}
    new = {f"grown {share:g}": figures(values) for share, values in grown.items()}
    return {"old": dict.fromkeys(new, rows), "new": {**new, "all": figures(end)}}


def test_when_a_grown_model_reaches_the_joint_model() -> None:
    growing = importlib.import_module("growing")
    shares = growing.shares_of("0.2,0.4, 1")
    assert shares == [0.2, 0.4, 1]
    early = seed_result({0.2: (3.0, 0.1), 0.4: (2.0, 0.2), 1: (1.9, 0.5)}, end=(2.0, 0.3))
    never = seed_result({0.2: (3.0, 0.1), 0.4: (2.5, 0.2), 1: (2.1, 0.4)}, end=(2.0, 0.3))
    result = growing.summary([early, never], shares)
    assert [result["new"][measure]["reached"] for measure in ("held-out loss", "skill score")] == [[0.4, None], [1, 1]]
    assert growing.sooner([0.4, None]) == "0.4 S, -"
    assert result["new"]["held-out loss"]["grown 1"]["mean"] == pytest.approx(2.0)
    worst = {measure: of["grown 0.4"] for measure, of in result["worst"].items()}
    assert worst["held-out loss"]["modality"] == "a" and worst["held-out loss"]["mean"] == pytest.approx(0.1)
    assert worst["skill score"]["modality"] == "b" and worst["skill score"]["mean"] == pytest.approx(-0.1)
    assert result["old"]["skill score"]["none"]["change grown 0.2"] is None
    gapless = growing.summary([early, seed_result(dict.fromkeys(shares, (1.0, None)), end=(2.0, None))], shares)
    assert gapless["new"]["skill score"]["all"] is None and gapless["new"]["skill score"]["reached"] == [1, None]


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


@pytest.mark.parametrize("table", [TokenizerConfig, VectorTokenizerConfig])
def test_first_quantizer_rows_share_one_budget_for_all_modalities(table: type[Any]) -> None:
    from quantizers import EQUAL

    for kind, table_of_kind in EQUAL.items():
        config = from_mapping(table, {"quantizer": kind, **table_of_kind}).quantizer_config()
        assert 9.5 <= config.codes_per_position * math.log2(config.codebook_size) <= 10.5, kind


@pytest.mark.parametrize(
    ("codebook", "codes", "bits"), [({"size": 240}, "240", 7.9), ({"size": 27, "codebooks": 4}, "4 x 27", 19.0)]
)
def test_quantizer_row_matches_the_trained_tokenizer(codebook: dict[str, int], codes: str, bits: float) -> None:
    from quantizers import measure

    def train(samples: Any, folder: Path, seed: int, **table: Any) -> None:
        folder.mkdir()
        evaluation = {"metrics": {"mae": 0.5}, "codebook": {**codebook, "usage": 1.0, "perplexity": 9.0}}
        write_table(folder / "evaluation.json", evaluation)

    zoo: Any = {"depth": SimpleNamespace(train_tokenizer=train)}
    row = measure(zoo, "depth", None, {"quantizer": "fsq"}, 1)
    assert (row["quantizer"], row["codes"], row["bits per patch"]) == ("fsq", codes, bits)


def test_the_bench_of_generation_prints_its_figures_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import generation

    monkeypatch.setattr(generation, "measure", lambda name, repeats: {"a grid": (0.5, 0.25)})
    monkeypatch.setattr("sys.argv", ["generation.py", "--preset", "nano"])
    generation.main()
    table, brace, figures = capsys.readouterr().out.partition("{")
    assert "a grid" in table
    assert json.loads(brace + figures)["wall and processor seconds"] == {"nano": {"a grid": [0.5, 0.25]}}


@pytest.mark.slow
def test_every_command_of_the_bench_of_scale_runs(tmp_path: Path) -> None:
    command = [sys.executable, "bench/scale.py", "--samples", "1000", "--json", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    commands = json.loads((tmp_path / "found.json").read_text())["commands"]
    assert len(commands) == 7 and all(command_result["at"]["1000"]["MiB"] > 0 for command_result in commands.values())
