"""Conformance check of files that users will meet: each is read as a sound value, or refused in a line that helps."""

from __future__ import annotations

from typing import Any

from tokenizers_zoo.errors import DataError, ZooError
from tokenizers_zoo.testing.kit import expect
from tokenizers_zoo.testing.probes import OTHER, ProbedFiles, outcome_of, probed_files
from tokenizers_zoo.testing.subject import Subject


def probes(subject: Subject) -> None:
    """Files that users will meet are read as values that can be encoded, or refused in one line that helps."""
    handle = subject.handle
    read: dict[str, Any] = {}
    for kind, probe in (*files_of(subject).probes, ("", OTHER)):
        outcome = outcome_of(handle, probe)
        name = f"{kind} {probe.what}".strip()
        expect(not outcome.fault, f"{name}: {outcome.fault}")
        if outcome.read:
            read[name] = outcome.value
    for name, value in read.items():
        try:
            subject.trained.encode([value])
        except ZooError as error:
            raise AssertionError(f"{name}: it is read, but not encoded: {error}") from None


def files_of(subject: Subject) -> ProbedFiles:
    """The probes of a modality, made from a sample value where there is no other way."""
    try:
        return probed_files(subject.handle)
    except DataError:
        values = subject.values
        return probed_files(subject.handle, next((value for value in values if len(value)), values[0]))
