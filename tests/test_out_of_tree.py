"""The tutorial, run as it stands: a plugin that is not in this repository goes the whole road, and comes out again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from page_shell import Shell, page_files, page_steps

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "writing-a-plugin.md"
NAME = "elevation"


def core_digest() -> str:
    """One digest over every file of the core and the backbone."""
    digest = hashlib.sha256()
    for package in ("tokenizers_zoo", "backbone"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_plugin_is_short() -> None:
    module = next(text for path, text in page_files(PAGE).items() if path.endswith(".py"))
    assert len(module.splitlines()) < 60


def test_the_road_with_a_plugin_from_outside(tmp_path: Path) -> None:
    before = core_digest()
    shell = Shell(tmp_path)
    assert NAME not in shell.run("zoo list")

    # A small model without the plugin, in a folder of its own, to be loaded again when it is there.
    def earlier(command: str) -> None:
        shell.run(command, within="old")

    old = tmp_path / "old"
    earlier("zoo data make scenes data --train 256 --test 64")
    earlier("zoo data derive data --only rgb_patches")
    earlier("zoo tokenizer train rgb_patches --data data")
    earlier("zoo tokenizer train depth --data data --steps 20")
    tokenize = "zoo tokenize data --out tokens --only rgb_patches,depth"
    earlier(tokenize)
    train = "zoo backbone train --tokens tokens --out run --preset nano --set steps=4 --set batch_size=8"
    earlier(train)
    old_model = (old / "run" / "model.safetensors").read_bytes()
    old_tokens = {path: path.read_bytes() for path in (old / "tokens").rglob("*.arrow")}
    assert old_tokens

    printed = {}
    for path, text in page_steps(PAGE):
        if path:
            assert (tmp_path / path).is_file(), "the page changes files that zoo new-plugin wrote"
            (tmp_path / path).write_text(text, encoding="utf-8")
        else:
            printed[text] = shell.run(text, *((0, 1) if text.startswith("zoo doctor") else ()))

    listed = next(text for command, text in printed.items() if command == "zoo list")
    assert NAME in listed
    checked = next(text for command, text in printed.items() if command.startswith("zoo check"))
    assert "problem" not in checked and checked.count("ok ") > 8
    examined = next(text for command, text in printed.items() if command.startswith("zoo doctor"))
    assert "trained for 50 steps" in examined and "edges lie on those of" in examined and "best constant" in examined
    made = sorted(path.name for path in (tmp_path / "made").rglob("*.npy"))
    assert made == [f"{NAME}.npy"] * 2
    evaluation = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert [pair["target"] for pair in evaluation["pairs"]] == [NAME]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert NAME in page and "zoo-elevation 0.1.0" in page

    # What was there before still loads, and is what it was.
    generated = "zoo backbone generate run --given rgb_patches --make depth --samples 2 --out made"
    earlier(generated)
    earlier(train)
    assert (old / "run" / "model.safetensors").read_bytes() == old_model
    earlier(tokenize)
    assert {path: path.read_bytes() for path in (old / "tokens").rglob("*.arrow")} == old_tokens

    # Without it all others go on, and what needs it says so.
    shell.run("pip uninstall --yes zoo-elevation")
    assert NAME not in shell.run("zoo list")
    earlier(f"{generated}_again")
    first, second = (sorted((old / name).rglob("*.npy")) for name in ("made", "made_again"))
    assert first and [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    refused = shell.run("zoo backbone generate run --given rgb_patches --make elevation --out no", 1)
    assert "elevation" in refused and len(refused.strip().splitlines()) == 1
    assert core_digest() == before, "a file of the core or the backbone was changed"


def test_no_file_of_the_core_knows_the_plugin() -> None:
    for package in ("tokenizers_zoo", "backbone"):
        for path in (ROOT / package).rglob("*.py"):
            assert NAME not in path.read_text(encoding="utf-8"), path
