"""Comparison of runs: settings that differ, loss curves, and pair metrics with bootstrap intervals."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers_zoo.contract.intervals import percentiles
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.files.checkpoint import CONFIG
from tokenizers_zoo.files.run_folder import read_run
from tokenizers_zoo.records.io import as_record, read_table
from tokenizers_zoo.report.pages import chart_of, curve_of, flatten_table, write_page
from tokenizers_zoo.report.pictures import pictures_beside
from tokenizers_zoo.train.log import read_metrics
from zoo_backbone.measure.evaluation import FILE, FOLDER, PAIR_METRICS, Figure, Pair, PairScore, read_evaluation
from zoo_backbone.measure.page import LOSS, PACKAGE, held_out_prefix, registry_of
from zoo_backbone.model.run import BackboneRecord


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """The files of a run that a comparison reads."""

    path: Path
    settings: dict[str, str]
    lines: list[dict[str, Any]]
    """metrics.jsonl."""
    pairs: dict[Pair, PairScore]
    """Pairs of evaluation.json; empty if it belongs to other weights, or is missing."""
    error: str = ""
    """The reason why there are no pairs."""

    def losses(self) -> dict[str, list[tuple[int, float]]]:
        """Return the curves of the held-out losses: "loss" for all modalities, and each modality's, by name."""
        prefix = f"{held_out_prefix(self.lines)}/"
        keys = dict.fromkeys(key for line in self.lines for key in line if key.startswith(prefix))
        curves = {key.removeprefix(prefix): curve_of(self.lines, key) for key in keys}
        return {name: points for name, points in curves.items() if points}


def read_compared(path: Path) -> ComparedRun:
    """Read the files of a finished run. Raises CheckpointError if `path` is none."""
    registry_of(path)
    table = read_table(path / CONFIG)
    config = as_record(table, BackboneRecord, path / CONFIG)
    settings = {
        key: value for key, value in table.items() if key in ("architecture", "model", "train", "start", "lengthened")
    }
    settings["modalities"] = ", ".join(spec.name for spec in config.specs)
    settings["tokenizers"] = {name: fingerprint[:12] for name, fingerprint in config.fingerprints.items()}
    settings["tokens"] = run.places.get("tokens") if (run := read_run(path)) else None
    pairs, error, scores = {}, "", path / FOLDER / FILE
    if not scores.is_file():
        error = f"was not evaluated: zoo backbone eval {shlex.quote(str(path))}"
    else:
        evaluation = read_evaluation(scores)
        if evaluation.identity.weights != config.weights_sha256:
            error = f"was evaluated with other weights: zoo backbone eval {shlex.quote(str(path))} --overwrite"
        else:
            settings["eval"] = evaluation.identity.settings
            pairs = {score.pair: score for score in evaluation.pairs}
    return ComparedRun(path=path, settings=flatten_table(settings), lines=read_metrics(path), pairs=pairs, error=error)


def compare_runs(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the comparison of runs as JSON types.

    runs      [{"name", "path", "problem"}]
    settings  {key: [text or null per run]} for settings that differ
    losses    {"loss" or modality: [[[step, nats per token]] per run]}: held-out losses
    metrics   {name of a pair metric: [{"inputs", "target", "runs": [null, or {"value", "interval", "samples",
              "difference", "difference_interval"}]}]}: 95 % bootstrap intervals over held-out samples; differences
              from the first run

    Raises CheckpointError if a path is not a finished run.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("zoo compare: the same run twice; expected different ones")
    runs = [read_compared(path) for path in paths]
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    settings = {key: [run.settings.get(key) for run in runs] for key in keys}
    curves = [run.losses() for run in runs]
    loss_names = sorted({name for run in curves for name in run}, key=lambda name: (name != "loss", name))
    pairs = dict.fromkeys(pair for run in runs for pair in run.pairs)
    return {
        "runs": [
            {"name": name, "path": str(run.path), "problem": run.error}
            for name, run in zip(short_names(paths), runs, strict=True)
        ],
        "settings": {key: values for key, values in settings.items() if len(set(values)) > 1},
        "losses": {name: [run.get(name, []) for run in curves] for name in loss_names},
        "metrics": {
            name: [
                {
                    "inputs": list(pair[0]),
                    "target": pair[1],
                    "runs": _entries(name, [run.pairs.get(pair) for run in runs]),
                }
                for pair in pairs
            ]
            for name in PAIR_METRICS
            if any(name in score.figures for run in runs for score in run.pairs.values())
        },
    }


def _entries(metric: str, scores: Sequence[PairScore | None]) -> list[dict[str, Any] | None]:
    """Return the value of a pair metric in each run, with its difference from the first run."""
    figures = [None if score is None else score.figures.get(metric) for score in scores]
    entries: list[dict[str, Any] | None] = []
    for score, figure in zip(scores, figures, strict=True):
        if score is None or figure is None:
            entries.append(None)
            continue
        difference, interval = (None, None) if figure is figures[0] else _difference(figure, figures[0])
        entries.append(
            {
                "value": figure.value,
                "interval": percentiles(figure.resampled),
                "samples": score.samples,
                "difference": difference,
                "difference_interval": interval,
            }
        )
    return entries


def _difference(figure: Figure, first: Figure | None) -> tuple[float | None, tuple[float, float] | None]:
    """Return the difference from the first run's figure, with its interval if both have the same resamples."""
    if first is None or figure.value is None or first.value is None:
        return None, None
    interval = None
    if len(figure.resampled) == len(first.resampled):
        resamples = zip(figure.resampled, first.resampled, strict=True)
        interval = percentiles(None if old is None or new is None else new - old for new, old in resamples)
    return figure.value - first.value, interval


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the parts of paths that differ: `demo`, `long` for runs/demo/backbone, runs/long/backbone."""
    parts = [path.resolve().parts for path in paths]
    start = _common_prefix_length(parts)
    end = _common_prefix_length([part[start:][::-1] for part in parts])
    names = ["/".join(part[start : len(part) - end]) for part in parts]
    return names if all(names) else list(map(str, paths))  # one folder may be in another


def _common_prefix_length(parts: Sequence[Sequence[str]]) -> int:
    """Return the number of leading items that are equal in all sequences."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*parts, strict=False)))


def write_comparison(comparison: Mapping[str, Any], page: Path) -> Path:
    """Write the comparison as an HTML page with pictures beside it.

    Raises ConfigError if `page` is a folder, and FolderError while another process writes pictures there.
    """
    names = [run["name"] for run in comparison["runs"]]
    charts = []
    with pictures_beside(page) as pictures:
        for loss, run_curves in comparison["losses"].items():
            title = "Held-out loss" if loss == "loss" else f"Held-out loss of {loss}"
            charts += chart_of(pictures, f"compare-{loss}", title, LOSS, dict(zip(names, run_curves, strict=True)))
        content = {**comparison, "names": names, "curves": charts, "pair_metrics": PAIR_METRICS}
        write_page(page, "compare.html.j2", content, PACKAGE)
    return page
