"""Results of finished probes: metrics.json, its summary and model card, and the comparison of several probes.

metrics.json:

    task            {"name", "kind"}; also "inputs", "head", "tuning", "seed", "settings", "steps"
    labels          {"requested", "train", "validation", "test"}: numbers of samples
    metrics         [{"name", "unit", "higher_is_better", "meaning", "score", "baseline"}], the main metric first; null
                    if not finite. The baseline is the constant prediction that is best on the training labels.
    dropped         {"train": {"no_input", "no_label"}, "test": ..., "unknown_keys"}: numbers of samples
    unseen_classes  number of test labels of each class without a training label
    backbone        {"weights_sha256"}
    parameters      {"trained", "all"}
    best_step       the step whose weights were kept; only with validation
    validation      {"name", "score"} of the main metric at that step
    seconds         {"training", "all"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tokenizers_zoo.checkpoint import card_row
from tokenizers_zoo.cli.options import plain_table
from tokenizers_zoo.errors import ConfigError, and_others
from tokenizers_zoo.intervals import SPREAD
from tokenizers_zoo.report.transfer import compare_probes, read_probe, row_texts
from tokenizers_zoo.samples import TEST, TRAIN

CLASSES_SHOWN = 5
FIXED_COLUMNS = "task", "inputs", "tuning", "labels", "metric", "score", "baseline"
"""Columns of every comparison."""


# ---------------------------------------------------------------- one probe


def score_table(metrics: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of scores and baselines for the terminal."""
    table = plain_table("metric", ">score", ">constant baseline", "better")
    for metric in metrics:
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        numbers = [number_text(metric[key]) for key in ("score", "baseline")]
        table.add_row(metric["name"] + unit, *numbers, "higher" if metric["higher_is_better"] else "lower")
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


def summary(metrics: Mapping[str, Any]) -> list[str]:
    """Return lines about dropped samples, unseen classes, the kept step and the setup."""
    words = {"no_input": "without all inputs", "no_label": "without a label"}
    counts = {
        f"of {split} {words[reason]}": count
        for split in (TRAIN, TEST) for reason, count in metrics["dropped"][split].items()
    }  # fmt: skip
    counts["keys of the table that are in no split"] = metrics["dropped"]["unknown_keys"]
    dropped = [f"{count} {description}" for description, count in counts.items() if count]
    labels, best = metrics["labels"], metrics.get("validation")
    lines = [
        f"dropped samples: {', '.join(dropped)}" if dropped else "",
        unseen_text(metrics["unseen_classes"]),
        best
        and f"weights of step {metrics['best_step']} of {metrics['steps']}, the best on {labels['validation']} "
        f"validation samples ({best['name']} {number_text(best['score'])})",
        f"probe: {metrics['task']['kind']} from {' + '.join(metrics['inputs'])}, head {metrics['head']}, "
        f"{metrics['tuning']}, {labels['train'] + labels['validation']} labels, {labels['test']} held-out samples",
    ]
    return [line for line in lines if line]


def probe_card(metrics: Mapping[str, Any]) -> str:
    """Return the README.md of a probe."""
    rows = [
        card_row(
            row["name"], number_text(row["score"]), number_text(row["baseline"]), row["unit"] or "-",
            "higher" if row["higher_is_better"] else "lower", row["meaning"],
        )
        for row in metrics["metrics"]
    ]  # fmt: skip
    labels, parameters = metrics["labels"], metrics["parameters"]
    notes = summary(metrics)
    if metrics["tuning"] not in ("full", "scratch"):
        notes.append("the encoder's weights are loaded from the run of its training")
    return f"""# {metrics["task"]["name"]} from {", ".join(metrics["inputs"])}

A 4M encoder ({metrics["tuning"]}) with the head {metrics["head"]}, which predicts {metrics["task"]["kind"]}.
{parameters["trained"]:,} of {parameters["all"]:,} parameters were trained on {labels["train"]} labels,
with the seed {metrics["seed"]}.

{chr(10).join(f"- {note}" for note in notes)}

```python
from zoo_backbone.transfer import load

probe = load("this folder")
predictions = probe.predict_values({{{", ".join(f'"{name}": values' for name in metrics["inputs"])}}})
```

On {labels["test"]} held-out samples:

| metric | score | constant baseline | unit | better | meaning |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


# ---------------------------------------------------------------- several probes


def compare(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows of `compare_probes` for folders of finished probes.

    Raises CheckpointError for a folder that is not a finished probe, ConfigError for two probes that differ in nothing.
    """
    rows = compare_probes([(folder, read_probe(folder)) for folder in folders])
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
        "task": "task", "inputs": "inputs", "tuning": "tuning", "head": "head", "settings": "settings",
        "backbone": "backbone", "labels": ">labels", "held_out": ">held-out", "metric": "metric", "score": ">score",
        "baseline": ">constant baseline",
    }  # fmt: skip
    visible = [key for key in columns if key in FIXED_COLUMNS or len({text[key] for text in texts}) > 1]
    table = plain_table(*(columns[key] for key in visible))
    for text in texts:
        table.add_row(*(text[key] for key in visible))
    if any(row["half"] is not None for row in rows):
        table.caption, table.caption_justify = f"mean over seeds {SPREAD}", "left"
    return table
