"""The report's section on transfer: task scores of the run's encoder beside a constant baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers_zoo.checkpoint import CONFIG
from tokenizers_zoo.intervals import SPREAD, interval
from tokenizers_zoo.io import read_table

PROBES = "transfer/*/metrics.json"
NEEDED = "task", "given", "head", "tuning", "seed", "labels", "metrics", "settings", "backbone"
"""The keys that the metrics of probes of all versions have."""
LOOKED = "eval_every", "eval_samples"
"""Settings that without validation only decide what is looked at on the way."""


class Question(NamedTuple):
    """What a probe was asked and how it is judged: only scores of one question are figures of one kind."""

    name: str
    """The task's name; tables in two folders may have the same."""
    text: str
    """The task as it was asked for, a table with its folder."""
    kind: str
    """The kind of answer."""
    metric: str
    """The main metric."""

    @classmethod
    def of(cls, folder: Path, metrics: Mapping[str, Any]) -> Question:
        """That of a finished probe with this metrics.json; its config.json has the text, without which it is the name.

        Raises CheckpointError.
        """
        task = metrics["task"]
        stored = read_table(folder / CONFIG, "task")["task"] if (folder / CONFIG).is_file() else {}
        return cls(task["name"], stored.get("text", task["name"]), task["kind"], metrics["metrics"][0]["name"])


class Samples(NamedTuple):
    """Of how many samples a score is: only scores of the same samples differ by their seeds alone."""

    trained: int
    """Whose labels were used, those that chose the step among them."""
    held_out: int

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Samples:
        """Those of a finished probe with this metrics.json."""
        labels = metrics["labels"]
        return cls(labels["train"] + labels.get("validation", 0), labels["test"])


def titles(questions: Iterable[Question]) -> dict[Question, str]:
    """What questions are called beside each other: by name, and where another has name and metric, by what differs."""
    known = dict.fromkeys(questions)
    found = {}
    for question in known:
        alike = [other for other in known if (other.name, other.metric) == (question.name, question.metric)]
        title = question.text if len({other.text for other in alike}) > 1 else question.name
        found[question] = f"{title} as {question.kind}" if len({other.kind for other in alike}) > 1 else title
    return found


def transfer_section(run: Path, weights: str) -> dict[str, Any] | None:
    """Probes in the run's folder that were trained on its `weights`, for the template; None where there are none.

    Those that differ in nothing but the seed, and are of as many samples, are one row; of those that differ in nothing
    one counts.
    """
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for path in sorted(run.glob(PROBES)):
        found = read_table(path, *NEEDED)
        if found["backbone"]["weights_sha256"] == weights:
            seeds = groups.setdefault((Question.of(path.parent, found), Samples.of(found), *_setting(found)), {})
            seeds.setdefault(found["seed"], found)
    if not groups:
        return None
    names = titles(question for question, *_ in groups)
    rows = [_row(names[key[0]], list(probes.values())) for key, probes in groups.items()]
    most = max(len(probes) for probes in groups.values())
    return {
        "rows": sorted(rows, key=lambda row: row["order"]), "seeds": most, "spread": f" {SPREAD}" if most > 1 else ""
    }  # fmt: skip


def unused(metrics: Mapping[str, Any]) -> set[str]:
    """The settings that decided nothing of a finished probe with this metrics.json."""
    if metrics["head"] == "knn":  # nothing is chosen
        return {"validation", *LOOKED}
    return set() if metrics["settings"].get("validation") else set(LOOKED)


def _setting(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells rows of one question apart: all but the seed."""
    decided = found["settings"].keys() - unused(found)
    settings = tuple(sorted((key, str(found["settings"][key])) for key in decided))
    return tuple(found["given"]), found["head"], found["tuning"], settings


def _row(task: str, probes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row, by the main metric; `task` is what the question is called."""
    first = probes[0]
    main, samples = first["metrics"][0], Samples.of(first)
    arrow = "↑" if main["higher_is_better"] else "↓"
    return {
        "order": (task, first["given"], samples.trained, first["tuning"], first["head"]),
        "task": task,
        "given": " + ".join(first["given"]),
        "tuning": first["tuning"],
        "head": first["head"],
        "labels": f"{samples.trained:,}",
        "held_out": f"{samples.held_out:,}",
        "metric": f"{main['name']}{' in ' + main['unit'] if main['unit'] else ''} {arrow}",
        "score": _mean([probe["metrics"][0]["score"] for probe in probes]),
        "floor": _mean([probe["metrics"][0]["floor"] for probe in probes], spread=False),
        "seeds": len(probes),
    }


def _mean(numbers: Sequence[float | None], spread: bool = True) -> str:
    """The mean, with half of its 95 % interval where there are several; a dash where a number is missing."""
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return "-"
    mean, half = interval(known)
    return f"{mean:.3g} ± {half:.2g}" if spread and half is not None else f"{mean:.3g}"
