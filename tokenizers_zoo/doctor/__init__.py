"""Is a modality fit to be learnt? Gates over its values, its tokenizer and its tokens, each with figures."""

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
"""Held-out samples that are examined."""


def examine(
    zoo: Zoo, name: str, data: Path, *, split: str = TEST, samples: int = SAMPLES, steps: int | None = None,
    tokens: Path | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """Every gate on the modality `name`, one finding after the other.

    Held-out values are up to `samples` of `split`. With `steps` a tokenizer is trained for so long and thrown away;
    without, the modality's own is taken, or one trained for 100 steps where it has none. `tokens` is a token store to
    compare with. Raises ZooError where the plugin does not load or the data lack the modality; what fails beyond that
    is a finding.
    """
    patient = Patient(zoo=zoo, handle=zoo[name], store=ValueStore.of(data, zoo), split=split, token_store=tokens)
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
    """The enabled modalities that a split holds and whose plugins do not load, sorted."""
    present = ValueStore.of(data, zoo).modalities(split)
    return sorted(name for name in zoo.problems() if name in zoo and name in present)


def examinable(zoo: Zoo, data: Path, split: str) -> list[str]:
    """The enabled modalities that a split holds, sorted. Raises DataError where there are none."""
    present = ValueStore.of(data, zoo).modalities(split)
    names = [handle.name for handle in zoo.handles() if handle.name in present]
    if not names:
        raise DataError(f"{data / split}: holds {', '.join(present)}, and no modality of it can be used")
    return names
