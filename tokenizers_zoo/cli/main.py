"""The `zoo` command: its commands, its error handling, and sharing the processor's cores with other processes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from importlib.metadata import entry_points
from pathlib import Path

import click

from tokenizers_zoo import __version__
from tokenizers_zoo.cli.options import CommandContext, Group, global_options
from tokenizers_zoo.errors import OneLineError, is_of_the_machine, shortened
from tokenizers_zoo.machine.process import Interrupted
from tokenizers_zoo.machine.progress import NORMAL, set_verbosity
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.io import disk_problem

NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())  # its text is the help, which older clicks print
COMMANDS = {
    "list": "tokenizers_zoo.cli.inspect:list_modalities",
    "info": "tokenizers_zoo.cli.inspect:info",
    "check": "tokenizers_zoo.cli.inspect:check",
    "source": "tokenizers_zoo.cli.data:source",
    "data": "tokenizers_zoo.cli.data:data",
    "tokenizer": "tokenizers_zoo.cli.tokenizer:tokenizer",
    "vocabulary": "tokenizers_zoo.cli.vocabulary:vocabulary",
    "tokenize": "tokenizers_zoo.cli.tokens:tokenize_command",
    "encode": "tokenizers_zoo.cli.tokens:encode_command",
    "decode": "tokenizers_zoo.cli.tokens:decode_command",
    "report": "tokenizers_zoo.cli.inspect:report_command",
    "doctor": "tokenizers_zoo.cli.inspect:doctor_command",
    "new-plugin": "tokenizers_zoo.cli.new_plugin:new_plugin",
    "init": "tokenizers_zoo.cli.init:init",
    "run": "tokenizers_zoo.cli.pipeline:run",
    "env": "tokenizers_zoo.cli.environment:env",
    "completion": "tokenizers_zoo.cli.completion:completion",
}
RESUMES = "the same command goes on from {}"
STARTS_AGAIN = f"with --overwrite the same command starts again, without it {RESUMES}"
SAVED = "saved work, if there is any"
LOAD = Path("/proc/loadavg")
SPINS = "1000"
"""GOMP_SPINCOUNT of a process that shares the cores with others."""
LOOK_INTERVAL = 0.005
"""Seconds between two looks at the load, to ignore short jobs."""


class ZooGroup(Group):
    """Commands are imported when used; other distributions add commands by the entry-point group
    `tokenizers_zoo.commands`, where `report` of the backbone replaces the core's. All commands take the options of
    `zoo` itself, too."""

    def _targets(self) -> dict[str, str]:
        return COMMANDS | {point.name: point.value for point in entry_points(group="tokenizers_zoo.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._targets())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = self._targets().get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        add_global_options(command)
        return command


def add_global_options(command: click.Command) -> None:
    """Let a command and its subcommands take the options of `zoo`, without a line of help for each."""
    command.context_class = CommandContext
    options = global_options(hidden=True)
    if not {option.name for option in options} & {parameter.name for parameter in command.params}:
        command.params += options
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        add_global_options(inner)


@click.group(cls=ZooGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="zoo")
def zoo() -> None:
    """Tokenizers for every modality, and one any-to-any model over them all.

    \b
    The pipeline, one command per step:
      zoo list                                     list installed modalities
      zoo data make scenes data --train 4000 --test 400
      zoo data make folder data --set path=FILES   or: files of your own
      zoo data derive data                         compute modalities from others
      zoo tokenizer train --all --data data
      zoo tokenize data --out tokens               values to tokens
      zoo backbone train --tokens tokens --out run
      zoo backbone eval run                        skill scores, held-out pictures
      zoo backbone generate run --input rgb=photo.png --target depth --out made
      zoo report run                               one HTML page

    `zoo COMMAND --help` explains each command; `zoo completion SHELL` completes them.
    The options below may stand anywhere on the command line.
    """


zoo.params[:0] = global_options()


def main() -> None:
    """Run `zoo`. Errors are one line: exit code 2 for wrong usage, else 1. --debug shows the traceback."""
    avoid_spinning()
    sys.stdin, sys.stderr = sys.stdin or open(os.devnull), sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        _stop("error: standard output is closed; > /dev/null discards it", 1)
    set_verbosity(NORMAL)
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv[1:]
    if not debug:
        threading.excepthook = _report_thread_error
    try:
        zoo.main(prog_name="zoo", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__
        if not isinstance(cause, EOFError):  # an EOFError of a file, which click takes for a ^D
            advice = STARTS_AGAIN if "--overwrite" in sys.argv[1:] else RESUMES
            saved, number = getattr(cause, "saved", "") or SAVED, getattr(cause, "number", signal.SIGINT)
            _stop(f"interrupted; {advice.format(saved)}", 128 + number)
        else:
            _fail(cause, debug=debug)
    except NO_ARGUMENTS as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SystemExit:
        raise
    except click.UsageError as error:
        _stop(f"error: {_error_text(error)}", error.exit_code)
    except BaseException as error:  # torch has errors that are no Exception
        _fail(error, debug=debug)


def avoid_spinning() -> None:
    """Let waiting threads sleep instead of spin if other work keeps the cores busy.

    At the end of each parallel operation threads wait for the last one, by default spinning for milliseconds. With more
    threads than cores they then block the thread that they wait for. Two trainings on two cores then take many times as
    long as one after the other (bench/side_by_side.py). Alone, spinning is faster. The OpenMP library that torch brings
    on Linux reads the variable when torch is imported, so this comes before. OMP_WAIT_POLICY or GOMP_SPINCOUNT, if set,
    take precedence.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ) or not other_threads_run():
        return
    time.sleep(LOOK_INTERVAL)
    if other_threads_run():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def other_threads_run() -> bool:
    """True if another thread is running or waits for a core right now; False if unknown."""
    try:
        return int(LOAD.read_text().split()[3].partition("/")[0]) > 1
    except (OSError, IndexError, ValueError):
        return False


def _terminate(number: int, _: object) -> None:
    """End the command as Ctrl-C does, so that it saves its work and removes temporary files."""
    raise Interrupted(number)


def _report_thread_error(thread: threading.ExceptHookArgs) -> None:
    """Suppress a thread's traceback for a full disk: the main thread raises the same error."""
    if thread.exc_value and not disk_problem(thread.exc_value):
        echo("".join(traceback.format_exception(thread.exc_value)), err=True)


def _error_text(error: BaseException) -> str:
    """Return an error as one sentence for the user."""
    if isinstance(error, OneLineError):
        return str(error)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "zoo"
        message = error.format_message().rstrip(".")
        return f"{command}: {message[:1].lower()}{message[1:]}; {command} --help says what it takes"
    if isinstance(error, OSError) and error.strerror:
        path = f"{error.filename}: " if error.filename is not None else ""
        return f"{path}{disk_problem(error) or error.strerror}"
    if disk_error := disk_problem(error):
        return disk_error
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path has a NUL character, which no file's name has; correct the setting or the record that names it"
    from tokenizers_zoo.contract.plugins import call_error, error_text

    if is_of_the_machine(error):
        return str(call_error("the command", error))
    return f"unexpected {error_text(error)}: a damaged file, or a bug; zoo --debug shows where it comes from"


def _fail(error: BaseException, *, debug: bool) -> None:
    """Print an error as one line, or with its traceback, and exit."""
    if debug:
        echo("".join(traceback.format_exception(error)).rstrip(), err=True)
        sys.exit(1)
    _stop(f"error: {_error_text(error)}", 1)


def _stop(message: str, code: int) -> None:
    echo(shortened(" ".join(message.split())), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
