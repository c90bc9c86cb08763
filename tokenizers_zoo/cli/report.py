"""zoo report: the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenizers_zoo.cli.options import PATH, asked_registry, open_zoo
from tokenizers_zoo.io import disk_errors

if TYPE_CHECKING:
    from pathlib import Path


@click.command("report")
@click.argument("run", type=PATH, required=False)
@click.option("--out", type=PATH, help="Where to write the page; its pictures lie beside it, too. "
              "Default: RUN/report/index.html, or report/index.html beside the tokenizers.")  # fmt: skip
def report_command(run: Path | None, out: Path | None) -> None:
    """Write an HTML page about a backbone, or about the whole zoo.

    Pages are self-contained. The page of a backbone includes its tokenizers and data. The page of the zoo links to a
    page for each tokenizer: held-out samples and metrics, compared with other checkpoints of the same modality in the
    folder of the tokenizers.

    \b
    Examples:
      zoo report runs/backbone
      zoo report
    """
    from tokenizers_zoo.report.run import registry_of, write_report
    from tokenizers_zoo.report.zoo import write_zoo_report

    if run is None:
        zoo = open_zoo(strict=False)
        with disk_errors(out or zoo.folder):
            page = write_zoo_report(zoo, out)
    else:
        with disk_errors(out or run):
            page = write_report(open_zoo(asked_registry() or registry_of(run)), run, out)
    click.echo(f"report: {page.resolve().as_uri()}")
