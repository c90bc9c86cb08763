"""Counts of the samples that a command wrote, kept and dropped, and the modalities that it skipped."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers_zoo.data.manifest import Manifest, Split
from tokenizers_zoo.errors import DataError, ZooError

MOST_SKIPPED = 3
"""Skipped modalities that a short summary explains."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """Counts for one split and modality: samples written now, kept in shards that are up to date, and dropped."""

    split: str
    modality: str
    written: int = 0
    kept: int = 0
    dropped: int = 0
    first_dropped: str = ""
    """Reason and key of the first sample that was dropped."""

    def add(self, split: Split, shard: int, manifest: Manifest, *, kept: bool = False) -> None:
        """Count one shard."""
        self.kept += manifest.count if kept else 0
        self.written += 0 if kept else manifest.count
        self.dropped += len(manifest.dropped)
        if manifest.dropped and not self.first_dropped:
            row, reason = next(iter(manifest.dropped.items()))
            self.first_dropped = f"{reason} (sample {split.keys(shard)[row]})"

    @property
    def nothing(self) -> bool:
        """True if every sample was dropped."""
        return self.dropped > 0 and not self.written and not self.kept


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
        for one in self.outcomes:
            kept = f", {one.kept} unchanged" if one.kept else ""
            dropped = f", {one.dropped} dropped (first: {one.first_dropped})" if one.dropped else ""
            written = "to write" if self.planned else "written"
            lines.append(f"{one.split}/{one.modality}: {one.written} {written}{kept}{dropped}")
        if details or len(self.skipped) <= MOST_SKIPPED:
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
        if wholly := [one for one in self.outcomes if one.nothing]:
            first, *others = wholly
            more = ", ".join(f"{one.split}/{one.modality} ({one.dropped})" for one in others)
            raise DataError(
                f"{first.split}/{first.modality}: all {first.dropped} samples were dropped; the first: "
                f"{first.first_dropped}{more and f'; so were all of {more}'}"
            )
        return self
