"""zoo backbone: train, evaluate, generate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.options import (
    DEVICE,
    PATH,
    names_option,
    open_zoo,
    parse_assignments,
    settings_option,
    split_names,
)
from tokenizers_zoo.config import Origin, from_mapping
from tokenizers_zoo.errors import ConfigError, UnknownNameError, count_of
from tokenizers_zoo.io import disk_errors
from zoo_backbone.cli.config import CONFIG_OPTION, assigned, check_drawn, read_tables
from zoo_backbone.cli.generate import generate_command
from zoo_backbone.cli.grow import grow_command
from zoo_backbone.cli.run import open_run

if TYPE_CHECKING:
    pass


@click.group()
def backbone() -> None:
    """The any-to-any model over the registered modalities.

    \b
    Examples:
      zoo backbone train --tokens tokens --out RUN
      zoo backbone eval RUN
      zoo backbone generate RUN --input rgb,caption --target depth --out made
    """


backbone.add_command(generate_command)
backbone.add_command(grow_command)


@backbone.command()
@click.option("--tokens", type=PATH, required=True, help="The token store that zoo tokenize wrote.")
@click.option("--out", type=PATH, required=True, help="Folder of the run.")
@click.option("--preset", help="nano, tiny, small, base, large or xlarge. Default: nano, or that of --from.")
@CONFIG_OPTION
@click.option("--from", "start", type=PATH, help="A run whose weights to start from.")
@names_option("--only", help="Modalities. Default: all in the token store.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of weights, masks and order. Default: 0.")
@click.option("--overwrite", is_flag=True, help="Replace the run that is in the folder.")
@settings_option("A key of [train], such as steps=2000 or masking.input_budget=128; docs/settings.md lists them.")
def train(
    tokens: Path,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    start: Path | None,
    only: list[str] | None,
    seed: int | None,
    overwrite: bool,
    assignments: tuple[str, ...],
) -> None:
    """Train the backbone on a token store.

    After a kill, the same command resumes, with the same result.

    \b
    Examples:
      zoo backbone train --tokens runs/tokens --out runs/backbone --preset nano
      zoo backbone train --tokens runs/tokens --out runs/b --set steps=5000
      zoo backbone train --tokens more --out runs/c --from runs/b
    """
    import dataclasses

    from tokenizers_zoo.checkpoint import load_config
    from tokenizers_zoo.data.tokens import TokenStore
    from zoo_backbone.checkpoint import CLASS, model_config
    from zoo_backbone.codecs import codecs_to_train_with
    from zoo_backbone.config import TrainConfig
    from zoo_backbone.config import preset as preset_config
    from zoo_backbone.data import check_tokenizers, datasets_of, names_in
    from zoo_backbone.distributed import leave, leave_but_first
    from zoo_backbone.gallery import Previews
    from zoo_backbone.run import Run
    from zoo_backbone.train import train as train_backbone
    from zoo_backbone.warm_start import check_meaning, ids_in_use

    tables = read_tables(config_file)
    if start is not None and preset is None:
        size = model_config(load_config(start, CLASS))
    else:
        size = preset_config(preset or "nano")
    origin = Origin(path=config_file, table="model")
    model = from_mapping(type(size), dataclasses.asdict(size) | tables["model"], origin)
    changes = parse_assignments(assignments) | ({} if seed is None else {"seed": seed})
    origin = Origin(path=config_file, table="train")
    table = assigned(tables["train"], changes)
    config = from_mapping(TrainConfig, table, origin)
    check_drawn(table, config.preview_every, origin)
    zoo = open_zoo()
    store = TokenStore(tokens)
    datasets = datasets_of(tokens, config)
    names = only or names_in(datasets)
    try:
        handles = [zoo[name] for name in names]
    except UnknownNameError as error:
        if only:
            raise
        raise UnknownNameError(
            f"{error}; {tokens} has tokens of it: enable it, or select modalities by --only"
        ) from None
    check_tokenizers(datasets, handles)
    if start is not None:
        check_meaning(start, handles)
        left = [spec["name"] for spec in load_config(start, CLASS)["specs"] if spec["name"] not in names]
        if left and not only:
            click.echo(f"left out of {start}, because {tokens} has no tokens of them: {', '.join(left)}", err=True)
    run = Run(tokens=tokens, data=store.data, registry=zoo.path)
    by_name = {handle.name: handle for handle in handles}
    with disk_errors(out):
        train_backbone(
            out,
            tokens,
            [handle.spec for handle in handles],
            model,
            config,
            run=run,
            start=start,
            ids=None if start is None else ids_in_use(start, handles),
            show=Previews(by_name, tokens, config, model=model) if config.preview_every else None,
            fingerprints=codecs_to_train_with(out, handles),
            overwrite=overwrite,
        )
    leave_but_first()
    click.echo(f"backbone: {count_of(len(handles), 'modality', 'modalities')}, in {out}")
    leave()


@backbone.command("eval")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--input", "inputs", multiple=True, metavar="NAMES",
              help="Comma-separated modalities that are inputs together; repeat for more sets. Default: each "
              "modality alone.")  # fmt: skip
@names_option("--target", "targets", help="Modalities to predict. Default: all.")
@CONFIG_OPTION
@click.option("--samples", type=click.IntRange(min=1), help="Held-out samples per pair of inputs and target.")
@click.option("--tokens", type=PATH, help="Token store. Default: the store of the training; another one needs --out.")
@click.option("--data", "data_dir", type=PATH, help="Folder of the values. Default: the values of the token store.")
@click.option("--out", type=PATH, help="Folder for scores and galleries. Default: RUN/evaluation.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of samples, masks and draws. Default: 0.")
@click.option("--overwrite", is_flag=True, help="Replace an evaluation with other settings or data.")
@DEVICE
@settings_option("A key of [eval], such as steps=4; docs/settings.md lists them.")
def evaluate_command(
    folder: Path,
    inputs: tuple[str, ...],
    targets: list[str] | None,
    config_file: Path | None,
    samples: int | None,
    tokens: Path | None,
    data_dir: Path | None,
    out: Path | None,
    seed: int | None,
    overwrite: bool,
    device: str,
    assignments: tuple[str, ...],
) -> None:
    """Score predictions for held-out samples.

    Every set of inputs predicts every target, and galleries are drawn. Shown are the
    skill score (0 = best constant prediction, 1 = tokenizer reconstruction) and the
    raw metric. The prediction combines several draws of a sample. Other data need a
    training split, too: the constant prediction is fitted to it. The same command
    resumes after a kill, and adds pairs to a finished evaluation.

    \b
    Examples:
      zoo backbone eval runs/backbone
      zoo backbone eval runs/backbone --input caption,boxes --target depth,semseg
      zoo backbone eval runs/backbone --tokens other --out other-scores
    """
    from rich.console import Console

    from tokenizers_zoo.data.tokens import TokenStore
    from zoo_backbone.evaluate import FILE, FOLDER, EvaluationConfig, Pairs, evaluate, skill_tables
    from zoo_backbone.evaluation_data import left_out_text

    table, origin = read_tables(config_file)["eval"], Origin(path=config_file, table="eval")
    named: dict[str, Any] = {key: table.pop(key) for key in ("inputs", "targets") if key in table}
    pairs = from_mapping(Pairs, named, origin)
    input_sets = [tuple(split_names(names) or ()) for names in inputs] or pairs.inputs
    target_names = targets or pairs.targets
    options = {"samples": samples, "seed": seed}
    changes = parse_assignments(assignments) | {key: value for key, value in options.items() if value is not None}
    config = from_mapping(EvaluationConfig, assigned(table, changes), origin)
    run, zoo = open_run(folder)
    if tokens is not None and tokens.resolve() != run.tokens.resolve():
        if out is None:
            raise ConfigError(
                f"--tokens {tokens}: {folder / FOLDER} has the scores for {run.tokens}; give --out FOLDER"
            )
        run = dataclasses.replace(run, tokens=tokens, data=TokenStore(tokens).data)
    with disk_errors(out or folder):
        result = evaluate(
            folder, zoo, run.tokens, data_dir or run.values(), inputs=input_sets,
            targets=target_names, config=config, device=device, out=out, overwrite=overwrite,
        )  # fmt: skip
    console = Console()
    for place, reasons in result["unreadable"].items():
        key, reason = next(iter(reasons.items()))
        click.echo(f"{place}: {count_of(len(reasons), 'value')} left out, first: {key}: {reason}", err=True)
    left_out = result["skipped"]
    if left_out and (input_sets is None or target_names is None):
        click.echo(left_out_text(left_out), err=True)
    click.echo("skill (0 = best constant prediction, 1 = tokenizer reconstruction), then the raw metric")
    for shown in skill_tables(result, width=console.width if console.is_terminal else 80):
        console.print(shown)
    if not result["pairs"]:
        click.echo("no pairs: no modality can be predicted from another one")
    click.echo(f"all scores: {(out or folder / FOLDER) / FILE}")
