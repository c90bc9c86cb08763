"""The conformance checks as pytest items."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tokenizers_zoo.errors import OneLineError, ZooError
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.testing.checks import CHECKS
from tokenizers_zoo.testing.kit import Skipped
from tokenizers_zoo.testing.subject import Subject


class PluginChecks(pytest.Collector):
    """All checks of one modality; they share its sample values and its tokenizer."""

    zoo: Zoo

    @cached_property
    def subject(self) -> Subject:
        folder = tempfile.TemporaryDirectory(prefix="zoo-check-")
        self.config.add_cleanup(folder.cleanup)
        data_dir = self.config.getoption("--zoo-data")
        return Subject(
            zoo=self.zoo,
            name=self.name,
            workdir=Path(folder.name),
            data_dir=Path(data_dir) if data_dir else None,
        )

    def collect(self) -> Iterator[CheckItem]:
        for name, check in CHECKS.items():
            yield CheckItem.from_parent(self, name=name, check=check)


class CheckItem(pytest.Item):
    """One check of one modality."""

    def __init__(self, *, check: Callable[[Subject], None], **options: Any) -> None:
        super().__init__(**options)
        self.check = check

    def runtest(self) -> None:
        assert isinstance(self.parent, PluginChecks)
        try:
            self.check(self.parent.subject)
        except Skipped as reason:
            pytest.skip(str(reason))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, AssertionError | OneLineError):
            return f"{self.parent.name if self.parent else ''}: {self.name}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.nodeid


def conformance_items(session: pytest.Session, names: Sequence[str]) -> list[CheckItem]:
    """The checks of the modalities `names`. A name that is not enabled, or an unsound registry, ends the run."""
    registry = session.config.getoption("--zoo-registry")
    try:
        zoo = Zoo.from_toml(registry) if registry else Zoo.installed()
        for name in names:
            if name not in zoo:
                _ = zoo[name]
    except ZooError as error:
        raise pytest.UsageError(str(error)) from None
    items: list[CheckItem] = []
    for name in names:
        checks = PluginChecks.from_parent(session, name=name, nodeid=f"zoo-plugin/{name}")
        checks.zoo = zoo
        items.extend(checks.collect())
    return items
