"""zoo completion, and the names of modalities and sources that shells complete, by click's own mechanism."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.machine.terminal import echo

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo

LINES = {
    "bash": 'eval "$(_ZOO_COMPLETE=bash_source zoo)"',
    "zsh": 'eval "$(_ZOO_COMPLETE=zsh_source zoo)"',
    "fish": "_ZOO_COMPLETE=fish_source zoo | source",
}
"""The line in the shell's settings, by shell."""


@click.command()
@click.argument("shell", type=click.Choice(list(LINES)))
def completion(shell: str) -> None:
    """Print the line that lets a shell complete words.

    Names are the modalities and sources that are installed and enabled here, and the presets of the backbone.

    \b
    Examples:
      zoo completion bash >> ~/.bashrc
      zoo completion zsh >> ~/.zshrc
      zoo completion fish >> ~/.config/fish/config.fish
    """
    echo(LINES[shell])


class ZooName(click.types.StringParamType):
    """A text that a shell completes to one of the zoo's names, also after a comma. Any text is accepted."""

    def __init__(self, names_of: Callable[[Zoo], Iterable[str]]) -> None:
        self.names_of = names_of

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that the last part of `incomplete` begins, without those before it."""
        from tokenizers_zoo.contract.registry import Zoo

        registry: Path = (ctx.find_root().obj or {}).get("registry") or Path("registry.toml")
        try:
            zoo = Zoo.from_toml(registry) if registry.is_file() else Zoo.installed()
        except ZooError:
            return []
        before, comma, last = incomplete.rpartition(",")
        previous_names = ctx.params.get(param.name or "") or ()
        used_names = {*before.split(","), *(previous_names if isinstance(previous_names, tuple | list) else ())}
        matches = (name for name in self.names_of(zoo) if name.startswith(last) and name not in used_names)
        return [CompletionItem(f"{before}{comma}{name}") for name in matches]


MODALITY = ZooName(lambda zoo: zoo.names())
SOURCE = ZooName(lambda zoo: zoo.source_names())


def complete_paths(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the paths of folders."""
    return [CompletionItem(incomplete, type="dir")]
