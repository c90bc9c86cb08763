"""The `zoo` command: its groups, and what happens to errors."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click

from tokenizers_zoo import __version__
from tokenizers_zoo.errors import UnknownNameError, ZooError

COMMANDS = {
    "list": "tokenizers_zoo.cli.inspect:list_modalities",
    "info": "tokenizers_zoo.cli.inspect:info",
    "check": "tokenizers_zoo.cli.inspect:check",
    "source": "tokenizers_zoo.cli.data:source",
    "data": "tokenizers_zoo.cli.data:data",
    "tokenizer": "tokenizers_zoo.cli.tokenizer:tokenizer",
    "tokenize": "tokenizers_zoo.cli.tokens:tokenize_command",
    "encode": "tokenizers_zoo.cli.tokens:encode_command",
    "decode": "tokenizers_zoo.cli.tokens:decode_command",
    "report": "tokenizers_zoo.cli.report:report_command",
}


class ZooGroup(click.Group):
    """Commands imported when they are used; other distributions add theirs by the group `tokenizers_zoo.commands`."""

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
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self._targets():
            raise UnknownNameError.of("command", args[0], self._targets(), "(zoo --help lists them)")
        return super().resolve_command(ctx, args)


@click.group(cls=ZooGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--registry",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The registry.toml to use. Default: ./registry.toml, else all that is installed with default settings.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="zoo")
@click.pass_context
def zoo(ctx: click.Context, registry: Path | None, debug: bool) -> None:
    """Tokenizers for every modality, and one any-to-any model over them all.

    \b
    The road, a command each:
      zoo list                                     what is installed
      zoo data make scenes data/scenes             make data
      zoo data derive data/scenes                  compute what other modalities give
      zoo tokenizer train NAME --data data/scenes  train a tokenizer
      zoo tokenize data/scenes --out tokens        values to tokens
      zoo backbone train --tokens tokens --out run
      zoo backbone eval run                        gap closed, held-out pictures
      zoo report run                               one HTML page

    Every command says more with --help.
    """
    ctx.obj = {"registry": registry, "debug": debug}


def main() -> None:
    """Run `zoo`; an error meant for the user is one line and exit code 1, its traceback only with --debug."""
    debug = "--debug" in sys.argv[1:]
    try:
        zoo.main(standalone_mode=False)
    except click.exceptions.Abort:
        _stop("interrupted; the same command goes on where it stopped", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _stop("interrupted; the same command goes on where it stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ZooError as error:
        if debug:
            raise
        _stop(f"error: {' '.join(str(error).split())}", 1)
    except OSError as error:
        if debug:
            raise
        advice = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        _stop(f"error: {error.filename or ''}: {error.strerror or error}{advice}".replace("error: : ", "error: "), 1)


def _stop(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
