"""Labels that are set apart to choose the step by: which ones, what is kept, when it stops, and what is said of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_modalities import installed
from torch import nn
from transfer_world import SOURCES, TRAIN, World, make_world, read, train

from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.run_folder import TOKENIZER
from zoo_backbone.transfer.config import VALIDATION_LEAST, transfer_config
from zoo_backbone.transfer.heads import Attentive
from zoo_backbone.transfer.samples import Labelled, Part, Places, chosen, labelled, set_apart
from zoo_backbone.transfer.tasks import Task
from zoo_backbone.transfer.training import TransferTask

KEYS = [f"k{number}" for number in range(1000)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with installed(tmp_path_factory.mktemp("site"), "task", SOURCES):
        yield make_world(tmp_path_factory.mktemp("world"))


# ---------------------------------------------------------------- which samples


def test_a_share_is_set_apart_and_what_fewer_labels_learn_from_is_learned_from_with_more() -> None:
    before: tuple[set[str], set[str]] = set(), set()
    for labels, wanted in ((40, 8), (80, 16), (0.5, 60), (1.0, 60)):
        order = chosen(KEYS, labels, 3)
        apart = set(set_apart(order, 0.2, 60, 3))
        assert len(apart) == wanted and apart < set(order)
        learned = set(order) - apart
        assert before[0] <= learned and before[1] <= apart
        before = learned, apart
    order = chosen(KEYS, 80, 3)
    assert set_apart(order, 0.2, 60, 3) == set_apart(order, 0.2, 60, 3)
    assert len({tuple(set_apart(order, 0.2, 60, seed)) for seed in range(20)}) == 4, "from the second on"
    assert set_apart(order, 0.0, 60, 3) == [] and len(set_apart(order, 0.5, 60, 3)) == 40


@pytest.mark.parametrize("share", [0.2, 0.25, 0.5])
def test_each_class_is_learned_from_and_judged(share: float) -> None:
    """Also where a class comes again with the period in which samples are set apart."""
    of = {key: "rare" if number == 17 else "some" if number % 5 == 0 else "most" for number, key in enumerate(KEYS)}
    before: tuple[set[str], set[str]] = set(), set()
    for labels in (50, 100, 500, 1000):
        order = chosen(KEYS, labels, 0, of.values())
        apart = set(set_apart(order, share, 200, 0, of))
        learned = set(order) - apart
        for name in ("some", "most"):
            size = sum(of[key] == name for key in order)
            found = sum(of[key] == name for key in apart)
            assert len(apart) == 200 or abs(found - share * size) < 1, (labels, name)
        assert {of[key] for key in learned} == {"rare", "some", "most"}
        assert before[0] <= learned and before[1] <= apart
        before = learned, apart
    assert set_apart(["a", "b"], 0.9, 9, 0, {"a": "one", "b": "two"}) == [], (
        "the only sample of a class is learned from"
    )


def used_by(world: World, text: str, **table: Any) -> tuple[Labelled, Part]:
    """What the labels of a task are used for, and the test samples."""
    task = Task.parse(text, world.zoo)
    places = Places(
        tokens=world.root / "tokens", store=ValueStore.of(world.root / "data", world.zoo),
        specs=[world.zoo["light"].spec], trained_on={"light": world.zoo["light"].fingerprint}, zoo=world.zoo, owner="",
    )  # fmt: skip
    return labelled(task, places.part(task, "train"), transfer_config(table), 1), places.part(task, "test")


@pytest.mark.parametrize("text", ["zones", "facts.first"])
def test_places_are_learned_from_or_judge(world: World, text: str) -> None:
    found = {labels: used_by(world, text, labels=labels)[0] for labels in (60, 96)}
    learned, judged = (
        {labels: {used.part.keys[place] for place in getattr(used, name)} for labels, used in found.items()}
        for name in ("training", "validation")
    )
    for labels, used in found.items():
        assert sorted([*used.training, *used.validation]) == list(range(labels)) and used.few is None
        assert abs(len(used.validation) - 0.2 * labels) <= 3
        assert not learned[labels] & judged[labels]
    assert learned[60] < learned[96] and judged[60] < judged[96]
    assert used_by(world, text, head="knn")[0].validation == [], "knn learns from all labels"


def test_fewer_than_the_least_are_not_set_apart(world: World) -> None:
    assert VALIDATION_LEAST == 8
    for labels, validation, few in ((40, 8, None), (35, 0, 7), (1, 0, 0)):
        used = used_by(world, "zones", labels=labels)[0]
        assert (len(used.training), len(used.validation), used.few) == (labels - validation, validation, few)
    none = used_by(world, "zones", validation=0.0)[0]
    assert none.few is None and len(none.training) == TRAIN
    assert len(used_by(world, "zones", validation=0.5, eval_samples=10)[0].validation) == 10


# ---------------------------------------------------------------- what is done with them


class Watch:
    """The keys that a training learned from and was judged by, and the weights of each evaluation.

    With `marks` these are what the evaluations find, one after the other.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, marks: Sequence[float] = ()) -> None:
        self.learned: set[str] = set()
        self.judged: list[set[str]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.marks = list(marks)
        batch, reconstruct, score = TransferTask.batch, TransferTask.reconstruct, TransferTask.score

        def batch_seen(task: TransferTask, values: list[Any], rng: Any) -> Any:
            self.learned |= {value.part.keys[value.place] for value in values}
            return batch(task, values, rng)

        def answers_seen(task: TransferTask, module: nn.Module, values: list[Any]) -> Any:
            self.judged.append({value.part.keys[value.place] for value in values})
            self.weights.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
            return reconstruct(task, module, values)

        def marked(task: TransferTask, predicted: list[Any], target: list[Any]) -> Any:
            return {"mae": self.marks[len(self.weights) - 1], "r2": 0.0} if marks else score(task, predicted, target)

        monkeypatch.setattr(TransferTask, "batch", batch_seen)
        monkeypatch.setattr(TransferTask, "reconstruct", answers_seen)
        monkeypatch.setattr(TransferTask, "score", marked)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The head's tensors, or all of a tuned network's, by the names of what is trained."""
    return load_file(folder / "model.safetensors")


def test_no_sample_both_teaches_and_judges(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    metrics = train(world, tmp_path, "facts.total", labels=80, seed=2)
    keys, _ = world.tokens("light", "train")
    labels = set(chosen(keys, 80, 2))
    assert watch.judged[0] == watch.judged[-1] and len(watch.judged[0]) == 16
    assert watch.learned | watch.judged[0] == labels and not watch.learned & watch.judged[0]
    assert not labels & set(world.tokens("light")[0]), "and none is a test sample"
    assert metrics["labels"] == {"asked": 80, "train": 64, "validation": 16, "test": 22}
    totals = [read(world, "facts", key, "train")["total"] for key in labels]
    floor = metrics["metrics"][0]["floor"]
    there = [key for key in world.tokens("light")[0] if key not in ("test-005", "test-006")]
    errors = [abs(np.median(totals) - read(world, "facts", key)["total"]) for key in there]
    assert floor == pytest.approx(np.mean(errors)), "that of all labels"


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_the_weights_of_the_best_evaluation_are_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str
) -> None:
    """Evaluations after steps 2, 4, ...; the third is the best, an equal and one that is no number are no better."""
    watch = Watch(monkeypatch, [math.nan, 5.0, 3.0, 4.0, 3.0])
    metrics = train(world, tmp_path, "facts.total", tuning=tuning, steps=10, eval_every=2)
    assert metrics["steps"] == 10 and metrics["kept_step"] == 6
    assert metrics["validation"] == {"name": "mae", "score": 3.0}
    assert len(watch.weights) == 5 and "kept_step" in (tmp_path / "metrics.json").read_text()
    for number, weights in enumerate(watch.weights):
        found = saved(tmp_path)
        prefix = "head." if tuning == "frozen" else ""
        heads = [name for name in weights if tuning == "frozen" or name.startswith("head.")]
        same = all(torch.equal(found[prefix + name], weights[name]) for name in heads)
        assert same == (number == 2), number
    assert "weights of step 6 of 10, the best by 19 validation samples (mae 3)" in (tmp_path / "README.md").read_text()


def test_patience_stops(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Watch(monkeypatch, [5.0, 4.0, 4.5, 4.1, 1.0])
    metrics = train(world, tmp_path, "facts.total", steps=10, eval_every=2, patience=2)
    assert (metrics["steps"], metrics["kept_step"], metrics["validation"]["score"]) == (8, 4, 4.0)
    told = capsys.readouterr().err
    assert "total: stops after step 8 of 10: no better mae in 2 evaluations; keeps step 4" in told
    assert "step 8 of 10" in told and "validation mae 4.1, best 4 at step 4" in told
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation/mae"] for line in lines if "validation/mae" in line] == [5.0, 4.0, 4.5, 4.1]


@pytest.mark.parametrize(("tuning", "step"), [("frozen", 7), ("frozen", 10), ("full", 7)])
def test_a_killed_training_remembers_the_best(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str, step: int
) -> None:
    """Killed after the best evaluation, between two, and after the one that ends the run."""

    def die(done: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    marks = [5.0, 4.0, 4.5, 4.1, 4.2, 0.0]
    settings = {"tuning": tuning, "steps": 12, "eval_every": 2, "patience": 3, "dropout": 0.2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with monkeypatch.context() as patch:
        Watch(patch, marks)
        first = train(world, whole, "facts.total", **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Watch(patch, marks)
        train(world, killed, "facts.total", on_step=die, **settings)
    assert (killed / TOKENIZER.state).is_file()
    with monkeypatch.context() as patch:
        Watch(patch, marks[step // 2 :])
        second = train(world, killed, "facts.total", **settings)
    assert (first["steps"], first["kept_step"]) == (10, 4)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_too_few_labels_are_all_learned_from_and_it_says_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(monkeypatch)
    metrics = train(world, tmp_path, "facts.total", labels=20)
    told = " ".join(capsys.readouterr().err.split())
    assert "facts.total: 20 labels are too few: validation 0.2 sets 4 of them apart to judge by, never" in told
    assert "all are learned from, and the last step is kept" in told
    assert metrics["labels"]["train"] == len(watch.learned) == 20 and metrics["labels"]["validation"] == 0
    assert "kept_step" not in metrics and "weights of step" not in (tmp_path / "README.md").read_text()
    assert torch.equal(saved(tmp_path)["head.query"], watch.weights[-1]["query"])


def test_without_validation_all_labels_are_learned_from_and_the_last_step_is_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(monkeypatch, [1.0, 9.0])
    metrics = train(world, tmp_path, "facts.total", validation=0.0)
    assert "too few" not in capsys.readouterr().err and "kept_step" not in metrics
    assert metrics["labels"]["train"] == len(watch.learned) == TRAIN
    assert watch.judged[0] <= set(world.tokens("light")[0]), "on the way it looks at test samples and chooses nothing"
    assert '"held_out/mae"' in (tmp_path / "metrics.jsonl").read_text()
    assert torch.equal(saved(tmp_path)["head.query"], watch.weights[1]["query"])


# ---------------------------------------------------------------- regularisation


def test_dropout_is_of_the_features_in_training_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is given ones: a quarter of them is dropped, and the others grow so that the mean stays."""
    read_by: dict[bool, torch.Tensor] = {}
    losses, forward = TransferTask.losses, Attentive.forward

    def of_ones(task: TransferTask, module: nn.Module, batch: Any) -> Any:
        (features, mask), targets = batch
        module.eval()
        losses(task, module, batch)
        return losses(task, module.train(), ((torch.ones_like(features), mask), targets))

    def noted(head: Attentive, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        read_by.setdefault(head.training, features)
        return forward(head, features, mask)

    monkeypatch.setattr(TransferTask, "losses", of_ones)
    monkeypatch.setattr(Attentive, "forward", noted)
    train(world, tmp_path, "facts.total", steps=1, dropout=0.25)
    assert read_by[True].unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert 0.2 < float((read_by[True] == 0).float().mean()) < 0.3
    assert (read_by[False] != 0).all(), "none where it answers"
