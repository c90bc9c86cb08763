"""The report's sections on retrieval and transfer, the comparison of probes, and the page of a zoo."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from examples import only, trained
from PIL import Image
from test_report import bare_run, write_log

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.files.checkpoint import fingerprint
from tokenizers_zoo.files.published import KNOWN_AS
from tokenizers_zoo.records.io import file_digest, read_table, write_table
from tokenizers_zoo.report.pages import write_zoo_report
from tokenizers_zoo.report.pictures import Pictures
from tokenizers_zoo.train.report import write_pictures
from zoo_backbone.cli.transfer import transfer as command
from zoo_backbone.measure.page import write_report
from zoo_backbone.measure.probes import transfer_section
from zoo_backbone.measure.samples import retrieval_section
from zoo_backbone.use.retrieval.query import mark_correct, write_hits
from zoo_backbone.use.transfer.results import compare


@pytest.fixture
def run(tmp_path: Path, zoo: Zoo) -> Path:
    folder = bare_run(tmp_path / "run", zoo, ("depth", "caption"))
    config = read_table(folder / "config.json")
    write_table(folder / "config.json", {**config, "weights_sha256": file_digest(folder / "model.safetensors")})
    return folder


# --- retrieval


def pair_entry(query: str, target: str, share: float) -> dict[str, Any]:
    guessed = {"recall": {"1": 0.1, "5": 0.5, "10": 1.0}, "median_rank": 5.5}
    recall = {"1": share, "5": 0.75, "10": 1.0}
    return {
        "query": query, "target": target, "samples": 10, "recall": recall, "median_rank": 2.0, "chance": guessed,
    }  # fmt: skip


@pytest.fixture
def run_with_retrieval(run: Path) -> Path:
    """A run with figures and galleries of retrieval."""
    red, green, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue"))
    hits = [[red, mark_correct(green), blue], [mark_correct(red), green]]
    write_hits(
        run / "retrieval/gallery/caption-finds-depth.png", ["query: caption"], [["a <b>red</b> ball"], ["two"]], hits
    )
    rows = [
        {"key": "k1", "hits": ["k2", "k1", "k3"], "cells": ["a <b>red</b> ball", None, None, None]},
        {"key": "k2", "hits": ["k2", "k1"], "cells": ["two", None, None]},
    ]
    pairs = [pair_entry("caption", "depth", 0.4), pair_entry("depth", "caption", 0.05)]
    results: dict[str, Any] = {
        "identity": {"embedding": {"via": "minilm", "space": "centred"}, "tokenizers": {}, "settings": {"samples": 9}},
        "pairs": pairs, "mean": {key: pair_entry("", "", 0.225)[key] for key in ("recall", "median_rank", "chance")},
        "seconds": 1.0, "galleries": [
            {"query": "caption", "target": "depth", "picture": "gallery/caption-finds-depth.png", "rows": rows,
             "columns": ["query: caption", "1", "2", "3"]},
            {"query": "depth", "target": "caption", "picture": None, "columns": ["query: depth", "1"],
             "rows": [{"key": "k1", "hits": ["k1"], "cells": ["k1", "[correct] words"]}]},
        ],
    }  # fmt: skip
    results["identity"] |= {"fingerprint": fingerprint(run), "split": "test"}
    write_table(run / "retrieval" / "retrieval.json", results)
    return run


def test_retrieval_galleries_mark_the_correct_hit(run_with_retrieval: Path, tmp_path: Path) -> None:
    section = retrieval_section(run_with_retrieval, Pictures(folder=tmp_path / "pictures"))
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


def test_the_page_shows_retrieval_if_there_are_results(run_with_retrieval: Path, zoo: Zoo, tmp_path: Path) -> None:
    text = write_report(zoo, run_with_retrieval).read_text(encoding="utf-8")
    for part in (
        "Retrieval: recall at 1, in %", "Each held-out sample (split test) is searched",
        "first 22.5 / 10.0 %", "median rank 2 / 6", "predicted minilm, centred",
        'rgba(33, 118, 210, 0.20)">40<', 'rgba(33, 118, 210, 0.00)">5<',  # below chance
        "caption finds depth", "a &lt;b&gt;red&lt;/b&gt; ball", "[correct] words", "40.0 / 10.0",
    ):  # fmt: skip
        assert part in text, part
    (run_with_retrieval / "retrieval" / "retrieval.json").unlink()
    assert retrieval_section(run_with_retrieval, Pictures(folder=tmp_path)) is None
    assert "<h2>Retrieval" not in write_report(zoo, run_with_retrieval).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value", "reason"), [("fingerprint", "0" * 64, "another model"), ("split", "train", "training samples")]
)
def test_figures_of_another_model_or_split_are_left_out(
    run_with_retrieval: Path, zoo: Zoo, key: str, value: str, reason: str
) -> None:
    path = run_with_retrieval / "retrieval" / "retrieval.json"
    results = read_table(path)
    results["identity"][key] = value
    write_table(path, results)
    text = write_report(zoo, run_with_retrieval).read_text(encoding="utf-8")
    assert "retrieval.json is left out" in text and reason in text
    assert "held-out sample (split" not in text and "caption finds depth" not in text
    assert not list((run_with_retrieval / "report").rglob("*finds*"))


@pytest.mark.parametrize("table", ["mean", "pair", "chance"])
def test_recall_of_ten_hits_is_required(run_with_retrieval: Path, tmp_path: Path, table: str) -> None:
    path = run_with_retrieval / "retrieval" / "retrieval.json"
    results = read_table(path)
    pair = results["pairs"][0]
    recall = {"mean": results["mean"], "pair": pair, "chance": pair["chance"]}[table]["recall"]
    del recall["10"]
    write_table(path, results)
    with pytest.raises(CheckpointError, match=r"retrieval.json: damaged: .*recall: has no 10"):
        retrieval_section(run_with_retrieval, Pictures(folder=tmp_path))


def test_figures_stay_after_tokenizers_were_added_to_the_model(run_with_retrieval: Path, zoo: Zoo) -> None:
    config = read_table(run_with_retrieval / "config.json")
    added = {"fingerprints": {"depth": "0" * 64}, KNOWN_AS: fingerprint(run_with_retrieval)}
    write_table(run_with_retrieval / "config.json", config | added)
    assert "is left out" not in write_report(zoo, run_with_retrieval).read_text(encoding="utf-8")


# --- transfer


def write_probe(run: Path, name: str, score: float | None, weights: str = "", **changes: Any) -> None:
    metric = {"name": "mae", "unit": "m", "higher_is_better": False, "meaning": "", "score": score, "baseline": 0.5}
    task = {"name": "depth", "kind": "number map", **changes.pop("task", {})}
    record_paths = {"task": task.pop("text", task["name"])}
    metrics = {
        "task": task, "inputs": ["rgb"], "head": "convnext", "tuning": "frozen",
        "seed": 0, "labels": {"requested": 0.1, "train": 1400, "validation": 0, "test": 8}, "metrics": [metric],
        "settings": {"labels": 0.1, "steps": 9, "validation": 0.2, "tuning": "frozen"},
        "backbone": weights or file_digest(run / "model.safetensors"), "dropped": {}, "unknown_keys": 0,
        "unseen_classes": {}, "parameters": 9, "trained_parameters": 9, "steps": 9, "training_seconds": 1.0,
        "seconds": 1.0, **changes,
    }  # fmt: skip
    folder = run / "transfer" / name
    folder.mkdir(parents=True)
    write_table(folder / "metrics.json", metrics)
    record = {"kind": "probe", "identity": {}, "places": record_paths, "finished": {}}
    write_table(folder / "run.json", record)


def test_seeds_are_one_row_and_other_settings_others(run: Path) -> None:
    assert transfer_section(run, file_digest(run / "model.safetensors")) is None
    write_probe(run, "a", 0.25)
    write_probe(run, "b", 0.35, seed=1)
    write_probe(run, "c", 0.2, settings={"labels": 0.1, "steps": 10, "validation": 0.2, "tuning": "frozen"})
    write_probe(run, "d", None, tuning="scratch", labels={"requested": 8, "train": 6, "validation": 2, "test": 8})
    write_probe(run, "of other weights", 0.1, "v")
    section = transfer_section(run, file_digest(run / "model.safetensors"))
    assert section is not None and section["seeds"] == 2 and section["spread"] == " ± 95 %"
    table = [(row["tuning"], row["labels"], row["metric"], row["score"], row["baseline"]) for row in section["rows"]]
    assert table == [
        ("scratch", "8", "mae in m ↓", "-", "0.5"), ("frozen", "1,400", "mae in m ↓", "0.3 ± 0.64", "0.5"),
        ("frozen", "1,400", "mae in m ↓", "0.2", "0.5"),
    ]  # fmt: skip


def test_a_comparison_by_hand(run: Path) -> None:
    for name, score, seed in (("a", 0.25, 0), ("b", 0.35, 1), ("again", 0.45, 1)):
        write_probe(run, name, score, seed=seed)
    write_probe(run, "full", 0.1, tuning="full")
    different_seeds, same_seed = ([run / "transfer" / name for name in names] for names in (("a", "b"), ("b", "again")))
    row, full = compare([*different_seeds, run / "transfer" / "full"])
    assert row["seeds"] == {"0": 0.25, "1": 0.35} and row["folders"] == [*map(str, different_seeds)]
    assert (row["labels"], row["baseline"]) == (1400, 0.5)
    # Student's t with one degree of freedom: 12.706 (any table); the deviation of 0.25 and 0.35 is 0.0707.
    assert row["mean"] == pytest.approx(0.3) and row["half"] == pytest.approx(12.706 * 0.0707107 / 2**0.5, rel=1e-4)
    assert full["half"] is None
    words = ["compare", *map(str, different_seeds)]
    lines = CliRunner().invoke(command, words).output.splitlines()
    assert max(map(len, lines)) <= 80 and lines[-1] == "mean over seeds ± 95 %"
    assert "0.3 ± 0.64" in " ".join(lines) and "constant" in lines[0] + lines[1]
    assert json.loads(CliRunner().invoke(command, [*words, "--json"]).output) == compare(different_seeds)
    with pytest.raises(ConfigError, match="again"):
        compare(same_seed)


def test_figures_of_other_samples_kinds_and_tables_are_not_averaged(run: Path) -> None:
    """Numbers of samples differ, for example, after the data grew."""
    more_labels = {"requested": 0.1, "train": 1400, "validation": 100, "test": 8}
    right = [{"name": "accuracy", "unit": "", "higher_is_better": True, "meaning": "", "score": 0.9, "baseline": 0.5}]
    write_probe(run, "first", 0.25)
    write_probe(run, "more", 0.35, seed=1, labels=more_labels)
    write_probe(run, "more to score", 0.45, seed=2, labels={**more_labels, "test": 1200})
    write_probe(run, "again", 0.55, seed=3, labels=more_labels)
    write_probe(run, "classes", 0.0, task={"name": "depth", "kind": "classes"}, metrics=right, seed=1)
    write_probe(run, "tokens", 0.75, task={"name": "depth", "kind": "tokens"}, seed=2)
    for number, folder in enumerate(("a", "b")):
        task = {"name": "mine", "kind": "numbers", "text": f"/{folder}/mine.csv"}
        write_probe(run, folder, number, task=task, seed=number)
    names = ("first", "more", "more to score", "again", "classes", "tokens", "a", "b")
    rows = compare([run / "transfer" / name for name in names])
    table = [(row["task"], row["kind"], row["labels"], row["held_out"], row["mean"], [*row["seeds"]]) for row in rows]
    assert table == [
        ("/a/mine.csv", "numbers", 1400, 8, 0, ["0"]), ("/b/mine.csv", "numbers", 1400, 8, 1, ["1"]),
        ("depth", "classes", 1400, 8, 0.9, ["1"]),
        ("depth as number map", "number map", 1400, 8, 0.25, ["0"]),
        ("depth as number map", "number map", 1500, 8, pytest.approx(0.45), ["1", "3"]),
        ("depth as number map", "number map", 1500, 1200, 0.45, ["2"]),
        ("depth as tokens", "tokens", 1400, 8, 0.75, ["2"]),
    ]  # fmt: skip


def test_the_page_shows_probes_if_there_are_any(run: Path, zoo: Zoo) -> None:
    heading = "Transfer to tasks with labels"
    assert heading not in write_report(zoo, run).read_text(encoding="utf-8")
    write_probe(run, "a", 0.25, task={"name": "<depth>", "kind": "number map"})
    page = write_report(zoo, run).read_text(encoding="utf-8")
    assert heading in page and "&lt;depth&gt;" in page and "95 %" not in page


# --- the page of a zoo: its modalities, with their tokenizers' metrics and held-out samples


def leave_results(checkpoint: Path, colour: str, mae: float) -> None:
    """Write a training's metrics and pictures into a checkpoint folder."""
    write_pictures(checkpoint, [(Image.new("RGB", (16, 16), colour), Image.new("RGB", (16, 16), "black"))])
    codebook = {"size": 16, "usage": 0.875, "perplexity": 7.2}
    write_table(checkpoint / "evaluation.json", {"samples": 12, "metrics": {"mae": mae}, "codebook": codebook})


