"""zoo transfer: train, evaluate, use and compare probes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from tokenizers_zoo.cli.options import (
    DEVICE,
    JSON,
    PATH,
    PRINT_CONFIG,
    Group,
    Layer,
    asked_registry,
    given_layers,
    names_option,
    open_zoo,
    parse_assignments,
    settings_option,
    show_config,
    show_json,
    show_table,
)
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.config import Origin
from tokenizers_zoo.records.io import disk_errors, read_record, short_name
from tokenizers_zoo.records.typed import as_dicts
from zoo_backbone.cli import CONFIG_OPTION, read_tables, run_argument, with_options
from zoo_backbone.use.transfer.config import TUNING, HeadName, TransferConfig, Tuning, transfer_config

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo
    from zoo_backbone.model.run import Run

RUN_OPTION = click.option("--run", type=PATH, help="The backbone, if it was moved.")
TOKENS_OPTION = click.option("--tokens", type=PATH, help="A token store. Default: the store of its training.")
DATA_OPTION = click.option("--data", type=PATH, help="Values with the labels. Default: the values of the tokens.")
LONGEST_NAME = 240
"""Maximum bytes of a folder's name: file systems allow 255, temporary names are longer."""


@click.group(cls=Group)
def transfer() -> None:
    """Train a head on a trained encoder for a task with labels.

    \b
    Examples:
      zoo transfer train RUN --task semseg --input rgb_patches --labels 0.1
      zoo transfer compare RUN/transfer/*
    """


@transfer.command("train")
@run_argument
@click.option("--task", required=True, help="MODALITY, MODALITY.FIELD, or FILE.csv with columns key,label.")
@names_option("--input", "inputs", required=True, help="Modalities of RUN to predict from.")
@click.option("--out", type=PATH, help="Folder of the probe. Default: RUN/transfer/NAME.")
@click.option("--tuning", type=click.Choice(get_args(Tuning)), help="Encoder weights to train. Default: frozen.")
@click.option("--head", type=click.Choice(get_args(HeadName)), help="Default: depends on the kind of label.")
@click.option(
    "--labels",
    metavar="SHARE|COUNT",
    help="Training labels used: a share such as 0.1, or a number of samples. Default: 1.0 (all).",
)
@click.option("--classes", "as_classes", is_flag=True, help="Treat each distinct label as a class, also numbers.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of weights, order and choice of labels.",
)
@click.option("--data", type=PATH, help="Values with the labels. Default: the values of RUN.")
@CONFIG_OPTION
@click.option("--overwrite", is_flag=True, help="Replace another probe in the folder. Not needed to resume.")
@DEVICE
@JSON
@PRINT_CONFIG
@settings_option("A key of [transfer], such as steps=500; docs/settings.md lists them.")
def train_command(
    run: Run,
    zoo: Zoo,
    task: str,
    inputs: list[str],
    out: Path | None,
    tuning: str | None,
    head: str | None,
    labels: str | None,
    as_classes: bool,
    seed: int,
    data: Path | None,
    config_file: Path | None,
    overwrite: bool,
    device: str,
    as_json: bool,
    print_config: bool,
    assignments: tuple[str, ...],
) -> None:
    """Train a probe: a head on the encoder of RUN.

    Inputs are the run's stored tokens. Labels are a table, or values of any
    modality of the registry. A fifth of the labels chooses the step whose weights
    are kept; the score is of the whole test split. The same command resumes.

    \b
    Examples:
      zoo transfer train RUN --task semseg --input rgb_patches
      zoo transfer train RUN --task metadata.num_objects --input rgb,depth \\
          --tuning full --labels 0.1 --seed 1
      zoo transfer train RUN --task mine.csv --input caption --head linear
    """
    from zoo_backbone.measure.probes import METRICS, ProbeScores
    from zoo_backbone.use.transfer.results import score_table, summary
    from zoo_backbone.use.transfer.train import FOLDER, train_probe

    file_table = read_tables(config_file)["transfer"]
    number = labels and parse_assignments([f"labels={labels}"])["labels"]
    options = {"tuning": tuning, "head": head, "labels": number}
    table = with_options(file_table, assignments, None, **options)
    config = transfer_config(table, Origin(path=config_file, table="transfer"))
    if print_config:
        base = Layer(TUNING.get(config.tuning, {}), f"tuning {config.tuning}")
        layers = given_layers(file_table, config_file, "transfer", assignments, **options)
        show_config("transfer", config, [base, *layers])
        return
    out = out or run.folder / FOLDER / default_name(task, inputs, config, seed)
    with disk_errors(out):
        train_probe(
            run,
            zoo,
            task,
            inputs,
            out,
            config,
            seed=seed,
            as_classes=as_classes,
            data=data,
            overwrite=overwrite,
            device=device,
        )
    scores = read_record(out / METRICS, ProbeScores)
    if as_json:
        show_json(as_dicts(scores))
        return
    show_table(score_table(scores.metrics))
    for line in summary(scores):
        echo(line)
    echo(f"written to {out}")


