"""The conformance checks as pytest items."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tokenizers_zoo.errors import OneLineError, ZooError
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.testing.checks import CHECKS
from tokenizers_zoo.testing.subject import Skipped, Subject


class CheckItem(pytest.Item):
    """One check of one modality; all checks of a modality share its subject."""

    def __init__(self, *, check: Callable[[Subject], None], subject: Callable[[], Subject], **options: Any) -> None:
        super().__init__(**options)
        self.check, self.subject = check, subject

    def runtest(self) -> None:
        try:
            self.check(self.subject())
        except Skipped as reason:
            pytest.skip(str(reason))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, AssertionError | OneLineError):
            return f"{self.name}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.nodeid


def conformance_items(session: pytest.Session, names: Sequence[str]) -> list[CheckItem]:
    """Return the checks of the modalities `names`. An unknown name or an invalid registry ends the run."""
    registry, data_dir = session.config.getoption("--zoo-registry"), session.config.getoption("--zoo-data")
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
        session.config.add_cleanup(folder.cleanup)
        return Subject(zoo=zoo, name=name, workdir=Path(folder.name), data_dir=Path(data_dir) if data_dir else None)

    return [
        CheckItem.from_parent(
            session, name=f"{name}: {check_name}", nodeid=f"zoo-plugin/{name}::{check_name}", check=check,
            subject=lambda name=name: subject(name),
        )
        for name in names
        for check_name, check in CHECKS.items()
    ]  # fmt: skip
