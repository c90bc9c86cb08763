"""Fixtures that any test may use: the installed zoo, and distributions that exist for one test only."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tokenizers_zoo import Zoo

# One thread per test process, because there are as many processes as cores; set before torch is imported.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # two processes of a test cannot share a GPU

LONGEST = ("test_export", "test_faults", "test_lethal_values", "test_commands", "test_serve", "test_hub_data")
"""Test files that start first, so that no process waits for them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def zoo() -> Zoo:
    """A zoo of all installed modalities, with default settings."""
    return Zoo.installed()


@pytest.fixture(autouse=True, scope="session")
def fast_machine() -> Iterator[None]:
    """Save the time that starting workers, writing to the disk and reading the metadata of packages takes.

    Workers are forked, files stay in the cache of the machine, and the metadata are read once per state of sys.path.
    A subprocess starts workers, writes and reads as usual.
    """
    from worker_server import CONTEXT

    from tokenizers_zoo.contract.plugins import installed_claims

    claims_at = functools.cache(lambda folders: installed_claims())

    def cached_claims() -> object:
        return claims_at(tuple((path, os.stat(path).st_mtime_ns) for path in sys.path if os.path.isdir(path)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenizers_zoo.build.workers.CONTEXT", CONTEXT)
        patch.setattr("tokenizers_zoo.contract.plugins.installed_claims", cached_claims)
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install a distribution for the duration of the test: metadata, entry points and modules in a folder on sys.path.

    `install("zoo-x", {"tokenizers_zoo": {"x": "zoo_x:plugin"}}, {"zoo_x": source})` returns the folder.
    """
    from small_modalities import write_metadata

    before = set(sys.modules)

    def add(
        name: str,
        entry_points: Mapping[str, Mapping[str, str]],
        modules: Mapping[str, str],
        version: str = "1.0",
    ) -> Path:
        folder = tmp_path / "site" / name
        write_metadata(folder, name, version, entry_points)
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))
        return folder

    yield add
    for module in set(sys.modules) - before:
        file = getattr(sys.modules[module], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.fixture
def run_zoo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `zoo WORDS` in this process; it returns exit code, output and error output."""
    from tokenizers_zoo.cli.main import main

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zoo", *words])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def install_example(install: Callable[..., Path]) -> Callable[..., Path]:
    """Install the example plugin under a name, parts of its source replaced: `install_example("x", {old: new})`."""
    from small_modalities import EXAMPLE, changed

    def add(name: str, changes: Mapping[str, str] | None = None, distribution: str | None = None) -> Path:
        source = changed(EXAMPLE, changes or {})
        distribution = distribution or f"zoo-{name}"
        module = distribution.replace("-", "_")
        return install(distribution, {"tokenizers_zoo": {name: f"{module}:plugin"}}, {module: source})

    return add


@pytest.fixture
def toy(install: Callable[..., Path], install_example: Callable[..., Path], tmp_path: Path) -> Callable[..., Zoo]:
    """Return a function that makes zoos of the toy modalities."""
    from toy_plugins import install_toy

    return install_toy(install, install_example, tmp_path)


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a background job, which tests of Ctrl-C would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
