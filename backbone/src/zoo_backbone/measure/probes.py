"""metrics.json of probes, and the comparison of probes for the report and `zoo transfer compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers_zoo.contract.intervals import SPREAD, interval
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.files.run_folder import read_run
from tokenizers_zoo.records.io import read_record
from tokenizers_zoo.records.typed import OPTIONAL, Complete

METRICS = "metrics.json"
PROBES = f"transfer/*/{METRICS}"
ORDER = "task", "inputs", "labels", "tuning", "head"
"""Keys that rows are sorted by."""


# ---------------------------------------------------------------- the record


@dataclass(frozen=True, kw_only=True)
class PredictedLabels:
    """The labels that a probe predicts, and their kind of target."""

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """Numbers of labelled samples."""

    requested: int | float
    """A number of training labels, or a share of them."""
    train: int
    validation: int
    test: int


@dataclass(frozen=True, kw_only=True)
class ProbeMetric(Metric):
    """A metric of a probe with its score, and the score of the constant that is best on the training labels.

    None for a number that is not finite.
    """

    score: float | None
    baseline: float | None


@dataclass(frozen=True, kw_only=True)
class DroppedSamples:
    """Numbers of samples of a split that were left out."""

    no_input: int
    no_label: int


@dataclass(frozen=True, kw_only=True)
class ProbeScores(Complete):
    """The content of metrics.json."""

    task: PredictedLabels
    inputs: tuple[str, ...]
    head: str
    tuning: str
    seed: int
    labels: LabelCounts
    metrics: tuple[ProbeMetric, ...]
    """The main metric is the first."""
    settings: Mapping[str, Any]
    """`TransferConfig`."""
    dropped: Mapping[str, DroppedSamples]
    """By split."""
    unknown_keys: int
    """Keys of the table of labels that are in no split."""
    unseen_classes: Mapping[str, int]
    """Number of test labels of each class without a training label."""
    backbone: str
    """sha256 of the weights of the backbone."""
    parameters: int
    trained_parameters: int
    steps: int
    best_step: int | None = field(default=None, metadata=OPTIONAL)
    """The step whose weights were kept; None without validation."""
    best_score: float | None = field(default=None, metadata=OPTIONAL)
    """The main metric of the validation samples at that step."""
    training_seconds: float
    seconds: float

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ValueError("metrics: expected at least one")

    def used_settings(self) -> dict[str, Any]:
        """Return the settings that influenced the probe, without head and labels, which have fields of their own."""
        unused = {"head", "labels"}
        if not self.settings.get("validation"):
            unused |= {"eval_every", "eval_samples"}  # evaluations select nothing
        return {key: value for key, value in self.settings.items() if key not in unused}


@dataclass(frozen=True, kw_only=True)
class FinishedProbe:
    """A probe's folder, its scores, and its task as it was given."""

    folder: Path
    scores: ProbeScores
    task: str


def read_probe(folder: Path) -> FinishedProbe:
    """Read metrics.json and run.json of a probe. Raises CheckpointError if damaged."""
    scores, record = read_record(folder / METRICS, ProbeScores), read_run(folder)
    task = record.places.get("task") if record else None
    return FinishedProbe(folder=folder, scores=scores, task=task or scores.task.name)


# ---------------------------------------------------------------- the comparison


def compare_probes(probes: Sequence[FinishedProbe]) -> list[dict[str, Any]]:
    """Return a row per setting and task. Seeds share a row.

    {"task", "kind", "metric", "unit", "higher_is_better", "inputs", "tuning", "head", "backbone",
     "labels", "held_out": numbers of samples, "settings": those that differ between probes of the same tuning,
     "mean", "half", "baseline", "seeds": {seed: score}, "folders"}

    Scores are of the main metric; "half" is half of the 95 % interval (Student's t) over seeds, None for one seed.
    """
    groups: dict[str, list[FinishedProbe]] = {}
    for probe in probes:
        scores = probe.scores
        key = [probe.task, scores.task, scores.inputs, scores.tuning, scores.head, scores.backbone]
        key += [_counts(scores), scores.metrics[0].name, scores.used_settings()]
        groups.setdefault(repr(key), []).append(probe)
    rows = [_row(group, probes) for group in groups.values()]
    return sorted(rows, key=lambda row: [row[key] for key in ORDER])


def _counts(scores: ProbeScores) -> dict[str, int]:
    return {"labels": scores.labels.train + scores.labels.validation, "held_out": scores.labels.test}


def _row(group: Sequence[FinishedProbe], probes: Sequence[FinishedProbe]) -> dict[str, Any]:
    """Return the row of probes that differ in the seed only, among all `probes`."""
    first = group[0].scores
    task, main = first.task, first.metrics[0]
    same_task = [
        probe for probe in probes if (probe.scores.task.name, probe.scores.metrics[0].name) == (task.name, main.name)
    ]
    title = group[0].task if len({probe.task for probe in same_task}) > 1 else task.name
    title += f" as {task.kind}" if len({probe.scores.task.kind for probe in same_task}) > 1 else ""
    comparable = [probe.scores.used_settings() for probe in probes if probe.scores.tuning == first.tuning]
    differing = [
        f"{key}={value}"
        for key, value in first.used_settings().items()
        if any(settings.get(key) != value for settings in comparable)
    ]
    metrics = {probe.scores.seed: probe.scores.metrics[0] for probe in group}
    mean, half = finite_interval([metric.score for metric in metrics.values()])
    return {
        "task": title,
        "kind": task.kind,
        "metric": main.name,
        "unit": main.unit,
        "higher_is_better": main.higher_is_better,
        "inputs": list(first.inputs),
        "tuning": first.tuning,
        "head": first.head,
        **_counts(first),
        "settings": ", ".join(differing),
        "backbone": first.backbone,
        "mean": mean,
        "half": half,
        "baseline": finite_interval([metric.baseline for metric in metrics.values()])[0],
        "seeds": {str(seed): metric.score for seed, metric in sorted(metrics.items())},
        "folders": [str(probe.folder) for probe in group],
    }


def finite_interval(numbers: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean and half of its 95 % interval; None if a number was not finite."""
    finite_numbers = [number for number in numbers if number is not None]
    return interval(finite_numbers) if len(finite_numbers) == len(numbers) else (None, None)


def row_texts(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row of `compare_probes` as texts."""
    unit, arrow = f" in {row['unit']}" if row["unit"] else "", "↑" if row["higher_is_better"] else "↓"
    spread = "" if row["half"] is None else f" ± {row['half']:.2g}"
    return {
        **{key: row[key] for key in ("task", "tuning", "head", "settings")},
        "inputs": " + ".join(row["inputs"]),
        "labels": f"{row['labels']:,}",
        "held_out": f"{row['held_out']:,}",
        "seeds": str(len(row["seeds"])),
        "metric": f"{row['metric']}{unit} {arrow}",
        "backbone": row["backbone"][:8],
        "score": "-" if row["mean"] is None else f"{row['mean']:.3g}{spread}",
        "baseline": "-" if row["baseline"] is None else f"{row['baseline']:.3g}",
    }


def transfer_section(run: Path, weights: str) -> dict[str, Any] | None:
    """Return the template's table of the probes in a run's folder that were trained on its `weights`, or None."""
    probes = [read_probe(path.parent) for path in sorted(run.glob(PROBES))]
    rows = compare_probes([probe for probe in probes if probe.scores.backbone == weights])
    if not rows:
        return None
    seeds = max(len(row["seeds"]) for row in rows)
    return {"rows": [row_texts(row) for row in rows], "seeds": seeds, "spread": f" {SPREAD}" if seeds > 1 else ""}
