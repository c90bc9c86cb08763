"""The commands of `zoo transfer`, and their errors."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_modalities import command_result, installed, refusal, registry_of
from token_stores import note_source, rewrite_tokens, stored_tokens
from transfer_world import SEEN, SOURCES, TRAIN, World, make_world, read, set_paths, train, with_run

from tokenizers_zoo.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OneLineError,
    ReadError,
    UnknownNameError,
    ZooError,
)
from tokenizers_zoo.files.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.files.run_folder import FolderError
from tokenizers_zoo.records.io import read_table, write_table
from zoo_backbone.cli.transfer import transfer
from zoo_backbone.use.transfer import load
from zoo_backbone.use.transfer.task import read_csv

zoo, refused = partial(command_result, transfer), partial(refusal, transfer)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with installed(tmp_path_factory.mktemp("site"), "task", SOURCES):
        yield make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def frozen(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probes") / "frozen"
    train(world, out, "facts.total")
    return out


# ---------------------------------------------------------------- commands


def test_the_commands_end_to_end(world: World, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[transfer]\nsteps = 20\nbatch_size = 8\n")
    result = zoo("train", world.run, "--task", "zones", "--input", "light", "--config", settings, "--labels", "0.5",
               "--head", "linear", "--set", "steps=30", "--seed", 3)  # fmt: skip
    folder = world.run / "transfer" / "zones-from-light-frozen-linear-0.5-3"
    assert result.exit_code == 0, (result.output, result.exception)
    assert "constant baseline" in result.stdout
    assert f"48 labels, 24 held-out samples\nwritten to {folder}" in result.stdout
    metrics = read_table(folder / "metrics.json")
    assert (metrics["steps"], metrics["settings"]["batch_size"], metrics["seed"]) == (30, 8, 3)
    card = (folder / "README.md").read_text()
    assert f"| right | {metrics['metrics'][0]['score']:.4g} |" in card
    assert metrics["labels"] == {"requested": 0.5, "train": 38, "validation": 10, "test": 24}
    assert "38 labels" in card

    evaluation = json.loads(zoo("eval", folder, "--json").stdout)
    score = metrics["metrics"][0]["score"]
    assert evaluation["samples"] == 24 and evaluation["metrics"][0]["score"] == pytest.approx(score)
    assert evaluation["metrics"][0]["baseline"] == metrics["metrics"][0]["baseline"]
    assert f"{score:.4g}" in zoo("eval", folder).stdout

    assert zoo("predict", folder, "--samples", 3, "--out", tmp_path / "predicted").exit_code == 0
    files = sorted(path.relative_to(tmp_path / "predicted").as_posix() for path in tmp_path.rglob("predicted/**/*.npy"))
    assert files == ["test/000.npy", "test/008.npy", "test/016.npy"]
    probe = load(folder)
    expected = probe.predict({"light": world.tokens("light")[1]})[8]
    assert np.array_equal(np.load(tmp_path / "predicted" / "test/008.npy"), expected)
    with Image.open(tmp_path / "predicted" / "predictions.png") as picture:
        boxes = json.loads(picture.text["cells"])  # type: ignore[attr-defined]
        assert [len(row) for row in boxes] == [3, 3, 3] and all(box is not None for row in boxes for box in row)


def test_predictions_of_a_field_are_a_table(world: World, frozen: Path, tmp_path: Path) -> None:
    words, out = ("predict", frozen, "--keys", "test/004,test/001", "--out"), tmp_path / "predicted"
    assert zoo(*words, out).exit_code == 0
    with open(out / "predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["test/004", "test/001"]
    assert float(rows[0]["true"]) == read(world, "facts", "test/004")["total"]
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert before.keys() == {"predictions.csv", "predictions.png"}
    assert str(out) in refused(*words, out, error=FolderError), "the folder must be empty"
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert "--keys test/005" in refused("predict", frozen, "--keys", "test/005", "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_predictions_of_single_numbers_are_arrays_without_axes(world: World, tmp_path: Path) -> None:
    metrics = train(world, tmp_path / "probe", "warmth", steps=2)
    assert metrics["task"]["kind"] == "numbers" and metrics["metrics"][0]["name"] == "off"
    out = tmp_path / "predicted"
    assert zoo("predict", tmp_path / "probe", "--keys", "test/001,test/002", "--out", out).exit_code == 0
    predictions = load(tmp_path / "probe").predict({"light": world.tokens("light")[1]})
    for number in (1, 2):
        written = np.load(out / f"test/00{number}.npy")
        assert (written.dtype, written.shape) == (np.float32, ())
        np.testing.assert_allclose(written, predictions[number], rtol=1e-5)


def test_a_table_of_labels_needs_no_values(world: World, tmp_path: Path) -> None:
    """Samples are scored and predicted even if the training values are gone."""
    probe = tmp_path / "probe"
    train(world, probe, str(world.table), steps=2)
    score = read_table(probe / "metrics.json")["metrics"][0]["score"]
    set_paths(probe, data=str(tmp_path / "gone"))
    result = zoo("eval", probe, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout)["metrics"][0]["score"] == pytest.approx(score)
    result = zoo("predict", probe, "--samples", 2, "--out", tmp_path / "predicted")
    assert result.exit_code == 0
    assert [path.name for path in (tmp_path / "predicted").glob("[!.]*")] == ["predictions.csv"]
    assert "elsewhere" in refused("eval", probe, "--data", tmp_path / "elsewhere")


@pytest.mark.slow
def test_the_study_of_few_labels_resumes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Path(__file__).parent.parent / "studies" / "low_labels.py"
    options = [
        "--run", world.run, "--registry", world.root / "registry.toml", "--out", tmp_path,
        "--tasks", "zones", "gist", "--inputs", "light", "light,gist",
        "--labels", "0.1", "1", "--steps", "3", "--seeds", "1", "--workers", "1",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", [str(study), *map(str, options)])
    monkeypatch.syspath_prepend(study.parent)  # as when Python runs a script
    results = []
    for _ in range(2):
        runpy.run_path(str(study), run_name="__main__")
        write_times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
        results.append((read_table(tmp_path / "results.json"), write_times))
    assert results[0] == results[1], "finished probes are left alone"
    rows = [row for row in results[0][0]["rows"] if row["task"] == "zones"]
    settings = [(", ".join(row["inputs"]), row["tuning"], row["labels"]) for row in rows]
    assert settings == [
        *(("light", tuning, count) for count in (10, TRAIN) for tuning in ("frozen", "full", "scratch")),
        ("light", "scratch", TRAIN),
        *(("light, gist", "frozen", count) for count in (10, TRAIN)),
    ]
    assert ["steps=9" in row["settings"] for row in rows] == [False] * 6 + [True] + [False] * 2, "three times as many"
    gist_rows = [row for row in results[0][0]["rows"] if row["task"] == "gist"]
    assert [row["inputs"] for row in gist_rows] == [["light"]] * 7, "no modality is predicted from itself"
    assert all(list(row["seeds"]) == ["0"] for row in (*rows, *gist_rows))
    assert "constant baseline" in capsys.readouterr().out


# ---------------------------------------------------------------- bad input


BAD = [
    ("zone light", UnknownNameError, "zones"),
    ("zones lights", UnknownNameError, "light"),
    ("facts.totals light", UnknownNameError, "total"),
    ("zones.low light", ConfigError, "--task zones.low"),
    ("zones light,light", ConfigError, "--input light,light"),
    (f"zones light --seed {2**63}", ConfigError, "--seed"),
    ("facts.rare light", DataError, "--task facts.rare"),
    ("facts.same light", DataError, "--task facts.same"),
    ("zones light --head attentive", ConfigError, "--head attentive"),
    ("zones letters", ConfigError, "--input letters"),
    ("facts light", ConfigError, "zoo backbone grow"),
    ("letters light", ConfigError, "zoo backbone grow"),
    ("nowhere.csv light", ReadError, "nowhere.csv"),
    ("zones light --set patience=2 --labels 9", ConfigError, "patience"),
    ("zones light --set patience=2 --set validation=0", ConfigError, "patience"),
    ("zones light --data nowhere", DataError, "nowhere"),
    ("facts.total light --head linear --set batch_size=1", ConfigError, "batch_size"),
]


@pytest.mark.parametrize(("words", "error", "message"), BAD)
def test_bad_options_are_refused_before_anything_is_written(
    world: World, tmp_path: Path, words: str, error: type[ZooError], message: str
) -> None:
    task, inputs, *options = words.split()
    out = tmp_path / "probe"
    assert message in refused(
        "train", world.run, "--task", task, "--input", inputs, *options, "--out", out, error=error
    )
    assert not out.exists()


TABLES = {
    "name,label\na,b\n": "expected the header key,label",
    "\n".join(["key,label", *(f"k{n},{n}" for n in range(19)), "test/000,n/a"]): "'test/000'",
    "key,label\nnobody,1\nnowhere,2\n": "keys look like 'train/000'",
    "key,label\ntest/000,a\ntest/000,b\n": "'test/000' has a second label",
    "key,label\ntest/000,1\ntest/001,nan\n": "'test/001'",
    "key,label\ntrain/000,a\ntrain/001,b\n": "test",
    "key,label\ntest/000,a\ntrain/001,\n": "train",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_bad_table_is_refused(world: World, tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    words = ("--task", tmp_path / "mine.csv", "--input", "light", "--out", tmp_path / "probe")
    assert TABLES[text] in refused("train", world.run, *words, error=DataError)


LABELS = {
    ("1", "-2.5", "+.5", "3.", "1e-05", "2E3"): (1.0, -2.5, 0.5, 3.0, 1e-05, 2000.0),
    ("2023_01", "2023_02"): None,
    ("\u0661", "2"): None,  # Arabic digits, which Python's float() accepts
    ("nan", "cat"): None,
}


@pytest.mark.parametrize("labels", LABELS)
def test_labels_are_numbers_where_all_are_decimal_ones(tmp_path: Path, labels: tuple[str, ...]) -> None:
    rows = [f"{number},{label}" for number, label in enumerate(labels)]
    (tmp_path / "mine.csv").write_text("\n".join(["key,label", *rows]), encoding="utf-8")
    assert tuple(read_csv(tmp_path / "mine.csv", None).values()) == (LABELS[labels] or labels)
    assert tuple(read_csv(tmp_path / "mine.csv", "classes").values()) == labels


def test_a_label_of_two_samples_is_refused(world: World, tmp_path: Path) -> None:
    """For example, files may have the same name in both splits."""
    shutil.copytree(world.root / "tokens", tmp_path / "tokens")
    train_tokens = stored_tokens(tmp_path / "tokens", "train", "light")
    rewrite_tokens(tmp_path / "tokens", "test", "light", train_tokens)
    run = with_run(world, tmp_path, tokens=tmp_path / "tokens", data=None).run
    words = ("--task", world.table, "--input", "light", "--out", tmp_path / "probe")
    assert "'train/000'" in refused("train", run, *words)
    assert not (tmp_path / "probe").exists()


def test_lora_without_peft_says_what_to_install(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ("--task", "zones", "--input", "light", "--tuning", "lora", "--out", tmp_path / "probe")
    assert 'pip install "zoo-backbone[transfer]"' in refused("train", world.run, *words)
    assert not (tmp_path / "probe").exists()


def test_a_run_that_has_changed_is_refused(world: World, tmp_path: Path) -> None:
    run, probe = with_run(world, tmp_path).run, tmp_path / "probe"
    words = ("--task", "facts.total", "--input", "light", "--set", "steps=1", "--out", probe)
    assert zoo("train", run, *words).exit_code == 0
    config = read_table(run / "config.json")
    write_table(run / "config.json", {**config, "weights_sha256": "0" * 64})
    assert "other weights" in refused("eval", probe, error=CheckpointError)
    write_table(run / "config.json", config)
    (probe / "model.safetensors").write_bytes(b"x" * 100)
    assert "model.safetensors" in refused("eval", probe)


def test_a_probe_whose_tensors_do_not_fit_is_refused(world: World, frozen: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    train(world, full, "facts.total", tuning="full", steps=1)
    for number, (folder, missing, added) in enumerate((
        (frozen, "head.query", {}), (full, "encoder.encoder_norm.weight", {}), (full, "", {"encoder.x": torch.ones(1)})
    )):  # fmt: skip
        tensors, config = load_checkpoint(folder)
        probe = shutil.copytree(folder, tmp_path / str(number))
        save_checkpoint(probe, {name: t for name, t in tensors.items() if name != missing} | added, config, "A card.")
        with pytest.raises(CheckpointError, match=f"{probe}: (its files|has no tensor)"):
            load(probe)
    tensors, config = load_checkpoint(frozen)
    for number, change in enumerate((
        {"settings": {"tuning": 3}}, {"settings": []}, {"target": {"kind": "x"}}, {"target": []}, {"task": "x"},
        {"head": "x"}, {"backbone": {}}, {"inputs": "x"},
    )):  # fmt: skip
        probe = shutil.copytree(frozen, tmp_path / f"odd-{number}")
        save_checkpoint(probe, tensors, config | change, "A card.")
        with pytest.raises(OneLineError):
            load(probe)
    tensors, config = load_checkpoint(full)
    probe = shutil.copytree(full, tmp_path / "odd baseline")
    save_checkpoint(probe, tensors, config | {"constant_baseline": "x"}, "A card.")
    with pytest.raises(CheckpointError, match="constant_baseline of numbers is 'x'"):
        load(probe)
    config["backbone"]["model"]["dim"] = 2**16  # compared before it would take more than all memory
    save_checkpoint(full, tensors, config, "A card.")
    with pytest.raises(CheckpointError, match=r"expected \(.*65536"):
        load(full)


def test_a_run_of_another_kind_is_no_probe(frozen: Path, tmp_path: Path) -> None:
    probe = shutil.copytree(frozen, tmp_path / "probe")
    write_table(probe / "run.json", read_table(probe / "run.json") | {"kind": "tokenizer"})
    with pytest.raises(CheckpointError, match=f"{probe}: no finished probe"):
        load(probe)


@pytest.mark.parametrize("paths", [{"run": None}, {"tokens": None}, {"task": None}])
def test_paths_in_a_foreign_record_have_to_be_texts(frozen: Path, tmp_path: Path, paths: dict[str, Any]) -> None:
    probe = shutil.copytree(frozen, tmp_path / "probe")
    set_paths(probe, **paths)
    with pytest.raises(CheckpointError, match=f"run.json: damaged: places.{next(iter(paths))}: expected str"):
        load(probe)


def test_tokens_of_another_tokenizer_are_refused_where_they_are_inputs(world: World, tmp_path: Path) -> None:
    """The fingerprints of other modalities decide neither inputs nor a finished probe."""
    world_copy, out = with_run(world, tmp_path), tmp_path / "probe"
    config = read_table(world_copy.run / "config.json")

    def trained(**fingerprints: str) -> dict[str, Any]:
        write_table(world_copy.run / "config.json", {**config, "fingerprints": fingerprints})
        return train(world_copy, out, "zones", steps=1)

    metrics = trained(light=config["fingerprints"]["light"])
    assert trained(**config["fingerprints"]) == trained(**config["fingerprints"] | {"dark": "0" * 64}) == metrics
    shutil.rmtree(out)
    with pytest.raises(DataError, match="light"):
        trained(light="0" * 64)
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("words", ["eval", "predict --out predicted"])
def test_the_network_runs_on_the_device(frozen: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    action, *options = words.split()
    assert re.search("CUDA|NVIDIA", str(zoo(action, frozen, *options, "--device", "cuda").exception))


def test_a_probe_opens_with_its_registry(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry_path, probe = world.root / "seen.toml", tmp_path / "probe"
    registry_path.write_text(registry_of(SEEN))
    run = with_run(world, tmp_path, registry=registry_path).run
    words = ("train", run, "--task", "zones", "--input", "light", "--set", "steps=2", "--out", probe)
    result = zoo(*words, registry=Path(os.path.relpath(world.root / "registry.toml")))
    assert result.exit_code == 0, (result.output, result.exception)

    monkeypatch.chdir(tmp_path)
    assert zoo("eval", probe).exit_code == 0
    assert load(probe).zoo.path == world.root / "registry.toml"


def test_a_missing_registry_is_an_error_until_one_is_given(world: World, frozen: Path, tmp_path: Path) -> None:
    moved, missing_registry = tmp_path / "moved", tmp_path / "gone.toml"
    shutil.copytree(frozen, moved)
    set_paths(moved, registry=str(missing_registry))
    assert str(missing_registry) in refused("eval", moved, error=CheckpointError)
    assert zoo("eval", moved, registry=world.root / "registry.toml").exit_code == 0


# ---------------------------------------------------------------- evaluation on other data


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("zones", {"head": "linear"}),
        ("facts.total", {}),
        ("facts.first", {}),
        ("dark", {"head": "linear"}),
        ("mine.csv", {}),
    ],
)
def test_evaluation_needs_no_training_split(world: World, tmp_path: Path, text: str, table: dict[str, Any]) -> None:
    """The constant baseline of every kind of target is stored in the probe."""
    metrics = train(world, tmp_path / "probe", str(world.table) if text == "mine.csv" else text, steps=2, **table)
    for kind in ("tokens", "data"):
        shutil.copytree(world.root / kind, tmp_path / kind, ignore=shutil.ignore_patterns("train"))
    result = zoo("eval", tmp_path / "probe", "--tokens", tmp_path / "tokens", "--data", tmp_path / "data", "--json")
    assert json.loads(result.stdout) == {
        "samples": metrics["labels"]["test"], "metrics": metrics["metrics"], "unseen_classes": {}
    }  # fmt: skip
    assert all(entry["baseline"] is not None for entry in metrics["metrics"])


def test_values_need_tokens_of_the_same_data(world: World, tmp_path: Path) -> None:
    """Values and tokens from different data sets may have equal keys."""
    train(world, tmp_path / "probe", "facts.total", steps=1)
    for kind, folder in (("tokens", "of_training"), ("tokens", "tokens"), ("data", "data")):
        shutil.copytree(world.root / kind, tmp_path / folder)
    note_source(tmp_path / "of_training", world.root / "data", {})
    set_paths(tmp_path / "probe", tokens=f"{tmp_path}/of_training")
    words = ("predict", tmp_path / "probe", "--out", tmp_path / "predicted", "--data", tmp_path / "data")
    for command in (words, ("eval", tmp_path / "probe", "--data", tmp_path / "data")):
        assert "--tokens TOKENS" in refused(*command, error=DataError)
    assert not (tmp_path / "predicted").exists()
    assert "of 8 samples" in zoo(*words, "--tokens", tmp_path / "tokens").stdout


def test_classes_without_a_training_label_are_counted(world: World, tmp_path: Path) -> None:
    rows = ["key,label"]
    for split in ("train", "test"):
        keys, _ = world.tokens("light", split)
        rows += [f"{key},{'cat' if number % 3 else 'dog'}" for number, key in enumerate(keys)]
    text = "\n".join(rows) + "\n"
    (tmp_path / "animals.csv").write_text(text.replace("test/004,cat", "test/004,bird"))
    out = tmp_path / "probe"
    words = ("--task", tmp_path / "animals.csv", "--input", "light", "--set", "steps=1", "--out", out)
    assert "'bird' (1)" in zoo("train", world.run, *words).stdout
    metrics = read_table(out / "metrics.json")
    assert metrics["unseen_classes"] == {"bird": 1} and metrics["labels"]["test"] == 24, "it counts as wrong"
    assert "'bird' (1)" in (out / "README.md").read_text() and "'bird' (1)" in zoo("eval", out).stdout
    assert json.loads(zoo("eval", out, "--json").stdout)["unseen_classes"] == {"bird": 1}
