"""How probes are judged: on data of elsewhere, on classes that training samples do not have, in little memory."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from small_modalities import installed, write_values
from token_stores import note_source
from transfer_world import SOURCES, World, make_world, read, train

from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.io import read_json, write_json
from zoo_backbone.transfer import judging, load
from zoo_backbone.transfer.cli import transfer as command
from zoo_backbone.transfer.judging import errors
from zoo_backbone.transfer.metrics import unseen_text
from zoo_backbone.transfer.saving import packed_constant, places_of, samples_of, unpacked_constant
from zoo_backbone.transfer.scores import scored
from zoo_backbone.transfer.tasks import Task


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with installed(tmp_path_factory.mktemp("site"), "task", SOURCES):
        yield make_world(tmp_path_factory.mktemp("world"))


def zoo(*words: Any) -> Result:
    """Run `zoo transfer WORDS`, which succeeds."""
    done = CliRunner().invoke(command, [str(word) for word in words], obj={"registry": None, "debug": False})
    assert done.exit_code == 0, (done.output, done.exception)
    return done


# ---------------------------------------------------------------- the constant baseline


@pytest.mark.parametrize(
    ("text", "table"),
    [("zones", {"head": "linear"}), ("facts.total", {}), ("facts.first", {"head": "knn"}), ("letters", {}),
     ("dark", {"head": "linear"}), ("mine.csv", {"head": "knn"})],
)  # fmt: skip
def test_samples_of_elsewhere_need_no_training_split(
    world: World, tmp_path: Path, text: str, table: dict[str, Any]
) -> None:
    """Class maps, numbers, classes, text, number maps: the constant baseline is that of the probe's training."""
    metrics = train(world, tmp_path / "probe", str(world.table) if text == "mine.csv" else text, steps=2, **table)
    for kind in ("tokens", "data"):
        shutil.copytree(world.root / kind, tmp_path / kind, ignore=shutil.ignore_patterns("train"))
    where = ("--tokens", tmp_path / "tokens", "--data", tmp_path / "data")
    done = zoo("eval", tmp_path / "probe", *where, "--json")
    found = json.loads(done.stdout)
    assert found == {"samples": metrics["labels"]["test"], "metrics": metrics["metrics"], "unseen": {}}
    assert all(entry["floor"] is not None for entry in found["metrics"]) and "constant baseline:" not in done.output


def test_values_and_tokens_are_taken_together(world: World, tmp_path: Path) -> None:
    """Own files of elsewhere may have the same keys."""
    train(world, tmp_path / "probe", "facts.total", head="knn")
    for kind, place in (("tokens", "of_training"), ("tokens", "tokens"), ("data", "data")):
        shutil.copytree(world.root / kind, tmp_path / place)
    note_source(tmp_path / "of_training", world.root / "data")
    config = json.loads((tmp_path / "probe" / "config.json").read_text()) | {"tokens": f"{tmp_path}/of_training"}
    (tmp_path / "probe" / "config.json").write_text(json.dumps(config))
    made = ("predict", tmp_path / "probe", "--out", tmp_path / "made", "--data", tmp_path / "data")
    for words in (made, ("eval", tmp_path / "probe", "--data", tmp_path / "data")):
        error = CliRunner().invoke(command, list(map(str, words)), obj={"registry": None, "debug": False}).exception
        assert isinstance(error, DataError) and "their keys its samples could be taken for others; give" in str(error)
        assert str(error).startswith(f"{tmp_path}/data: the tokens of the probe's training") and "--tokens" in str(
            error
        )
    assert not (tmp_path / "made").exists()
    assert "of 8 samples" in zoo(*made, "--tokens", tmp_path / "tokens").stdout
    note_source(tmp_path / "tokens", tmp_path / "data")
    places = samples_of(tmp_path / "probe", load(tmp_path / "probe"), "test", tmp_path / "tokens", None)
    assert places.tokens == tmp_path / "tokens"
    assert places.store and places.store.root == tmp_path / "data"


def test_a_constant_baseline_that_is_an_object_is_a_file_of_its_modality(world: World) -> None:
    task, facts = Task.parse("facts", world.zoo), read(world, "facts", "test-000")
    tensors, record = packed_constant(task, facts)
    assert record == {"extension": "json"} and unpacked_constant(task, tensors, {"constant": record}) == facts


def test_a_probe_of_before_has_no_constant_baseline(world: World, tmp_path: Path) -> None:
    metrics = train(world, tmp_path, "facts.total", head="knn")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("constant") == {"value": load(tmp_path).constant}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = zoo("eval", tmp_path)
    rows = [line.split()[:3] for line in done.stdout.splitlines()]
    assert ["mae", f"{metrics['metrics'][0]['score']:.4g}", "-"] in rows
    said = "constant baseline: the probe is of a version that did not keep it; train it again"
    assert done.stderr.splitlines()[-1] == said
    found = json.loads(zoo("eval", tmp_path, "--json").stdout)["metrics"]
    assert [(entry["score"], entry["floor"]) for entry in found] == [
        (entry["score"], None) for entry in metrics["metrics"]
    ]


# ---------------------------------------------------------------- labels that are no numbers


