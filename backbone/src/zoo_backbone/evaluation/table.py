"""The gap closed as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from zoo_backbone.evaluation.pairs import Pair, pair_of


def gap_tables(result: dict[str, Any], width: int = 80) -> list[Table]:
    """The gap closed, in percent, as tables for the terminal: rows given, columns made, as many a table as fit.

    A dash stands for pairs without a gap to close, a dot for pairs that were not asked for.
    """
    gaps = {pair_of(entry): entry["gap_closed"] for entry in result["pairs"]}
    sources = list(dict.fromkeys(given for given, _ in gaps))
    targets = list(dict.fromkeys(target for _, target in gaps))
    first = max([len("given"), *(len(" + ".join(given)) for given in sources)])
    tables: list[Table] = []
    for group in _groups_that_fit(targets, width - min(first, width // 3)):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("given", overflow="fold", max_width=width // 3)
        for target in group:
            table.add_column(target, justify="right", no_wrap=True)
        for given in sources:
            table.add_row(" + ".join(given), *(_gap_cell(gaps, (given, target)) for target in group))
        tables.append(table)
    return tables


def _groups_that_fit(names: Sequence[str], width: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name in names:
        if not groups or room < len(name) + 2:
            groups.append([])
            room = width
        groups[-1].append(name)
        room -= max(len(name), 4) + 2
    return groups


def _gap_cell(gaps: dict[Pair, float | None], pair: Pair) -> str:
    if pair not in gaps:
        return "[dim]·[/]"
    gap = gaps[pair]
    if gap is None:
        return "[dim]-[/]"
    style = "green" if gap >= 0.5 else "yellow" if gap > 0.05 else "red"
    return f"[{style}]{100 * gap:z.0f}[/]"
