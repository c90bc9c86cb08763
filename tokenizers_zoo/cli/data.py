"""zoo source, zoo data: where values come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tokenizers_zoo.cli.options import (
    DATA,
    open_zoo,
    parse_assignments,
    plain_table,
    settings_option,
    show_table,
    split_names,
)
from tokenizers_zoo.cli.settings import settings_lines
from tokenizers_zoo.errors import UnknownNameError, count_of

if TYPE_CHECKING:
    from pathlib import Path

SHOWN_REASONS = 5
"""Reasons that are shown of each modality of which samples are not there."""


@click.group()
def source() -> None:
    """The installed sources of samples.

    \b
    Example:
      zoo source list
    """


@source.command("list")
def list_sources() -> None:
    """List the installed sources and what they give.

    \b
    Example:
      zoo source list
    """
    zoo = open_zoo()
    table = plain_table("name", "gives", "what", "licence", spaced=True)
    for name in zoo.source_names():
        spec = zoo.source(name).spec
        table.add_row(name, ", ".join(spec.modalities) or "what it finds", spec.summary, spec.licence)
    show_table(table)
    click.echo(click.style("zoo source info NAME shows the settings of one", dim=True))


@source.command("info")
@click.argument("name")
def source_info(name: str) -> None:
    """Show all that is known of one source, and each of its settings.

    \b
    Example:
      zoo source info scenes
    """
    zoo = open_zoo()
    if name not in zoo.source_names() and name in zoo:
        raise UnknownNameError(f"{name} is a modality, no source: zoo info {name}")
    handle = zoo.source(name)
    table = plain_table("", "")
    table.show_header = False
    table.add_row(name, handle.spec.summary)
    table.add_row("gives", ", ".join(handle.spec.modalities) or "what it finds")
    for modality, names in handle.spec.classes.items():
        table.add_row(f"{modality} classes", ", ".join(f"{number} {each}" for number, each in enumerate(names)))
    table.add_row("plugin", f"{name} of {handle.distribution}")
    table.add_row("licence", handle.spec.licence)
    show_table(table)
    config = handle.settings_in_use()
    click.echo(f"\nsettings, --set KEY=VALUE of zoo data make {name}" if config else "\nno settings")
    for line in settings_lines([("", config)] if config else [], explained=True):
        click.echo(line)


@click.group()
def data() -> None:
    """Make, derive and inspect values. They lie in DATA/<split>/<modality>/shard-00000.tar.

    \b
    Examples:
      zoo data make scenes data --train 4000 --test 400
      zoo data derive data
    """


@data.command()
@click.argument("source_name", metavar="SOURCE")
@DATA
@click.option("--train", type=click.IntRange(min=0), help="Training samples. Default: all that the source has; one "
              "without an end needs a number.")  # fmt: skip
@click.option("--test", type=click.IntRange(min=0), help="Held-out samples. Default: all that the source has; one "
              "without an end needs a number.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one per core.")
@settings_option("A setting of the source, such as image_size=128; zoo source info SOURCE lists them.")
def make(
    source_name: str, data_dir: Path, train: int | None, test: int | None, seed: int, workers: int | None,
    assignments: tuple[str, ...],
) -> None:  # fmt: skip
    """Write the samples of SOURCE to DATA. That is every enabled modality that it gives.

    Killed or run again, it goes on: what is there is not made again, and a modality installed since is added.

    \b
    Examples:
      zoo data make scenes data/scenes --train 4000 --test 400 --seed 0
      zoo data make folder data/mine --set path=/my/pictures
    """
    from tokenizers_zoo.pipeline.make import make_data

    result = make_data(
        open_zoo(), source_name, data_dir, train=train, test=test, seed=seed,
        options=parse_assignments(assignments), workers=workers,
    )  # fmt: skip
    click.echo(result.summary())
    click.echo(f"values in {data_dir}")


@data.command()
@DATA
@click.option(
    "--only",
    metavar="NAMES",
    help="Comma-separated modalities; networks that they lack are downloaded. Default: all that "
    "are absent and can be derived without a download.",
)
@click.option("--workers", type=click.IntRange(min=1),
              help="Processes. Default: one per core, or one where a network runs on a GPU.")  # fmt: skip
def derive(data_dir: Path, only: str | None, workers: int | None) -> None:
    """Compute the modalities that others in DATA give.

    \b
    Example:
      zoo data derive data/scenes
    """
    from tokenizers_zoo.pipeline.derive import derive_data

    click.echo(derive_data(open_zoo(), data_dir, modalities=split_names(only), workers=workers).summary())
    click.echo(f"values in {data_dir}")


@data.command("info")
@DATA
def data_info(data_dir: Path) -> None:
    """Count what data or tokens hold, and what was dropped.

    \b
    Examples:
      zoo data info data/scenes
      zoo data info runs/tokens
    """
    from tokenizers_zoo.pipeline.info import describe_data, describe_tokens, unfinished_tokens

    if tokens := describe_tokens(data_dir) if data_dir.is_dir() else []:
        table = plain_table("split", "modality", ">samples", ">tokens", ">MB", ">dropped", "vocabulary", "codec")
        for part in tokens:
            counts = str(part.samples), str(part.tokens), f"{part.bytes / 1e6:.1f}", str(len(part.dropped))
            table.add_row(part.split, part.modality, *counts, part.vocabulary, part.fingerprint[:12])
        show_table(table)
        for part in tokens:
            reasons = [f"{key}: {reason}" for key, reason in part.dropped.items()]
            _show_dropped(f"{part.split}/{part.modality}", reasons)
        for place, problem in unfinished_tokens(data_dir).items():
            click.echo(f"{place}: {problem}")
        return
    description = describe_data(open_zoo(), data_dir)
    table = plain_table("split", "modality", ">samples", ">MB", ">dropped", "made by")
    for row in description.rows:
        table.add_row(
            row.split, row.modality, str(row.samples), f"{row.bytes / 1e6:.1f}", str(row.dropped), row.made_by
        )
    show_table(table)
    for split, count in description.aligned.items():
        click.echo(f"{split}: {count_of(count, 'sample has', 'samples have')} every modality")
    for row in description.rows:
        _show_dropped(f"{row.split}/{row.modality}", row.reasons)


def _show_dropped(place: str, reasons: Sequence[str]) -> None:
    """The first of the reasons why samples of a modality are not there, and how many more there are."""
    for reason in reasons[:SHOWN_REASONS]:
        click.echo(f"dropped: {place}/{reason}")
    if len(reasons) > SHOWN_REASONS:
        click.echo(f"dropped: {place}: {len(reasons) - SHOWN_REASONS} more")
