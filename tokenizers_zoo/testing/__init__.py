"""The conformance kit: checks that a plugin keeps the contract, for `zoo check NAME`, `pytest --zoo-plugin NAME`, and
Python.

A plugin's author runs `pytest --zoo-plugin NAME`; every check is a test. Options: `--zoo-registry FILE` for other
settings, `--zoo-data FOLDER` to take sample values from value shards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from tokenizers_zoo.errors import ZooError

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


def conformance_results(
    zoo: Zoo,
    name: str,
    data_dir: Path | None = None,
    *,
    samples: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Iterator[CheckResult]:
    """Run every check on a modality and yield the results.

    Sample values come from `samples` (`{modality: value}`), else the value shards in `data_dir`, else the first source
    of the modality or its inputs, else the value spec. Without a tokenizer, a small temporary one is trained.
    """
    from tokenizers_zoo.testing.checks import CHECKS
    from tokenizers_zoo.testing.subject import Skipped, Subject

    with tempfile.TemporaryDirectory(prefix="zoo-check-") as workdir:
        try:
            subject = Subject(zoo=zoo, name=name, workdir=Path(workdir), data_dir=data_dir, given=samples, seed=seed)
        except ZooError as error:
            yield CheckResult(name="loads", passed=False, message=str(error))
            return
        for check_name, check in CHECKS.items():
            passed, skipped, message = True, False, ""
            try:
                check(subject)
            except Skipped as reason:
                skipped, message = True, f"skipped: {reason}"
            except (AssertionError, ZooError) as error:
                passed, message = False, str(error)
            yield CheckResult(name=check_name, passed=passed, message=message, skipped=skipped)


def check_modality(zoo: Zoo, name: str, data_dir: Path | None = None, **options: Any) -> list[CheckResult]:
    """Return the list of `conformance_results`. Raises AssertionError naming the failed checks."""
    results = list(conformance_results(zoo, name, data_dir, **options))
    failed = [f"{result.name}: {result.message}" for result in results if not result.passed]
    if failed:
        raise AssertionError(f"{name} fails {len(failed)} of {len(results)} checks:\n" + "\n".join(failed))
    return results


# ---------------------------------------------------------------- the pytest plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the pytest plugin."""
    group = parser.getgroup("tokenizers-zoo")
    group.addoption(
        "--zoo-plugin", action="append", default=[], metavar="NAME", help="check this modality's plugin (repeatable)"
    )
    group.addoption("--zoo-registry", metavar="FILE", help="registry.toml for --zoo-plugin; default: no settings")
    group.addoption("--zoo-data", metavar="FOLDER", help="value shards to take sample values from")


@pluggy.HookimplMarker("pytest")(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks of every `--zoo-plugin` to the collected tests."""
    names: list[str] = config.getoption("--zoo-plugin")
    if names:
        from tokenizers_zoo.testing.items import conformance_items

        items.extend(conformance_items(session, names))
