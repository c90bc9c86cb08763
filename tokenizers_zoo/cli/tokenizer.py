"""zoo tokenizer: train and score one tokenizer."""

from __future__ import annotations

from pathlib import Path

import click

from tokenizers_zoo.cli.completion import MODALITY
from tokenizers_zoo.cli.options import (
    DEVICE,
    PATH,
    open_zoo,
    parse_assignments,
    plain_table,
    settings_option,
    show_problems,
    show_table,
)
from tokenizers_zoo.errors import ConfigError, count_of

DATA_OPTION = click.option("--data", "data_dir", type=PATH, required=True, help="A folder of value shards.")


@click.group()
def tokenizer() -> None:
    """Train and score tokenizers.

    \b
    Examples:
      zoo tokenizer train depth --data data
      zoo tokenizer eval depth --data data
    """


@tokenizer.command()
@click.argument("names", nargs=-1, type=MODALITY)
@click.option("--all", "everything", is_flag=True, help="Every enabled modality that DATA holds.")
@DATA_OPTION
@click.option("--out", type=PATH, help="Checkpoint folder, for one modality. Default: where registry.toml says.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps. Default: the modality's setting.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Tokenizers trained at a time; they share the cores.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing tokenizer. Not needed to resume after a kill.")
@settings_option("A key of the tokenizer table, such as quantizer=vq; zoo info NAME lists them. With --all, for those "
                 "that have it.")  # fmt: skip
def train(names: tuple[str, ...], everything: bool, data_dir: Path, out: Path | None, steps: int | None, seed: int,
          workers: int, overwrite: bool, assignments: tuple[str, ...]) -> None:  # fmt: skip
    """Train the tokenizers of modalities NAMES on DATA. After a kill, the same command resumes.

    Shows loss, held-out metric and codebook usage while it runs, logs to TensorBoard, draws pictures early, and ends
    with held-out metrics and a model card in the checkpoint folder.

    \b
    Examples:
      zoo tokenizer train depth --data data/scenes
      zoo tokenizer train depth --data data --set quantizer=vq --out depth_vq
      zoo tokenizer train --all --data data/scenes --workers 2
    """
    from tokenizers_zoo.pipeline.tokenizers import TokenizerJob, overrides_of_each, train_tokenizers, usable_modalities

    zoo = open_zoo()
    if bool(names) == everything:
        raise ConfigError("zoo tokenizer train: expected the names of modalities, or --all")
    chosen = usable_modalities(zoo, data_dir) if everything else [zoo[name].name for name in names]
    if everything:
        show_problems(zoo)
    if out is not None and len(chosen) > 1:
        raise ConfigError(f"--out {out}: holds one tokenizer, and {len(chosen)} modalities were named")
    overrides = parse_assignments(assignments) | ({"steps": steps} if steps else {})
    by_name = overrides_of_each(zoo, chosen, overrides) if everything else dict.fromkeys(chosen, overrides)
    for name, own in by_name.items():
        if without := ", ".join(key for key in overrides if key not in own):
            click.echo(f"{name}: its tokenizer table has no {without}; trained with its settings", err=True)
    jobs = [
        TokenizerJob(name=name, data=data_dir, out=out, seed=seed, overrides=own, overwrite=overwrite)
        for name, own in by_name.items()
    ]
    for name, folder in train_tokenizers(zoo, jobs, workers):
        click.echo(f"{name}: tokenizer in {folder}")


@tokenizer.command("eval")
@click.argument("name", type=MODALITY)
@DATA_OPTION
@click.option("--split", default="test", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Samples at most. Default: all.")
@DEVICE
def evaluate(name: str, data_dir: Path, split: str, limit: int | None, device: str) -> None:
    """Score the reconstruction of held-out values. Gives metrics with units, codebook usage and perplexity.

    \b
    Example:
      zoo tokenizer eval depth --data data/scenes
    """
    from tokenizers_zoo.pipeline.evaluate import evaluate_tokenizer

    zoo = open_zoo()
    zoo[name].device = device
    result = evaluate_tokenizer(zoo, name, data_dir, split=split, limit=limit)
    table = plain_table("metric", ">value", "unit", "meaning")
    for metric in zoo[name].spec.metrics:
        table.add_row(metric.name, f"{result.metrics[metric.name]:.4g}", metric.unit, metric.meaning)
    for key, value, unit, meaning in result.codebook_rows():
        table.add_row(key, f"{value:.4g}", unit, meaning)
    show_table(table)
    click.echo(f"{name}: {count_of(result.samples, f'{split} sample')} of {data_dir}; pictures in {result.pictures}")
