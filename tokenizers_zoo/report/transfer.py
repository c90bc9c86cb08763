"""The report's table of probes, and the grouping of probes that it shares with `zoo transfer compare`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers_zoo.intervals import SPREAD, interval
from tokenizers_zoo.io import read_table
from tokenizers_zoo.run_folder import read_run

METRICS = "metrics.json"
PROBES = f"transfer/*/{METRICS}"
REQUIRED = "task", "inputs", "head", "tuning", "seed", "labels", "metrics", "settings", "backbone"
"""Keys of a probe's metrics.json."""


class Question(NamedTuple):
    """A task with its main metric. Only scores of one question are comparable."""

    name: str
    text: str
    """The task as given, a table with its path."""
    kind: str
    """The kind of target."""
    metric: str


class Samples(NamedTuple):
    """Numbers of samples of a probe: labels used (training and validation), and held-out samples."""

    trained: int
    held_out: int


@dataclass(frozen=True, kw_only=True)
class ProbeGroup:
    """Probes that differ in the seed only."""

    question: Question
    samples: Samples
    first: Mapping[str, Any]
    """metrics.json of the first probe."""
    seeds: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """Main metric by seed."""
    duplicates: list[Path] = field(default_factory=list)
    """Folders of probes whose seed is there already."""


def read_probe(folder: Path) -> dict[str, Any]:
    """Return the metrics.json of a probe, with the task as given as "text". Raises CheckpointError if damaged."""
    metrics: dict[str, Any] = read_table(folder / METRICS, *REQUIRED)
    record = read_run(folder)
    metrics["task"]["text"] = record["places"]["task"] if record else metrics["task"]["name"]
    return metrics


def group_probes(probes: Iterable[tuple[Path, Mapping[str, Any]]]) -> list[ProbeGroup]:
    """Group probes, given as folders and metrics.json, that differ in the seed only."""
    groups: dict[tuple[Any, ...], ProbeGroup] = {}
    for folder, metrics in probes:
        task, main, labels = metrics["task"], metrics["metrics"][0], metrics["labels"]
        question = Question(task["name"], task["text"], task["kind"], main["name"])
        samples = Samples(labels["train"] + labels["validation"], labels["test"])
        settings = sorted((key, repr(value)) for key, value in used_settings(metrics).items())
        key = (question, samples, tuple(metrics["inputs"]), metrics["head"], metrics["tuning"], tuple(settings),
               metrics["backbone"]["weights_sha256"])  # fmt: skip
        group = groups.setdefault(key, ProbeGroup(question=question, samples=samples, first=metrics))
        if metrics["seed"] in group.seeds:
            group.duplicates.append(folder)
        else:
            group.seeds[metrics["seed"]] = main
    return list(groups.values())


def used_settings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that influenced a probe, without the head, which metrics.json names."""
    unused = {"head"}
    if metrics["head"] == "knn" or not metrics["settings"]["validation"]:
        unused |= {"eval_every", "eval_samples"}  # evaluations select nothing
    if metrics["head"] == "knn":
        unused.add("validation")
    return {key: value for key, value in metrics["settings"].items() if key not in unused}


def titles(questions: Iterable[Question]) -> dict[Question, str]:
    """Return a title for each question: its name, with its text or kind if another question has the same name."""
    known = dict.fromkeys(questions)
    found = {}
    for question in known:
        alike = [other for other in known if (other.name, other.metric) == (question.name, question.metric)]
        title = question.text if len({other.text for other in alike}) > 1 else question.name
        found[question] = f"{title} as {question.kind}" if len({other.kind for other in alike}) > 1 else title
    return found


def known_interval(numbers: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean and half of its 95 % interval; None if a number was not finite."""
    known = [number for number in numbers if number is not None]
    return interval(known) if len(known) == len(numbers) else (None, None)


def transfer_section(run: Path, weights: str) -> dict[str, Any] | None:
    """Return the template's table of the probes in a run's folder that were trained on its `weights`, or None."""
    found = [(path.parent, read_probe(path.parent)) for path in sorted(run.glob(PROBES))]
    groups = group_probes(probe for probe in found if probe[1]["backbone"]["weights_sha256"] == weights)
    if not groups:
        return None
    names = titles(group.question for group in groups)
    rows = []
    for group in groups:
        probe, main = group.first, group.first["metrics"][0]
        arrow = "↑" if main["higher_is_better"] else "↓"
        order = (names[group.question], probe["inputs"], group.samples.trained, probe["tuning"], probe["head"])
        shown = {
            "task": names[group.question],
            "inputs": " + ".join(probe["inputs"]),
            "tuning": probe["tuning"],
            "head": probe["head"],
            "labels": f"{group.samples.trained:,}",
            "held_out": f"{group.samples.held_out:,}",
            "metric": f"{main['name']}{' in ' + main['unit'] if main['unit'] else ''} {arrow}",
            "seeds": len(group.seeds),
        }
        for key in ("score", "baseline"):
            mean, half = known_interval([entry[key] for entry in group.seeds.values()])
            spread = f" ± {half:.2g}" if half is not None and key == "score" else ""
            shown[key] = "-" if mean is None else f"{mean:.3g}{spread}"
        rows.append((order, shown))
    most = max(len(group.seeds) for group in groups)
    ordered = [shown for _, shown in sorted(rows, key=lambda row: row[0])]
    return {"rows": ordered, "seeds": most, "spread": f" {SPREAD}" if most > 1 else ""}
