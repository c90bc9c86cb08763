"""The keys of settings for the terminal: closely, with defaults and values in use, or each with what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from tokenizers_zoo.config import REQUIRED, Key, Table, tables_of

WIDTH = 80
LONGEST = 60
"""Letters of a value in the close list; what is longer is cut."""
INDENT = "  "


def settings_lines(configs: Iterable[tuple[str, Any]], *, explained: bool) -> list[str]:
    """The tables of settings dataclasses by the tables' names: classes, or instances with the values in use."""
    lines = []
    for name, config in configs:
        for table in tables_of(config, name):
            lines += ["", table.header + (" (absent unless given)" if table.absent else "")] if table.name else []
            lines += explanations(table) if explained else close_list(table)
    return lines


def close_list(table: Table) -> list[str]:
    """Each key with its value in use, and the default where that is another: two side by side where they fit."""
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
    """Each key with its type and default, the value in use where that is another, and what it means below."""
    lines = []
    for key in table.keys:
        default = REQUIRED if key.default == REQUIRED else f"default {key.default}"
        used = "" if key.used == key.default else f"; here {key.used}"
        head = f"{key.name}  {key.type}; {default}{used}"
        lines += textwrap.wrap(head, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT * 3)
        lines += textwrap.wrap(key.meaning, WIDTH, initial_indent=INDENT * 3, subsequent_indent=INDENT * 3)
    return lines
