"""zoo report: the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenizers_zoo.cli.options import PATH, open_zoo
from tokenizers_zoo.data.tar import disk_errors

if TYPE_CHECKING:
    from pathlib import Path


@click.command("report")
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, help="Where to write the page. Default: RUN/report/index.html, pictures beside it.")
def report_command(run: Path, out: Path | None) -> None:
    """Write one HTML page about the backbone in RUN. It is self-contained, and shows all that the run stands on.

    \b
    Example:
      zoo report runs/backbone
    """
    from tokenizers_zoo.report import registry_of, write_report

    root = click.get_current_context().find_root().obj or {}
    with disk_errors(out or run):
        page = write_report(open_zoo(root.get("registry") or registry_of(run)), run, out)
    click.echo(f"report: {page.resolve().as_uri()}")
