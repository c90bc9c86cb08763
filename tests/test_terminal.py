"""No text that a command prints can control the terminal: names, captions, reasons and paths are printed escaped."""

from __future__ import annotations

import ast
import dataclasses
import io
import os
import shutil

import pytest
from command_world import World, the_world
from rich.table import Table
from test_imports import files, packages

from tokenizers_zoo.machine.terminal import UNSAFE, console, echo, printable, show
from tokenizers_zoo.stores.manifest import ValueManifest, read_manifest, write_manifest

EVIL = "\x1b[31mX\x1b]0;t\x07\x9b2J\r\u202eX\u2028"
SHOWN = printable(EVIL)
PATH = "\x1b[31mX\x1b]0;t\x07\x9b2J\u202eX"
"""The same without spaces, as a part of a path on the command line of a test."""


def test_printable_has_no_character_that_a_terminal_obeys() -> None:
    left = set(printable("".join(map(chr, range(0x10000)))))
    assert left >= set("\n\t é\xa0") and not left & {chr(c) for c in (*range(9), *range(11, 32), *range(0x7F, 0xA0))}
    assert not left & {chr(c) for c in (*range(0x2028, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))}
    assert printable("é ∞ 猫 😀\n\t") == "é ∞ 猫 😀\n\t" and printable("\x1b\udce9") == r"\u001b\udce9"


def test_everything_printed_is_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    echo(EVIL, bold=True)
    echo(ValueError(EVIL), err=True)
    table = Table(EVIL)
    table.add_row(EVIL)
    show(table, 200)
    console().print(EVIL)
    out, err = capfd.readouterr()
    assert SHOWN in out and out.count(r"\u001b[31m") == 3 and err.count(r"\u001b[31m") == 2
    assert not UNSAFE.search(out + err)


def test_our_own_styles_reach_a_terminal() -> None:
    terminal = io.StringIO()
    screen = console(file=terminal, force_terminal=True, color_system="standard", highlight=False)
    screen.print("\x1b[1m", style="red")
    assert terminal.getvalue() == "\x1b[31m\\u001b[1m\x1b[0m\n"


@pytest.mark.parametrize("package", packages())
def test_only_one_file_prints(package: str) -> None:
    printing_calls = []
    for path in files(package):
        if path.parts[-2:] in (("machine", "terminal.py"), ("cli", "__init__.py")):
            continue  # the latter has a constant line for an interrupt before anything is imported
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (
                ast.unparse(node.func) in ("print", "Console", "rich.print", "click.echo", "click.secho", "pprint")
                or ast.unparse(node.func).endswith(("stdout.write", "stderr.write", "print_exc", "click.prompt"))
            ):
                printing_calls.append(
                    f"{path}:{node.lineno}: {ast.unparse(node.func)}; use tokenizers_zoo.machine.terminal"
                )
    assert not printing_calls, "\n".join(printing_calls)


@pytest.fixture(scope="module")
def hostile() -> World:
    """A world whose folders, records and captions hold escape sequences."""
    world = the_world().put_back()
    folder = world.folder
    for split in ("train", "test"):
        modality_folder = folder / "data" / split / "depth"
        manifest = read_manifest(modality_folder, 0, ValueManifest)
        assert manifest
        write_manifest(modality_folder, 0, dataclasses.replace(manifest, dropped={0: EVIL}))
    for name in ("data", "tokens", "run", "made", "files"):
        shutil.copytree(folder / name, folder / f"{name}{PATH}")
    (folder / f"caption{PATH}.txt").write_text(f"a {EVIL} ball", newline="")
    os.mkfifo(folder / f"fifo{PATH}.npy")
    (folder / f"depth{PATH}.npy").write_bytes(b"no array")
    (folder / f"{PATH}.toml").write_text(f'[zoo]\nmodalities = ["{EVIL.encode("unicode_escape").decode()}"]')
    (folder / f"good{PATH}.toml").write_bytes((folder / "registry.toml").read_bytes())
    return world


@pytest.mark.parametrize("words", [
    "list --registry EVIL.toml", "list --registry goodEVIL.toml", "list EVIL", "info EVIL", "infEVIL",
    "list --evilEVIL", "env", "vocabulary show", "run EVIL.toml", "init dataEVIL", "new-plugin EVIL",
    "data info data", "data info dataEVIL", "data verify data", "data verify dataEVIL", "data verify tokensEVIL",
    "data make folder newEVIL --set path=filesEVIL", "data make EVIL new", "data derive dataEVIL --modalities EVIL",
    "data derive dataEVIL --modalities rgb_patches", "tokenize dataEVIL --out tokensEVIL",
    "encode caption captionEVIL.txt", "encode caption captionEVIL.txt --out oneEVIL.json",
    "encode depth depthEVIL.npy", "encode depth fifoEVIL.npy", "--debug encode depth depthEVIL.npy",
    "decode caption oneEVIL.json", "decode caption oneEVIL.json --out backEVIL",
    "report runEVIL", "doctor runEVIL", "compare runEVIL run", "backbone eval runEVIL --target EVIL",
    "backbone generate runEVIL --input caption=captionEVIL.txt --target depth --out newmadeEVIL",
    "backbone generate run --input caption=dir/EVIL --target EVIL --out made2", "backbone export runEVIL bundleEVIL",
])  # fmt: skip
def test_commands_print_no_escape_sequence(words: str, hostile: World) -> None:
    result = hostile(words.replace("EVIL", PATH))
    assert result.code in (0, 1, 2) and "unexpected" not in result.complaint, result.complaint
    assert not UNSAFE.search(result.printed + result.complaint), repr(result.printed + result.complaint)


def test_reasons_of_dropped_samples_are_shown_escaped(hostile: World) -> None:
    assert printable(" ".join(EVIL.split())) in hostile("data info data").printed
