"""zoo run: the whole pipeline from one file.

Each step is a table, in this order, and runs the command below with the table's keys as options. A step without a table
does not run. FOLDER is the key `folder` of [pipeline].
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from tokenizers_zoo.cli.options import DRY_RUN, NO_NEXT, CheckedCommand, asked_registry
from tokenizers_zoo.contract.registry import TABLES as REGISTRY
from tokenizers_zoo.errors import ConfigError, ZooError
from tokenizers_zoo.machine.process import Interrupted
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.config import PIPELINE, Origin, from_mapping, load_toml, reject_unknown

STEPS = {
    "data": "data make SOURCE FOLDER/data",
    "derive": "data derive FOLDER/data",
    "tokenizers": "tokenizer train --all --data FOLDER/data",
    "tokenize": "tokenize FOLDER/data --out FOLDER/tokens",
    "backbone": "backbone train --tokens FOLDER/tokens --out FOLDER/backbone",
    "eval": "backbone eval FOLDER/backbone",
    "report": "report FOLDER/backbone",
}
"""The command of each step. The keys of [eval] are the backbone's settings of that name, not options."""
SETTINGS = ("model", "train", "eval", "transfer")
"""Tables of the backbone's settings, which its commands read by --config."""
COMMAND = "from tokenizers_zoo.cli import run; run()"


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """The table [pipeline]. Paths start at the folder in which the command runs."""

    folder: str
    """The folder of values, tokens and the backbone, in its folders data, tokens and backbone."""
    registry: str | None = None
    """The registry.toml. Default: this file if it has a table [zoo], [vocabularies] or [modalities], else the registry
    of other commands."""

    def __post_init__(self) -> None:
        if not self.folder or self.folder.startswith("-"):
            raise ValueError(f"folder: expected a path, which does not begin with -, got {self.folder!r}")


