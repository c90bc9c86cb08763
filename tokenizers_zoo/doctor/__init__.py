"""zoo doctor: gates over a modality's values, tokenizer and tokens, each with figures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.data.samples import TEST
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.doctor import gates
from tokenizers_zoo.doctor.patient import GATES, Failed, Finding, NotApplicable, Patient
from tokenizers_zoo.errors import DataError, ZooError

if TYPE_CHECKING:
    from tokenizers_zoo.registry import Zoo

__all__ = ["GATES", "Finding", "examinable", "examine", "gates", "unloadable"]

SAMPLES = 64
"""Default number of held-out samples."""


def examine(
    zoo: Zoo, name: str, data: Path, *, split: str = TEST, samples: int = SAMPLES, steps: int | None = None,
    tokens: Path | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """Run every gate on a modality and yield the findings.

    Reads up to `samples` values of `split`. With `steps` a temporary tokenizer is trained; otherwise the modality's own
    is used, or a temporary one of 100 steps if it has none. `tokens` is a token store to compare with. Raises ZooError
    if the plugin does not load or the data lack the modality; every other failure is a finding.
    """
    patient = Patient(zoo=zoo, handle=zoo[name], store=ValueStore(data), split=split, token_store=tokens)
    patient.read(samples)
    with tempfile.TemporaryDirectory(prefix="zoo-doctor-") as workdir:
        patient.encode(data, steps, Path(workdir))
        for gate_name, function in GATES.items():
            try:
                yield Finding(gate=gate_name, passed=True, figure=function(patient))
            except NotApplicable as reason:
                yield Finding(gate=gate_name, passed=True, figure=str(reason), skipped=True)
            except Failed as failure:
                yield Finding(gate=gate_name, passed=False, figure=failure.figure, advice=failure.advice)
            except ZooError as error:
                advice = f"`zoo check {name}` says more about the plugin"
                yield Finding(gate=gate_name, passed=False, figure=str(error), advice=advice)


def unloadable(zoo: Zoo, data: Path, split: str) -> list[str]:
    """Return the enabled modalities of a split whose plugins do not load, sorted."""
    present = ValueStore(data).modalities(split)
    return sorted(name for name in zoo.problems() if name in zoo and name in present)


def examinable(zoo: Zoo, data: Path, split: str) -> list[str]:
    """Return the enabled modalities of a split, sorted. Raises DataError if there are none."""
    present = ValueStore(data).modalities(split)
    names = [handle.name for handle in zoo.handles() if handle.name in present]
    if not names:
        raise DataError(f"{data / split}: holds {', '.join(present)}, and no modality of it can be used")
    return names
