"""The conformance kit: checks that a plugin keeps the contract, for `zoo check NAME`, `pytest --zoo-plugin NAME`, and
Python.

A plugin's author runs `pytest --zoo-plugin NAME`; every check is a test. Options: `--zoo-registry FILE` for other
settings, `--zoo-data FOLDER` to take sample values from value shards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from tokenizers_zoo.device import AUTO
from tokenizers_zoo.errors import OneLineError, ZooError

if TYPE_CHECKING:
    import pytest

    from tokenizers_zoo.registry import Zoo

__all__ = ["CheckResult", "check_modality", "conformance_results"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """Result of one check; `message` says what failed, or why the check does not apply."""

    name: str
    passed: bool
    message: str = ""
    skipped: bool = False


def conformance_results(zoo: Zoo, name: str, data_dir: Path | None = None, device: str = AUTO) -> Iterator[CheckResult]:
    """Run every check on a modality and yield the results.

    Sample values come from the value shards in `data_dir`, else the first source of the modality or its inputs, else
    the value spec. Without a tokenizer, a small temporary one is trained. The tokenizer on `device` is compared with
    the tokenizer on the CPU.
    """
    from tokenizers_zoo.pretrained import prefer_device
    from tokenizers_zoo.testing.checks import CHECKS
    from tokenizers_zoo.testing.subject import Skipped, Subject

    with tempfile.TemporaryDirectory(prefix="zoo-check-") as workdir:
        try:
            subject = Subject(zoo=zoo, name=name, workdir=Path(workdir), data_dir=data_dir, device=device)
        except ZooError as error:
            yield CheckResult(name="loads", passed=False, message=str(error))
            return
        for check_name, check in CHECKS.items():
            try:
                with prefer_device(device):
                    check(subject)
                yield CheckResult(name=check_name, passed=True)
            except Skipped as reason:
                yield CheckResult(name=check_name, passed=True, message=f"skipped: {reason}", skipped=True)
            except (AssertionError, ZooError) as error:
                yield CheckResult(name=check_name, passed=False, message=str(error))


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

    from tokenizers_zoo.registry import Zoo
    from tokenizers_zoo.testing.checks import CHECKS
    from tokenizers_zoo.testing.subject import Skipped, Subject

    class CheckItem(pytest.Item):
        """One check of one modality; all checks of a modality share its subject."""

        def __init__(self, *, check: Callable[[Subject], None], modality: str, **options: Any) -> None:
            super().__init__(**options)
            self.check, self.modality = check, modality

        def runtest(self) -> None:
            try:
                self.check(subject(self.modality))
            except Skipped as reason:
                pytest.skip(str(reason))

        def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
            if isinstance(excinfo.value, AssertionError | OneLineError):
                return f"{self.name}: {excinfo.value}"
            return super().repr_failure(excinfo, style)

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
        for title, check in CHECKS.items():
            node = f"zoo-plugin/{name}::{title}"
            items.append(
                CheckItem.from_parent(session, name=f"{name}: {title}", nodeid=node, check=check, modality=name)
            )
