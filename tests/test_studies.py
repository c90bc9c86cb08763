"""The studies run on the tokens that there are, go on where they were, and say what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_world import the_world

ROOT = Path(__file__).parent.parent
STUDIES = {path.stem for path in (ROOT / "studies").glob("*.py")} - {"common"}


def test_every_study_has_its_line() -> None:
    text = (ROOT / "studies" / "README.md").read_text(encoding="utf-8")
    assert all(f"| `make study-{name}` | `{name}.py` |" in text for name in STUDIES) and len(STUDIES) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alphas", "transfer"])
def test_a_study_runs_and_runs_again(name: str, tmp_path: Path) -> None:
    folder = the_world().put_back().folder
    options = ["--steps", "4", "--seeds", "2", "--batch", "4", "--samples", "4", "--parts", "1"]
    command = [sys.executable, str(ROOT / "studies" / f"{name}.py"), "--tokens", str(folder / "tokens"),
               "--registry", str(folder / "registry.toml"), "--out", str(tmp_path / "out"), *options]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    found = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        written = {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
        found.append((done.stdout, json.loads((tmp_path / "out/results.json").read_text()), written))
    assert found[0] == found[1] and "depth" in found[0][0], "finished runs are left alone"
    assert len(found[0][2]) == 10, "five runs, two seeds"
    if name == "transfer":
        rows = found[0][1]["rows"]
        assert {(row["modalities"], row["target"]) for row in rows} == {(3, "depth"), (3, "caption")}
        for row in rows:
            gain = row["equal steps"]["mean"] - row["generalist"]["mean"]
            assert row["gain at equal steps"]["mean"] == pytest.approx(gain)
