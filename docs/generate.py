"""Write docs/commands.md (every command's help) and docs/hooks.md (the plugin contract) from the code itself.

python docs/generate.py          writes them
python docs/generate.py --check  exits 1 where they are out of date
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from tokenizers_zoo import hookspecs
from tokenizers_zoo.cli.main import zoo

HERE = Path(__file__).parent


def commands(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """Every command below `command` with its help text."""
    context = click.Context(command, info_name=path, max_content_width=100, terminal_width=100)
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, f"{path} {name}")


def commands_page() -> str:
    """The command reference."""
    parts = ["# Commands\n\nGenerated from the program by `make docs`.\n"]
    for path, text in commands(zoo, "zoo"):
        parts.append(f"## {path}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def hooks_page() -> str:
    """The contract, hook by hook."""
    parts = ["# The plugin contract\n\nGenerated from `tokenizers_zoo/hookspecs.py` by `make docs`.\n"]
    parts.append(inspect.getdoc(hookspecs) or "")
    for owner, required in (
        (hookspecs.ModalityHooks, hookspecs.REQUIRED),
        (hookspecs.SourceHooks, hookspecs.SOURCE_REQUIRED),
    ):
        parts.append(f"\n## {owner.__name__}\n\n{inspect.getdoc(owner)}\n")
        for name, function in vars(owner).items():
            if inspect.isfunction(function):
                signature = inspect.signature(function)
                arguments = ", ".join(parameter for parameter in signature.parameters if parameter != "self")
                kind = "required" if name in required else "optional"
                parts.append(f"### `{name}({arguments})` ({kind})\n\n{inspect.getdoc(function)}\n")
    return "\n".join(parts)


def main() -> None:
    """Write or check the pages."""
    stale = []
    for name, text in (("commands.md", commands_page()), ("hooks.md", hooks_page())):
        path = HERE / name
        if "--check" in sys.argv[1:]:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run make docs")


if __name__ == "__main__":
    main()
