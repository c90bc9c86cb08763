"""zoo backbone: the configuration file, options NAME=SOMETHING and the opening of a run, shared by its commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.completion import complete_paths
from tokenizers_zoo.cli.options import asked_registry, assigned, open_zoo, parse_assignments, split_names
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.records.config import PIPELINE, Origin, from_mapping, load_toml, reject_unknown

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo
    from zoo_backbone.model.run import Run


def run_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument RUN: the folder of a run or bundle, an installed bundle, or a hub id.

    The command gets the opened `run` and its `zoo`; with --print-config, nothing is opened and both are None. Raises
    CheckpointError if there is no trained model.
    """

    @click.argument("source", metavar="RUN", shell_complete=complete_paths)
    @wraps(command)
    def with_run(source: str, **options: Any) -> Any:
        from zoo_backbone.model.run import Run

        if options.get("print_config"):
            return command(run=None, zoo=None, **options)
        run = Run.open(source)
        return command(run=run, zoo=zoo_of(run), **options)

    return with_run


def collected(record: type, parameter: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Hand the options that are named as the fields of `record` to the command as one record, its `parameter`.

    A field whose option is None keeps its default; lists become tuples.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_record(**options: Any) -> Any:
            values = {field.name: options.pop(field.name) for field in fields(record)}
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            values = {name: value for name, value in values.items() if value is not None}
            return command(**{parameter: record(**values)}, **options)

        return with_record

    return decorate


def zoo_of(run: Run) -> Zoo:
    """Return the zoo of --registry, of the run, or of ./registry.toml. Raises CheckpointError if the run's is gone."""
    from zoo_backbone.model.run import check_registry

    if (registry := asked_registry()) is None:
        check_registry(registry := run.registry, run.folder)
    return open_zoo(registry)


class ConfigFile(click.Path):
    """A TOML file with settings of the backbone, read once to check it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Raises ConfigError for a wrong table."""
        path = Path(super().convert(value, param, ctx))  # type: ignore[arg-type]
        read_tables(path)
        return path


CONFIG_OPTION = click.option(
    "--config",
    "config_file",
    type=ConfigFile(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with tables [model], [train], [eval], [transfer].",
)
TABLES = "model", "train", "eval", "transfer"


def read_tables(config_file: Path | None) -> dict[str, dict[str, Any]]:
    """Return the tables of a configuration file; missing tables are empty.

    Raises ConfigError, also for tables that are used only hours later.
    """
    from zoo_backbone.model.config import EvaluationConfig, TrainConfig
    from zoo_backbone.use.transfer.config import transfer_config

    tables = load_toml(config_file) if config_file else {}
    origin = Origin(path=config_file)
    if PIPELINE in tables:  # zoo run has checked the other tables
        tables = {name: table for name, table in tables.items() if name in TABLES}
    reject_unknown(tables, TABLES, origin)
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{origin.at(name)}: expected a table [{name}], got {table!r}")
    keys = [field.name for field in fields(TrainConfig)]  # --set may complete the table
    reject_unknown(tables.get("train", {}), keys, replace(origin, table="train"))
    from_mapping(EvaluationConfig, tables.get("eval", {}), replace(origin, table="eval"))
    transfer_config(tables.get("transfer", {}), replace(origin, table="transfer"))
    return {name: dict(tables.get(name, {})) for name in TABLES}


def with_options(table: dict[str, Any], assignments: Iterable[str], seed: int | None, **options: Any) -> dict[str, Any]:
    """Return `table` updated by `--set` and by options, where they are given. Raises ConfigError."""
    changes = {key: value for key, value in {"seed": seed, **options}.items() if value is not None}
    return assigned(table, parse_assignments(assignments) | changes)


def input_items(inputs: Iterable[str]) -> list[str]:
    """Return the items of `--input`: NAMES are split at commas, NAME=SOURCE stays as it is."""
    return [item for text in inputs for item in ([text] if "=" in text else split_names(text))]


def pairs_of(option: str, items: Iterable[str], value_name: str) -> dict[str, str]:
    """Parse `NAME=WHAT` options into a table. Raises UsageError."""
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, text = (part.strip() for part in item.partition("="))
        if not (name and equals and text):
            raise click.UsageError(f"{option} {item}: expected NAME={value_name}")
        if name in pairs:
            raise click.UsageError(f"{option} {item}: {name} is there twice")
        pairs[name] = text
    return pairs


def numbers_of(option: str, items: Iterable[str]) -> dict[str, float]:
    """Parse `NAME=NUMBER,...` options into a table. Raises UsageError."""
    pairs = pairs_of(option, [item for text in items for item in split_names(text)], "NUMBER")
    numbers: dict[str, float] = {}
    for name, text in pairs.items():
        try:
            numbers[name] = float(text)
        except ValueError:
            numbers[name] = math.nan
        if not math.isfinite(numbers[name]):
            raise click.UsageError(f"{option} {name}={text}: expected NAME=NUMBER")
    return numbers
