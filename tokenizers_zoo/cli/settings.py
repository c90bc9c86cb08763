"""Settings on the terminal: a short list of values, or a list with explanations."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from tokenizers_zoo.config import REQUIRED, Key, Table, tables_of

WIDTH = 80
LONGEST = 60
"""Maximal letters of a value in the short list."""
INDENT = "  "


def settings_lines(configs: Iterable[tuple[str, Any]], *, explained: bool) -> list[str]:
    """Return the lines for settings dataclasses, given as (table name, class or instance)."""
    lines = []
    for name, config in configs:
        for table in tables_of(config, name):
            lines += ["", table.header + (" (absent unless given)" if table.absent else "")] if table.name else []
            lines += explanations(table) if explained else close_list(table)
    return lines


def close_list(table: Table) -> list[str]:
    """Return the lines of a short list: each key with its value and another default, two per line if they fit."""
    keys = [key for key in table.keys if not key.elsewhere]
    width, lines, left = (WIDTH - len(INDENT)) // 2, [], ""
    pad = max((len(key.name) for key in keys), default=0) + 1
    for key in keys:
        cell = f"{key.name.ljust(pad)} {in_use(key)}"
        if left and len(cell) <= width:
            lines.append(f"{INDENT}{left.ljust(width)}{cell}")
            left = ""
            continue
        if left:
            lines.append(f"{INDENT}{left}")
        left = cell
        if len(cell) >= width:
            lines += textwrap.wrap(cell, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + " " * (pad + 1))
            left = ""
    return [*lines, f"{INDENT}{left}"] if left else lines


def in_use(key: Key) -> str:
    """`500 (default 800)`."""
    used, default = (text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..." for text in (key.used, key.default))
    return used if key.used == key.default else f"{used} (default {default})"


def explanations(table: Table) -> list[str]:
    """Return the lines of each key: type, default, another value in use, and meaning."""
    lines = []
    for key in table.keys:
        default = REQUIRED if key.default == REQUIRED else f"default {key.default}"
        used = "" if key.used == key.default else f"; here {key.used}"
        head = f"{key.name}  {key.type}; {default}{used}"
        lines += textwrap.wrap(head, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT * 3)
        lines += textwrap.wrap(key.meaning, WIDTH, initial_indent=INDENT * 3, subsequent_indent=INDENT * 3)
    return lines
