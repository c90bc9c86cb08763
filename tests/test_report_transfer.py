"""The report's section on transfer, tested with hand-made probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from tokenizers_zoo import Zoo
from tokenizers_zoo.report.pages import write_report
from tokenizers_zoo.report.transfer import transfer_section
from tokenizers_zoo.spec import layout_to_json
from zoo_backbone.transfer.cli import transfer as command
from zoo_backbone.transfer.results import compare


def probe(run: Path, name: str, score: float | None, weights: str = "w", **changes: Any) -> None:
    metric = {"name": "mae", "unit": "m", "higher_is_better": False, "meaning": "", "score": score, "baseline": 0.5}
    task = {"name": "depth", "kind": "number map", **changes.pop("task", {})}
    places = {"task": task.pop("text", task["name"])}
    found = {
        "task": task, "inputs": ["rgb"], "head": "convnext", "tuning": "frozen",
        "seed": 0, "labels": {"requested": 0.1, "train": 1400, "validation": 0, "test": 8}, "metrics": [metric],
        "settings": {"labels": 0.1, "steps": 9, "validation": 0.2, "tuning": "frozen"},
        "backbone": {"weights_sha256": weights}, **changes,
    }  # fmt: skip
    place = run / "transfer" / name
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(found))
    record = {"format": 1, "kind": "probe", "identity": {}, "places": places, "finished": {}}
    (place / "run.json").write_text(json.dumps(record))


@pytest.fixture
def run(tmp_path: Path, zoo: Zoo) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    specs = [{"name": "depth", "layout": layout_to_json(zoo["depth"].spec.layout), "vocab_size": 240}]
    config = {"specs": specs, "fingerprints": {}, "weights_sha256": "w"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"places": {"tokens": "tokens"}}))
    save_file({"a": np.zeros(10, np.float32)}, folder / "model.safetensors")
    return folder


def test_seeds_are_one_row_and_other_settings_others(run: Path) -> None:
    assert transfer_section(run, "w") is None
    probe(run, "a", 0.25)
    probe(run, "b", 0.35, seed=1)
    probe(run, "c", 0.2, settings={"labels": 0.1, "steps": 10, "validation": 0.2, "tuning": "frozen"})
    probe(run, "d", None, tuning="scratch", labels={"requested": 8, "train": 6, "validation": 2, "test": 8})
    probe(run, "of other weights", 0.1, "v")
    section = transfer_section(run, "w")
    assert section is not None and section["seeds"] == 2 and section["spread"] == " ± 95 %"
    shown = [(row["tuning"], row["labels"], row["metric"], row["score"], row["baseline"]) for row in section["rows"]]
    assert shown == [
        ("scratch", "8", "mae in m ↓", "-", "0.5"), ("frozen", "1,400", "mae in m ↓", "0.3 ± 0.64", "0.5"),
        ("frozen", "1,400", "mae in m ↓", "0.2", "0.5"),
    ]  # fmt: skip
    # Student's t with one degree of freedom: 12.706 (any table); the deviation of 0.25 and 0.35 is 0.0707, so
    # half of the interval is 0.635, as in the comparison.
    two = [run / "transfer" / name for name in ("a", "b")]
    assert "0.3 ± 0.64" in CliRunner().invoke(command, ["compare", *map(str, two)]).output


def test_figures_of_other_samples_are_rows_apart(run: Path) -> None:
    """Results on different numbers of samples, for example after the data grew, are separate rows."""

    def names(*folders: str) -> list[Path]:
        return [run / "transfer" / name for name in folders]

    more = {"requested": 0.1, "train": 1400, "validation": 100, "test": 8}
    probe(run, "first", 0.25)
    probe(run, "more", 0.35, seed=1, labels=more)
    probe(run, "more to score", 0.45, seed=2, labels={**more, "test": 1200})
    probe(run, "again", 0.55, seed=3, labels=more)
    section = transfer_section(run, "w")
    assert section is not None
    assert sorted((row["labels"], row["score"], row["seeds"]) for row in section["rows"]) == [
        ("1,400", "0.25", "1"), ("1,500", "0.45", "1"), ("1,500", "0.45 ± 1.3", "2"),
    ]  # fmt: skip
    rows = compare(names("first", "more", "more to score", "again"))
    found = [(row["labels"], row["held_out"], list(row["seeds"])) for row in rows]
    assert found == [(1400, 8, ["0"]), (1500, 8, ["1", "3"]), (1500, 1200, ["2"])]


def test_figures_of_other_kinds_and_tables_are_not_averaged(run: Path) -> None:
    right = [{"name": "accuracy", "unit": "", "higher_is_better": True, "meaning": "", "score": 0.9, "baseline": 0.5}]
    probe(run, "numbers", 0.25)
    probe(run, "classes", 0.0, task={"name": "depth", "kind": "classes"}, metrics=right, seed=1)
    probe(run, "tokens", 0.75, task={"name": "depth", "kind": "tokens"}, seed=2)
    for number, folder in enumerate(("a", "b")):
        task = {"name": "mine", "kind": "numbers", "text": f"/{folder}/mine.csv"}
        probe(run, folder, number, task=task, seed=number)
    section = transfer_section(run, "w")
    assert section is not None
    assert [(row["task"], row["metric"], row["score"], row["seeds"]) for row in section["rows"]] == [
        ("/a/mine.csv", "mae in m ↓", "0", "1"), ("/b/mine.csv", "mae in m ↓", "1", "1"),
        ("depth", "accuracy ↑", "0.9", "1"), ("depth as number map", "mae in m ↓", "0.25", "1"),
        ("depth as tokens", "mae in m ↓", "0.75", "1"),
    ]  # fmt: skip
    names = ("numbers", "classes", "tokens", "a", "b")
    rows = compare([run / "transfer" / name for name in names])
    assert [(row["task"], row["kind"], row["metric"], row["mean"]) for row in rows] == [
        ("/a/mine.csv", "numbers", "mae", 0), ("/b/mine.csv", "numbers", "mae", 1),
        ("depth", "classes", "accuracy", 0.9), ("depth as number map", "number map", "mae", 0.25),
        ("depth as tokens", "tokens", "mae", 0.75),
    ]  # fmt: skip


def test_the_page_has_the_table_where_there_are_probes(run: Path, zoo: Zoo) -> None:
    heading = "Transfer to tasks with labels"
    assert heading not in write_report(zoo, run).read_text(encoding="utf-8")
    probe(run, "a", 0.25, task={"name": "<depth>", "kind": "number map"})
    page = write_report(zoo, run).read_text(encoding="utf-8")
    assert heading in page and "&lt;depth&gt;" in page and "95 %" not in page
