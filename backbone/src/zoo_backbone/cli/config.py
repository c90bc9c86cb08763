"""Shared options of the backbone's commands: the configuration file and its tables, options NAME=SOMETHING."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tokenizers_zoo.config import Origin, load_toml, reject_unknown
from tokenizers_zoo.errors import ConfigError

CONFIG_OPTION = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with tables [model], [train], [eval].",
)
TABLES = ("model", "train", "eval")


def read_tables(config_file: Path | None, names: Sequence[str] = TABLES) -> dict[str, dict[str, Any]]:
    """Return the tables of a configuration file; missing tables are empty. Raises ConfigError."""
    tables = load_toml(config_file) if config_file else {}
    origin = Origin(path=config_file)
    reject_unknown(tables, names, origin)
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{origin.at(name)}: expected a table [{name}], got {table!r}")
    return {name: dict(tables.get(name, {})) for name in names}


def assigned(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `table` updated by `changes`, whose keys may be dotted: `masking.input_budget`. Raises ConfigError."""
    result = dict(table)
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = result
        for depth, parent in enumerate(parents, 1):
            within = inner.get(parent, {})
            if not isinstance(within, Mapping):
                above = ".".join(parents[:depth])
                raise ConfigError(f"--set {key}: {above} is set to {within!r}, which has no keys; leave one out")
            inner[parent] = dict(within)
            inner = inner[parent]
        inner[last] = value
    return result


def pairs_of(option: str, items: Iterable[str], what: str) -> dict[str, str]:
    """Parse `NAME=WHAT` options into a table. Raises ConfigError."""
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, text = (part.strip() for part in item.partition("="))
        if not (name and equals and text):
            raise ConfigError(f"{option} {item}: expected NAME={what}")
        if name in pairs:
            raise ConfigError(f"{option} {item}: {name} is there twice")
        pairs[name] = text
    return pairs


def check_drawn(table: Mapping[str, Any], every: int, origin: Origin) -> None:
    """Raise ConfigError for a table [train] with previews but without `preview_every`."""
    if table.get("previews") and not every and "preview_every" not in table:
        raise ConfigError(f"{origin.at('previews')}: nothing is drawn without preview_every, the steps between; set it")
