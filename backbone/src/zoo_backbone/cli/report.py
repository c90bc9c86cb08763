"""zoo report and zoo compare: pages about backbones, and settings, losses and scores of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.inspect import write_modalities_page
from tokenizers_zoo.cli.options import (
    JSON,
    PATH,
    asked_registry,
    open_zoo,
    plain_table,
    show_facts,
    show_json,
    show_table,
)
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.io import disk_errors

if TYPE_CHECKING:
    from zoo_backbone.measure.evaluation import PairMetric

BARS = "▁▂▃▄▅▆▇█"
POINTS = 36
"""Characters of the loss curves in a line."""
RUNS = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("report")
@click.argument("run", type=PATH, required=False)
@click.option(
    "--out",
    type=PATH,
    help="Where to write the page and its pictures. "
    "Default: RUN/report/index.html, or report/index.html beside the tokenizers.",
)
def report(run: Path | None, out: Path | None) -> None:
    """Write an HTML page about a backbone, or about the whole zoo.

    Pages are self-contained. The page of a backbone includes its tokenizers and data, and for a grown run the losses
    before and after. The page of the zoo shows all modalities, and links to a page per tokenizer. This page compares
    the modality's checkpoints in neighbouring folders: samples, metrics, training curves and settings.

    \b
    Examples:
      zoo report runs/backbone
      zoo report
    """
    if run is None:
        write_modalities_page(out)
        return
    from zoo_backbone.measure.page import registry_of, write_report

    with disk_errors(out or run):
        page = write_report(open_zoo(asked_registry() or registry_of(run)), run, out)
    echo(f"report: {page.resolve().as_uri()}")


@click.command("compare")
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, type=RUNS)
@JSON
@click.option("--out", type=PATH, metavar="FILE", help="Also write an HTML page with loss charts.")
def compare(runs: tuple[Path, ...], as_json: bool, out: Path | None) -> None:
    """Compare settings, losses and scores of backbones.

    Skill scores (0 = best constant prediction, 1 = tokenizer reconstruction) and other
    metrics of a pair have 95 % bootstrap intervals over the held-out samples. + and -
    mark figures that are higher and lower than the first run's, where the interval of
    the difference excludes 0. Scores are those of zoo backbone eval.

    \b
    Examples:
      zoo compare runs/a runs/b
      zoo compare runs/a runs/b runs/c --out compare.html
    """
    from zoo_backbone.measure.compare import compare_runs, write_comparison

    if len(runs) < 2:
        raise click.UsageError("expected two runs or more")
    comparison = compare_runs(runs)
    if out is not None:
        with disk_errors(out):
            page = write_comparison(comparison, out)
    if as_json:
        show_json(comparison)
    else:
        show(comparison)
    if out is not None:
        echo(f"page: {page.resolve().as_uri()}", err=as_json)


def show(comparison: Mapping[str, Any]) -> None:
    """Print a comparison."""
    names = [run["name"] for run in comparison["runs"]]
    show_facts({run["name"]: run["path"] for run in comparison["runs"]})
    echo("\nsettings that differ" if comparison["settings"] else "\nno setting differs")
    if comparison["settings"]:
        table = plain_table("", *names)
        for key, values in comparison["settings"].items():
            table.add_row(key, *("-" if value is None else value for value in values))
        show_table(table)
    if comparison["losses"]:
        echo("\nheld-out loss in nats per token: curve and last value")
        table = plain_table("", *(column for name in names for column in (name, ">")))
        for loss, curves in comparison["losses"].items():
            all_values = [value for points in curves for _, value in points]
            cells = []
            for points in curves:
                values = [value for _, value in points]
                line = sparkline(values, min(all_values), max(all_values), POINTS // len(names))
                cells += [line, f"{values[-1]:.3f}" if values else "-"]
            table.add_row("all" if loss == "loss" else loss, *cells)
        show_table(table)
    for run in comparison["runs"]:
        if run["problem"]:
            echo(f"\n{run['name']} {run['problem']}", err=True)
    from zoo_backbone.measure.evaluation import PAIR_METRICS

    for name, rows in comparison["metrics"].items():
        metric = PAIR_METRICS[name]
        echo(f"\n{name}, with 95 % interval ({metric.meaning})")
        difference = [">difference"] if len(names) == 2 else []
        table = plain_table("inputs", "target", *(f">{run}" for run in names), *difference)
        for row in rows:
            cells = [figure_cell(metric, entry) for entry in row["runs"]]
            if difference:
                last = row["runs"][1]
                cells.append(figure_text(metric, last["difference"], last["difference_interval"], "+") if last else "-")
            table.add_row(" + ".join(row["inputs"]), row["target"], *cells)
        show_table(table)


def figure_cell(metric: PairMetric, entry: Mapping[str, Any] | None) -> str:
    """Return a figure with its interval, and a mark if it differs from the first run's."""
    if entry is None:
        return "-"
    low, high = entry["difference_interval"] or (0, 0)
    mark = " +" if low > 0 else " -" if high < 0 else ""
    return figure_text(metric, entry["value"], entry["interval"]) + mark


def figure_text(metric: PairMetric, value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    """Return `0.62 (0.55..0.68)`."""
    limits = "" if value is None or interval is None else f" ({'..'.join(map(metric.text, interval))})"
    return metric.text(value, sign) + limits


def sparkline(values: Sequence[float], low: float, high: float, points: int) -> str:
    """Return a curve as up to `points` characters, on a scale from `low` to `high`."""
    if len(values) > points:
        values = [values[point * (len(values) - 1) // max(1, points - 1)] for point in range(points)]
    return "".join(BARS[round((value - low) / ((high - low) or 1) * (len(BARS) - 1))] for value in values)
