"""How many labels a probe's constant baseline is chosen for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenizers_zoo import Zoo
from zoo_backbone.transfer import scores
from zoo_backbone.transfer.kinds import Classes, ClassMap, Numbers
from zoo_backbone.transfer.scores import constant_of
from zoo_backbone.transfer.tasks import Task

TABLE = Task(text="mine.csv")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of labels that are large, every second of ten is looked at."""
    monkeypatch.setattr(scores, "FLOOR_SAMPLES", 5)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("kind", "labels", "best"),
    [
        (Classes(names=("cat", "dog")), ["dog", "cat"] * 5 + ["cat"], "cat"),
        (Numbers(mean=(0.0,), std=(1.0,)), [9.0, 1.0] * 5 + [1.0], 1.0),
    ],
)
def test_classes_and_numbers_are_all_looked_at(kind: Any, labels: list[Any], best: Any) -> None:
    assert constant_of(TABLE, kind, labels) == best


@pytest.mark.usefixtures("few")
def test_of_maps_and_of_what_a_modality_judges_some_are(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [np.full((1, 1), number % 2) for number in range(10)]
    assert constant_of(TABLE, ClassMap(names=("no", "yes"), size=(1, 1)), [*maps, maps[1]]).item() == 0
    seen: list[Any] = []
    handle = zoo["clip"]
    monkeypatch.setattr(handle, "constant_baseline", lambda values: seen.extend(values))
    task = Task(text="clip", handle=handle)
    constant_of(task, Numbers(mean=(0.0,), std=(1.0,)), list(range(10)))
    assert task.judges(Numbers(mean=(0.0,), std=(1.0,))) is handle and seen == [0, 2, 4, 6, 8]
