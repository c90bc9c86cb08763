"""zoo transfer: train a probe, score it, predict with it, compare several."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import click

from tokenizers_zoo.cli.options import (
    DEVICE,
    PATH,
    asked_registry,
    open_zoo,
    parse_assignments,
    settings_option,
    show_table,
    split_names,
)
from tokenizers_zoo.config import Origin
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.io import disk_errors, short_name
from zoo_backbone.cli.config import read_tables
from zoo_backbone.cli.run import open_run
from zoo_backbone.transfer.config import As, HeadName, TransferConfig, Tuning, transfer_config

RUN_OPTION = click.option("--run", type=PATH, help="Where the backbone is now. Default: where it was.")
TOKENS_OPTION = click.option("--tokens", type=PATH, help="A token store. Default: that of its training.")
DATA_OPTION = click.option("--data", type=PATH, help="The values. Default: those that the tokens were made of.")
LONGEST_NAME = 240
"""Bytes of a folder's name at most: disks take 255 with what is added while it is replaced."""
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
def transfer() -> None:
    """A trained encoder, put to a task that has labels.

    \b
    Examples:
      zoo transfer train RUN --task semseg --given rgb_patches --labels 0.1
      zoo transfer compare RUN/transfer/*
    """


@transfer.command("train")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--task", required=True, help="NAME of a modality, NAME.FIELD of its values, or FILE.csv (key,label).")
@click.option("--given", required=True, metavar="NAMES", help="Comma-separated modalities of RUN to predict from.")
@click.option("--out", type=PATH, help="Folder of the probe. Default: RUN/transfer/<what it is>.")
@click.option("--tuning", type=click.Choice(get_args(Tuning)), help="What of the encoder moves. Default: frozen.")
@click.option("--head", type=click.Choice(get_args(HeadName)), help="Default: what goes with the kind of label.")
@click.option(
    "--labels",
    metavar="SHARE|COUNT",
    help="Training labels used: a share (0.1, 1.0) or a number of samples. Default: 1.0, all.",
)
@click.option("--as", "wanted", type=click.Choice(get_args(As)), help="How labels are taken where more than one way is "
              "open. Default: numbers are numbers.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of weights, order and the choice of labels.")  # fmt: skip
@click.option("--data", type=PATH, help="Where the labels are. Default: the run's values.")
@click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="TOML file with a table [transfer].")  # fmt: skip
@click.option("--overwrite", is_flag=True,
              help="Replace another probe in the folder; after a kill, leave this out to go on.")  # fmt: skip
@settings_option("A key of [transfer], such as steps=500; docs/settings.md lists them.")
def train_command(folder: Path, task: str, given: str, out: Path | None, tuning: str | None, head: str | None,
                  labels: str | None, wanted: Any, seed: int, data: Path | None, config_file: Path | None,
                  overwrite: bool, assignments: tuple[str, ...]) -> None:  # fmt: skip
    """Train a probe: a head on the encoder of RUN, and as --tuning says the encoder.

    Inputs are the run's stored tokens, labels the values of its data folder, or a
    table of yours. The modality asked for may be one that RUN never saw. A fifth
    of the labels is not learned from (validation): the step that does best on it
    is kept, and patience=N stops early. The score is that on the whole test split,
    beside that of the constant baseline. Killed, the same command goes on.

    \b
    Examples:
      zoo transfer train RUN --task semseg --given rgb_patches
      zoo transfer train RUN --task metadata.num_objects --given rgb,depth \\
          --tuning full --labels 0.1 --seed 1
      zoo transfer train RUN --task mine.csv --given caption --head knn
    """
    from zoo_backbone.transfer.metrics import kept_text, left_out_text, read_metrics, score_table, unseen_text
    from zoo_backbone.transfer.training import FOLDER
    from zoo_backbone.transfer.training import transfer as train_probe

    asked = {"tuning": tuning, "head": head, "labels": None if labels is None else parse_labels(labels)}
    config = settings_of(config_file, asked, assignments)
    names = split_names(given) or []
    _, zoo = open_run(folder)
    place = out or folder / FOLDER / default_name(task, names, config, seed)
    with disk_errors(place):
        train_probe(
            folder, zoo, task, names, place, config, seed=seed, wanted=wanted, data=data, overwrite=overwrite
        )  # fmt: skip
    metrics = read_metrics(place)
    show_table(score_table(metrics["metrics"]))
    if text := left_out_text(metrics["left_out"]):
        click.echo(text)
    if text := unseen_text(metrics.get("unseen", {})):  # none in probes from before it was counted
        click.echo(text)
    if text := kept_text(metrics):
        click.echo(text)
    counts = metrics["labels"]
    how = f"{metrics['task']['kind']} from {' + '.join(metrics['given'])} by {metrics['head']}, {metrics['tuning']}"
    used = counts["train"] + counts.get("validation", 0)  # none in probes from before it was a setting
    all_used = isinstance(counts["asked"], int) and counts["asked"] > used
    labels_used = f"{used} labels" + (f" (all there are; {counts['asked']} were asked for)" if all_used else "")
    click.echo(f"probe: {how}, {labels_used}, {counts['test']} held-out samples, in {place}")


