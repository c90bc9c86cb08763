"""The commands of `zoo transfer`, and what they refuse."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from small_modalities import installed, registry_of, write_values
from transfer_world import SEEN, SOURCES, TRAIN, World, make_world, read, train

from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError, ZooError
from tokenizers_zoo.run_folder import RUN, FolderError
from zoo_backbone.run import Run
from zoo_backbone.transfer import load, predicting
from zoo_backbone.transfer.cli import default_name, settings_of
from zoo_backbone.transfer.cli import transfer as command
from zoo_backbone.transfer.config import transfer_config
from zoo_backbone.transfer.samples import Part, Places
from zoo_backbone.transfer.tasks import read_csv


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


def zoo(*words: Any) -> Result:
    """Run `zoo transfer WORDS`."""
    return CliRunner().invoke(command, [str(word) for word in words], obj={"registry": None, "debug": False})


def refused(*words: Any) -> str:
    """The one line that a command complains with."""
    result = zoo(*words)
    assert isinstance(result.exception, ZooError), (result.output, result.exception)
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_the_commands_end_to_end(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[transfer]\nsteps = 20\nbatch_size = 8\n")
    done = zoo("train", world.run, "--task", "zones", "--given", "light", "--config", settings, "--labels", "0.5",
               "--head", "linear", "--set", "steps=30", "--seed", 3)  # fmt: skip
    place = world.run / "transfer" / "zones-from-light-frozen-linear-0.5-3"
    assert done.exit_code == 0, (done.output, done.exception)
    assert "constant baseline" in done.stdout and f"48 labels, 24 held-out samples, in {place}" in done.stdout
    metrics = json.loads((place / "metrics.json").read_text())
    assert (metrics["steps"], metrics["settings"]["batch_size"], metrics["seed"]) == (30, 8, 3)
    card = (place / "README.md").read_text()
    assert f"| right | {metrics['metrics'][0]['score']:.4g} |" in card
    assert metrics["labels"] == {"asked": 0.5, "train": 38, "validation": 10, "test": 24}
    more = zoo(
        "train",
        world.run,
        "--task",
        "zones",
        "--given",
        "light",
        "--head",
        "linear",
        "--set",
        "steps=2",
        "--labels",
        500,
    )
    assert "96 labels (all there are; 500 were asked for), 24 held-out samples" in more.stdout
    kept = f"weights of step 30 of 30, the best by 10 validation samples (right {metrics['validation']['score']:.4g})"
    assert kept in done.stdout and f"labels of 38 samples\n(seed 3); {kept}." in card

    again = json.loads(zoo("eval", place, "--json").stdout)
    score = metrics["metrics"][0]["score"]
    assert again["samples"] == 24 and again["metrics"][0]["score"] == pytest.approx(score)
    assert again["metrics"][0]["floor"] == metrics["metrics"][0]["floor"], "that of the labels that were used"
    assert f"{score:.4g}" in zoo("eval", place).stdout

    assert zoo("predict", place, "--samples", 3, "--out", tmp_path / "made").exit_code == 0
    answers = sorted(path.name for path in (tmp_path / "made").glob("*.npy"))
    assert answers == ["test-000.npy", "test-008.npy", "test-016.npy"]
    probe = load(place)
    wanted = probe.predict({"light": world.tokens("light")[1]})[8]
    assert np.array_equal(np.load(tmp_path / "made" / "test-008.npy"), wanted)
    with Image.open(tmp_path / "made" / "predictions.png") as picture:
        places = json.loads(picture.text["cells"])  # type: ignore[attr-defined]
        assert [len(row) for row in places] == [3, 3, 3] and all(box is not None for row in places for box in row)
        left, top, right, bottom = places[1][1]
        shown = np.asarray(picture.convert("L"))[top:bottom, left:right]
    assert np.array_equal(shown[8::16, 8::16], (wanted * 100).astype(np.uint8))

    of_store = Places.part

    def led_out(*arguments: Any) -> Part:
        part = of_store(*arguments)
        keys = [f"../{key}" for key in part.keys]
        return dataclasses.replace(part, keys=keys, rows={f"../{key}": row for key, row in part.rows.items()})

    monkeypatch.setattr(Places, "part", led_out)
    refused = zoo("predict", place, "--samples", 3, "--out", tmp_path / "out")
    assert refused.exit_code == 1 and "no file can be written for it" in str(refused.exception)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("test-*"))


def test_predictions_of_a_field_are_a_table(world: World, frozen: Path, tmp_path: Path) -> None:
    assert zoo("predict", frozen, "--keys", "test-004,test-001", "--out", tmp_path).exit_code == 0
    with open(tmp_path / "predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["test-004", "test-001"]
    assert float(rows[0]["true"]) == read(world, "facts", "test-004")["total"]
    assert (tmp_path / "predictions.png").is_file()
    assert "test-005: no such sample with inputs and a label" in refused(
        "predict", frozen, "--keys", "test-005", "--out", tmp_path / "none"
    )
    assert not (tmp_path / "none").exists()


def test_predictions_take_the_place_of_earlier_ones(
    world: World, frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(world, tmp_path / "maps", "zones", steps=1)
    out = tmp_path / "made"

    def predicted(probe: Path, keys: str) -> set[str]:
        assert zoo("predict", probe, "--keys", keys, "--out", out).exception is None
        return {path.relative_to(out).as_posix() for path in out.rglob("[!.]*")}

    out.mkdir()
    (out / "test-009.npy").write_text("mine")
    mine = {"test-009.npy"}
    assert predicted(frozen, "test-001") == mine | {"predictions.csv", "predictions.png"}
    maps = {"test-001.npy", "test-002.npy", "predictions.png"}
    assert predicted(tmp_path / "maps", "test-001,test-002") == mine | maps

    def killed(path: Path, *_: Any) -> bool:
        told.append(refused("predict", frozen, "--keys", "test-001", "--out", out))
        raise KeyboardInterrupt

    told = list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(predicting, "write_sheet", killed)
        assert zoo("predict", tmp_path / "maps", "--keys", "test-004", "--out", out).exit_code == 1
    assert told == [f"{out}: another prediction writes it right now; wait for its end, or give another --out"]
    assert all((out / name).is_file() for name in (*maps, "test-004.npy")), "nothing is removed before all is there"
    (out / "north").mkdir()
    (out / "north" / "a7.npy").write_text("of a sample with a folder")
    with open(out / ".predicted.jsonl", "a", encoding="utf-8") as lines:
        lines.write('\n"north/a7.npy"\n"../maps/model.safetensors"\n"cut o')
    assert predicted(tmp_path / "maps", "test-002,test-006") == mine | {
        "test-002.npy", "test-006.npy", "predictions.png"
    }  # fmt: skip
    assert (tmp_path / "maps" / "model.safetensors").is_file() and (out / "test-009.npy").read_text() == "mine"
    assert predicted(frozen, "test-001") == mine | {"predictions.csv", "predictions.png"}


def test_the_picture_shows_some_of_many_predictions(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "PICTURED", 3)
    assert zoo("predict", frozen, "--samples", 9, "--out", tmp_path).exit_code == 0
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 10
    with Image.open(tmp_path / "predictions.png") as picture:
        assert len(json.loads(picture.text["cells"])) == 3  # type: ignore[attr-defined]


def test_the_name_of_a_probe_fits_a_folder() -> None:
    config = transfer_config({"labels": 0.01})
    assert default_name("facts.total", ["light", "dark"], config, 1) == "facts.total-from-light-dark-frozen-0.01-1"
    long = [default_name(f"{'é' * 200}.csv", ["light"], config, seed) for seed in (0, 1)]
    assert long[0] != long[1] and all(name[:50] == "é" * 50 and len(name.encode()) <= 240 for name in long)


def test_a_table_of_labels_needs_no_values(world: World, tmp_path: Path) -> None:
    """Where those of the training are gone, samples are scored and predicted all the same."""
    probe = tmp_path / "probe"
    train(world, probe, str(world.table), head="knn")
    score = json.loads((probe / "metrics.json").read_text())["metrics"][0]["score"]
    config = json.loads((probe / "config.json").read_text())
    (probe / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    done = zoo("eval", probe, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["metrics"][0]["score"] == pytest.approx(score)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "predictions.png").write_bytes(b"of an earlier one")
    done = zoo("predict", probe, "--samples", 2, "--out", tmp_path / "made")
    assert done.exit_code == 0
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"predictions.csv", ".predicted.jsonl"}
    assert f"{tmp_path / 'elsewhere'}: no such folder" in refused("eval", probe, "--data", tmp_path / "elsewhere")
    shutil.copytree(world.root / "data" / "train", tmp_path / "half" / "train")
    half = refused("predict", probe, "--data", tmp_path / "half", "--out", tmp_path / "none")
    assert "no split 'test'" in half and not (tmp_path / "none").exists()


def test_a_probe_that_was_killed_before_it_saved_anything_leaves_no_trace(world: World, tmp_path: Path) -> None:
    table = world.table.read_text()
    for name, text in (("first", table), ("second", table.replace("train-001,up", "train-001,down"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.csv").write_text(text)
    train(world, tmp_path / "whole", str(tmp_path / "first" / "mine.csv"), steps=2)
    probe = tmp_path / "probe"
    probe.mkdir()
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    (probe / "run.json").write_text(json.dumps({**record, "finished": None}))
    second = tmp_path / "second" / "mine.csv"
    train(world, probe, str(second), steps=2)
    now = json.loads((probe / "run.json").read_text())
    assert now["finished"] and now["identity"] != record["identity"]


def test_the_study_of_few_labels_compares_all_of_them_and_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Path(__file__).parent.parent / "studies" / "low_labels.py"
    asked = [
        "--run", world.run, "--registry", world.root / "registry.toml", "--out", tmp_path,
        "--tasks", "zones", "letters", "--given", "light", "light,letters",
        "--labels", "0.1", "1", "--steps", "3", "--seeds", "1", "--workers", "1",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", [str(study), *map(str, asked)])
    monkeypatch.syspath_prepend(study.parent)  # as for a script that is run
    found = []
    for _ in range(2):
        runpy.run_path(str(study), run_name="__main__")
        written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
        found.append((json.loads((tmp_path / "results.json").read_text()), written))
    assert found[0] == found[1], "finished probes are left alone"
    rows = found[0][0]["rows"]
    settings = [(row["given"], row["tuning"], row["labels"]) for row in rows]
    assert settings == [
        *(("light", tuning, share) for share in (0.1, 1.0) for tuning in ("frozen", "full", "scratch")),
        ("light", "scratch", 1.0),
        *(("light, letters", "frozen", share) for share in (0.1, 1.0)),
    ]
    assert ["steps=9" in row["settings"] for row in rows] == [False] * 6 + [True] + [False] * 2, "three times as many"
    cells = [[cell and sorted(cell["seeds"]) for cell in row["cells"]] for row in rows]
    assert cells == [[["0"]] * 2] * 7 + [[["0"], None]] * 2, "letters are not predicted from letters"
    assert "constant baseline" in capsys.readouterr().out

    rows = [f"{split}-{number:03},{number % 3}" for split in ("train", "test") for number in range(8)]
    (tmp_path / "letters.csv").write_text("\n".join(["key,label", *rows]))  # is no modality of that name
    few = ["--tunings", "frozen", "--steps", "2", "--labels", "1", "--seeds", "1", "--workers", "1"]
    asked[4:] = ["--tasks", tmp_path / "letters.csv", "--given", "letters", "--out", tmp_path / "tables", *few]
    monkeypatch.setattr("sys.argv", [str(study), *map(str, asked)])
    runpy.run_path(str(study), run_name="__main__")
    assert json.loads((tmp_path / "tables/results.json").read_text())["columns"][0]["task"] == "letters"
    assert [path.name for path in (tmp_path / "tables").iterdir() if path.is_dir()] == ["letters.csv"]
    asked[5] = "letters"
    monkeypatch.setattr("sys.argv", [str(study), *map(str, asked)])
    with pytest.raises(SystemExit, match="each task is among what is given"):
        runpy.run_path(str(study), run_name="__main__")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("text", "found"), [("transfer = 3", "3"), ("[[transfer]]\nsteps = 5", r"\[{'steps': 5}\]")])
def test_settings_that_are_no_table_are_refused(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"wrong\.toml.* transfer: expected a table \[transfer\], got {found}$"):
        settings_of(tmp_path / "wrong.toml", {}, ())


BAD = [
    (["--task", "zone", "--given", "light"], "unknown modality 'zone'; did you mean zones?"),
    (["--task", "zones", "--given", "lights"], "unknown modality of this backbone 'lights'; did you mean light"),
    (["--task", "zones", "--given", "zones"], "unknown modality of this backbone 'zones'"),
    (["--task", "facts.totals", "--given", "light"], "unknown field of facts 'totals'; did you mean total?"),
    (["--task", "zones.low", "--given", "light"], "which has no fields; ask for zones"),
    (["--task", "dark", "--given", "light,dark"], "dark is given, and with it the answer"),
    (["--task", "zones", "--given", "light,light"], "expected each modality once"),
    (["--task", "zones", "--given", "light", "--seed", str(2**63)], "--seed 9223372036854775808: expected 0"),
    (["--task", "facts.rare", "--given", "light"], "all 32 labels are 'yes': nothing to tell apart"),
    (["--task", "facts.same", "--given", "light"], "all 96 labels are alike: nothing to tell apart"),
    (["--task", "facts.list", "--given", "light"], "expected texts or numbers, got '[1]'"),
    (["--task", "facts.first", "--given", "light", "--as", "numbers"], "leave --as out"),
    (["--task", "facts.total", "--given", "light", "--as", "tokens"], "is no whole modality, so it has no tokens"),
    (["--task", "zones", "--given", "light", "--head", "knn"], "--head knn: does not give class map; expected"),
    (["--task", "facts.total", "--given", "light", "--head", "convnext"], "does not give numbers"),
    (["--task", "zones", "--given", "letters"], "a map is read from a grid of two axes, and none of these has one"),
    (["--task", "facts", "--given", "light"], "needs a trained tokenizer (zoo tokenizer train facts)"),
    (["--task", "nowhere.csv", "--given", "light"], "nowhere.csv: cannot be read as a table"),
    (["--task", "zones", "--given", "light", "--labels", "some"], "--labels some: expected a share such as 0.1"),
    (["--task", "zones", "--given", "light", "--labels", "2.0"], "labels: expected a share such as 0.1"),
    (["--task", "zones", "--given", "light", "--set", "scale=log"], "scale log: is for maps of numbers"),
    (["--task", "dark", "--given", "light", "--set", "scale=log"], "needs numbers that are declared to be above 0"),
    (["--task", "zones", "--given", "light", "--set", "patience=2", "--set", "validation=0"], "patience: watches"),
    (["--task", "zones", "--given", "light", "--set", "patience=2", "--labels", "9"], "patience: 9 labels are too few"),
    (["--task", "zones", "--given", "light", "--data", "nowhere"], "nowhere: no such folder"),
    (["--task", "facts.total", "--given", "light", "--head", "linear", "--set", "batch_size=1"], "norms over a batch"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words[1:]) for words, _ in BAD])
def test_what_means_nothing_is_one_line_and_nothing_is_written(
    world: World, tmp_path: Path, words: list[str], message: str
) -> None:
    assert message in refused("train", world.run, *words, "--out", tmp_path / "probe")
    assert not (tmp_path / "probe").exists()


TABLES = {
    "name,label\na,b\n": "has no column key; expected a first line key,label, got 'name,label'",
    "key;label\na;b\n": "has no column key; expected a first line key,label, got 'key;label'",
    "".join(
        f"{key},{label}\n" for key, label in [("key", "label"), *((f"k{n}", n) for n in range(19)), ("test-000", "n/a")]
    ): "the key 'test-000' has the label 'n/a', and those of others are finite numbers; take it out, or train with",
    "key,label\n": "has no labels",
    "key,label\nnobody,1\nnowhere,2\n": "none of its 2 keys, such as 'nobody', is in",
    "key,label\ntest-000,a\ntest-000,b\n": "the key 'test-000' has a second label, 'b' after 'a'",
    "key,label\ntest-000,1\ntest-001,nan\n": "the key 'test-001' has the label 'nan', and those of others are finite",
    "key,label\ntest-000,1e999\ntest-001,1\n": "take it out, or train with --as classes",
    "key,label\ntest-000,1\ntest-001,-1.7976931348623157e+308\n": "has the label '-1.7976931348623157e+308', and those",
    "key,label,label\ntest-000,1,2\n": "has several columns label; keep the one that is meant",
    "key,label\ntrain-000,a\ntrain-001,b\n": "no sample of the split test in",
    "key,label\ntest-000,a\ntrain-001,\n": "no sample of the split train in",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_table_that_says_nothing_is_refused(world: World, tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    words = ("--task", tmp_path / "mine.csv", "--given", "light", "--out", tmp_path / "probe")
    assert TABLES[text] in refused("train", world.run, *words)


LABELS = {
    ("1", "-2.5", "+.5", "3.", "1e-05", "2E3"): (1.0, -2.5, 0.5, 3.0, 1e-05, 2000.0),
    ("2023_01", "2023_02"): None,
    ("1_000", "2"): None,
    ("\u0661", "2"): None,  # Arabic digits, which Python's numbers may have
    ("0x10", "2"): None,
    ("\u0131nf", "cat"): None,  # a dotless i, whose capital is I
    ("nan", "cat"): None,
    ("nan", "inf"): None,
}


@pytest.mark.parametrize("labels", LABELS)
def test_labels_are_numbers_where_all_are_decimal_ones(tmp_path: Path, labels: tuple[str, ...]) -> None:
    rows = [f"{number},{label}" for number, label in enumerate(labels)]
    (tmp_path / "mine.csv").write_text("\n".join(["key,label", *rows]), encoding="utf-8")
    assert tuple(read_csv(tmp_path / "mine.csv", None).values()) == (LABELS[labels] or labels)
    assert tuple(read_csv(tmp_path / "mine.csv", "classes").values()) == labels


def test_a_field_that_is_no_text_or_number_is_learned_as_the_line_says(world: World, tmp_path: Path) -> None:
    facts = {split: {key: {**read(world, "facts", key, split), "list": [number % 2]}
                     for number, key in enumerate(ValueStore.of(world.root / "data", world.zoo).keys(split, "facts"))}
             for split in ("train", "test")}  # fmt: skip
    for split, values in facts.items():
        write_values(tmp_path, world.zoo, split, "facts", values)
    words = ["--task", "facts.list", "--given", "light", "--data", tmp_path / "data", "--head", "knn", "--out"]
    line = refused("train", world.run, *words, tmp_path / "none")
    assert "ask for another field, write what is to be learned into a table (--task FILE.csv), or take each" in line
    done = zoo("train", world.run, *words, tmp_path / "probe", "--as", "classes")
    assert done.exit_code == 0, (done.output, done.exception)
    assert load(tmp_path / "probe").kind.names == ("[0]", "[1]")


def test_a_label_of_two_samples_is_refused(world: World, tmp_path: Path) -> None:
    """As of files that are called the same in both splits."""
    shutil.copytree(world.root / "tokens", tmp_path / "tokens")
    shutil.copytree(tmp_path / "tokens" / "train" / "light", tmp_path / "tokens" / "test" / "light", dirs_exist_ok=True)
    shutil.copytree(world.run, tmp_path / "run", ignore=shutil.ignore_patterns("transfer"))
    Run(tokens=tmp_path / "tokens", registry=world.root / "registry.toml").save(tmp_path / "run")
    words = ("--task", world.table, "--given", "light", "--out", tmp_path / "probe")
    assert "the key 'train-000' is one of train and one of test in" in refused("train", tmp_path / "run", *words)
    assert not (tmp_path / "probe").exists()


def test_lora_says_what_to_install(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ("--task", "zones", "--given", "light", "--tuning", "lora", "--out", tmp_path / "probe")
    assert 'pip install "zoo-backbone[transfer]"' in refused("train", world.run, *words)
    assert not (tmp_path / "probe").exists()


def test_a_run_that_has_changed_is_refused(world: World, tmp_path: Path) -> None:
    run, probe = tmp_path / "run", tmp_path / "probe"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("transfer"))
    words = ("--task", "facts.total", "--given", "light", "--head", "knn", "--out", probe)
    assert zoo("train", run, *words).exit_code == 0
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "weights_sha256": "0" * 64}))
    assert "the backbone in " in (text := refused("eval", probe)) and "has changed since this was trained on it" in text
    (run / "config.json").write_text(json.dumps(config))
    stored = load_file(probe / "model.safetensors")
    assert stored["head.bank"].shape == (TRAIN, 32)
    (probe / "model.safetensors").write_bytes(b"x" * 100)
    assert "damaged" in refused("eval", probe)


def test_labels_of_another_size_are_refused(world: World, tmp_path: Path) -> None:
    from tokenizers_zoo.data.tar import writing_shard

    np.save(small := io.BytesIO(), np.zeros((4, 4), np.int64))
    for split in ("train", "test"):
        with writing_shard(tmp_path / "data" / split / "zones" / "shard-00000.tar") as shard:
            for number in range(8):
                shard.add(f"{split}-{number:03}", small.getvalue(), "npy")
    words = ("--task", "zones", "--given", "light", "--data", tmp_path / "data", "--out", tmp_path / "probe")
    assert "zones: expected int64 (8, 8)" in refused("train", world.run, *words)
    assert not (tmp_path / "probe").exists()


def test_the_network_runs_on_the_device(frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def loaded(folder: Path, zoo: Any, *, run: Path | None, device: str) -> None:
        asked.append((folder, device))
        raise CheckpointError("seen")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("zoo_backbone.transfer.saving.load", loaded)
    for words in (("eval", frozen), ("predict", frozen, "--out", tmp_path / "made")):
        assert refused(*words, "--device", "cuda") == "seen"
    assert asked == [(frozen, "cuda")] * 2


def test_a_damaged_probe_is_refused(world: World, frozen: Path, tmp_path: Path) -> None:
    from tokenizers_zoo.checkpoint import load_checkpoint, save_checkpoint

    tensors, config = load_checkpoint(frozen)
    full = tmp_path / "full"
    train(world, full, "facts.total", tuning="full", steps=1)
    whole, stored = load_checkpoint(full)
    for number, (found, about) in enumerate((
        ({name: tensor for name, tensor in tensors.items() if "query" not in name}, config),
        ({name: tensor for name, tensor in whole.items() if "encoder.encoder_norm" not in name}, stored),
        (whole | {"encoder.strange": torch.zeros(1)}, stored),
    )):  # fmt: skip
        save_checkpoint(tmp_path / str(number), found, about, "A card.")
        with pytest.raises(CheckpointError, match="its tensors do not fit its config"):
            load(tmp_path / str(number))


def test_tokens_of_another_codec_are_refused(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("transfer"))
    config = json.loads((run / "config.json").read_text())
    config["fingerprints"]["light"] = "0" * 64
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="was trained on tokens of light by 000000000000"):
        train(World(root=world.root, zoo=world.zoo, run=run), tmp_path / "probe", "zones")


def test_a_tokenizer_that_a_backbone_gets_later_leaves_probes_as_they_are(world: World, tmp_path: Path) -> None:
    run, probe = tmp_path / "run", tmp_path / "probe"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("transfer"))
    config = json.loads((run / "config.json").read_text())
    codecs, there = config["fingerprints"], World(root=world.root, zoo=world.zoo, run=run)
    (run / "config.json").write_text(json.dumps({**config, "fingerprints": {"light": codecs["light"]}}))
    found = train(there, probe, "zones", steps=1)
    record = json.loads((probe / RUN).read_text())
    assert record["identity"]["model"]["backbone"]["fingerprints"] == {"light": codecs["light"]}
    (run / "config.json").write_text(json.dumps(config))
    assert train(there, probe, "zones", steps=1) == found
    record["identity"]["model"]["backbone"]["fingerprints"]["light"] = "0" * 64
    (probe / RUN).write_text(json.dumps(record))
    with pytest.raises(FolderError, match=r"model.backbone.fingerprints.light"):
        train(there, probe, "zones", steps=1)


def test_a_probe_opens_by_the_registry_that_it_was_trained_with(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, probe = tmp_path / "run", tmp_path / "probe"
    shutil.copytree(world.run, run)
    known = world.root / "seen.toml"
    known.write_text(registry_of(SEEN))
    dataclasses.replace(Run.load(world.run), registry=known).save(run)
    asked = {"registry": Path(os.path.relpath(world.root / "registry.toml")), "debug": False}
    words = ["train", run, "--task", "zones", "--given", "light", "--set", "steps=2", "--out", probe]
    done = CliRunner().invoke(command, [str(word) for word in words], obj=asked)
    assert done.exit_code == 0, (done.output, done.exception)

    monkeypatch.chdir(tmp_path)
    assert zoo("eval", probe).exit_code == 0
    assert load(probe).zoo.path == world.root / "registry.toml"


def test_a_registry_that_is_gone_is_to_be_given(world: World, frozen: Path, tmp_path: Path) -> None:
    moved, gone = tmp_path / "moved", tmp_path / "gone.toml"
    shutil.copytree(frozen, moved)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "registry": str(gone)}))
    told = (
        f"{moved}: its registry was {gone}, which is gone; give another one, as in "
        "zoo --registry FILE backbone ..., or in Python a zoo"
    )
    assert refused("eval", moved) == refused("predict", moved, "--out", tmp_path / "made") == told
    with pytest.raises(CheckpointError, match="which is gone"):
        load(moved)
    assert load(moved, world.zoo).zoo is world.zoo
    asked = {"registry": world.root / "registry.toml", "debug": False}
    assert CliRunner().invoke(command, ["eval", str(moved)], obj=asked).exit_code == 0


def test_values_that_are_gone_are_to_be_given(world: World, frozen: Path, tmp_path: Path) -> None:
    run, gone = tmp_path / "run", tmp_path / "gone"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("transfer"))
    dataclasses.replace(Run.load(world.run), data=gone).save(run)
    told = f"the run's values were in {gone}, which is gone; give their folder: --data DATA"
    words = ("--task", "zones", "--given", "light", "--set", "steps=2")
    assert refused("train", run, *words) == told and not (run / "transfer").exists()

    moved = tmp_path / "moved"
    shutil.copytree(frozen, moved)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "data": str(gone)}))
    assert (
        refused("eval", moved) == f"{moved}: its labels were in {gone}, which is gone; give their folder: --data DATA"
    )
    assert zoo("eval", moved, "--data", Run.load(world.run).data).exit_code == 0
