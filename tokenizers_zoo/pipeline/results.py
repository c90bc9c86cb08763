"""What became of the shards of one modality: written, kept, and the samples that failed, with reasons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers_zoo.data.tar import TARS, shown_key
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.io import replacing_file

FAILED = ".failed.jsonl"


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
        """What was done, a line per split and modality."""
        lines = []
        for outcome in self.outcomes:
            kept = f", {outcome.kept_shards} shards were there" if outcome.kept_shards else ""
            failed = f", {outcome.failed} failed (first: {outcome.first_reason})" if outcome.failed else ""
            lines.append(f"{outcome.split}/{outcome.modality}: {outcome.written} written{kept}{failed}")
        lines += [f"{name}: skipped: {reason}" for name, reason in sorted(self.skipped.items())]
        return "\n".join([*lines, *self.notes]) or "nothing to do"

    def check(self) -> RunResult:
        """These results. Raises DataError where every sample of a modality failed: one by one they are dropped."""
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


def failures_path(shard: Path) -> Path:
    """Where the samples that a shard lacks are listed, beside the shard."""
    return shard.with_name(f"{shard.stem}{FAILED}")


def write_failures(shard: Path, failures: Mapping[str, str]) -> None:
    """List failed samples by key; no file where there are none."""
    path = failures_path(shard)
    if not failures:
        path.unlink(missing_ok=True)
        return
    lines = (json.dumps({"key": key, "reason": reason}, ensure_ascii=False) for key, reason in failures.items())
    with replacing_file(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_failures(shard: Path) -> dict[str, str]:
    """The failed samples of a shard, by key. Raises DataError where the list is damaged."""
    path = failures_path(shard)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON leaves other ends of lines, as U+2028, as they are
        return {line["key"]: line["reason"] for line in map(json.loads, filter(None, lines))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it") from None


def shards_in(folder: Path) -> set[Path]:
    """The shards of a folder; those that were not written, as every sample failed, by their lists of failures."""
    lists = folder.glob(f"[!.]*{FAILED}")
    return {*folder.glob(TARS), *(path.with_name(f"{path.name.removesuffix(FAILED)}.tar") for path in lists)}


def remove_shards(shards: Iterable[Path]) -> None:
    """Delete shards of ours, then their lists of failures: a kill in between leaves nothing that looks whole."""
    for shard in shards:
        shard.unlink(missing_ok=True)
        failures_path(shard).unlink(missing_ok=True)
