"""Counts of the samples that a command wrote, kept and dropped, and the modalities that it skipped."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers_zoo.errors import DataError, ZooError
from tokenizers_zoo.stores.manifest import Manifest, Split

MAX_EXPLAINED = 3
"""Skipped modalities that a short summary explains."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """Counts for one split and modality: samples written now, kept in shards that are up to date, and dropped."""

    split: str
    modality: str
    written: int = 0
    unchanged: int = 0
    dropped: int = 0
    first_dropped: str = ""
    """Reason and key of the first sample that was dropped."""

    def add(self, split: Split, shard: int, manifest: Manifest, *, unchanged: bool = False) -> None:
        """Count one shard."""
        self.unchanged += manifest.count if unchanged else 0
        self.written += 0 if unchanged else manifest.count
        self.dropped += len(manifest.dropped)
        if manifest.dropped and not self.first_dropped:
            row, reason = next(iter(manifest.dropped.items()))
            self.first_dropped = f"{reason} (sample {split.keys(shard)[row]})"

    @property
    def all_dropped(self) -> bool:
        """True if every sample was dropped."""
        return self.dropped > 0 and not self.written and not self.unchanged


@dataclass(kw_only=True, slots=True)
class RunResult:
    """The outcomes of a command, the modalities that it left out, each with the reason, and lines about its values."""

    outcomes: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: list[ZooError] = field(default_factory=list)
    """Errors that ended the work on a modality; the others were worked on."""
    planned: bool = False
    """True for a plan: the outcomes count what would be written."""

    def summary(self, *, details: bool = True) -> str:
        """Return one line per split and modality; without `details` at most one line about many skipped modalities."""
        lines = []
        for outcome in self.outcomes:
            unchanged = f", {outcome.unchanged} unchanged" if outcome.unchanged else ""
            dropped = f", {outcome.dropped} dropped (first: {outcome.first_dropped})" if outcome.dropped else ""
            written = "to write" if self.planned else "written"
            lines.append(f"{outcome.split}/{outcome.modality}: {outcome.written} {written}{unchanged}{dropped}")
        if details or len(self.skipped) <= MAX_EXPLAINED:
            lines += [f"{name}: skipped: {reason}" for name, reason in sorted(self.skipped.items())]
        else:
            names = ", ".join(sorted(self.skipped))
            lines.append(f"{len(self.skipped)} modalities skipped: {names} (--verbose says why)")
        lines += self.notes
        return "\n".join(lines) or "nothing to do"

    def check(self) -> RunResult:
        """Return this result. Raises its `errors` as one, or DataError if every sample of a modality was dropped."""
        if self.errors:
            raise type(self.errors[0])("; ".join(map(str, self.errors)))
        if dropped_outcomes := [outcome for outcome in self.outcomes if outcome.all_dropped]:
            first, *remaining = dropped_outcomes
            rest = ", ".join(f"{outcome.split}/{outcome.modality} ({outcome.dropped})" for outcome in remaining)
            raise DataError(
                f"{first.split}/{first.modality}: all {first.dropped} samples were dropped; the first: "
                f"{first.first_dropped}{rest and f'; so were all of {rest}'}"
            )
        return self
