"""Tables in Markdown, those of settings among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers_zoo.config import ITS_TABLE, REQUIRED, UNSET, Table, plain, tables_of


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table, line by line."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *escaped)]


def settings_tables(cls: type, name: str) -> list[str]:
    """The keys of the table `name` that a settings dataclass stands for, then each table in it under a heading."""
    first, *inner = tables_of(cls, name)
    lines = keys_table(first)
    for below in inner:
        lines += [f"\n### `{below.header}`\n", *absence(below), *keys_table(below)]
    return lines


def told_tables(cls: type, name: str) -> list[str]:
    """The same with a heading for each table, and what its class says of itself."""
    lines = []
    for one in tables_of(cls, name):
        lines += [f"\n### `{one.header}`\n", f"{one.about}\n", *absence(one), *keys_table(one)]
    return lines


def absence(one: Table) -> list[str]:
    """Of a table that is not there by itself."""
    return ["Absent unless it is given.\n"] if one.absent else []


def keys_table(keys: Table) -> list[str]:
    """Each key of a table: its type, its default, and what it is for."""
    rows = [
        (
            f"`{key.name}`",
            key.type,
            default_text(key.default),
            key.meaning or ("See below." if key.inner else ""),
        )
        for key in keys.keys
    ]
    return table(("key", "type", "default", "meaning"), rows)


def default_text(default: str) -> str:
    """A default as code, where it is a value."""
    return default if default in (UNSET, REQUIRED, ITS_TABLE) else f"`{default}`"


def preset_sections(cls: type) -> list[str]:
    """The presets of a settings class, each as the keys that it stands for."""
    lines = []
    for name, keys in getattr(cls, "presets", {}).items():
        lines.append(
            f'\n### `preset = "{name}"`\n\nStands for these keys; those given beside it take precedence.\n\n```toml'
        )
        lines += [*toml_lines(keys), "```"]
    return lines


def toml_lines(keys: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys and values, those of tables with dotted keys."""
    lines = []
    for key, value in keys.items():
        name = f"{prefix}{key}"
        lines += toml_lines(value, f"{name}.") if isinstance(value, Mapping) else [f"{name} = {plain(value)}"]
    return lines
