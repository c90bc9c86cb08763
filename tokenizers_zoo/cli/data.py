"""zoo source, zoo data: where values come from."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.completion import SOURCE
from tokenizers_zoo.cli.options import (
    DATA,
    DEVICE,
    DRY_RUN,
    FOLLOW_LINKS,
    JSON,
    WORKERS,
    CheckedCommand,
    Group,
    command_line,
    names_option,
    next_command,
    note,
    open_zoo,
    parse_assignments,
    plain_table,
    settings_lines,
    settings_option,
    show_facts,
    show_json,
    show_result,
    show_table,
)
from tokenizers_zoo.errors import DataError, and_others, count_of
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.typed import as_dicts

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import SourceHandle

COUNT = click.IntRange(min=0, max=1_000_000_000)


@click.group(cls=Group)
def source() -> None:
    """The installed sources of samples.

    \b
    Example:
      zoo source list
    """


@source.command("list")
@JSON
def list_sources(as_json: bool) -> None:
    """List the installed sources and their modalities.

    \b
    Example:
      zoo source list
    """
    zoo = open_zoo()
    if as_json:
        show_json({"sources": [facts_as_json(zoo.source(name)) for name in zoo.source_names()]})
        return
    table = plain_table("name", "gives", "what", "licence", spaced=True)
    for name in zoo.source_names():
        spec = zoo.source(name).spec
        table.add_row(name, ", ".join(spec.modalities) or "what it finds", spec.summary, spec.licence)
    show_table(table, wraps=True)
    note("zoo source info NAME shows the settings of one")


def facts_as_json(handle: SourceHandle) -> dict[str, Any]:
    """Return a source as JSON types."""
    spec = handle.spec
    return {
        "name": handle.name,
        "summary": spec.summary,
        "modalities": list(spec.modalities),
        "licence": spec.licence,
        "distribution": handle.distribution,
        "classes": {name: list(classes) for name, classes in spec.classes.items()},
    }


@source.command("info")
@click.argument("name", type=SOURCE)
@JSON
def source_info(name: str, as_json: bool) -> None:
    """Show one source and its settings.

    \b
    Example:
      zoo source info scenes
    """
    handle = open_zoo().source(name)
    config = handle.settings_in_use()
    if as_json:
        show_json(facts_as_json(handle) | {"settings": as_dicts(config) if config else {}})
        return
    classes = {
        f"{modality} classes": ", ".join(f"{number} {class_name}" for number, class_name in enumerate(names))
        for modality, names in handle.spec.classes.items()
    }
    gives = ", ".join(handle.spec.modalities) or "what it finds"
    plugin = {"plugin": f"{name} of {handle.distribution}", "licence": handle.spec.licence}
    show_facts({name: handle.spec.summary, "gives": gives, **classes, **plugin})
    echo(f"\nsettings, --set KEY=VALUE of zoo data make {name}" if config else "\nno settings")
    for line in settings_lines([("", config)] if config else []):
        echo(line)


@click.group(cls=Group)
def data() -> None:
    """Make, derive, inspect, verify and repair values.

    They are in DATA/<split>/<modality>/shard-00000.tar.

    \b
    Examples:
      zoo data make scenes data --train 4000 --test 400
      zoo data derive data
      zoo data verify data
    """


def _check_source(*, source_name: str, assignments: tuple[str, ...], follow_links: bool, **other_options: Any) -> None:
    """Raise ZooError for an unknown source, or for settings that it does not take."""
    open_zoo(strict=False).source(source_name).settings_with(_options(assignments, follow_links))


def _options(assignments: tuple[str, ...], follow_links: bool) -> dict[str, Any]:
    return parse_assignments(assignments) | ({"follow_links": True} if follow_links else {})


@data.command(cls=CheckedCommand, check=_check_source)
@click.argument("source_name", metavar="SOURCE", type=SOURCE)
@DATA
@click.option(
    "--train", type=COUNT, help="Training samples. Default: all that the source has; one without an end needs a number."
)
@click.option(
    "--test", type=COUNT, help="Held-out samples. Default: all that the source has; one without an end needs a number."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=0), help=f"{WORKERS} Default: one per core.")
@FOLLOW_LINKS
@DRY_RUN
@settings_option("A setting of the source, such as image_size=128; zoo source info SOURCE lists them.")
def make(
    source_name: str,
    data_dir: Path,
    train: int | None,
    test: int | None,
    seed: int,
    workers: int | None,
    follow_links: bool,
    dry_run: bool,
    assignments: tuple[str, ...],
) -> None:
    """Write the samples of SOURCE to DATA.

    It writes every enabled modality of the source. Run again, also after a kill, it resumes: it skips finished shards
    and adds modalities that are new.
    Files and tar files of your own are imported once by the source "folder".

    \b
    Examples:
      zoo data make scenes data/scenes --train 4000 --test 400 --seed 0
      zoo data make folder data/mine --set path=/my/pictures
    """
    from tokenizers_zoo.build.make import make_data

    result = make_data(
        open_zoo(),
        source_name,
        data_dir,
        train=train,
        test=test,
        seed=seed,
        options=_options(assignments, follow_links),
        workers=workers,
        dry_run=dry_run,
    )
    show_result(result)
    if not dry_run:
        echo(f"values in {data_dir}")
        next_command("data", "derive", data_dir)


@data.command()
@DATA
@names_option(
    "--modalities",
    help="Modalities to derive; networks that they lack are downloaded. Default: all that are absent and can be "
    "derived without a download.",
)
@click.option(
    "--workers", type=click.IntRange(min=0), help=f"{WORKERS} Default: one per core; one with a network on a GPU."
)
@DEVICE
@DRY_RUN
def derive(data_dir: Path, modalities: list[str] | None, workers: int | None, device: str, dry_run: bool) -> None:
    """Compute modalities from others in DATA.

    Run again, it makes only the shards whose inputs, settings or plugin have changed.

    \b
    Example:
      zoo data derive data/scenes
    """
    from tokenizers_zoo.build.derive import derive_data

    show_result(
        derive_data(open_zoo(), data_dir, modalities=modalities, workers=workers, device=device, dry_run=dry_run)
    )
    if not dry_run:
        echo(f"values in {data_dir}")
        next_command("tokenizer", "train", "--all", "--data", data_dir)


@data.command("info")
@DATA
@JSON
def data_info(data_dir: Path, as_json: bool) -> None:
    """Count samples of values or tokens, and dropped samples.

    \b
    Examples:
      zoo data info data/scenes
      zoo data info runs/tokens
    """
    from tokenizers_zoo.build.stores import describe_data

    description = describe_data(data_dir)
    if as_json:
        show_json(dataclasses.asdict(description))
        return
    columns = (">tokens", "vocabulary", "tokenizer") if description.tokens else ("made by",)
    table = plain_table("split", "modality", ">samples", ">MB", ">dropped", *columns)
    for row in description.rows:
        cells = (str(row.tokens), row.vocabulary, row.fingerprint[:12]) if description.tokens else (row.made_by,)
        table.add_row(row.split, row.modality, str(row.samples), f"{row.bytes / 1e6:.1f}", str(row.dropped), *cells)
    show_table(table)
    for split, count in description.aligned.items():
        echo(f"{split}: {count_of(count, 'sample has', 'samples have')} every modality")
    for row in description.rows:
        folder = f"{row.split}/{row.modality}"
        if row.missing:
            echo(f"{folder}: {count_of(row.missing, 'shard')} missing or out of date; run what made it again")
        for reason in row.reasons:
            echo(f"dropped: {folder}/{' '.join(reason.split())}")
        if row.dropped > len(row.reasons):
            echo(f"dropped: {folder}: {row.dropped - len(row.reasons)} more")


@data.command("verify")
@DATA
@JSON
def verify(data_dir: Path, as_json: bool) -> None:
    """Compare all files with their manifests.

    DATA is a folder of values or of tokens. Every file is read.

    \b
    Example:
      zoo data verify data/scenes
    """
    from tokenizers_zoo.build.stores import verify_store

    reasons: dict[str, str] = {}
    for damage in verify_store(data_dir):
        if not as_json:
            echo(f"{damage.path}: {damage.reason}")
        reasons[str(damage.path)] = damage.reason
    if as_json:
        show_json({"sound": not reasons, "damaged": reasons})
        sys.exit(1 if reasons else 0)
    if reasons:
        repairs = command_line("data", "repair", data_dir)
        raise DataError(f"{next(iter(reasons))}{and_others(len(reasons) - 1)}: damaged; `{repairs}` makes it again")
    echo(f"{data_dir}: all files agree with their manifests")


@data.command("repair")
@DATA
@click.option("--workers", type=click.IntRange(min=0), help=f"{WORKERS} Default: one per core.")
@DEVICE
def repair(data_dir: Path, workers: int | None, device: str) -> None:
    """Make damaged shards again.

    `zoo data verify` lists them. Tokens are encoded again from the values that they were made of.
    What cannot be made again stays as it is.

    \b
    Example:
      zoo data repair data/scenes
    """
    from tokenizers_zoo.build.stores import repair_store

    for line in repair_store(open_zoo(), data_dir, workers=workers, device=device):
        echo(line)
