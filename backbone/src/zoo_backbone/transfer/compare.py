"""Finished probes side by side: a row per setting, a column per task, means over seeds with their 95 % intervals."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tokenizers_zoo.cli.options import plain_table
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.intervals import SPREAD, interval
from tokenizers_zoo.report.transfer import Question, Samples, titles, unused
from zoo_backbone.transfer.config import HEADS, TUNING, TransferConfig
from zoo_backbone.transfer.metrics import read_metrics

NOT_APART = ("tuning", "head", "labels")
"""Settings that have a column of their own."""
COUNTS = {"trained": "trained on", "held_out": "held-out"}
"""Numbers of samples in a cell, and how the table calls them."""

Seeds = dict[int, tuple[Path, Mapping[str, Any]]]
"""By seed, a probe's folder and its main metric."""


def compared(folders: Sequence[Path]) -> dict[str, Any]:
    """The figures of finished probes, as JSON types.

    {"columns": [{"task", "kind", "metric", "unit", "higher_is_better"}],
     "rows": [{"given", "tuning", "head", "labels", "settings", "backbone",
               "cells": [{"trained", "held_out", "mean", "half", "floor", "seeds": {seed: score}}, or null: no such
                         probe]}]}

    A head that is the default for its kind of answer is called so, and settings are those that are not the defaults of
    the tuning. `half` is half of the 95 % interval (Student's t) over seeds, null for one seed. A column is of one
    question, one kind of answer and one metric; "task" is its name, or says more where two have that. A cell is of as
    many samples, "trained" with their labels and "held_out", whatever the seed; settings whose samples have become
    others have a row for each number. Raises CheckpointError for a folder that is not finished, ConfigError where two
    differ in nothing.
    """
    found = [read_metrics(folder) for folder in folders]
    columns: dict[Question, dict[str, Any]] = {}
    settings: dict[Setting, dict[Question, dict[Samples, Seeds]]] = {}
    for folder, metrics in zip(folders, found, strict=True):
        main, question = metrics["metrics"][0], Question.of(folder, metrics)
        columns[question] = {"kind": question.kind, "metric": question.metric,
                             **{key: main[key] for key in ("unit", "higher_is_better")}}  # fmt: skip
        seeds = settings.setdefault(setting(metrics), {}).setdefault(question, {}).setdefault(Samples.of(metrics), {})
        if metrics["seed"] in seeds:
            raise ConfigError(
                f"{folder}: has the same settings and seed as {seeds[metrics['seed']][0]}; compare one of them"
            )
        seeds[metrics["seed"]] = folder, main
    return {
        "columns": [{"task": title, **columns[question]} for question, title in titles(columns).items()],
        "rows": [
            {**key._asdict(), "labels": key.labels[0],
             "cells": [cell(*cells[question]) if question in cells else None for question in columns]}
            for key, questions in settings.items() for cells in rows_of(questions)
        ],
    }  # fmt: skip


def rows_of(questions: Mapping[Question, Mapping[Samples, Seeds]]) -> list[dict[Question, tuple[Samples, Seeds]]]:
    """The probes of one setting as rows, which have one cell a question.

    One row where each question has one number of samples, be it another for each; else a row for each number.
    """
    alone = all(len(parts) == 1 for parts in questions.values())
    rows: dict[Samples | None, dict[Question, tuple[Samples, Seeds]]] = {}
    for question, parts in questions.items():
        for samples, seeds in parts.items():
            rows.setdefault(None if alone else samples, {})[question] = samples, seeds
    return list(rows.values())


class Setting(NamedTuple):
    """What tells rows apart: all but the seed, the task and its samples."""

    given: str
    tuning: str
    head: str
    labels: tuple[float, bool]
    """How many, and whether that is a share: 1 is one of them, 1.0 is all."""
    settings: str
    backbone: str


def setting(metrics: Mapping[str, Any]) -> Setting:
    """That of a probe."""
    tuning, head = metrics["tuning"], metrics["head"]
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TransferConfig)}
    defaults |= TUNING[tuning]
    settings = dict(metrics["settings"])
    settings.setdefault("validation", 0.0)  # of probes that were trained before it was a setting
    alike = {*NOT_APART, *unused(metrics)}
    others = [
        f"{name}={value}"
        for name, value in settings.items()
        if name not in alike and value != defaults.get(name, value)
    ]
    default = head == HEADS[metrics["task"]["kind"]][0]
    asked = metrics["labels"]["asked"]
    return Setting(
        given=", ".join(metrics["given"]),
        tuning=tuning,
        head="default" if default else head,
        labels=(asked, isinstance(asked, float)),
        settings=", ".join(others),
        backbone=metrics["backbone"]["weights_sha256"],
    )


