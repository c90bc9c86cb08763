"""zoo backbone: train, evaluate, generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.options import PATH, open_zoo, parse_assignments, settings_option, split_names
from tokenizers_zoo.config import Origin, from_mapping, load_toml, reject_unknown
from tokenizers_zoo.data.tar import disk_errors
from tokenizers_zoo.errors import ConfigError

if TYPE_CHECKING:
    from backbone.run import Run
    from tokenizers_zoo.registry import Zoo

CONFIG_OPTION = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with tables [model], [train], [eval].",
)
TABLES = ("model", "train", "eval")


def read_tables(config_file: Path | None) -> dict[str, dict[str, Any]]:
    """The tables of a configuration file. Raises ConfigError."""
    tables = load_toml(config_file) if config_file else {}
    reject_unknown(tables, TABLES, Origin(path=config_file))
    return {name: dict(tables.get(name, {})) for name in TABLES}


def merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`table` with `changes`, whose keys may be dotted: `masking.input_budget`."""
    result = dict(table)
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        result[first] = merged(dict(result.get(first, {})), {rest: value}) if dot else value
    return result


@click.group()
def backbone() -> None:
    """The any-to-any model over the registered modalities."""


@backbone.command()
@click.option("--tokens", type=PATH, required=True, help="The token store that zoo tokenize wrote.")
@click.option("--out", type=PATH, required=True, help="Folder of the run.")
@click.option("--preset", default="nano", show_default=True, help="nano, tiny, small, base, large or xlarge.")
@CONFIG_OPTION
@click.option("--only", metavar="NAMES", help="Comma-separated modalities. Default: all in the token store.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of weights, masks and order. Default: 0.")
@settings_option("A key of [train], such as steps=2000 or masking.input_budget=128.")
def train(
    tokens: Path,
    out: Path,
    preset: str,
    config_file: Path | None,
    only: str | None,
    seed: int | None,
    assignments: tuple[str, ...],
) -> None:
    """Train the backbone on a token store.

    Killed, the same command goes on, to the same result.

    \b
    Examples:
      zoo backbone train --tokens runs/tokens --out runs/backbone --preset nano
      zoo backbone train --tokens runs/tokens --out runs/b --set steps=5000
    """
    import dataclasses

    from backbone.config import ModelConfig, TrainConfig
    from backbone.config import preset as preset_config
    from backbone.run import Run
    from backbone.train import train as train_backbone
    from tokenizers_zoo.data.tokens import TokenStore

    tables = read_tables(config_file)
    size = dataclasses.asdict(preset_config(preset))
    model = from_mapping(ModelConfig, size | tables["model"], Origin(path=config_file, table="model"))
    changes = parse_assignments(assignments) | ({} if seed is None else {"seed": seed})
    origin = Origin(path=config_file, table="train")
    config = from_mapping(TrainConfig, merged(tables["train"], changes), origin)
    zoo = open_zoo()
    store = TokenStore(tokens)
    names = split_names(only) or store.modalities("train")
    handles = [zoo[name] for name in names]
    for handle in handles:
        store.open("train", handle.name).check_codec(handle)
    run = Run(tokens=tokens, data=store.data, registry=zoo.path)
    with disk_errors(out):
        train_backbone(
            out,
            tokens,
            [handle.spec for handle in handles],
            model,
            config,
            run=run,
            fingerprints={handle.name: handle.fingerprint for handle in handles},
        )
    click.echo(f"backbone: {len(handles)} modalities, in {out}")


def open_run(folder: Path) -> tuple[Run, Zoo]:
    """A run and the zoo that it was trained with; --registry or ./registry.toml take precedence."""
    from backbone.run import Run

    run = Run.load(folder)
    root = click.get_current_context().find_root().obj or {}
    return run, open_zoo(root.get("registry") or run.registry)


