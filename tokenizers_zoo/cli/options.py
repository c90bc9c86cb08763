"""Shared by commands: the registry in use, `--set key=value`, lists of names, tables and settings for the terminal."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo import config
from tokenizers_zoo.cli.completion import MODALITY
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.pretrained import AUTO, resolved_device

if TYPE_CHECKING:
    from rich.table import Table

    from tokenizers_zoo.registry import Zoo

WIDTH = 80
INDENT = "  "
PATH = click.Path(path_type=Path)
DATA = click.argument("data_dir", metavar="DATA", type=PATH)


def _that_is_there(context: click.Context, parameter: click.Parameter, device: str) -> str:
    """Return the device, with "auto" resolved. Raises ConfigError if this machine lacks it."""
    if context.resilient_parsing:  # completion does not import torch
        return device
    try:
        return resolved_device(device)
    except ConfigError as error:
        raise ConfigError(f"{context.command_path}: {error}; leave --device out") from None


DEVICE = click.option("--device", default=AUTO, show_default=True, metavar="DEVICE",
                      callback=_that_is_there,
                      help="Where the networks run: cpu, cuda, cuda:1, mps.")  # fmt: skip


def asked_registry() -> Path | None:
    """Return the value of `--registry`."""
    context = click.get_current_context(silent=True)
    root: dict[str, Path | None] = (context.find_root().obj if context else None) or {}
    return root.get("registry")


def open_zoo(registry: Path | None = None, *, strict: bool = True) -> Zoo:
    """Open the registry of `--registry`, else ./registry.toml, else all installed modalities.

    With `strict` a mistake in the file raises ConfigError; otherwise the caller shows all problems.
    """
    from tokenizers_zoo.registry import Zoo

    registry = registry or asked_registry()
    if registry is None and Path("registry.toml").is_file():
        registry = Path("registry.toml")
    zoo = Zoo.at(registry) if registry else Zoo.installed()
    if strict:
        for problem in zoo.check_file():
            click.echo(f"problem: {problem}", err=True)
    return zoo


def show_problems(zoo: Zoo) -> None:
    """Print the problems of enabled modalities on stderr."""
    for name, problem in zoo.problems().items():
        if name in zoo:
            click.echo(f"problem: {problem}", err=True)


def split_names(names: str) -> list[str]:
    """Split `a,b` into a list. Raises ConfigError for an empty list."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise ConfigError(f"expected names with commas between them, got {names!r}")
    return found


def names_option(
    *declarations: str, help: str, required: bool = False, metavar: str = "NAME,..."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for a list of names, which may be repeated and separated by commas: `--only a,b --only c`.

    The command gets a list in the order given, or None without the option.
    """

    def joined(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> list[str] | None:
        return [name for names in given for name in split_names(names)] or None

    names = MODALITY if metavar == "NAME,..." else None
    return click.option(*declarations, multiple=True, required=required, metavar=metavar, callback=joined, type=names,
                        help=f"{help} Repeatable.")  # fmt: skip


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` pairs; values are TOML (numbers, lists, true) or else plain text. Raises ConfigError.

    Dates stay plain text: no setting takes a date, but a folder may be named by one.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment}: expected key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        result[key.strip()] = text if isinstance(value, date | time) else value
    return result


def settings_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--set key=value`, repeatable."""
    return click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help=f"{what} Repeatable.")


def show_table(table: Table) -> None:
    """Print a table at the width of the terminal, or of $COLUMNS; 80 columns where there is neither."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    with console.capture() as shown:
        console.print(table)
    for line in shown.get().splitlines():
        click.echo(line.rstrip())


def plain_table(*columns: str, spaced: bool = False) -> Table:
    """Return a table without frames; `spaced` separates rows of several lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, int(spaced), 1))
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table


def show_facts(rows: Mapping[str, str]) -> None:
    """Print a table of names and texts, without rows that have no text."""
    table = plain_table("", "")
    table.show_header = False
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    show_table(table)


def settings_lines(configs: Iterable[tuple[str, Any]]) -> list[str]:
    """Return the lines of settings dataclasses, given as (table name, class or instance): for each key its type,
    default, another value in use, and meaning."""
    lines = []
    for name, settings in configs:
        for table in config.tables_of(settings, name):
            lines += ["", table.header + (" (absent unless given)" if table.absent else "")] if table.name else []
            for key in table.keys:
                default = config.REQUIRED if key.default == config.REQUIRED else f"default {key.default}"
                used = "" if key.used == key.default else f"; here {key.used}"
                head = f"{key.name}  {key.type}; {default}{used}"
                lines += textwrap.wrap(head, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT * 3)
                lines += textwrap.wrap(key.meaning, WIDTH, initial_indent=INDENT * 3, subsequent_indent=INDENT * 3)
    return lines