@transfer.command("eval")
@click.argument("folder", metavar="PROBE", type=PATH)
@TOKENS_OPTION
@DATA_OPTION
@RUN_OPTION
@DEVICE
@JSON
def eval_command(
    folder: Path, tokens: Path | None, data: Path | None, run: Path | None, device: str, as_json: bool
) -> None:
    """Score a probe on the whole test split.

    The data are the probe's own, or others. Other data need no training split: the constant baseline is stored in the
    probe.

    \b
    Example:
      zoo transfer eval PROBE --data other --tokens other-tokens
    """
    from tokenizers_zoo.contract.samples import TEST
    from zoo_backbone.use.transfer.probe import load
    from zoo_backbone.use.transfer.results import score_table, unseen_text

    probe = load(folder, open_zoo() if asked_registry() else None, run=run, device=device)
    stores = probe.stores(TEST, tokens, data)
    test = stores.samples(probe.task, TEST, probe.target)
    metrics, unseen = probe.score(test), probe.unseen_classes(test.labels)
    if as_json:
        show_json({"samples": len(test), "metrics": as_dicts(metrics), "unseen_classes": unseen})
        return
    show_table(score_table(metrics))
    if text := unseen_text(unseen):
        echo(text)
    echo(f"{len(test)} held-out samples of {stores.tokens}")


@transfer.command("predict")
@click.argument("folder", metavar="PROBE", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for predictions and a picture.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Number of samples, spread evenly over the split.",
)
@names_option("--keys", metavar="KEYS", help="Keys of samples, instead of --samples.")
@click.option("--split", default="test", show_default=True, help="Split of the tokens.")
@TOKENS_OPTION
@DATA_OPTION
@RUN_OPTION
@DEVICE
def predict_command(
    folder: Path,
    out: Path,
    samples: int,
    keys: list[str] | None,
    split: str,
    tokens: Path | None,
    data: Path | None,
    run: Path | None,
    device: str,
) -> None:
    """Predict stored samples.

    OUT gets files in the modality's format, or a table. OUT/predictions.png shows inputs, prediction and label of
    each sample.

    \b
    Example:
      zoo transfer predict PROBE --samples 4 --out predicted
    """
    from zoo_backbone.use.transfer.probe import load, predict_to_folder

    probe = load(folder, open_zoo() if asked_registry() else None, run=run, device=device)
    stores = probe.stores(split, tokens, data)
    with disk_errors(out):
        predicted_keys = predict_to_folder(probe, stores, out, split=split, samples=samples, keys=keys)
    echo(f"predicted {probe.task.title} of {len(predicted_keys)} samples, in {out}")


@transfer.command("compare")
@click.argument("folders", metavar="PROBE...", type=PATH, nargs=-1, required=True)
@JSON
def compare_command(folders: tuple[Path, ...], as_json: bool) -> None:
    """Compare finished probes: a row per setting and task.

    Shows the main metric as the mean over seeds ± half of its 95 % interval
    (Student's t).

    \b
    Example:
      zoo transfer compare RUN/transfer/*
    """
    from zoo_backbone.use.transfer.results import compare, comparison_table

    rows = compare(folders)
    if as_json:
        show_json(rows)
    else:
        show_table(comparison_table(rows))


def default_name(task: str, inputs: list[str], config: TransferConfig, seed: int) -> str:
    """Return the folder name of a probe: task, inputs, tuning, head if requested, labels, seed."""
    name = Path(task).stem if task.lower().endswith(".csv") else task
    head = [config.head] if config.head else []
    parts = [name, "from", *inputs, config.tuning, *head, str(config.labels), str(seed)]
    return short_name(re.sub(r"[^\w.-]+", "_", "-".join(parts)), LONGEST_NAME)
