"""Shared by commands: options, the registry in use, what is printed and how."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from tokenizers_zoo.cli.completion import MODALITY
from tokenizers_zoo.errors import ConfigError, close_names
from tokenizers_zoo.machine.device import AUTO, resolve_device
from tokenizers_zoo.machine.progress import NORMAL, QUIET, VERBOSE, set_verbosity, verbosity
from tokenizers_zoo.machine.terminal import echo, show
from tokenizers_zoo.records import config

if TYPE_CHECKING:
    from rich.table import Table

    from tokenizers_zoo.build.outcomes import RunResult
    from tokenizers_zoo.contract.registry import Zoo

WIDTH, UNLIMITED = 80, 10_000
INDENT = "  "
NO_NEXT = "ZOO_NO_NEXT"
"""Environment variable of a command that another one follows by itself."""
PATH = click.Path(path_type=Path)
DATA = click.argument("data_dir", metavar="DATA", type=PATH)


class Group(click.Group):
    """A group of commands; an unknown one is answered with close names, here or in other groups."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        is_command = not args or args[0].startswith("-") or self.get_command(ctx, args[0]) is not None
        if not is_command and not ctx.resilient_parsing:
            root = ctx.find_root()
            same = [path for path in command_paths(root.command, root.command_path) if path.endswith(f" {args[0]}")]
            close = same or [f"{ctx.command_path} {name}" for name in close_names(args[0], self.list_commands(ctx))]
            offer = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(self.list_commands(ctx))}"
            ctx.fail(f"unknown command {args[0]!r:.80}; {offer}")
        return super().resolve_command(ctx, args)


class CommandContext(click.Context):
    """A context that adds itself to usage errors without one, such as an option without its argument."""

    def __exit__(self, *raised: Any) -> bool | None:
        for error in raised:
            if isinstance(error, click.UsageError) and error.ctx is None:
                error.ctx = self
        return super().__exit__(*raised)


