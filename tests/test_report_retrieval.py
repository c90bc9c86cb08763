"""The report's section on retrieval, tested with a hand-made folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tokenizers_zoo import Zoo
from tokenizers_zoo.checkpoint import fingerprint
from tokenizers_zoo.ml4m.source import KNOWN_AS
from tokenizers_zoo.report.pages import write_report
from tokenizers_zoo.report.pictures import Pictures
from tokenizers_zoo.report.samples import retrieval_section
from tokenizers_zoo.spec import layout_to_json
from zoo_backbone.retrieval.query import framed, write_hits


def entry(query: str, target: str, share: float) -> dict[str, Any]:
    guessed = {"recall": {"1": 0.1, "5": 0.5, "10": 1.0}, "median_rank": 5.5}
    recall = {"1": share, "5": 0.75, "10": 1.0}
    return {
        "query": query, "target": target, "samples": 10, "recall": recall, "median_rank": 2.0, "chance": guessed,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, zoo: Zoo) -> Path:
    folder = tmp_path / "run"
    red, green, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue"))
    hits = [[red, framed(green), blue], [framed(red), green]]
    write_hits(
        folder / "retrieval/gallery/caption-finds-depth.png", ["query: caption"], [["a <b>red</b> ball"], ["two"]], hits
    )
    rows = [
        {"key": "k1", "hits": ["k2", "k1", "k3"], "cells": ["a <b>red</b> ball", None, None, None]},
        {"key": "k2", "hits": ["k2", "k1"], "cells": ["two", None, None]},
    ]
    pairs = [entry("caption", "depth", 0.4), entry("depth", "caption", 0.05)]
    found: dict[str, Any] = {
        "identity": {"embedding": {"via": "minilm", "space": "centred"}}, "pairs": pairs,
        "mean": entry("", "", 0.225), "galleries": [
            {"query": "caption", "target": "depth", "picture": "gallery/caption-finds-depth.png", "rows": rows,
             "columns": ["query: caption", "1", "2", "3"]},
            {"query": "depth", "target": "caption", "picture": None, "columns": ["query: depth", "1"],
             "rows": [{"key": "k1", "hits": ["k1"], "cells": ["k1", "[correct] words"]}]},
        ],
    }  # fmt: skip
    known = [zoo[name].spec for name in ("depth", "caption")]
    specs = [{"name": s.name, "layout": layout_to_json(s.layout), "vocab_size": s.vocab_size} for s in known]
    (folder / "config.json").write_text(json.dumps({"specs": specs, "fingerprints": {}}))
    (folder / "run.json").write_text(json.dumps({"places": {"tokens": "tokens"}}))
    save_file({"a": np.zeros(10, np.float32)}, folder / "model.safetensors")
    found["identity"] |= {"fingerprint": fingerprint(folder), "split": "test"}
    (folder / "retrieval" / "retrieval.json").write_text(json.dumps(found))
    return folder


def test_cells_have_roles_and_the_right_one_is_told(run: Path, tmp_path: Path) -> None:
    section = retrieval_section(run, Pictures(folder=tmp_path / "pictures"))
    assert section is not None and [path.name for path in (tmp_path / "pictures").iterdir()] == [
        "caption-finds-depth.png"
    ]  # fmt: skip
    first, second = section["galleries"]
    roles = [[(cell.role, cell.label) for cell in row] for row in first.rows]
    assert roles == [
        [("input", "query"), ("generated", "1"), ("truth", "2: correct"), ("generated", "3")],
        [("input", "query"), ("truth", "1: correct"), ("generated", "2")],
    ]
    assert all(cell.image for cell in first.rows[0][1:]) and first.rows[0][0].text == "a <b>red</b> ball"
    assert (first.texts, first.wide, second.wide) == (True, False, True)


def test_the_page_shows_it_and_does_without(run: Path, zoo: Zoo, tmp_path: Path) -> None:
    text = write_report(zoo, run).read_text(encoding="utf-8")
    for part in (
        "Retrieval: recall at 1, in %", "Each held-out sample (split test) is searched",
        "first 22.5 / 10.0 %", "median rank 2 / 6", "predicted minilm, centred",
        'rgba(33, 118, 210, 0.20)">40<', 'rgba(33, 118, 210, 0.00)">5<',  # below chance
        "caption finds depth", "a &lt;b&gt;red&lt;/b&gt; ball", "[correct] words", "40.0 / 10.0",
    ):  # fmt: skip
        assert part in text, part
    (run / "retrieval" / "retrieval.json").unlink()
    assert retrieval_section(run, Pictures(folder=tmp_path)) is None
    assert "<h2>Retrieval" not in write_report(zoo, run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("fingerprint", "0" * 64, "another model"),
        ("split", "train", "training samples"),
    ],
)
def test_figures_of_another_model_or_of_training_samples_are_left_out(
    run: Path, zoo: Zoo, key: str, value: str, told: str
) -> None:
    path = run / "retrieval" / "retrieval.json"
    found = json.loads(path.read_text())
    found["identity"][key] = value
    path.write_text(json.dumps(found))
    text = write_report(zoo, run).read_text(encoding="utf-8")
    assert "retrieval/retrieval.json is left out" in text and told in text
    assert "held-out sample (split" not in text and "caption finds depth" not in text
    assert not list((run / "report").rglob("*finds*"))


def test_figures_of_a_model_to_which_codecs_were_added_stay(run: Path, zoo: Zoo) -> None:
    config = json.loads((run / "config.json").read_text())
    added = {"fingerprints": {"depth": "0" * 64}, KNOWN_AS: fingerprint(run)}
    (run / "config.json").write_text(json.dumps(config | added))
    assert "is left out" not in write_report(zoo, run).read_text(encoding="utf-8")