@click.command()
@click.argument("file", metavar="PIPELINE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@DRY_RUN
@click.pass_context
def run(context: click.Context, file: Path, dry_run: bool) -> None:
    """Run the pipeline that a TOML file describes.

    The file has a table per step, whose keys are the options of the step's command.
    Each command is printed before it runs. It skips work that is finished, so that the
    same command resumes. The first failure stops the pipeline.

    \b
    [pipeline]    folder, registry
    [data]        source, train, test, set, ...: zoo data make
    [derive]      zoo data derive
    [tokenizers]  zoo tokenizer train --all
    [tokenize]    zoo tokenize
    [backbone]    preset, config, set, ...: zoo backbone train
    [eval]        zoo backbone eval, with these settings
    [report]      zoo report

    The file may also hold the tables of a registry, and the backbone's [model] and
    [train]. docs/pipelines.md has an example.

    \b
    Examples:
      zoo run pipeline.toml
      zoo run pipeline.toml --dry-run
    """
    commands = list(commands_of(file, context.find_root().command, asked_registry()))
    flags = [f"--{name}" for name in ("quiet", "verbose", "debug") if (context.find_root().obj or {}).get(name)]
    for words in commands:
        echo(shlex.join(["zoo", *words]), bold=True)
        if dry_run:
            continue
        sys.stdout.flush()
        process = subprocess.Popen([sys.executable, "-c", COMMAND, *flags, *words], env=os.environ | {NO_NEXT: "1"})
        try:
            code = process.wait()
        except KeyboardInterrupt as error:  # the command saves its work and prints how to resume
            if isinstance(error, Interrupted):  # Ctrl-C reaches it, too
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            sys.exit(code if code >= 0 else 128 - code)
        if code:
            resume_command = shlex.join(["zoo", "run", str(file)])
            echo(f"stopped: the command above failed with exit code {code}; {resume_command} resumes there", err=True)
            sys.exit(code if code > 0 else 1)


def commands_of(file: Path, zoo: click.Command, registry: Path | None) -> Iterator[list[str]]:
    """Yield the words of each command of a pipeline, without `zoo`.

    All tables are read first. Raises ConfigError for a table, key or value that no command takes.
    """
    tables, origin = load_toml(file), Origin(path=file)
    if PIPELINE not in tables:
        raise ConfigError(f"{file}: no table [{PIPELINE}], which pipelines have; zoo run --help explains it")
    reject_unknown(tables, (PIPELINE, *STEPS, *REGISTRY, *SETTINGS), origin)
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{origin.at(name)}: expected a table [{name}], got {table!r}")
    config = from_mapping(PipelineConfig, tables[PIPELINE], replace(origin, table=PIPELINE))
    registry_path = registry or config.registry or (file if any(name in tables for name in REGISTRY) else None)
    registry_option = [] if registry_path is None else ["--registry", str(registry_path)]
    yield [*registry_option, "list"]
    for step, template in STEPS.items():
        if step in tables:
            step_origin = replace(origin, table=step)
            options = _with_settings(step, tables, step_origin)
            words = [word.replace("FOLDER", config.folder.rstrip("/")) for word in template.split()]
            if step == "data":
                source = options.pop("source", None)
                if not isinstance(source, str):
                    location = step_origin.at("source")
                    raise ConfigError(f"{location}: expected the name of a source; zoo source list shows them")
                words[words.index("SOURCE")] = source
            command = _find_command(zoo, words)
            arguments = _option_words(command, options, step_origin, words)
            if isinstance(command, CheckedCommand):
                _check_settings(command, [*words, *arguments], registry_path, step_origin)
            yield [*registry_option, *words, *arguments]


def _with_settings(step: str, tables: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Return the options of a step, with --config for the backbone's settings: this file, or the file of [backbone].

    Raises ConfigError if settings of this file would not be read.
    """
    options = {} if step in SETTINGS else dict(tables[step])
    names_by_step = {"backbone": ("model", "train"), "eval": ("eval",)}
    table_names = [name for name in names_by_step.get(step, ()) if tables.get(name)]
    backbone_config = tables.get("backbone", {}).get("config")
    if table_names and "config" in options:
        unread = f"[{table_names[0]}] of this file would not be read"
        raise ConfigError(f"{origin.at('config')}: {unread}; remove one of them")
    if table_names or (step == "eval" and backbone_config is not None):
        options["config"] = str(origin.path) if table_names else backbone_config
    return options


def _find_command(zoo: click.Command, words: list[str]) -> click.Command:
    """Return the command that the first of these words call."""
    command = zoo
    for word in words:
        if not isinstance(command, click.Group):
            break
        subcommand = command.get_command(click.Context(command), word)
        if subcommand is None:
            raise ConfigError(f"zoo {' '.join(words[:2])}: no such command; install zoo-backbone")
        command = subcommand
    return command


def _option_words(command: click.Command, table: Mapping[str, Any], origin: Origin, words: list[str]) -> list[str]:
    """Return the keys of a table as options of a command, without those that `words` have.

    Raises ConfigError for an unknown key or a wrong value.
    """
    options = {
        max(option.opts, key=len).removeprefix("--").replace("-", "_"): option
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and not {*option.opts} & {*words}
    }
    reject_unknown(table, options, origin)
    arguments = list[str]()
    for key, value in table.items():
        option = options[key]
        name = max(option.opts, key=len)
        if option.is_flag:
            if not isinstance(value, bool):
                raise ConfigError(f"{origin.at(key)}: expected true or false, got {value!r}")
            arguments += [name] if value else []
            continue
        if isinstance(value, list | Mapping) and not option.multiple:
            raise ConfigError(f"{origin.at(key)}: expected one value, got {value!r}")
        if isinstance(value, Mapping):
            texts = [f"{inner}={_toml_text(item)}" for inner, item in value.items()]
        else:
            texts = [_toml_text(item) for item in (value if isinstance(value, list) else [value])]
        for text in texts:
            try:
                option.type.convert(text, option, None)
            except click.BadParameter as error:
                raise ConfigError(f"{origin.at(key)}: {error.message.rstrip('.')}") from None
            arguments += [name, text]
    return arguments


def _check_settings(command: CheckedCommand, words: list[str], registry: Path | str | None, origin: Origin) -> None:
    """Check the settings that a command would use. Raises ConfigError that names the step or the file."""
    options = {"registry": Path(registry)} if registry else {}
    with command.make_context(None, words[2:], obj=options, resilient_parsing=True) as context:  # no import of torch
        try:
            command.check(**context.params)
        except (ZooError, click.UsageError) as error:
            text = error.message if isinstance(error, click.UsageError) else str(error)
            names_file = text.startswith((str(origin.path), str(registry or "registry.toml")))
            raise ConfigError(text if names_file else f"{origin.path}: [{origin.table}] {text}") from None


def _toml_text(value: Any) -> str:
    """Return a TOML value as a word of the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_toml_text(item) if not isinstance(item, str) else repr(item) for item in value)}]"
    return str(value)
