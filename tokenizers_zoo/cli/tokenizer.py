"""zoo tokenizer: train and score one tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
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
    Group,
    Layer,
    next_command,
    note,
    open_zoo,
    parse_assignments,
    plain_table,
    settings_option,
    show_config,
    show_json,
    show_table,
)
from tokenizers_zoo.errors import count_of
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.config import preset_of

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle

DATA_OPTION = click.option("--data", "data_dir", type=PATH, required=True, help="A folder of value shards.")


@click.group(cls=Group)
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
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Tokenizers trained at a time; they share the cores.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing tokenizer. Not needed to resume after a kill.")
@click.option(
    "--strict",
    is_flag=True,
    help="With --all: fail at a tokenizer that was trained with other settings or data, instead of leaving it.",
)
@DEVICE
@DRY_RUN
@PRINT_CONFIG
@settings_option(
    "A key of the tokenizer table, such as quantizer=vq; zoo info NAME --settings lists them. With --all, "
    "for those that have it."
)
def train(
    names: tuple[str, ...],
    everything: bool,
    data_dir: Path,
    out: Path | None,
    steps: int | None,
    seed: int,
    workers: int,
    overwrite: bool,
    strict: bool,
    device: str,
    dry_run: bool,
    print_config: bool,
    assignments: tuple[str, ...],
) -> None:
    """Train the tokenizers of modalities NAMES on DATA. After a kill, the same command resumes.

    Shows loss, held-out metric and codebook usage while it runs, logs to TensorBoard, draws pictures early, and ends
    with held-out metrics and a model card in the checkpoint folder.

    \b
    Examples:
      zoo tokenizer train depth --data data/scenes
      zoo tokenizer train depth --data data --set quantizer=vq --out depth_vq
      zoo tokenizer train --all --data data/scenes --workers 2
    """
    from tokenizers_zoo.build.tokenizers import (
        TokenizerJob,
        overrides_of_each,
        plan_of,
        train_tokenizers,
        usable_modalities,
    )

    zoo = open_zoo()
    if bool(names) == everything:
        raise click.UsageError("expected the names of modalities, or --all")
    modalities = usable_modalities(zoo, data_dir) if everything else [zoo[name].name for name in names]
    for name, error in zoo.problems().items() if everything else ():
        if name in zoo:
            echo(f"problem: {error}", err=True)
    if out is not None and len(modalities) > 1:
        raise click.UsageError(f"--out {out}: holds one tokenizer, and {len(modalities)} modalities were named")
    overrides = parse_assignments(assignments) | ({"steps": steps} if steps else {})
    by_name = overrides_of_each(zoo, modalities, overrides) if everything else dict.fromkeys(modalities, overrides)
    for name, table in by_name.items():
        if without := ", ".join(key for key in overrides if key not in table):
            note(f"{name}: its tokenizer table has no {without}; trained with its settings")
    jobs = [
        TokenizerJob(name=name, data=data_dir, out=out, seed=seed, overrides=table, overwrite=overwrite, device=device)
        for name, table in by_name.items()
    ]
    if print_config:
        for number, job in enumerate(jobs):
            if number:
                echo()
            _print_config(zoo[job.name], job.overrides, steps)
        return
    if dry_run:
        for job in jobs:
            echo(f"{job.name}: {plan_of(zoo, job)}")
        return
    skipped: dict[str, str] | None = {} if everything and not strict else None
    for name, folder in train_tokenizers(zoo, jobs, workers, skipped=skipped):
        echo(f"{name}: tokenizer in {folder}")
    for name, reason in (skipped or {}).items():
        echo(f"{name}: left as it is: {reason}", err=True)
    next_command("tokenize", data_dir, "--out", "tokens")


def _print_config(handle: ModalityHandle, overrides: Mapping[str, Any], steps: int | None) -> None:
    """Print the settings of a modality with overrides of its tokenizer table, and where each comes from."""
    settings = handle.check_overrides(overrides)
    name, file = f"modalities.{handle.name}", handle.settings.origin.path
    layers = [Layer(settings.shared, file, "zoo"), Layer(handle.settings.table, file, name)] if file else []
    assigned = {key: value for key, value in overrides.items() if key != "steps" or not steps}
    layers += [Layer({"tokenizer": assigned}, "--set")]
    layers += [Layer({"tokenizer": {"steps": steps}}, "--steps")] if steps else []
    for config in settings.parsed.values():
        preset_values = preset_of(type(config), settings.table, settings.origin)
        preset = [Layer(preset_values, f"preset {settings.table['preset']}")] if preset_values else []
        show_config(name, config, [*layers[:1], *preset, *layers[1:]] if file else [*preset, *layers])


@tokenizer.command("eval")
@click.argument("name", type=MODALITY)
@DATA_OPTION
@click.option("--checkpoint", type=PATH, help="Folder of another tokenizer of NAME. Default: where registry.toml says.")
@click.option("--split", default="test", show_default=True)
@click.option("--samples", type=click.IntRange(min=1), help="Samples at most. Default: all.")
@DEVICE
@JSON
@settings_option("A key of the tokenizer table that CHECKPOINT was trained with, such as quantizer=vq.")
def evaluate(
    name: str,
    data_dir: Path,
    checkpoint: Path | None,
    split: str,
    samples: int | None,
    device: str,
    as_json: bool,
    assignments: tuple[str, ...],
) -> None:
    """Score the reconstruction of held-out values. Gives metrics with units, codebook usage and perplexity.

    The results are stored in the tokenizer's folder.

    \b
    Examples:
      zoo tokenizer eval depth --data data/scenes
      zoo tokenizer eval depth --data data --checkpoint vq --set quantizer=vq
    """
    from tokenizers_zoo.tokenizers.evaluate import evaluate_tokenizer

    handle, overrides = open_zoo()[name], parse_assignments(assignments)
    if checkpoint is not None:
        handle = handle.at(checkpoint, settings=handle.check_overrides(overrides))
    elif overrides:
        raise click.UsageError("--set: expected only with --checkpoint; registry.toml has the other settings")
    handle.device = device
    result = evaluate_tokenizer(handle, data_dir, split=split, limit=samples)
    if as_json:
        show_json({"modality": name, "split": split, **result.to_json()})
        return
    table = plain_table("metric", ">value", "unit", "meaning")
    for metric in handle.spec.metrics:
        table.add_row(metric.name, f"{result.metrics[metric.name]:.4g}", metric.unit, metric.meaning)
    for key, value, unit, meaning in result.codebook_rows():
        table.add_row(key, f"{value:.4g}", unit, meaning)
    show_table(table)
    echo(f"{name}: {count_of(result.samples, f'{split} sample')} of {data_dir}; pictures in {result.pictures}")
