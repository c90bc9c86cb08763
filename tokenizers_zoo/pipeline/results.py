"""What became of the shards of one modality: written, kept, and the samples that failed, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenizers_zoo.data.tar import shown_key
from tokenizers_zoo.errors import DataError


@dataclass(kw_only=True, slots=True)
class Outcome:
    """Counts for one split and modality: samples written and failed now, and shards that were there already."""

    split: str
    modality: str
    written: int = 0
    failed: int = 0
    kept_shards: int = 0
    first_reason: str = ""

    def add(self, written: int, failures: Mapping[str, str]) -> None:
        """Count one shard."""
        self.written += written
        self.failed += len(failures)
        for key, reason in failures.items():
            self.first_reason = self.first_reason or f"{reason} (sample {shown_key(key)})"


@dataclass(kw_only=True, slots=True)
class RunResult:
    """The outcomes of a command, the modalities that it left out, each with the reason, and lines about its values."""

    outcomes: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return one line per split and modality."""
        lines = []
        for outcome in self.outcomes:
            kept = f", {outcome.kept_shards} shards were there" if outcome.kept_shards else ""
            failed = f", {outcome.failed} failed (first: {outcome.first_reason})" if outcome.failed else ""
            lines.append(f"{outcome.split}/{outcome.modality}: {outcome.written} written{kept}{failed}")
        lines += [f"{name}: skipped: {reason}" for name, reason in sorted(self.skipped.items())]
        return "\n".join([*lines, *self.notes]) or "nothing to do"

    def check(self) -> RunResult:
        """These results. Raises DataError if every sample of a modality failed: one by one they are dropped."""
        wholly = [one for one in self.outcomes if one.failed and not one.written and not one.kept_shards]
        if not wholly:
            return self
        first, *others = wholly
        problem = (
            f"{first.split}/{first.modality}: all {first.failed} samples failed; the first one: {first.first_reason}"
        )
        if others:
            problem += f"; so did all of {', '.join(f'{one.split}/{one.modality} ({one.failed})' for one in others)}"
        raise DataError(problem)