@backbone.command("eval")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--given", multiple=True, metavar="NAMES", help="Comma-separated modalities to give. Repeatable.")
@click.option("--make", "targets", metavar="NAMES", help="Comma-separated modalities to make. Default: all.")
@CONFIG_OPTION
@click.option("--samples", type=click.IntRange(min=1), help="Held-out samples per pair.")
@click.option("--data", "data_dir", type=PATH, help="The values. Default: those that the tokens were made of.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of samples, masks and draws. Default: 0.")
@settings_option("A key of [eval], such as steps=4.")
def evaluate_command(
    folder: Path,
    given: tuple[str, ...],
    targets: str | None,
    config_file: Path | None,
    samples: int | None,
    data_dir: Path | None,
    seed: int | None,
    assignments: tuple[str, ...],
) -> None:
    """Score what the backbone makes of held-out samples.

    Each set of given modalities is asked for each target, and galleries are drawn.
    Gap closed goes from the best constant answer (0) to the tokenizer's own
    reconstruction (1).

    \b
    Examples:
      zoo backbone eval runs/backbone
      zoo backbone eval runs/backbone --given caption,boxes --make depth,semseg
    """
    from rich.console import Console

    from backbone.evaluate import FILE, FOLDER, EvaluationConfig, evaluate, gap_tables

    table = read_tables(config_file)["eval"]
    given_sets = [tuple(split_names(names) or ()) for names in given] or _name_sets(table.pop("given", None), "given")
    wanted = split_names(targets) or _names(table.pop("make", None), "make")
    table.pop("given", None)
    table.pop("make", None)
    options = {"samples": samples, "seed": seed}
    changes = parse_assignments(assignments) | {key: value for key, value in options.items() if value is not None}
    config = from_mapping(EvaluationConfig, merged(table, changes), Origin(path=config_file, table="eval"))
    run, zoo = open_run(folder)
    with disk_errors(folder):
        result = evaluate(
            folder, zoo, run.tokens, data_dir or run.values(), given=given_sets, targets=wanted, config=config
        )
    console = Console()
    click.echo("gap closed in %: 0 is the best constant answer, 100 the tokenizer itself")
    for shown in gap_tables(result, width=console.width if console.is_terminal else 80):
        console.print(shown)
    click.echo(f"every score: {folder / FOLDER / FILE}")


def _names(value: Any, key: str) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"[eval] {key}: expected a list of names, got {value!r}")
    return value


def _name_sets(value: Any, key: str) -> list[tuple[str, ...]] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ConfigError(f"[eval] {key}: expected a list of lists of names, got {value!r}")
    return [tuple(_names(names, key) or ()) for names in value]


@backbone.command("generate")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--given", metavar="NAMES", help="Comma-separated modalities of stored samples. Default: nothing.")
@click.option("--file", "files", multiple=True, metavar="NAME=FILE", help="Give a file instead. Repeatable.")
@click.option("--make", "targets", required=True, metavar="NAMES", help="Modalities to make, in this order.")
@click.option("--out", type=PATH, required=True, help="Folder for values, pictures and tokens.")
@click.option("--samples", type=click.IntRange(min=1), default=4, show_default=True, help="Samples to make.")
@click.option("--keys", metavar="KEYS", help="Comma-separated keys of stored samples. Default: the first ones.")
@click.option("--split", default="test", show_default=True, help="Of the stored samples.")
@click.option("--draws", type=click.IntRange(min=1), default=1, show_default=True, help="Draws per sample.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draws.")
@settings_option("steps, scheme (maskgit, roar), schedule, temperature, top_k, top_p, ... for all targets.")
def generate_command(
    folder: Path,
    given: str | None,
    files: tuple[str, ...],
    targets: str,
    out: Path,
    samples: int,
    keys: str | None,
    split: str,
    draws: int,
    seed: int,
    assignments: tuple[str, ...],
) -> None:
    """Make modalities from others.

    Each one made is an input of the next.

    \b
    Examples:
      zoo backbone generate RUN --given rgb,caption --make depth,semseg --out made
      zoo backbone generate RUN --file rgb=room.png --make depth,normal --out made
      zoo backbone generate RUN --make caption,rgb --samples 8 --out made
    """
    from backbone.generation.files import generate_to_folder
    from backbone.generation.plan import TargetPlan

    if given and files:
        raise ConfigError("zoo backbone generate: expected --given (stored samples) or --file, not both")
    options = parse_assignments(assignments)
    plan = [
        from_mapping(TargetPlan, {"temperature": 1.0, "top_p": 0.95, **options, "name": name})
        for name in split_names(targets) or ()
    ]
    for item in files:
        name, _, path = item.partition("=")
        if not name or not Path(path).is_file() or not path:
            raise ConfigError(f"--file {item}: expected NAME=FILE with a file that is there")
    paths = {name: Path(path) for name, _, path in (item.partition("=") for item in files)}
    _, zoo = open_run(folder)
    with disk_errors(out):
        places = generate_to_folder(
            folder, zoo, given=split_names(given) or list(paths), plan=plan, out=out, files=paths, split=split,
            keys=split_names(keys), samples=samples, draws=draws, seed=seed,
        )  # fmt: skip
    click.echo(f"{len(places)} samples in {out}")
