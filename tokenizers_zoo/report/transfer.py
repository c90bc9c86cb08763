"""The comparison of probes, for the report and `zoo transfer compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers_zoo.intervals import SPREAD, interval
from tokenizers_zoo.io import read_record
from tokenizers_zoo.report import records
from tokenizers_zoo.run_folder import read_run

METRICS = "metrics.json"
PROBES = f"transfer/*/{METRICS}"
ORDER = "task", "inputs", "labels", "tuning", "head"
"""Keys that rows are sorted by."""


def read_probe(folder: Path) -> records.Probe:
    """Return the metrics.json of a probe, with the task as given. Raises CheckpointError if damaged."""
    probe, record = read_record(folder / METRICS, records.Probe), read_run(folder)
    text = record.places.get("task") if record else None
    return replace(probe, task=replace(probe.task, text=text or probe.task.name))


def compare_probes(probes: Sequence[tuple[Path, records.Probe]]) -> list[dict[str, Any]]:
    """Return a row per setting and task, for probes given as folders and metrics.json. Seeds share a row.

    {"task", "kind", "metric", "unit", "higher_is_better", "inputs", "tuning", "head", "backbone",
     "labels", "held_out": numbers of samples, "settings": those that differ between probes of the same tuning,
     "mean", "half", "baseline", "seeds": {seed: score}, "folders"}

    Scores are of the main metric; "half" is half of the 95 % interval (Student's t) over seeds, None for one seed.
    """
    groups: dict[str, list[tuple[Path, records.Probe]]] = {}
    for folder, probe in probes:
        key = [probe.task, probe.inputs, probe.tuning, probe.head, probe.backbone]
        key += [_counts(probe), probe.metrics[0].name, used_settings(probe)]
        groups.setdefault(repr(key), []).append((folder, probe))
    rows = [_row(group, [probe for _, probe in probes]) for group in groups.values()]
    return sorted(rows, key=lambda row: [row[key] for key in ORDER])


def _counts(probe: records.Probe) -> dict[str, int]:
    return {"labels": probe.labels.train + probe.labels.validation, "held_out": probe.labels.test}


def _row(group: Sequence[tuple[Path, records.Probe]], every: Sequence[records.Probe]) -> dict[str, Any]:
    """Return the row of probes that differ in the seed only, among `every` probe."""
    first = group[0][1]
    task, main = first.task, first.metrics[0]
    tasks = [probe.task for probe in every if (probe.task.name, probe.metrics[0].name) == (task.name, main.name)]
    title = task.text if len({entry.text for entry in tasks}) > 1 else task.name
    title += f" as {task.kind}" if len({entry.kind for entry in tasks}) > 1 else ""
    comparable = [used_settings(probe) for probe in every if probe.tuning == first.tuning]
    differing = [
        f"{key}={value}" for key, value in used_settings(first).items()
        if any(settings.get(key) != value for settings in comparable)
    ]  # fmt: skip
    scores = {probe.seed: probe.metrics[0] for _, probe in group}
    mean, half = finite_interval([metric.score for metric in scores.values()])
    return {
        "task": title, "kind": task.kind, "metric": main.name,
        "unit": main.unit, "higher_is_better": main.higher_is_better,
        "inputs": list(first.inputs), "tuning": first.tuning, "head": first.head, **_counts(first),
        "settings": ", ".join(differing), "backbone": first.backbone.weights_sha256, "mean": mean, "half": half,
        "baseline": finite_interval([metric.baseline for metric in scores.values()])[0],
        "seeds": {str(seed): metric.score for seed, metric in sorted(scores.items())},
        "folders": [str(folder) for folder, _ in group],
    }  # fmt: skip


def used_settings(probe: records.Probe) -> dict[str, Any]:
    """Return the settings that influenced a probe, without head and labels, which metrics.json names."""
    unused = {"head", "labels"}
    if not probe.settings["validation"]:
        unused |= {"eval_every", "eval_samples"}  # evaluations select nothing
    return {key: value for key, value in probe.settings.items() if key not in unused}


def finite_interval(numbers: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean and half of its 95 % interval; None if a number was not finite."""
    finite_numbers = [number for number in numbers if number is not None]
    return interval(finite_numbers) if len(finite_numbers) == len(numbers) else (None, None)


def transfer_section(run: Path, weights: str) -> dict[str, Any] | None:
    """Return the template's table of the probes in a run's folder that were trained on its `weights`, or None."""
    probes = [(path.parent, read_probe(path.parent)) for path in sorted(run.glob(PROBES))]
    rows = compare_probes([probe for probe in probes if probe[1].backbone.weights_sha256 == weights])
    if not rows:
        return None
    seeds = max(len(row["seeds"]) for row in rows)
    return {"rows": [row_texts(row) for row in rows], "seeds": seeds, "spread": f" {SPREAD}" if seeds > 1 else ""}


def row_texts(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row of `compare_probes` as texts."""
    unit, arrow = f" in {row['unit']}" if row["unit"] else "", "↑" if row["higher_is_better"] else "↓"
    spread = "" if row["half"] is None else f" ± {row['half']:.2g}"
    return {
        **{key: row[key] for key in ("task", "tuning", "head", "settings")}, "inputs": " + ".join(row["inputs"]),
        "labels": f"{row['labels']:,}", "held_out": f"{row['held_out']:,}", "seeds": str(len(row["seeds"])),
        "metric": f"{row['metric']}{unit} {arrow}", "backbone": row["backbone"][:8],
        "score": "-" if row["mean"] is None else f"{row['mean']:.3g}{spread}",
        "baseline": "-" if row["baseline"] is None else f"{row['baseline']:.3g}",
    }  # fmt: skip
