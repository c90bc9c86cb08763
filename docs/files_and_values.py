"""What becomes of files that users of a modality will meet: a section of its page, from what really happens."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.testing.probes import OTHER, Probe, outcome_of, probed_files, shortened

ALIKE = 0.6
"""Share of the words that two refusals have in common at their ends, from which on they are shown as one."""
GAP = "..."
PAUSES = ",;"
"""What stays at the end of a gap."""


def files_section(handle: ModalityHandle) -> tuple[str, list[tuple[str, str, str]]]:
    """The text of the section, and the rows of its table: kind of file, what is met, what happens."""
    try:
        files = probed_files(handle)
    except ZooError as error:
        sys.exit(str(error))
    others = shortened(handle, outcome_of(handle, OTHER).line)
    at_hand = "a value is what is declared above; any other is refused."
    if handle.spec.value.kind == "array":
        at_hand = (
            "another shape, type or range than is declared above is refused; what else the table says is checked of"
            " files only."
        )
    text = (
        f"Reads {', '.join(f'`.{end}`' for end in files.reads)}; writes `.{files.writes}`. Another kind of file is"
        f" refused: `{others}`. From Python, {at_hand}"
    )
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in files.probes):
        probes = [probe for other, probe in files.probes if other == kind]
        rows += [(kind, what, happens) for what, happens in merged(handle, probes)]
    return text, rows


def merged(handle: ModalityHandle, probes: Sequence[Probe]) -> list[tuple[str, str]]:
    """What is met and what happens, where the same happens on one row: what is read, then what is refused."""
    read: dict[str, list[str]] = {}
    refused: list[tuple[list[str], list[str]]] = []
    damaged: list[str] = []
    for probe in probes:
        outcome = outcome_of(handle, probe)
        if outcome.fault:
            sys.exit(f"{handle.name}: {probe.what}: {outcome.fault}")
        if outcome.read:
            read.setdefault(outcome.how, []).append(probe.what)
        elif probe.damaged:
            damaged.append(probe.what)
        else:
            add(refused, probe.what, shortened(handle, outcome.line).split(" "))
    rows = [("; ".join(whats), f"read: {how}" if how else "read") for how, whats in read.items()]
    rows += [("; ".join(whats), f"refused: `{' '.join(words)}`") for whats, words in refused]
    return rows + ([("; ".join(damaged), "refused")] if damaged else [])


def add(refused: list[tuple[list[str], list[str]]], what: str, words: list[str]) -> None:
    """Add a refusal to those that are there, to one that differs from it in a few words in the middle."""
    for place, (whats, others) in enumerate(refused):
        if (common := with_gap(others, words)) is not None:
            refused[place] = ([*whats, what], common)
            return
    refused.append(([what], words))


def with_gap(first: list[str], second: list[str]) -> list[str] | None:
    """What two lines have in common, with a gap where they differ; None where that is little."""
    if first == second:
        return first
    shorter = min(len(first), len(second))
    start = next((place for place in range(shorter) if first[place] != second[place]), shorter)
    end = next((place for place in range(shorter - start) if first[-1 - place] != second[-1 - place]), shorter - start)
    if start + end < ALIKE * max(len(first), len(second)):
        return None
    last, other = (words[len(words) - end - 1][-1:] for words in (first, second))
    return [*first[:start], GAP + (last if last == other and last in PAUSES else ""), *first[len(first) - end :]]