class CheckedCommand(click.Command):
    """A command whose settings can be checked without running it, as `zoo run` does before its first command.

    `check` takes the command's parameters by name. A wrong setting raises ZooError or UsageError. The check reads
    nothing that an earlier command would write.
    """

    def __init__(self, *args: Any, check: Callable[..., object], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check = check


def command_paths(command: click.Command, path: str) -> Iterator[str]:
    """Yield the words that call each command of a group, subgroups included."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield f"{path} {name}"
            if inner := command.get_command(context, name):
                yield from command_paths(inner, f"{path} {name}")


def _keep_global_option(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep an option of `zoo`, wherever on the command line it stands."""
    if value:
        context.find_root().ensure_object(dict)[parameter.name] = value
        level = {"quiet": QUIET, "verbose": VERBOSE}.get(str(parameter.name))
        if level is not None:
            set_verbosity(level)


def global_options(*, hidden: bool = False) -> list[click.Parameter]:
    """Return the options that every command takes. Only the ones of `zoo` itself read the environment."""
    option = partial(click.Option, expose_value=False, callback=_keep_global_option, hidden=hidden)
    return [
        option(
            ["--registry"],
            type=click.Path(dir_okay=False, path_type=Path),
            envvar=None if hidden else "ZOO_REGISTRY",
            help="The registry.toml to use. Default: $ZOO_REGISTRY, else a given run's, else ./registry.toml, "
            "else all that is installed.",
        ),
        option(["-q", "--quiet"], is_flag=True, help="Print results and problems only: no progress, no advice."),
        option(["-v", "--verbose"], is_flag=True, help="Print details, such as each skipped modality."),
        option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]


def _available_device(context: click.Context, parameter: click.Parameter, device: str) -> str:
    """Return the device, with "auto" resolved. Raises UsageError if this machine lacks it."""
    if context.resilient_parsing:  # completion does not import torch
        return device
    try:
        return resolve_device(device)
    except ConfigError as error:
        raise click.UsageError(f"{error}; leave --device out", context) from None


DEVICE = click.option(
    "--device",
    default=AUTO,
    show_default=True,
    metavar="DEVICE",
    callback=_available_device,
    help="Where the networks run: cpu, cuda, cuda:1, mps.",
)
WORKERS = "Worker processes. 0: work in this process, for debuggers; a value that crashes ends the command."
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
FOLLOW_LINKS = click.option(
    "--follow-links", is_flag=True, help="Follow links out of your folder; otherwise they are errors."
)
PRINT_CONFIG = click.option("--print-config", is_flag=True, help="Print all settings and their origins, and stop.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def asked_registry() -> Path | None:
    """Return the value of `--registry`."""
    context = click.get_current_context(silent=True)
    root: dict[str, Path | None] = (context.find_root().obj if context else None) or {}
    return root.get("registry")


def registry_in_use() -> Path | None:
    """Return the value of `--registry`, else registry.toml if the current folder has it."""
    path = Path("registry.toml")
    return asked_registry() or (path if path.is_file() else None)


def open_zoo(registry: Path | None = None, *, strict: bool = True) -> Zoo:
    """Open `registry`, else the registry in use, else all installed modalities.

    With `strict` a mistake in the file raises ConfigError; otherwise the caller shows all problems.
    """
    from tokenizers_zoo.contract.registry import Zoo

    registry = registry or registry_in_use()
    zoo = Zoo.at(registry) if registry else Zoo.installed()
    if strict:
        for error in zoo.check_file():
            echo(f"problem: {error}", err=True)
    return zoo


def note(line: str) -> None:
    """Print an informational line on stderr, except with --quiet."""
    if verbosity() >= NORMAL:
        echo(line, err=True)


def command_line(*words: object) -> str:
    """Return a command of zoo, with the registry that was given to this one."""
    registry = asked_registry()
    return " ".join(map(shell_word, ["zoo", *words, *(["--registry", registry] if registry else [])]))


def shell_word(word: object) -> str:
    """Return a word as a shell reads it, on one line; a path is never read as an option."""
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if text.isprintable():
        return shlex.quote(text)
    codes = re.sub(r"[^\w/.-]", lambda odd: "".join(f"\\x{code:02x}" for code in os.fsencode(odd[0])), text)
    return f"$'{codes}'"


def next_command(*words: object) -> None:
    """Print the command that a user types next."""
    if NO_NEXT not in os.environ:
        note(f"next: {command_line(*words)}")


def show_result(result: RunResult) -> None:
    """Print what a command wrote, or plans to write; with --verbose each skipped modality."""
    echo(result.summary(details=verbosity() >= VERBOSE))


def show_json(value: Any) -> None:
    """Print a value as JSON on stdout; numbers that are not finite become null."""
    echo(json.dumps(finite(value), indent=2, ensure_ascii=False, default=_plain_number))


def _plain_number(value: Any) -> Any:
    """Return a number of numpy or torch as Python's, and anything else, such as a path, as text."""
    return finite(value.item()) if hasattr(value, "item") else str(value)


def finite(value: Any) -> Any:
    """Return JSON types with None in place of numbers that are not finite, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def split_names(names: str) -> list[str]:
    """Split `a,b` into a list. Raises UsageError for an empty list."""
    parts = [name.strip() for name in names.split(",") if name.strip()]
    if not parts:
        raise click.UsageError(f"expected names with commas between them, got {names!r}")
    return parts


def names_option(
    *declarations: str, help: str, required: bool = False, metavar: str = "NAME,..."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for a list of names, which may be repeated and separated by commas: `--input a,b --input c`.

    The command gets a list in the order given, or None without the option.
    """

    def parse_names(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
        return [name for names in values for name in split_names(names)] or None

    return click.option(
        *declarations,
        multiple=True,
        required=required,
        metavar=metavar,
        callback=parse_names,
        type=MODALITY if metavar == "NAME,..." else None,
        help=f"{help} Repeatable.",
    )


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` pairs; values are TOML (numbers, lists, true) or else plain text. Raises UsageError.

    Dates stay plain text: no setting takes a date, but a folder may be named by one.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set {assignment}: expected key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        result[key.strip()] = text if isinstance(value, date | time) else value
    return result


def assigned(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `table` updated by `changes`, whose keys may be dotted: `masking.input_budget`. The last one counts."""
    result = dict(table)
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        inner = result.get(first)
        result[first] = assigned(inner if isinstance(inner, Mapping) else {}, {rest: value}) if rest else value
    return result


def settings_option(meaning: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--set key=value`, repeatable."""
    return click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help=f"{meaning} Repeatable.")


def show_table(table: Table, *, wraps: bool = False) -> None:
    """Print a table at the width of the terminal, or of $COLUMNS.

    Without either, as in a pipe, a row is one line, or with `wraps` at most 80 columns wide.
    """
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    show(table, None if has_width else WIDTH if wraps else UNLIMITED)


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
    show_table(table, wraps=True)


class Layer(NamedTuple):
    """A table of settings over the defaults, and where it comes from: words, or a TOML file and its table there."""

    values: Mapping[str, Any]
    origin: str | Path
    table: str = ""

    def inner(self, key: str) -> Layer | None:
        """Return the layer of the table under `key`, or None."""
        values = self.values.get(key)
        table = f"{self.table}.{key}" if self.table else key
        return self._replace(values=values, table=table) if isinstance(values, Mapping) else None

    def location(self, key: str) -> str:
        """Return where a key comes from, as `registry.toml:12`."""
        if isinstance(self.origin, str):
            return self.origin
        line = config.find_line(self.origin, self.table, key)
        return f"{self.origin}{f':{line}' if line else ''}"


def given_layers(
    table: Mapping[str, Any], file: Path | None, name: str, assignments: Iterable[str], **options: Any
) -> list[Layer]:
    """Return the layers of the table [`name`] of a file, of `--set`, and of options, where they are given."""
    settings = assigned({}, parse_assignments(assignments))
    layers = [Layer(table, file, name)] if file else []
    layers += [Layer(settings, "--set")] if settings else []
    return layers + [Layer({key: value}, f"--{key}") for key, value in options.items() if value is not None]


def show_config(name: str, settings: Any, layers: Sequence[Layer]) -> None:
    """Print a settings dataclass as the TOML table [`name`]; each key with the last layer that has it."""
    lines, inner = [f"[{name}]"], []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            inner.append((field.name, value))
            continue
        origins = (layer.location(field.name) for layer in reversed(layers) if field.name in layer.values)
        origin = next(origins, "default")
        text = f"# {field.name} is not set" if value is None else f"{field.name} = {config.toml_text(value)}"
        lines.append(f"{text}  # {origin}" if value is not None or origin != "default" else text)
    for line in lines:
        echo(line)
    for key, value in inner:
        echo()
        show_config(f"{name}.{key}", value, [table for layer in layers if (table := layer.inner(key))])


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
