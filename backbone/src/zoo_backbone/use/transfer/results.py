"""Results of finished probes: the summary and model card of one probe, and the comparison of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tokenizers_zoo.cli.options import plain_table
from tokenizers_zoo.contract.intervals import SPREAD
from tokenizers_zoo.errors import ConfigError, and_others
from tokenizers_zoo.files.checkpoint import card_row
from zoo_backbone.measure.probes import ProbeMetric, ProbeScores, compare_probes, read_probe, row_texts

CLASSES_SHOWN = 5
FIXED_COLUMNS = "task", "inputs", "tuning", "labels", "metric", "score", "baseline"
"""Columns of every comparison."""


# ---------------------------------------------------------------- one probe


def score_table(metrics: Sequence[ProbeMetric]) -> Table:
    """Return a table of scores and baselines for the terminal."""
    table = plain_table("metric", ">score", ">constant baseline", "better")
    for metric in metrics:
        unit = f" ({metric.unit})" if metric.unit else ""
        numbers = number_text(metric.score), number_text(metric.baseline)
        table.add_row(metric.name + unit, *numbers, "higher" if metric.higher_is_better else "lower")
    return table


def number_text(number: float | None) -> str:
    """Return four significant digits, or a dash."""
    return "-" if number is None else f"{number:.4g}"


def unseen_text(unseen: Mapping[str, int]) -> str:
    """Return a line about test labels whose class has no training label, or ""."""
    if not unseen:
        return ""
    names = [f"{name!r} ({count})" for name, count in unseen.items()]
    listed = ", ".join(names[:CLASSES_SHOWN]) + and_others(max(0, len(names) - CLASSES_SHOWN))
    return f"{sum(unseen.values())} test labels are of classes without a training label: {listed}"


def summary(scores: ProbeScores) -> list[str]:
    """Return lines about dropped samples, unseen classes, the kept step and the setup."""
    counts = {"keys of the table that are in no split": scores.unknown_keys}
    for split, samples in scores.dropped.items():
        counts[f"of {split} without all inputs"] = samples.no_input
        counts[f"of {split} without a label"] = samples.no_label
    dropped = [f"{count} {description}" for description, count in counts.items() if count]
    labels, best = scores.labels, ""
    if scores.best_step is not None:
        best = (
            f"weights of step {scores.best_step} of {scores.steps}, the best on {labels.validation} "
            f"validation samples ({scores.metrics[0].name} {number_text(scores.best_score)})"
        )
    lines = [
        f"dropped samples: {', '.join(dropped)}" if dropped else "",
        unseen_text(scores.unseen_classes),
        best,
        f"probe: {scores.task.kind} from {' + '.join(scores.inputs)}, head {scores.head}, "
        f"{scores.tuning}, {labels.train + labels.validation} labels, {labels.test} held-out samples",
    ]
    return [line for line in lines if line]


def probe_card(scores: ProbeScores) -> str:
    """Return the README.md of a probe."""
    rows = [
        card_row(
            metric.name,
            number_text(metric.score),
            number_text(metric.baseline),
            metric.unit or "-",
            "higher" if metric.higher_is_better else "lower",
            metric.meaning,
        )
        for metric in scores.metrics
    ]
    notes = summary(scores)
    if scores.tuning not in ("full", "scratch"):
        notes.append("the encoder's weights are loaded from the run of its training")
    return f"""# {scores.task.name} from {", ".join(scores.inputs)}

A 4M encoder ({scores.tuning}) with the head {scores.head}, which predicts {scores.task.kind}.
{scores.trained_parameters:,} of {scores.parameters:,} parameters were trained on {scores.labels.train} labels,
with the seed {scores.seed}.

{chr(10).join(f"- {note}" for note in notes)}

```python
from zoo_backbone.use.transfer import load

probe = load("this folder")
predictions = probe.predict_values({{{", ".join(f'"{name}": values' for name in scores.inputs)}}})
```

On {scores.labels.test} held-out samples:

| metric | score | constant baseline | unit | better | meaning |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


# ---------------------------------------------------------------- several probes


def compare(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows of `compare_probes` for folders of finished probes.

    Raises CheckpointError for a folder that is not a finished probe, ConfigError for two probes that differ in nothing.
    """
    rows = compare_probes([read_probe(folder) for folder in folders])
    for row in rows:
        if len(row["folders"]) > len(row["seeds"]):
            raise ConfigError(
                f"{row['folders'][-1]}: another probe has the same settings and seed; compare one of them"
            )
    return rows


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows of `compare` as a table for a terminal, without columns that are equal in all rows."""
    texts = [row_texts(row) for row in rows]
    columns = {
        "task": "task",
        "inputs": "inputs",
        "tuning": "tuning",
        "head": "head",
        "settings": "settings",
        "backbone": "backbone",
        "labels": ">labels",
        "held_out": ">held-out",
        "metric": "metric",
        "score": ">score",
        "baseline": ">constant baseline",
    }
    visible = [key for key in columns if key in FIXED_COLUMNS or len({text[key] for text in texts}) > 1]
    table = plain_table(*(columns[key] for key in visible))
    for text in texts:
        table.add_row(*(text[key] for key in visible))
    if any(row["half"] is not None for row in rows):
        table.caption, table.caption_justify = f"mean over seeds {SPREAD}", "left"
    return table