@pytest.fixture
def trained_zoo(install_example: Callable[..., Path], tmp_path: Path) -> Zoo:
    """`light`, a second instance of it, and the untrained `dusk`."""
    install_example("light", {'summary="brightness"': 'summary="how bright <it> is"'})
    install_example("dusk")
    zoo = only({"light_32": {"plugin": "light", "image_size": 32}}, zoo={"checkpoints": str(tmp_path / "tokenizers")})
    folder = tmp_path / "tokenizers"
    for name, colour, mae in (("light", "red", 0.25), ("light_32", "lime", 0.125)):
        trained(zoo, name, folder / name)
        leave_results(folder / name, colour, mae)
    return zoo


def test_the_page_shows_every_modality(trained_zoo: Zoo, tmp_path: Path) -> None:
    page = write_zoo_report(trained_zoo)
    assert page == tmp_path / "report" / "index.html"
    text = page.read_text(encoding="utf-8")
    for part in ("A zoo of 3 modalities", "how bright &lt;it&gt; is", "mae 0.25", "mae 0.125", ">88 ", "not trained",
                 "of 16, on held-out samples", "grid 4x4", "zoo-light 1.0", trained_zoo["light"].fingerprint[:16],
                 "zoo tokenizer train dusk --data DATA", "mean absolute error"):  # fmt: skip
        assert part in text, part
    pictures = {path.name for path in (page.parent / "pictures").iterdir()}
    assert pictures == {"tokenizer-light-0.png", "tokenizer-light_32-0.png"}
    picture = Image.open(io.BytesIO((page.parent / "pictures" / "tokenizer-light_32-0.png").read_bytes()))
    assert picture.getpixel((0, 0)) == (0, 255, 0)
    assert 'src="pictures' not in text  # pictures are embedded in the page


