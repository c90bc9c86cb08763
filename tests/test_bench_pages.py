"""The output of benches, their tables in pages, and the bench files that `make bench` runs."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.families.spatial import TokenizerConfig
from tokenizers_zoo.families.vectors import VectorTokenizerConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder whose files the tests import."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


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

    for kind, own in EQUAL.items():
        config = from_mapping(table, {"quantizer": kind, **own}).quantizer_config()
        assert 9.5 <= config.codes_per_position * math.log2(config.codebook_size) <= 10.5, kind


@pytest.mark.parametrize(
    ("codebook", "codes", "bits"), [({"size": 240}, "240", 7.9), ({"size": 27, "codebooks": 4}, "4 x 27", 19.0)]
)
def test_quantizer_row_matches_the_trained_tokenizer(codebook: dict[str, int], codes: str, bits: float) -> None:
    from quantizers import measure

    def train(samples: Any, folder: Path, seed: int, **table: Any) -> None:
        folder.mkdir()
        found = {"metrics": {"mae": 0.5}, "codebook": {**codebook, "usage": 1.0, "perplexity": 9.0}}
        (folder / "evaluation.json").write_text(json.dumps(found))

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
    assert len(commands) == 7 and all(one["at"]["1000"]["MiB"] > 0 for one in commands.values())
