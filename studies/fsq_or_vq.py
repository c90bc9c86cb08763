"""FSQ or VQ tokens: how well does a backbone predict either from the picture?

python studies/fsq_or_vq.py --steps 1000 --seeds 3

Each kind has tokenizers and a token store of its own for every seed: as many codes, as many steps. Losses over
different tokens cannot be compared, so decoded values are scored by the modality's main metric: the tokenizer's
reconstruction, and the backbone's prediction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import GIVEN, Study, begin, cell, over_seeds
from rich.table import Table

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.build.tokenizers import TokenizerJob, train_tokenizers
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.train.report import EVALUATION
from zoo_backbone.learn.train import train
from zoo_backbone.model.config import Mixture

TARGETS = "depth", "normal", "semseg"
KINDS: dict[str, dict[str, Any]] = {"fsq": {"levels": [8, 6, 5]}, "vq": {"codebook_size": 240}}
"""Settings of each kind for 240 codes."""
PREDICTED, BEST, SKILL, USAGE = "predicted", "reconstructed", "skill score", "codes in use"


def targets_of(study: Study) -> tuple[str, ...]:
    """Targets that are in the token store."""
    return tuple(name for name in TARGETS if name in study.modalities)


def zoo_of(study: Study, kind: str, checkpoints: Path) -> Zoo:
    """The study's registry, with tokenizers of one kind for its targets, in a folder of their own."""
    tables = {key: dict(table) for key, table in study.zoo.tables.items()}
    targets = targets_of(study)
    modalities = {name: dict(tables["modalities"].get(name, {})) for name in (GIVEN, *targets)}
    for name in targets:
        for file_key in "checkpoint", "sha256":
            modalities[name].pop(file_key, None)
        tokenizer = {key: value for key, value in modalities[name].get("tokenizer", {}).items() if key != "levels"}
        modalities[name]["tokenizer"] = {**tokenizer, "quantizer": kind, **KINDS[kind]}
    tables["zoo"] |= {"checkpoints": str(checkpoints.resolve()), "modalities": list(modalities)}
    return Zoo.from_tables({**tables, "modalities": modalities}, study.zoo.path)


def measure_seed(study: Study, job: tuple[str, int]) -> dict[str, dict[str, float | None]]:
    """Return the figures of one kind and seed by target, training the missing parts first."""
    kind, seed = job
    data = study.data
    folder, targets = study.folder(kind, seed), targets_of(study)
    zoo, tokens = zoo_of(study, kind, folder / "tokenizers"), folder / "tokens"
    names = (GIVEN, *targets)
    list(train_tokenizers(zoo, [TokenizerJob(name=name, data=data, seed=seed) for name in names]))
    tokenize(zoo, data, tokens, modalities=names)
    question = Mixture(inputs=(GIVEN,), targets=targets, input_alpha=10.0)
    config = study.settings((question,), seed=seed)
    run = train(folder / "backbone", tokens, [zoo[name].spec for name in names], study.model, config)
    figures: dict[str, dict[str, float | None]] = {}
    for pair in study.picture_pairs(run, zoo, tokens, targets):
        handle = zoo[pair.target]
        metric = handle.spec.metrics[0].name
        codebook = read_table(handle.checkpoint / EVALUATION)["codebook"]
        figures[handle.name] = {
            USAGE: codebook["usage"], BEST: pair.reconstruction[metric], PREDICTED: pair.score[metric],
            SKILL: pair.figure(),
        }  # fmt: skip
    return figures


def main() -> None:
    study = Study.from_command_line("fsq_or_vq", __doc__, steps=1000)
    jobs = [(kind, seed) for seed in range(study.arguments.seeds) for kind in KINDS]
    of_job = dict(zip(jobs, study.run_parallel("measured", measure_seed, jobs), strict=True))
    runs = {kind: [figures for (of, _), figures in of_job.items() if of == kind] for kind in KINDS}
    table = Table("made of the picture", "figure", box=None, pad_edge=False, title="tokens of two kinds")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    means: dict[str, dict[str, dict[str, dict[str, float] | None]]] = {}
    for target in targets_of(study):
        metric = study.zoo[target].spec.metrics[0].name
        means[target] = {
            figure: {kind: over_seeds([run[target][figure] for run in runs[kind]]) for kind in KINDS}
            for figure in (USAGE, BEST, PREDICTED, SKILL)
        }
        for figure, row in means[target].items():
            label = f"{metric}, {figure}" if figure in (BEST, PREDICTED) else figure
            table.add_row(target, label, *(cell(row[kind]) for kind in KINDS))
    study.finish({"means": means, "runs": runs}, table)


if __name__ == "__main__":
    begin(main)