def test_the_page_of_a_tokenizer_compares_checkpoints_of_its_modality(trained_zoo: Zoo, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizers"
    for name, modality in (("bright", "light"), ("unlike", "dusk")):
        trained(trained_zoo, "light", folder / name)
        leave_results(folder / name, "blue", 0.0625)
        config = read_table(folder / name / "config.json")
        write_table(folder / name / "config.json", {**config, "modality": modality, "train": {"steps": 9}})
    lines = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0}, {"step": 2, "held_out/mae": 0.25}]
    write_log(folder / "light", lines)
    assert write_zoo_report(trained_zoo).read_text().count('<a href="tokenizers/light.html">light</a>') == 2
    text = (tmp_path / "report" / "tokenizers" / "light.html").read_text(encoding="utf-8")
    assert re.findall("<h3>(.*)</h3>", text) == ["light", "light_32", "bright"]
    assert re.findall(r'<td>mae</td><td class="n">([\d.]+)', text) == ["0.25", "0.125", "0.0625"]
    assert "<td>train.steps</td><td>–</td><td>–</td><td>9</td>" in text  # settings that differ have a column each
    assert "<td>levels</td><td>16</td></tr>" in text  # equal settings have one column
    assert re.findall("<figcaption class=.soft.>(.*)</figcaption>", text) == ["Training loss", "Held-out mae"]
    (folder / "bright" / "evaluation.json").write_text("{")
    write_zoo_report(trained_zoo)
    text = (tmp_path / "report" / "tokenizers" / "light.html").read_text(encoding="utf-8")
    assert "<p>Problem: bright: " in text and "<h3>light</h3>" in text


def test_invalid_figures_are_an_error_on_the_page(trained_zoo: Zoo) -> None:
    path = trained_zoo["light"].checkpoint / "evaluation.json"
    sound = read_table(path)
    paired = {**sound["codebook"], "codebooks": 2}
    for change in ("samples", 3.5), ("split", 3), ("metrics", {"mae": "x"}), ("metrics", []), ("usage", "x"), (
        "codebook", {**paired, "usage": "x"}), ("codebook", {**paired, "size": "x"}), (
        "codebook", {**paired, "codebooks": "x"}), ("codebook", {**paired, "least_usage": []}):  # fmt: skip
        write_table(path, sound | dict([change]))
        text = write_zoo_report(trained_zoo).read_text(encoding="utf-8")
        assert f"evaluation.json: damaged: {change[0]}" in text, change
    write_table(path, sound | {"codebook": paired})
    assert "evaluation.json: damaged" not in write_zoo_report(trained_zoo).read_text(encoding="utf-8")
