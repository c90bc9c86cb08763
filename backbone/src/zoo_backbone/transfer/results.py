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

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenizers_zoo.checkpoint import card_row
from tokenizers_zoo.cli.options import plain_table
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.errors import CheckpointError, ConfigError, and_others
from tokenizers_zoo.intervals import SPREAD
from tokenizers_zoo.report.transfer import METRICS, group_probes, known_interval, read_probe, titles, used_settings
from zoo_backbone.transfer.config import HEADS, TUNING, TransferConfig

CLASSES_SHOWN = 5
COUNTS = {"trained": "trained on", "held_out": "held-out"}
"""Numbers of samples in a comparison, with their column titles."""
SETTING = "inputs", "tuning", "head", "settings", "backbone"
"""Keys of a row of a comparison, besides the labels."""


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics.json of a finished probe. Raises CheckpointError."""
    if not (folder / METRICS).is_file():
        raise CheckpointError(f"{folder}: no finished probe; train one with zoo transfer train")
    return read_probe(folder)


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
    shown = ", ".join(names[:CLASSES_SHOWN]) + and_others(max(0, len(names) - CLASSES_SHOWN))
    return f"{sum(unseen.values())} test labels are of classes without a training label: {shown}"


def best_step_text(metrics: Mapping[str, Any]) -> str:
    """Return a line about the step whose weights were kept, or ""."""
    if "best_step" not in metrics:
        return ""
    best = metrics["validation"]
    return (
        f"weights of step {metrics['best_step']} of {metrics['steps']}, the best on "
        f"{metrics['labels']['validation']} validation samples ({best['name']} {number_text(best['score'])})"
    )


def summary(metrics: Mapping[str, Any]) -> list[str]:
    """Return lines about dropped samples, unseen classes, the kept step and the setup."""
    dropped = []
    for split in (TRAIN, TEST):
        for reason, count in metrics["dropped"][split].items():
            if count:
                words = {"no_input": "without all inputs", "no_label": "without a label"}
                dropped.append(f"{count} of {split} {words[reason]}")
    if metrics["dropped"]["unknown_keys"]:
        dropped.append(f"{metrics['dropped']['unknown_keys']} keys of the table that are in no split")
    labels = metrics["labels"]
    used = labels["train"] + labels["validation"]
    requested = labels["requested"]
    note = f" (all; {requested} requested)" if isinstance(requested, int) and requested > used else ""
    lines = [
        f"dropped samples: {', '.join(dropped)}" if dropped else "",
        unseen_text(metrics["unseen_classes"]),
        best_step_text(metrics),
        f"probe: {metrics['task']['kind']} from {' + '.join(metrics['inputs'])}, head {metrics['head']}, "
        f"{metrics['tuning']}, {used} labels{note}, "
        f"{labels['test']} held-out samples",
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
    texts = best_step_text(metrics), unseen_text(metrics["unseen_classes"])
    notes = [f"{text[0].upper()}{text[1:]}." for text in texts if text]
    if metrics["tuning"] in ("frozen", "lora"):
        notes.insert(0, "The encoder's weights are loaded from the run of its training.")
    return f"""# {metrics["task"]["name"]} from {", ".join(metrics["inputs"])}

