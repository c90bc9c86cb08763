"""Checks of a modality, and their results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tokenizers_zoo.errors import ZooError


class Examined(Protocol):
    """A subject of checks, with its device."""

    device: str


AnySubject = TypeVar("AnySubject", bound=Examined)
Check = Callable[[AnySubject], str | None]
"""Returns its figures, if any, or raises Failed, Skipped, or the ZooError of a plugin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """Result of one check; `message` gives its figures, what failed, or why the check does not apply."""

    name: str
    passed: bool
    message: str = ""
    advice: str = ""
    skipped: bool = False


class Skipped(Exception):
    """The check does not apply; the text says why."""


class Failed(AssertionError):
    """The check failed; the text says what, and `advice` what to do."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


def expect(condition: bool, message: str, advice: str = "") -> None:
    """Raise Failed unless `condition`; works with python -O too."""
    if not condition:
        raise Failed(message, advice)


class Checks(dict[str, Check[AnySubject]], Generic[AnySubject]):
    """Checks of a class of subjects by name, in the order of their definitions."""

    def __init__(self, subject_class: Callable[..., AnySubject], advice: str = "") -> None:
        super().__init__()
        self.subject_class, self.advice = subject_class, advice

    def add(self, check: Check[AnySubject]) -> Check[AnySubject]:
        """Add a function under its name."""
        self[check.__name__] = check
        return check

    def result(self, name: str, subject: AnySubject) -> CheckResult:
        """Run one check."""
        from tokenizers_zoo.contract.pretrained import prefer_device

        try:
            with prefer_device(subject.device):
                return CheckResult(name=name, passed=True, message=self[name](subject) or "")
        except Skipped as reason:
            return CheckResult(name=name, passed=True, message=str(reason), skipped=True)
        except (AssertionError, ZooError) as error:
            return CheckResult(
                name=name, passed=False, message=str(error), advice=getattr(error, "advice", self.advice)
            )

    def examine(self, **fields: Any) -> Iterator[CheckResult]:
        """Run every check on a subject with these fields and yield the results."""
        with tempfile.TemporaryDirectory(prefix="zoo-check-") as workdir:
            try:
                subject = self.subject_class(workdir=Path(workdir), **fields)
            except ZooError as error:
                yield CheckResult(name="loads", passed=False, message=str(error), advice=self.advice)
                return
            yield from (self.result(name, subject) for name in self)
