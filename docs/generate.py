"""Write the generated pages: commands.md, hooks.md, settings.md, faults.md, a page per modality, a README per plugin,
and the tables of sizes.md.

python docs/generate.py          writes them
python docs/generate.py --check  exits 1 where they are out of date
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from modality_pages import modality_pages
from plugin_readmes import plugin_readmes
from settings_page import settings_page
from sizes_page import sizes_page

from tokenizers_zoo.cli.main import zoo
from tokenizers_zoo.contract import hookspecs

ROOT = Path(__file__).parent.parent
ERRORS = """\
Errors are one line on stderr. The exit code is 2 for wrong usage, 1 for other errors and failed gates, and 130 for an
interrupt (Ctrl-C). Progress and advice go to stderr, results to stdout.

The options of `zoo` may stand anywhere on the command line: `zoo backbone eval run --registry other.toml --quiet`.
`--json` prints facts as JSON. `--debug` shows the traceback of an error.
"""


FAULTS = """\
# Results of fault injection

Generated from `docs/results/faults.json`, the counts of `make test-faults` with seed {seed}: {tries:,} faults in a
pipeline of all commands that write. `make`, `derive`, `tokenize` and `run` have two workers. Faults come at random
moments and change random bytes.

| outcome | meaning |
|---|---|
| finished by the same command | run again, the command ends with the bytes of an undisturbed run |
| finished by itself | the same, without running it again: another worker takes over |
| refused | one line names the file or folder and what to do; nothing is written |
| refused, then finished | the same; run again after the fault, the command finishes |
| made again | the command replaces the damaged file, with the bytes of an undisturbed run |
| no difference | the command does not use the damaged bytes: its result is that of sound files |
| found by verify | the command does not use the damaged bytes, and `zoo data verify` names the file |
| told, and left out | a report names the damaged file and leaves it out |
| taken as another input | a user's picture, settings or published weights, which have no checksum |
| one is refused, one after the other | of two commands, the second is refused, or starts after the first |
| done, ended before, enough space, not there | the command does not meet the fault: it needs no lock, or has ended |

Not detected: a user's file whose content changes while its size and its time of change stay the same. `zoo data make`
keeps its old value, as `make` and `rsync` would.

"""


def faults_page() -> str:
    """Return the counts of faults and their outcomes."""
    faults = json.loads((ROOT / "docs/results/faults.json").read_text())
    rows = [f"| {row['fault']} | {row['tries']} | {_counts(row['outcomes'])} |" for row in faults["rows"]]
    text = FAULTS.format(seed=faults["seed"], tries=sum(row["tries"] for row in faults["rows"]))
    return "\n".join([f"{text}| fault | tries | outcomes |", "|---|---|---|", *rows, ""])


def _counts(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items(), key=lambda item: -item[1]))


def commands(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """Yield every command below `command` with its help text."""
    context = command.make_context(path, [], resilient_parsing=True, terminal_width=100, **zoo.context_settings)
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, f"{path} {name}")


def commands_page() -> str:
    """Return the command reference."""
    parts = ["# Commands\n\nGenerated from the program by `make docs`.\n", ERRORS]
    for path, text in commands(zoo, "zoo"):
        parts.append(f"## {path}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def hooks_page() -> str:
    """Return the contract, hook by hook."""
    parts = ["# The plugin contract\n\nGenerated from `tokenizers_zoo/contract/hookspecs.py` by `make docs`.\n"]
    parts.append(inspect.getdoc(hookspecs) or "")
    for owner, required in (
        (hookspecs.ModalityHooks, hookspecs.REQUIRED),
        (hookspecs.SourceHooks, hookspecs.SOURCE_REQUIRED),
    ):
        parts.append(f"\n## {owner.__name__}\n\n{inspect.getdoc(owner)}\n")
        for name, function in vars(owner).items():
            if inspect.isfunction(function) and not name.startswith("_"):
                signature = inspect.signature(function)
                arguments = ", ".join(parameter for parameter in signature.parameters if parameter != "self")
                kind = "required" if name in required else "optional"
                parts.append(f"### `{name}({arguments})` ({kind})\n\n{inspect.getdoc(function)}\n")
    return "\n".join(parts)


def main() -> None:
    """Write or check the pages; remove pages of removed modalities."""
    pages = {"commands.md": commands_page(), "hooks.md": hooks_page(), "settings.md": settings_page()}
    pages |= {"results/faults.md": faults_page(), "sizes.md": sizes_page()}
    pages = {f"docs/{name}": text for name, text in (pages | modality_pages()).items()} | plugin_readmes()
    gone = [path for path in (ROOT / "docs" / "modalities").glob("*.md") if f"docs/modalities/{path.name}" not in pages]
    if "--check" in sys.argv[1:]:
        stale = [name for name, text in pages.items() if not _says(ROOT / name, text)]
        stale += [f"docs/modalities/{path.name} (no such modality)" for path in gone]
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; run make docs")
        return
    (ROOT / "docs" / "modalities").mkdir(exist_ok=True)
    for path in gone:
        path.unlink()
    for name, text in pages.items():
        if not _says(ROOT / name, text):
            (ROOT / name).write_text(text, encoding="utf-8")


def _says(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    main()
