"""Skill scores and raw metrics as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from zoo_backbone.evaluation.pairs import pair_of

NUMBER = 7
"""Columns of a number with its distance to the next."""


def skill_tables(result: dict[str, Any], width: int = 80) -> list[Table]:
    """Return tables with a row for each input set and two columns for each target: skill score and main metric.

    Targets that do not fit into the width go to further tables. A dash stands for a missing number, a dot for a pair
    that was not evaluated.
    """
    entries = {pair_of(entry): entry for entry in result["pairs"]}
    sources = list(dict.fromkeys(inputs for inputs, _ in entries))
    metrics = {target: result["modalities"][target]["metrics"][0] for _, target in entries}
    first = min(max([len("input"), *(len(" + ".join(inputs)) for inputs in sources)]), width // 3)
    tables: list[Table] = []
    for group in _groups_that_fit({name: metric["name"] for name, metric in metrics.items()}, width - first):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("input", overflow="fold", max_width=width // 3)
        for target in group:
            table.add_column(f"{target}\nskill", justify="right", no_wrap=True)
            table.add_column(f"\n{metrics[target]['name']}", justify="right", no_wrap=True)
        for inputs in sources:
            cells = [
                cell for target in group for cell in _cells(entries.get((inputs, target)), metrics[target]["name"])
            ]
            table.add_row(" + ".join(inputs), *cells)
        tables.append(table)
    return tables


def _groups_that_fit(metrics: dict[str, str], width: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name, metric in metrics.items():
        columns = max(len(name) + 2, NUMBER) + max(len(metric) + 2, NUMBER)
        if not groups or room < columns:
            groups.append([])
            room = width
        groups[-1].append(name)
        room -= columns
    return groups


def _cells(entry: dict[str, Any] | None, metric: str) -> Sequence[str]:
    if entry is None:
        return "[dim]·[/]", ""
    skill, score = entry["skill"], entry["score"].get(metric)
    raw = "-" if score is None else f"{score:.3g}"
    if skill is None:
        return "[dim]-[/]", raw
    style = "green" if skill >= 0.5 else "yellow" if skill > 0.05 else "red"
    return f"[{style}]{skill:z.2f}[/]", raw
