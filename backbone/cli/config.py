"""What the commands of the backbone share: the configuration file and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenizers_zoo.config import Origin, load_toml, reject_unknown

CONFIG_OPTION = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with tables [model], [train], [eval].",
)
TABLES = ("model", "train", "eval")


def read_tables(config_file: Path | None) -> dict[str, dict[str, Any]]:
    """The tables of a configuration file. Raises ConfigError."""
    tables = load_toml(config_file) if config_file else {}
    reject_unknown(tables, TABLES, Origin(path=config_file))
    return {name: dict(tables.get(name, {})) for name in TABLES}


def merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`table` with `changes`, whose keys may be dotted: `masking.input_budget`."""
    result = dict(table)
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        result[first] = merged(dict(result.get(first, {})), {rest: value}) if dot else value
    return result