def cell(samples: Samples, seeds: Seeds) -> dict[str, Any]:
    """Mean and half interval of a metric over seeds; null where a score was not finite."""
    scores = [main["score"] for _, main in seeds.values()]
    floors = [main["floor"] for _, main in seeds.values()]
    mean, half = interval(scores) if None not in scores else (None, None)
    return {
        **samples._asdict(), "mean": mean, "half": half, "floor": interval(floors)[0] if None not in floors else None,
        "seeds": {str(seed): main["score"] for seed, (_, main) in sorted(seeds.items())},
    }  # fmt: skip


def comparison_tables(result: Mapping[str, Any], console: Console) -> list[Table]:
    """What `compared` gives, for a terminal, as many tasks a table as fit.

    Below stands the constant baseline, a mean over all probes.
    """
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
    """That of some of the tasks, and of the rows that have one of them."""
    every, columns = result["rows"], result["columns"][tasks]
    rows = [{**row, "cells": row["cells"][tasks]} for row in every if any(row["cells"][tasks])]
    names = ["given", "tuning", "labels"]
    names += ["head"] if any(row["head"] != "default" for row in every) else []
    names += ["settings"] if len({row["settings"] for row in every}) > 1 else []
    names += ["backbone"] if len({row["backbone"] for row in every}) > 1 else []
    counts = counts_shown(rows)
    arrows = ["↑" if column["higher_is_better"] else "↓" for column in columns]
    several = any(entry is not None and entry["half"] is not None for row in rows for entry in row["cells"])
    headers = [f">{column['task']}\n{column['metric']} {arrow}" for column, arrow in zip(columns, arrows, strict=True)]
    table = plain_table(*names, *(f">{COUNTS[count]}" for count in counts), *headers)
    if several:
        table.caption, table.caption_justify = f"mean over seeds {SPREAD}", "left"
    for row in rows:
        shown = {**row, "labels": labels_text(row["labels"]), "backbone": row["backbone"][:8]}
        numbers = [count_text(row, count) for count in counts]
        table.add_row(*(shown[name] for name in names), *numbers, *map(cell_text, row["cells"]))
    floors = []
    for place in range(len(columns)):
        found = [row["cells"][place]["floor"] for row in rows if row["cells"][place] is not None]
        floors.append(cell_text({"mean": interval(found)[0] if None not in found else None, "half": None}))
    table.add_row("constant baseline", *[""] * (len(names) + len(counts) - 1), *floors)
    for place, column in enumerate(table.columns):
        lists = names[place : place + 1] in (["given"], ["settings"])  # which may be broken between their items
        texts = map(str, [column.header, *column.cells])
        column.min_width = max(len(part) for text in texts for part in text.split(" " if lists else "\n"))
    return table


def counts_shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of COUNTS that a table has: "trained" where rows have all settings in common, or other than the labels
    asked for were used, "held_out" where rows have not as many for the same question.
    """
    settings = {tuple(str(row[name]) for name in Setting._fields) for row in rows}
    columns = zip(*(row["cells"] for row in rows), strict=True)
    others = any(len({entry["held_out"] for entry in column if entry}) > 1 for column in columns)
    used = [(row["labels"], entry["trained"]) for row in rows for entry in row["cells"] if entry]
    others_used = any(isinstance(asked, int) and asked != trained for asked, trained in used)
    return ["trained"] * (others_used or len(settings) < len(rows)) + ["held_out"] * others


def count_text(row: Mapping[str, Any], count: str) -> str:
    """A number of samples of a row's cells, or several where it is not the same for all questions."""
    return ", ".join(dict.fromkeys(f"{entry[count]:,}" for entry in row["cells"] if entry))


def common_settings(result: Mapping[str, Any]) -> str:
    """The settings that all rows share, where they are no defaults."""
    found = {row["settings"] for row in result["rows"]}
    return found.pop() if len(found) == 1 else ""


def labels_text(asked: float) -> str:
    """`10 %` or a number."""
    return f"{100 * asked:g} %" if isinstance(asked, float) else str(asked)


def cell_text(entry: Mapping[str, Any] | None) -> str:
    """`0.512 ± 0.010`; a dash where there is nothing."""
    if entry is None or entry["mean"] is None:
        return "-"
    return f"{entry['mean']:.3f}" + ("" if entry["half"] is None else f" ± {entry['half']:.3f}")