@transfer.command("eval")
@click.argument("folder", metavar="PROBE", type=PATH)
@TOKENS_OPTION
@DATA_OPTION
@RUN_OPTION
@DEVICE
@JSON_OPTION
def eval_command(
    folder: Path, tokens: Path | None, data: Path | None, run: Path | None, device: str, as_json: bool
) -> None:
    """Score a probe on the whole test split, of its own data or others.

    Others need no training split: the constant baseline beside the scores is that of
    the probe's own training.

    \b
    Example:
      zoo transfer eval PROBE --data other --tokens other-tokens
    """
    from tokenizers_zoo.data.samples import TEST
    from zoo_backbone.transfer.metrics import score_table, unseen_text
    from zoo_backbone.transfer.saving import load, samples_of
    from zoo_backbone.transfer.scores import scored, unseen_labels

    probe = load(folder, _zoo(), run=run, device=device)
    places = samples_of(folder, probe, TEST, tokens, data)
    test = places.part(probe.task, TEST)
    metrics, unseen = scored(probe, test), unseen_labels(probe, test.labels)
    if as_json:
        click.echo(json.dumps({"samples": len(test), "metrics": metrics, "unseen": unseen}, indent=2))
    else:
        show_table(score_table(metrics))
        if text := unseen_text(unseen):
            click.echo(text)
        click.echo(f"{len(test)} held-out samples of {places.tokens}")
    if probe.constant is None:
        click.echo("constant baseline: the probe is of a version that did not keep it; train it again", err=True)


@transfer.command("predict")
@click.argument("folder", metavar="PROBE", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for what is predicted, and a picture of it.")
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True, help="Spread over the split.")
@click.option("--keys", metavar="KEYS", help="Comma-separated samples instead.")
@click.option("--split", default="test", show_default=True, help="Of the tokens.")
@TOKENS_OPTION
@DATA_OPTION
@RUN_OPTION
@DEVICE
def predict_command(folder: Path, out: Path, samples: int, keys: str | None, split: str, tokens: Path | None,
                    data: Path | None, run: Path | None, device: str) -> None:  # fmt: skip
    """Predict stored samples: values in the modality's own files, or a table.

    OUT/predictions.png shows what was given, what is predicted, and the truth.

    \b
    Example:
      zoo transfer predict PROBE --samples 4 --out made
    """
    from zoo_backbone.transfer.predicting import predict_to_folder
    from zoo_backbone.transfer.saving import load, samples_of

    probe = load(folder, _zoo(), run=run, device=device)
    places = samples_of(folder, probe, split, tokens, data)
    with disk_errors(out):
        found = predict_to_folder(probe, places, out, split=split, samples=samples, keys=split_names(keys))
    click.echo(f"predicted {probe.task.title} of {len(found)} samples, in {out}")


@transfer.command("compare")
@click.argument("folders", metavar="PROBE...", type=PATH, nargs=-1, required=True)
@JSON_OPTION
def compare_command(folders: tuple[Path, ...], as_json: bool) -> None:
    """Show finished probes side by side.

    A row per setting, a column per task with its main metric: the mean over seeds,
    and after ± half of the 95 % interval of that mean (Student's t).

    \b
    Example:
      zoo transfer compare RUN/transfer/*
    """
    from rich.console import Console

    from zoo_backbone.transfer.compare import common_settings, compared, comparison_tables

    result = compared(folders)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        for table in comparison_tables(result, Console()):
            show_table(table)
        if shared := common_settings(result):
            click.echo(f"all with {shared}")


def settings_of(config_file: Path | None, asked: dict[str, Any], assignments: tuple[str, ...]) -> TransferConfig:
    """The file's table [transfer], with the options and `--set` in their place. Raises ConfigError."""
    given = {key: value for key, value in asked.items() if value is not None}
    table = {**read_tables(config_file, ("transfer",))["transfer"], **parse_assignments(assignments), **given}
    return transfer_config(table, Origin(path=config_file, table="transfer"))


def parse_labels(text: str) -> int | float:
    """`0.1` is a share, `80` a number of samples. Raises ConfigError."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ConfigError(f"--labels {text}: expected a share such as 0.1, or a number of samples") from None


def default_name(task: str, given: list[str], config: TransferConfig, seed: int) -> str:
    """The name of a probe's folder: task, inputs, tuning, head where one is asked for, labels, seed.

    It is shortened where it is too long for a folder.
    """
    asked = Path(task).stem if task.lower().endswith(".csv") else task
    head = [config.head] if config.head else []
    parts = [asked, "from", *given, config.tuning, *head, str(config.labels), str(seed)]
    return short_name(re.sub(r"[^\w.-]+", "_", "-".join(parts)), LONGEST_NAME)


def _zoo() -> Any:
    """The zoo of --registry; None for that of the probe's training."""
    registry = asked_registry()
    return open_zoo(registry) if registry else None
