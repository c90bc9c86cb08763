"""zoo backbone grow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.options import (
    PATH,
    names_option,
    parse_assignments,
    plain_table,
    settings_option,
    show_table,
)
from tokenizers_zoo.config import Origin
from tokenizers_zoo.errors import ConfigError, count_of
from tokenizers_zoo.io import disk_errors
from zoo_backbone.cli.config import CONFIG_OPTION, assigned, check_drawn, read_tables
from zoo_backbone.cli.run import zoo_of

if TYPE_CHECKING:
    from rich.table import Table

    from zoo_backbone.grow import Trained


@click.command("grow")
@click.argument("folder", metavar="RUN", type=PATH)
@names_option("--add", help="New modalities.", required=True, advice="name at least one new modality")
@click.option("--tokens", type=PATH, required=True, help="A token store that has them.")
@click.option("--out", type=PATH, required=True, help="Folder of the new run.")
@CONFIG_OPTION
@click.option(
    "--replay",
    type=float,
    help="Share of replayed old samples, below 1. Default: 0.25 if the other samples train all old modalities, too, "
    "else 0.5.",
)
@click.option("--freeze", is_flag=True, help="Train new rows only, without replay: old outputs do not change.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of new rows, masks and order. Default: RUN's.")
@click.option("--overwrite", is_flag=True, help="Replace the run that is in the folder --out.")
@settings_option("A key of [train], such as steps=2000; docs/settings.md lists them.")
def grow_command(
    folder: Path,
    add: list[str],
    tokens: Path,
    out: Path,
    config_file: Path | None,
    replay: float | None,
    freeze: bool,
    seed: int | None,
    overwrite: bool,
    assignments: tuple[str, ...],
) -> None:
    """Train a backbone further, with new modalities.

    Settings are those of RUN unless [train] changes them. Shows the losses of old
    modalities before and after, and writes them to OUT/growth.json. Run again after
    zoo backbone eval of both runs, it also shows their skill scores.

    \b
    Examples:
      zoo backbone grow RUN --add heightmap --tokens tokens --out grown
      zoo backbone grow RUN --add audio --tokens tokens --out grown --freeze
    """
    from tokenizers_zoo.data.samples import TRAIN
    from tokenizers_zoo.data.tokens import TokenStore
    from zoo_backbone.codecs import codecs_to_train_with
    from zoo_backbone.config import Dataset
    from zoo_backbone.data import check_tokenizers
    from zoo_backbone.distributed import leave, leave_but_first
    from zoo_backbone.gallery import Previews
    from zoo_backbone.grow import (
        REPORT,
        Trained,
        asked_from_now,
        check_replayed,
        growing_config,
        grown_specs,
        share_replayed,
        write_report,
    )
    from zoo_backbone.run import Run
    from zoo_backbone.train import train
    from zoo_backbone.warm_start import check_meaning, ids_in_use

    if out.resolve() == folder.resolve():
        raise ConfigError(f"--out {out}: is RUN itself; give another folder")
    trained = Trained.load(folder)
    zoo = zoo_of(folder, trained.run.registry if trained.run else None)
    store = TokenStore(tokens)
    stored = [name for name in trained.names if name in store.modalities(TRAIN)]
    handles = {name: zoo[name] for name in [*stored, *add]}
    specs = grown_specs(trained, {name: handle.spec for name, handle in handles.items()}, add)
    check_tokenizers([Dataset(tokens=tokens)], handles.values())
    check_meaning(folder, handles.values())
    changes = parse_assignments(assignments) | ({} if seed is None else {"seed": seed})
    table = _settings(trained, config_file, changes | ({"freeze": True} if freeze else {}), replay)
    origin, freeze = Origin(path=config_file, table="train"), bool(table.get("freeze"))
    config = growing_config(trained, specs, tokens, table, replay, origin)
    check_drawn(table, config.preview_every, origin)
    check_replayed(trained, config, zoo)
    show = None
    if config.preview_every:  # also of modalities that only replayed stores have
        shown = {name: zoo[name] for name in [*trained.names, *add] if name in zoo}
        show = Previews(shown, tokens, config, model=trained.model, inherited="previews" not in table)
    codecs = {**trained.fingerprints, **codecs_to_train_with(out, handles.values())}
    with disk_errors(out):
        train(
            out, tokens, specs, trained.model, config, start=folder, fingerprints=codecs,
            ids=ids_in_use(folder, handles.values()),
            run=Run(tokens=tokens, data=store.data, registry=zoo.path), show=show,
            asked=asked_from_now(trained, specs, table), overwrite=overwrite,
        )  # fmt: skip
        leave_but_first()
        report = write_report(out, trained, tokens)
    for shown_table in tables_of(report):
        show_table(shown_table)
    replayed, rate = (
        share_replayed(config, len(table.get("datasets", ()))),
        0.0 if freeze else config.pretrained_lr_scale,
    )
    click.echo(f"{replayed:.0%} of the samples were replayed; pretrained weights had {rate:.0%} of the learning rate")
    modalities = count_of(len(specs), "modality", "modalities")
    click.echo(f"backbone: {modalities}, {len(add)} of them new, in {out}; details: {out / REPORT}")
    leave()


def _settings(
    trained: Trained, config_file: Path | None, changes: dict[str, Any], replay: float | None
) -> dict[str, Any]:
    """Return the table [train] of a file with `changes`. Raises ConfigError if it contradicts RUN or `replay`."""
    from zoo_backbone.grow import check_same_model

    tables = read_tables(config_file)
    check_same_model(trained, tables["model"], Origin(path=config_file, table="model"))
    table = assigned(tables["train"], changes)
    if table.get("freeze") and replay is not None:
        raise ConfigError("zoo backbone grow: expected --replay or --freeze, not both: frozen weights forget nothing")
    return table


def tables_of(report: dict[str, Any]) -> list[Table]:
    """Return the content of growth.json as tables for the terminal."""
    losses = plain_table("held-out loss, nats", ">before", ">after", ">change")
    for name, row in report["losses"].items():
        losses.add_row(name, *_three(row))
    for name, row in report["new"].items():
        losses.add_row(f"{name} (new)", f"uniform {row['uniform']:.3f}", f"{row['after']:.3f}", "")
    found = [losses] if losses.row_count else []
    if report["skills"]:
        skills = plain_table("skill score", ">before", ">after", ">change")
        for row in report["skills"]:
            skills.add_row(f"{' + '.join(row['inputs'])} to {row['target']}", *_three(row))
        found.append(skills)
    return found


def _three(row: dict[str, Any]) -> list[str]:
    """Return before, after and change; a dash for a missing number."""
    before, after = row["before"], row["after"]
    change = "-" if before is None or after is None else f"{after - before:+.3f}"
    return ["-" if value is None else f"{value:.3f}" for value in (before, after)] + [change]
