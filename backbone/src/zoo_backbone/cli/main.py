"""zoo backbone: train, grow, evaluate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.completion import MODALITY
from tokenizers_zoo.cli.options import (
    DEVICE,
    DRY_RUN,
    JSON,
    PATH,
    PRINT_CONFIG,
    CheckedCommand,
    Group,
    Layer,
    command_line,
    given_layers,
    names_option,
    next_command,
    note,
    open_zoo,
    plain_table,
    settings_option,
    show_config,
    show_json,
    show_table,
    split_names,
)
from tokenizers_zoo.errors import ConfigError, UnknownNameError, count_of
from tokenizers_zoo.files.run_folder import read_run
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.config import Origin, from_mapping
from tokenizers_zoo.records.io import disk_errors
from tokenizers_zoo.records.typed import as_dicts
from zoo_backbone.cli import CONFIG_OPTION, read_tables, run_argument, with_options
from zoo_backbone.cli.generate import generate_command
from zoo_backbone.model.config import PRESETS, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from rich.table import Table

    from tokenizers_zoo.contract.registry import Zoo
    from zoo_backbone.measure.evaluation import EvaluationRecord
    from zoo_backbone.model.run import BackboneRecord, Run


@click.group(cls=Group)
def backbone() -> None:
    """The any-to-any model over the registered modalities.

    \b
    Examples:
      zoo backbone train --tokens tokens --out RUN
      zoo backbone eval RUN
      zoo backbone generate RUN --input rgb,caption --target depth --out made
    """


backbone.add_command(generate_command)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Training:
    """The settings of `zoo backbone train`."""

    start_config: BackboneRecord | None
    """The config.json of --from."""
    tables: dict[str, dict[str, Any]]
    """The tables of the file."""
    size: ModelConfig
    """The preset, or the model of --from, which [model] changes."""
    model: ModelConfig
    train: TrainConfig


def _training(
    *,
    preset: str | None,
    config_file: Path | None,
    start: Path | None,
    steps: int | None,
    seed: int | None,
    assignments: tuple[str, ...],
    **other_options: Any,
) -> _Training:
    """Return the settings of `zoo backbone train`. Raises ConfigError, and CheckpointError for a wrong --from."""
    tables, start_config = read_tables(config_file), None
    size = PRESETS[preset or "nano"]
    if start is not None:
        from zoo_backbone.learn.checkpoint import backbone_config, model_config

        start_config = backbone_config(start)
        size = size if preset else model_config(start_config)
    model = from_mapping(
        type(size), dataclasses.asdict(size) | tables["model"], Origin(path=config_file, table="model")
    )
    table = with_options(tables["train"], assignments, seed, steps=steps)
    train = from_mapping(TrainConfig, table, Origin(path=config_file, table="train"))
    return _Training(start_config=start_config, tables=tables, size=size, model=model, train=train)


@backbone.command(cls=CheckedCommand, check=_training)
@click.option("--tokens", type=PATH, required=True, help="The token store that zoo tokenize wrote.")
@click.option("--out", type=PATH, required=True, help="Folder of the run.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Default: nano, or that of --from.")
@CONFIG_OPTION
@click.option("--from", "start", type=PATH, help="A run whose weights to start from.")
@names_option("--modalities", help="Modalities. Default: all in the token store.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps. Default: the key steps of [train].")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of weights, masks and order. Default: 0.")
@click.option("--overwrite", is_flag=True, help="Replace the run that is in the folder.")
@DEVICE
@DRY_RUN
@PRINT_CONFIG
@settings_option("A key of [train], such as batch_size=64 or masking.input_budget=128; docs/settings.md lists them.")
def train(
    tokens: Path,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    start: Path | None,
    modalities: list[str] | None,
    steps: int | None,
    seed: int | None,
    overwrite: bool,
    device: str,
    dry_run: bool,
    print_config: bool,
    assignments: tuple[str, ...],
) -> None:
    """Train the backbone on a token store.

    After a kill, the same command resumes, with the same result.

    \b
    Examples:
      zoo backbone train --tokens runs/tokens --out runs/backbone --preset nano
      zoo backbone train --tokens runs/tokens --out runs/b --steps 5000
      zoo backbone train --tokens more --out runs/c --from runs/b
    """
    from zoo_backbone.learn.data import datasets_of, names_in
    from zoo_backbone.learn.distributed import leave
    from zoo_backbone.measure.grow import train_run

    settings = _training(
        preset=preset, config_file=config_file, start=start, steps=steps, seed=seed, assignments=assignments
    )
    start_config, tables, size = settings.start_config, settings.tables, settings.size
    model, config = settings.model, settings.train
    if print_config:
        defaults = dataclasses.asdict(type(size)())
        differing = {key: value for key, value in dataclasses.asdict(size).items() if value != defaults[key]}
        base = Layer(differing, f"preset {preset or 'nano'}" if start_config is None or preset else str(start))
        show_config("model", model, [base, *given_layers(tables["model"], config_file, "model", ())])
        echo()
        layers = given_layers(tables["train"], config_file, "train", assignments, seed=seed, steps=steps)
        show_config("train", config, layers)
        return
    zoo = open_zoo()
    names = modalities or names_in(datasets_of(tokens, config))
    try:
        handles = {name: zoo[name] for name in names}
    except UnknownNameError as error:
        if modalities:
            raise
        advice = f"{tokens} has tokens of it: enable it, or choose others by --modalities"
        raise UnknownNameError(f"{error}; {advice}") from None
    trained_names = [spec.name for spec in start_config.specs] if start_config and not modalities else []
    if missing := [name for name in trained_names if name not in names]:
        note(f"left out of {start}, because {tokens} has no tokens of them: {', '.join(missing)}")
    if dry_run:
        state = "replace" if overwrite and out.is_dir() else "resume" if read_run(out) else "train"
        echo(f"{state} {out}: {config.steps} steps of {config.batch_size} samples over {', '.join(handles)}")
        return
    with disk_errors(out):
        train_run(out, tokens, handles, zoo.location, model, config, start=start, overwrite=overwrite, device=device)
    leave(first=False)
    echo(f"backbone: {count_of(len(handles), 'modality', 'modalities')}, in {out}")
    next_command("backbone", "eval", out)
    leave()


@backbone.command("grow")
@run_argument
@names_option("--add", help="New modalities.", required=True)
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
@DEVICE
@JSON
@settings_option("A key of [train], such as steps=2000; docs/settings.md lists them.")
def grow_command(
    run: Run,
    zoo: Zoo,
    add: list[str],
    tokens: Path,
    out: Path,
    config_file: Path | None,
    replay: float | None,
    freeze: bool,
    seed: int | None,
    overwrite: bool,
    device: str,
    as_json: bool,
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
    from zoo_backbone.learn.distributed import leave
    from zoo_backbone.measure.grow import Trained, check_same_model, grow, write_report
    from zoo_backbone.measure.growth import GROWTH

    if out.resolve() == run.folder.resolve():
        raise click.UsageError(f"--out {out}: is RUN itself; give another folder")
    trained = Trained.load(run.folder)
    tables, origin = read_tables(config_file), Origin(path=config_file, table="train")
    check_same_model(trained, tables["model"], Origin(path=config_file, table="model"))
    settings = with_options(tables["train"], assignments, seed) | ({"freeze": True} if freeze else {})
    if settings.get("freeze") and replay is not None:
        raise click.UsageError("expected --replay or --freeze, not both: frozen weights forget nothing")
    with disk_errors(out):
        grow(trained, tokens, out, add, zoo, settings, replay, origin, overwrite, device)
        leave(first=False)
        report = write_report(out, trained, tokens, device)
    if as_json:
        show_json(as_dicts(report))
        leave()
        return
    table = plain_table("held-out", ">before", ">after", ">change")
    for name, before, after in report.rows():
        change = "" if before is None or after is None else f"{after - before:+.3f}"
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in (before, after)), change)
    show_table(table)
    modalities = count_of(len(trained.specs) + len(add), "modality", "modalities")
    echo(f"backbone: {modalities}, {len(add)} of them new, in {out}; details: {out / GROWTH}")
    next_command("backbone", "eval", out)
    leave()


def score_table(evaluation: EvaluationRecord) -> Table:
    """Return a table with a row for each pair: pair metrics and main metric; a dash marks a missing number."""
    from zoo_backbone.measure.evaluation import PAIR_METRICS

    table = plain_table("inputs", "target", *(f">{name}" for name in PAIR_METRICS), ">score", "metric")
    for pair in evaluation.pairs:
        main = evaluation.main_metric(pair.target).name
        figures = (metric.text(pair.figure(name)) for name, metric in PAIR_METRICS.items())
        score = pair.score.get(main)
        table.add_row(" + ".join(pair.inputs), pair.target, *figures, "-" if score is None else f"{score:.3g}", main)
    return table


@backbone.command("eval")
@run_argument
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAMES",
    type=MODALITY,
    help="Comma-separated modalities that are inputs together; repeat for more sets. Default: each modality alone.",
)
@names_option("--target", "targets", help="Modalities to predict. Default: all.")
@CONFIG_OPTION
@click.option("--samples", type=click.IntRange(min=1), help="Held-out samples per pair of inputs and target.")
@click.option("--tokens", type=PATH, help="Token store. Default: the store of the training; another one needs --out.")
@click.option("--data", "data_dir", type=PATH, help="Folder of the values. Default: the values of the token store.")
@click.option("--out", type=PATH, help="Folder for scores and galleries. Default: RUN/evaluation.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of samples, masks and draws. Default: 0.")
@click.option("--overwrite", is_flag=True, help="Replace an evaluation with other settings or data.")
@DEVICE
@JSON
@PRINT_CONFIG
@settings_option("A key of [eval], such as steps=4; docs/settings.md lists them.")
def evaluate_command(
    run: Run,
    zoo: Zoo,
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
    as_json: bool,
    print_config: bool,
    assignments: tuple[str, ...],
) -> None:
    """Score predictions for held-out samples.

    Every set of inputs predicts every target, and galleries are drawn. Shown are the
    skill score (0 = best constant prediction, 1 = tokenizer reconstruction) and the
    raw metric. The prediction combines several draws of a sample. Other data need a
    training split, too: the constant prediction is fitted to it. The same command
    resumes after a kill, and adds pairs to a finished evaluation. With other
    --samples it scores the chosen pairs again and keeps the others.

    \b
    Examples:
      zoo backbone eval runs/backbone
      zoo backbone eval runs/backbone --input caption,boxes --target depth,semseg
      zoo backbone eval runs/backbone --tokens other --out other-scores
    """
    from tokenizers_zoo.stores.tokens import TokenStore
    from zoo_backbone.measure.evaluate import evaluate
    from zoo_backbone.measure.evaluation import FILE, FOLDER, PAIR_METRICS
    from zoo_backbone.measure.evaluation_data import left_out_text
    from zoo_backbone.model.config import EvaluationConfig

    table, origin = read_tables(config_file)["eval"], Origin(path=config_file, table="eval")
    options = {"samples": samples, "inputs": [split_names(names) for names in inputs] or None, "targets": targets}
    config = from_mapping(EvaluationConfig, with_options(table, assignments, seed, **options), origin)
    if print_config:
        show_config("eval", config, given_layers(table, config_file, "eval", assignments, seed=seed, **options))
        return
    if tokens is not None and tokens.resolve() != run.tokens.resolve():
        if out is None:
            default = run.folder / FOLDER
            raise ConfigError(f"--tokens {tokens}: {default} has scores for {run.tokens}; give --out FOLDER")
        run = dataclasses.replace(run, tokens=tokens, data=TokenStore(tokens).data)
    with disk_errors(out or run.folder):
        result = evaluate(
            run.folder,
            zoo,
            run.tokens,
            data_dir or run.values(),
            config=config,
            device=device,
            out=out,
            overwrite=overwrite,
        )
    if as_json:
        show_json(as_dicts(result))
        return
    for column, reasons in result.unreadable.items():
        key, reason = next(iter(reasons.items()))
        echo(f"{column}: {count_of(len(reasons), 'value')} left out, first: {key}: {reason}", err=True)
    if result.skipped and (config.inputs is None or config.targets is None):
        echo(left_out_text(result.skipped), err=True)
    meanings = ", ".join(f"{name} ({metric.meaning})" for name, metric in PAIR_METRICS.items())
    echo(f"{meanings}, then the raw metric")
    show_table(score_table(result))
    if not result.pairs:
        echo("no pairs: no modality can be predicted from another one")
    echo(f"all scores: {(out or run.folder / FOLDER) / FILE}")
    next_command("report", run.folder)


@backbone.command()
@run_argument
@click.argument("out", type=PATH)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Type of the stored weights.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Held-out samples to include, for the page of zoo serve.",
)
@click.option(
    "--with-plugins",
    is_flag=True,
    help="Include wheels of the distributions that it needs, for plugins that are on no index.",
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is in the folder.")
@DEVICE
def export(
    run: Run, zoo: Zoo, out: Path, dtype: str, samples: int, with_plugins: bool, overwrite: bool, device: str
) -> None:
    """Write a bundle: one folder with the model and all that it needs.

    It holds the tokenizers, the registry, a model card with the scores of
    zoo backbone eval, and a golden sample. Other commands take it as RUN, here and
    on other machines.

    \b
    Examples:
      zoo backbone export runs/backbone bundle
      zoo backbone export runs/backbone bundle --dtype float16 --samples 8
    """
    from zoo_backbone.use.bundle import export_bundle

    with disk_errors(out):
        export_bundle(run, zoo, out, dtype, samples, overwrite, device, with_plugins)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    echo(f"bundle: {size / 1e6:.1f} MB, in {out}; check it elsewhere with: {command_line('backbone', 'verify', out)}")


@backbone.command("verify")
@run_argument
@DEVICE
@JSON
def verify_command(run: Run, zoo: Zoo, device: str, as_json: bool) -> None:
    """Check a bundle by its golden sample.

    Values are encoded and targets predicted again. The table shows the shares of
    tokens that are equal to the stored ones.

    \b
    Example:
      zoo backbone verify bundle
    """
    from zoo_backbone.use.any_to_any import AnyToAny

    shares = AnyToAny.load(run, zoo, device=device).verify()
    if as_json:
        show_json({"same": shares})
        return
    table = plain_table("golden tokens", ">same here")
    for name, share in shares.items():
        table.add_row(name, f"{share:.0%}")
    show_table(table)