A 4M encoder ({metrics["tuning"]}) with the head {metrics["head"]}, which predicts {metrics["task"]["kind"]}.
{parameters["trained"]:,} of {parameters["all"]:,} parameters were trained on {labels["train"]} labels,
with the seed {metrics["seed"]}.
{" ".join(notes)}

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


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the scores of finished probes, as JSON types.

    {"columns": [{"task", "kind", "metric", "unit", "higher_is_better"}],
     "rows": [{"inputs", "tuning", "head", "labels", "settings", "backbone",
               "cells": [{"trained", "held_out", "mean", "half", "baseline", "seeds": {seed: score}} or null]}]}

    "head" is "default" if it is the default for the kind of target; "settings" are those that differ from the defaults
    of the tuning. "half" is half of the 95 % interval (Student's t) over seeds, null for one seed. If probes of one
    setting and task have other numbers of samples, each number has its own row. Raises CheckpointError for a folder
    that is not a finished probe, ConfigError for two probes that differ in nothing.
    """
    groups = group_probes((folder, read_metrics(folder)) for folder in folders)
    if twice := next((folder for group in groups for folder in group.duplicates), None):
        raise ConfigError(f"{twice}: another probe has the same settings and seed; compare one of them")
    mains = {group.question: group.first["metrics"][0] for group in groups}
    settings = [_setting(group.first) for group in groups]
    # By their text: 1 label and 1.0, all labels, are equal numbers.
    counts = Counter((repr(setting), group.question) for setting, group in zip(settings, groups, strict=True))
    several = {setting for (setting, _), count in counts.items() if count > 1}
    rows: dict[Any, dict[str, Any]] = {}
    for setting, group in zip(settings, groups, strict=True):
        key = repr(setting), group.samples if repr(setting) in several else None
        row = rows.setdefault(key, {**setting, "cells": dict.fromkeys(mains)})
        mean, half = known_interval([main["score"] for main in group.seeds.values()])
        row["cells"][group.question] = {
            **group.samples._asdict(), "mean": mean, "half": half,
            "baseline": known_interval([main["baseline"] for main in group.seeds.values()])[0],
            "seeds": {str(seed): main["score"] for seed, main in sorted(group.seeds.items())},
        }  # fmt: skip
    columns = [
        {"task": title, "kind": question.kind, "metric": question.metric,
         **{key: mains[question][key] for key in ("unit", "higher_is_better")}}
        for question, title in titles(mains).items()
    ]  # fmt: skip
    return {"columns": columns, "rows": [{**row, "cells": list(row["cells"].values())} for row in rows.values()]}


def _setting(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a row of `compare`: everything except seed, task and samples."""
    defaults: dict[str, Any] = {option.name: option.default for option in dataclasses.fields(TransferConfig)}
    defaults |= TUNING[metrics["tuning"]]
    others = [
        f"{name}={value}"
        for name, value in used_settings(metrics).items()
        if name not in ("tuning", "labels") and value != defaults.get(name, value)
    ]
    default_head = HEADS[metrics["task"]["kind"]][0]
    return {
        "inputs": ", ".join(metrics["inputs"]),
        "tuning": metrics["tuning"],
        "head": "default" if metrics["head"] == default_head else metrics["head"],
        "labels": metrics["labels"]["requested"],
        "settings": ", ".join(others),
        "backbone": metrics["backbone"]["weights_sha256"],
    }


def comparison_tables(result: Mapping[str, Any], console: Console) -> list[Table]:
    """Return the tables of `compare` for a terminal, with as many tasks per table as fit."""
    endless = console.options.update(max_width=sys.maxsize)
    tables: list[Table] = []
    start, count = 0, len(result["columns"])
    while start < count:
        for stop in range(count, start, -1):
            table = _table(result, slice(start, stop))
            if console.measure(table, options=endless).minimum <= console.width:
                break
        tables.append(table)
        start = stop
    return tables


def _table(result: Mapping[str, Any], tasks: slice) -> Table:
    """Return the table of some tasks; its last row has the mean constant baselines."""
    every, columns = result["rows"], result["columns"][tasks]
    rows = [{**row, "cells": row["cells"][tasks]} for row in every if any(row["cells"][tasks])]
    names = ["inputs", "tuning", "labels"]
    names += ["head"] if any(row["head"] != "default" for row in every) else []
    names += [name for name in ("settings", "backbone") if len({row[name] for row in every}) > 1]
    # Numbers of samples that distinguish rows, or differ from the requested labels.
    entries = [(row["labels"], entry) for row in rows for entry in row["cells"] if entry]
    settings = {repr([row[name] for name in ("labels", *SETTING)]) for row in rows}
    by_task = zip(*(row["cells"] for row in rows), strict=True)
    counts = ["held_out"] if any(len({e["held_out"] for e in column if e}) > 1 for column in by_task) else []
    if len(settings) < len(rows) or any(isinstance(asked, int) and asked != e["trained"] for asked, e in entries):
        counts.insert(0, "trained")
    headers = [
        f">{column['task']}\n{column['metric']} {'↑' if column['higher_is_better'] else '↓'}" for column in columns
    ]
    table = plain_table(*names, *(f">{COUNTS[count]}" for count in counts), *headers)
    if any(entry["half"] is not None for _, entry in entries):
        table.caption, table.caption_justify = f"mean over seeds {SPREAD}", "left"
    for row in rows:
        labels = f"{100 * row['labels']:g} %" if isinstance(row["labels"], float) else str(row["labels"])
        shown = {**row, "labels": labels, "backbone": row["backbone"][:8]}
        numbers = [", ".join(dict.fromkeys(f"{entry[count]:,}" for entry in row["cells"] if entry)) for count in counts]
        table.add_row(*(shown[name] for name in names), *numbers, *map(_cell_text, row["cells"]))
    baselines = []
    for place in range(len(columns)):
        found = [row["cells"][place]["baseline"] for row in rows if row["cells"][place]]
        baselines.append(_cell_text({"mean": known_interval(found)[0], "half": None}))
    table.add_row("constant baseline", *[""] * (len(names) + len(counts) - 1), *baselines)
    for place, column in enumerate(table.columns):
        breaks = names[place : place + 1] in (["inputs"], ["settings"])  # lists may be wrapped between their items
        texts = map(str, [column.header, *column.cells])
        column.min_width = max(len(part) for text in texts for part in text.split(" " if breaks else "\n"))
    return table


def _cell_text(entry: Mapping[str, Any] | None) -> str:
    """Return `0.512 ± 0.010`, or a dash."""
    if entry is None or entry["mean"] is None:
        return "-"
    return f"{entry['mean']:.3f}" + ("" if entry["half"] is None else f" ± {entry['half']:.3f}")
