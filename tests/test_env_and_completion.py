"""zoo env for bug reports, and what shells complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenizers_zoo import Zoo, __version__

Run = Callable[..., tuple[int, str, str]]
REGISTRY = '[zoo]\nmodalities = ["depth", "normal", "caption"]\n'


@pytest.fixture
def zoo(tmp_path: Path, run_zoo: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`zoo("env")` in a folder with a registry of three modalities."""
    (tmp_path / "registry.toml").write_text(REGISTRY)
    monkeypatch.chdir(tmp_path)
    return run_zoo


def test_env_names_versions_plugins_devices_and_registry(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report = json.loads(zoo("env", "--json")[1])
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["registry"] == str(Path("registry.toml").resolve())
    assert report["modalities"] == ["caption", "depth", "normal"]
    assert report["devices"][0] == "cpu" and report["libraries"].keys() >= {"torch", "click", "numpy", "Jinja2"}
    plugins = report["distributions"]
    assert plugins["tokenizers-zoo"] == {"version": __version__, "sources": ["folder"]}
    assert "depth" in plugins["zoo-geometry"]["modalities"] and "backbone" in plugins["zoo-backbone"]["commands"]
    code, printed, _ = zoo("env")
    assert code == 0 and max(map(len, printed.splitlines())) <= 80
    for part in ("zoo-geometry", "registry.toml", "torch ", "depth"):
        assert part in printed or part in "".join(printed.split()), part  # long paths are folded


def test_env_survives_broken_plugins_and_registries(zoo: Run, install: Callable[..., Path]) -> None:
    install("zoo-broken", {"tokenizers_zoo": {"broken": "zoo_broken:plugin"}}, {"zoo_broken": "raise SystemExit(3)"})
    install("zoo-twin", {"tokenizers_zoo": {"depth": "zoo_twin:plugin"}}, {"zoo_twin": "import no_such_module"})
    code, printed, _ = zoo("env", "--json")
    assert code == 0 and json.loads(printed)["distributions"]["zoo-broken"]["modalities"] == ["broken"]
    for text, part in (("[zoo", "not valid TOML"), ("[zoo]\nmodalities = ['deth']\n", "did you mean depth")):
        Path("registry.toml").write_text(text)
        code, printed, _ = zoo("env", "--json")
        assert code == 0 and part in json.loads(printed)["problem"]
        assert zoo("env")[0] == 0
    code, printed, _ = zoo("--registry", "gone.toml", "env", "--json")
    assert code == 0 and "gone.toml: no such file" in json.loads(printed)["problem"]


def test_env_survives_a_torch_that_does_not_import(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, printed, _ = zoo("env", "--json")
    assert code == 0 and "torch does not work here: " in json.loads(printed)["devices"][0]


COMPLETES = """import sys
sys.argv = ["zoo"]
from tokenizers_zoo.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


def completions(words: str) -> list[str]:
    """Return what a shell shows for the last of these words, and check that torch is not imported for it."""
    line = words.split(" ")
    variables = {"_ZOO_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(line) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETES], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    return [completion.partition(",")[2] for completion in done.stdout.splitlines() if completion]


def test_shells_complete_commands_options_and_names(zoo: Run) -> None:
    assert completions("zoo tok") == ["tokenizer", "tokenize"] and completions("zoo backbone tr") == ["train"]
    assert completions("zoo backbone eval run --tar") == ["--target"]
    assert completions("zoo tokenizer train depth ") == ["caption", "normal"]
    assert completions("zoo data derive data --modalities depth,") == ["depth,caption", "depth,normal"]
    assert completions("zoo backbone generate run --input norm") == ["normal"]
    assert completions("zoo data make sce") == ["scenes"]
    assert completions("zoo backbone train --preset xl") == ["xlarge"]
    assert completions("zoo backbone eval ru") == ["ru"]  # a folder, which the shell completes
    assert "data" in completions("zoo unknown d"), "no traceback"


def test_completion_reads_the_registry_of_the_command_line(zoo: Run) -> None:
    Path("few.toml").write_text('[zoo]\nmodalities = ["rgb"]\n')
    assert completions("zoo --registry few.toml info ") == ["rgb"]
    Path("registry.toml").write_text("[zoo")
    assert completions("zoo info ") == []
    Path("registry.toml").unlink()
    assert completions("zoo info ") == Zoo.installed().names()


def test_completion_prints_the_line_that_makes_the_shell_complete(zoo: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        code, printed, _ = zoo("completion", shell)
        assert code == 0 and f"_ZOO_COMPLETE={shell}_source zoo" in printed and len(printed.splitlines()) == 1
