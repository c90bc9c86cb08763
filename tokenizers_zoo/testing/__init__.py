"""The conformance kit: checks that a plugin keeps the contract, for `zoo check NAME`, `pytest --zoo-plugin NAME`, and
Python.

A plugin's author runs `pytest --zoo-plugin NAME`; every check is a test. Options: `--zoo-registry FILE` for other
settings, `--zoo-data FOLDER` to take sample values from value shards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from tokenizers_zoo.errors import OneLineError, ZooError
from tokenizers_zoo.machine.device import AUTO
from tokenizers_zoo.testing.results import CheckResult

if TYPE_CHECKING:
    import pytest

    from tokenizers_zoo.contract.registry import Zoo

__all__ = ["CheckResult", "check_modality", "conformance_results"]


def conformance_results(zoo: Zoo, name: str, data_dir: Path | None = None, device: str = AUTO) -> Iterator[CheckResult]:
    """Run every check on a modality and yield the results.

    Sample values come from the value shards in `data_dir`, else the first source of the modality or its inputs, else
    the value spec. Without a tokenizer, a small temporary one is trained. The tokenizer on `device` is compared with
    the tokenizer on the CPU.
    """
    from tokenizers_zoo.testing.checks import CHECKS

    return CHECKS.examine(zoo=zoo, name=name, data_dir=data_dir, device=device)


def check_modality(zoo: Zoo, name: str, data_dir: Path | None = None) -> list[CheckResult]:
    """Return the list of `conformance_results`. Raises AssertionError naming the failed checks."""
    results = list(conformance_results(zoo, name, data_dir))
    failed = [f"{result.name}: {result.message}" for result in results if not result.passed]
    if failed:
        raise AssertionError(f"{name} fails {len(failed)} of {len(results)} checks:\n" + "\n".join(failed))
    return results


# ---------------------------------------------------------------- the pytest plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tokenizers-zoo")
    group.addoption(
        "--zoo-plugin", action="append", default=[], metavar="NAME", help="check this modality's plugin (repeatable)"
    )
    group.addoption("--zoo-registry", metavar="FILE", help="registry.toml for --zoo-plugin; default: no settings")
    group.addoption("--zoo-data", metavar="FOLDER", help="value shards to take sample values from")


@pluggy.HookimplMarker("pytest")(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks of every `--zoo-plugin` to the tests. An unknown name or an invalid registry ends the run."""
    names: list[str] = config.getoption("--zoo-plugin")
    if not names:
        return
    import pytest

    from tokenizers_zoo.contract.registry import Zoo
    from tokenizers_zoo.testing.checks import CHECKS
    from tokenizers_zoo.testing.subject import Subject

    class CheckItem(pytest.Item):
        """One check of one modality; all checks of a modality share its subject."""

        def __init__(self, *, check: str, modality: str, **options: Any) -> None:
            super().__init__(**options)
            self.check, self.modality = check, modality

        def runtest(self) -> None:
            try:
                result = CHECKS.result(self.check, subject(self.modality))
            except OneLineError as error:  # the plugin does not load, or is out of memory
                result = CheckResult(name=self.check, passed=False, message=str(error))
            if result.skipped:
                pytest.skip(result.message)
            if not result.passed:
                pytest.fail(f"{self.name}: {result.message}", pytrace=False)

        def reportinfo(self) -> tuple[Path, None, str]:
            return self.path, None, self.nodeid

    registry, data = config.getoption("--zoo-registry"), config.getoption("--zoo-data")
    try:
        zoo = Zoo.from_toml(registry) if registry else Zoo.installed()
        for name in names:
            if name not in zoo:
                _ = zoo[name]
    except ZooError as error:
        raise pytest.UsageError(str(error)) from None

    @cache
    def subject(name: str) -> Subject:
        folder = tempfile.TemporaryDirectory(prefix="zoo-check-")
        config.add_cleanup(folder.cleanup)
        return Subject(zoo=zoo, name=name, workdir=Path(folder.name), data_dir=Path(data) if data else None)

    for name in names:
        for check in CHECKS:
            node = f"zoo-plugin/{name}::{check}"
            items.append(
                CheckItem.from_parent(session, name=f"{name}: {check}", nodeid=node, check=check, modality=name)
            )
