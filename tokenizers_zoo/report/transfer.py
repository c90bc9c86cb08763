"""The report's section on transfer: what the run's encoder is worth for tasks with labels, beside a constant answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers_zoo.checkpoint import read_table
from tokenizers_zoo.intervals import SPREAD, interval

PROBES = "transfer/*/metrics.json"
NEEDED = "task", "given", "head", "tuning", "seed", "labels", "metrics", "settings", "backbone"


def transfer_section(run: Path, weights: str) -> dict[str, Any] | None:
    """Probes in the run's folder that were trained on its `weights`, for the template; None where there are none.

    Those that differ in nothing but the seed are one row.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path in sorted(run.glob(PROBES)):
        found = read_table(path, *NEEDED)
        if found["backbone"]["weights_sha256"] == weights:
            groups.setdefault(_setting(found), []).append(found)
    if not groups:
        return None
    rows = sorted((_row(probes) for probes in groups.values()), key=lambda row: row["order"])
    seeds = max(len(probes) for probes in groups.values())
    return {"rows": rows, "seeds": seeds, "spread": f" {SPREAD}" if seeds > 1 else ""}


def _setting(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells rows apart: all but the seed."""
    settings = tuple(sorted((key, str(value)) for key, value in found["settings"].items()))
    return found["task"]["name"], tuple(found["given"]), found["head"], found["tuning"], settings


def _row(probes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row, by the main metric."""
    first = probes[0]
    main, labels = first["metrics"][0], first["labels"]
    used = labels["train"] + labels.get("validation", 0)
    arrow = "↑" if main["higher_is_better"] else "↓"
    return {
        "order": (first["task"]["name"], first["given"], used, first["tuning"], first["head"]),
        "task": first["task"]["name"],
        "given": " + ".join(first["given"]),
        "tuning": first["tuning"],
        "head": first["head"],
        "labels": f"{used:,}",
        "metric": f"{main['name']}{' in ' + main['unit'] if main['unit'] else ''} {arrow}",
        "score": _mean([probe["metrics"][0]["score"] for probe in probes]),
        "floor": _mean([probe["metrics"][0]["floor"] for probe in probes], spread=False),
        "seeds": len(probes),
    }


def _mean(numbers: Sequence[float | None], spread: bool = True) -> str:
    """The mean, with half of its 95 % interval where there are several; a dash where a number is missing."""
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return "-"
    mean, half = interval(known)
    return f"{mean:.3g} ± {half:.2g}" if spread and half is not None else f"{mean:.3g}"
