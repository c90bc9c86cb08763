"""How good a probe is on held-out samples, beside the constant baseline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.progress import progress_bar
from zoo_backbone.transfer.kinds import Kind
from zoo_backbone.transfer.probe import Probe
from zoo_backbone.transfer.samples import Part
from zoo_backbone.transfer.tasks import Task

BATCH = 32
"""Samples predicted at a time."""
FLOOR_SAMPLES = 1000
"""Labels, at most, that the constant baseline is chosen for, where they are maps or a modality's metrics judge."""


def predictions(probe: Probe, part: Part, places: Sequence[int]) -> list[Any]:
    """Answers to the samples at these places, with progress."""
    answers: list[Any] = []
    with progress_bar("predict", len(places)) as advance:
        for start in range(0, len(places), BATCH):
            here = places[start : start + BATCH]
            answers += probe.predict(part.tokens(here))
            advance(len(here))
    return answers


def constant_of(task: Task, kind: Kind, labels: Sequence[Any]) -> Any:
    """The best single answer to the labels: to all of classes and numbers, to up to FLOOR_SAMPLES of others."""
    small = kind.kind in ("classes", "numbers") and task.judges(kind) is None
    places = range(len(labels)) if small else spread(len(labels), FLOOR_SAMPLES)
    return task.constant(kind, [labels[place] for place in places])


def scored(probe: Probe, part: Part) -> list[dict[str, Any]]:
    """The table "metrics", over all samples of a part; without a floor where the probe has no constant baseline.

    Raises DataError for a label that cannot be judged.
    """
    probe.task.check_labels(probe.kind, part.labels)
    labels = list(part.labels)
    score = probe.task.score(probe.kind, predictions(probe, part, range(len(part))), labels)
    known = probe.constant is not None
    floor = probe.task.score(probe.kind, [probe.constant] * len(labels), labels) if known else {}
    return [
        {"name": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better,
         "meaning": metric.meaning, "score": finite(score[metric.name]),
         "floor": finite(floor[metric.name]) if known else None}
        for metric in probe.task.metrics(probe.kind)
    ]  # fmt: skip


def unseen_labels(probe: Probe, labels: Iterable[Any]) -> dict[str, int]:
    """By class that no training label of the probe had, how many of these labels are it; none for other kinds."""
    if probe.kind.kind != "classes":
        return {}
    counts = Counter(map(str, labels))
    return {name: counts[name] for name in sorted(counts.keys() - set(probe.seen))}


def finite(number: float) -> float | None:
    """A number, or None where JSON has none for it."""
    return number if math.isfinite(number) else None
