"""Where the tables of the benches go: between two comments of a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table


def publish(name: str, rows: Sequence[dict[str, Any]], note: str, page: Path | None) -> None:
    """Print the rows as a table and as JSON, and write them into a page where there is one; see `write_table`."""
    heads = [Column(head, no_wrap=column == 0) for column, head in enumerate(rows[0])]
    table = Table(*heads, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    print(json.dumps(rows))
    if page:
        write_table(page, name, rows, note)


def write_table(page: Path, name: str, rows: Sequence[dict[str, Any]], note: str) -> None:
    """Put a note and a table, whose head are the rows' keys, between the two comments of `page` that name the bench.

    At the end of a page that has no such comments.
    """
    start, end = f"<!-- {name}: made by bench/{name}.py -->", f"<!-- end of {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    after = rest.partition(end)[2] if rest else "\n"
    gap = "" if rest else "\n"
    lines = [f"| {' | '.join(map(str, line))} |" for line in (rows[0], ["---"] * len(rows[0]), *map(dict.values, rows))]
    page.write_text(before + gap + "\n".join([start, note, "", *lines, end]) + after, encoding="utf-8")