def test_a_held_out_label_that_is_no_number_is_refused(world: World, tmp_path: Path) -> None:
    """Where those of the training samples are: before anything is trained, and of a finished probe."""
    probe = tmp_path / "probe"
    train(world, probe, "facts.total", steps=1)
    facts = {key: read(world, "facts", key) for key in ("test-000", "test-001")}
    facts["test-001"]["total"] = "n/a"
    write_values(tmp_path, world.zoo, "test", "facts", facts)
    shutil.copytree(world.root / "data" / "train", tmp_path / "data" / "train")
    line = "--task facts.total: sample 'test-001' has the label 'n/a', and those of the training samples are numbers"
    with pytest.raises(DataError, match=line):
        train(world, tmp_path / "out", "facts.total", data=tmp_path / "data")
    finished = load(probe)
    with pytest.raises(DataError, match=line):
        scored(finished, places_of(probe, finished, data=tmp_path / "data").part(finished.task, "test"))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- classes that no training sample has


def test_a_class_of_held_out_samples_alone_is_said(world: World, tmp_path: Path) -> None:
    rows = ["key,label"]
    for split in ("train", "test"):
        keys, _ = world.tokens("light", split)
        rows += [f"{key},{'cat' if number % 3 else 'dog'}" for number, key in enumerate(keys)]
    text = "\n".join(rows) + "\n"
    (tmp_path / "animals.csv").write_text(text.replace("test-004,cat", "test-004,bird"))
    out = tmp_path / "probe"
    asked = ("--task", tmp_path / "animals.csv", "--given", "light", "--head", "knn", "--out", out)
    line = "1 of test has a label that no training sample has: 'bird'"
    assert line in zoo("train", world.run, *asked).stdout.splitlines()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["unseen"] == {"bird": 1} and metrics["labels"]["test"] == 24, "it counts, as wrong"
    assert f"\n{line}.\n" in (out / "README.md").read_text()
    assert line in zoo("eval", out).stdout.splitlines()
    assert json.loads(zoo("eval", out, "--json").stdout)["unseen"] == {"bird": 1}
    config = read_json(out / "config.json")
    assert config["seen"] == ["cat", "dog"]
    write_json(out / "config.json", config | {"seen": ["dog"]})  # as where a class is declared that none has
    assert json.loads(zoo("eval", out, "--json").stdout)["unseen"] == {"bird": 1, "cat": 15}
    write_json(out / "config.json", {key: value for key, value in config.items() if key != "seen"})
    assert json.loads(zoo("eval", out, "--json").stdout)["unseen"] == {"bird": 1}, "a probe of before: what it answers"
    (tmp_path / "animals.csv").write_text(text)
    assert "no training sample" not in zoo("train", world.run, *asked, "--overwrite").stdout
    assert json.loads((out / "metrics.json").read_text())["unseen"] == {}


def test_several_such_classes_in_words() -> None:
    assert unseen_text({}) == ""
    assert unseen_text({"bird": 2}) == "2 of test have a label that no training sample has: 'bird' (2)"
    many = {"bird": 2, **{name: 1 for name in "abcdef"}}
    said = "8 of test have labels that no training sample has: 'bird' (2), 'a', 'b', 'c', 'd' and 2 others"
    assert unseen_text(many) == said


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("shape", [(), (3,), (1, 8, 8)])
def test_errors_are_the_same_in_any_number_of_pieces(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    guess, true = (generator.normal(3, 2, (50, *shape)).astype(np.float32) for _ in range(2))
    wide = guess.astype(np.float64), true.astype(np.float64)
    residual, total = ((wide[0] - wide[1]) ** 2).sum(), ((wide[1] - wide[1].mean(0)) ** 2).sum()
    wanted = {"mae": float(np.abs(wide[0] - wide[1]).mean()), "r2": float(1 - residual / total)}
    assert errors(list(guess), list(true)) == wanted, "in one, to the bit"
    monkeypatch.setattr(judging, "AT_A_TIME", 7 * max(1, true[0].size))
    assert errors(list(guess), list(true)) == pytest.approx(wanted, rel=1e-12)


def test_errors_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [np.full((1, 64, 64), number, np.float32) for number in range(200)]
    monkeypatch.setattr(judging, "AT_A_TIME", 4 * maps[0].size)
    tracemalloc.start()
    found = errors(maps, maps[::-1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["mae"] == 100.0 and peak < sum(one.nbytes for one in maps) / 2


def test_of_values_with_fields_only_the_field_is_held(world: World, tmp_path: Path) -> None:
    values = {f"k{number:02}": {"total": number, "list": list(range(1000, 6000))} for number in range(60)}
    write_values(tmp_path, world.zoo, "train", "facts", values)
    store, task = ValueStore.of(tmp_path / "data", world.zoo), Task.parse("facts.total", world.zoo)
    task.labels(store, "train")  # which reads all once, and remembers what cannot be read
    tracemalloc.start()
    labels = task.labels(store, "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(labels.of(["k00", "k07", "k59"])) == [0, 7, 59], "0 is a label, too"
    assert peak < 2e6, "sixty lists of 5,000 numbers are 12 MB"
