"""Every tokenizer with a codebook, trained with its default settings: how well, with how many of its codes in use.

    python bench/defaults.py --write docs/results/tokenizers.md

Data come from the sources that make them; what else is installed is derived from those. Killed, the same command goes
on. With --write the table replaces the one between the two comments in that page, or goes to its end where it has none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pages import publish

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.derive import derive_data
from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.build.tokenizers import TokenizerJob, train_tokenizers, usable_modalities
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.train.report import EVALUATION

SOURCES = "scenes", "bouncing", "terrain"
"""Together they provide every modality that needs no network from a hub, directly or through `derive`."""


def jobs_of(zoo: Zoo, data: Path, seed: int) -> list[TokenizerJob]:
    """One for each modality of the data that learns a codebook."""
    learns = [
        name
        for name in usable_modalities(zoo, data)
        if hasattr(zoo[name].known_settings().get("tokenizer"), "quantizer")
    ]
    return [TokenizerJob(name=name, data=data, seed=seed) for name in learns]


def row(zoo: Zoo, name: str, source: str) -> dict[str, Any]:
    """The figures of a trained tokenizer by column."""
    handle = zoo[name]
    evaluation = read_table(handle.checkpoint / EVALUATION)
    codebook, metric = evaluation["codebook"], handle.spec.metrics[0]
    return {
        "modality": f"`{name}`",
        "source": source,
        "tokens": str(handle.spec.layout),
        "codes": codebook["size"],
        "main metric": f"{metric.name} {evaluation['metrics'][metric.name]:.3g} {metric.unit}".rstrip(),
        "usage": f"{codebook['usage']:.1%}",
        "if evenly spread": f"{codebook['reachable']:.1%}",
        "perplexity": round(codebook["perplexity"]),
        "steps": evaluation["steps"],
    }


def main() -> None:
    """Make data, train, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/defaults"), help="folder of data and tokenizers")
    parser.add_argument("--train", type=int, default=4000, help="training samples of each source")
    parser.add_argument("--test", type=int, default=2000, help="held-out samples")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="tokenizers at once, which share the cores")
    parser.add_argument("--write", type=Path, help="the page that the table goes to")
    arguments = parser.parse_args()
    rows = []
    for source in arguments.sources:
        zoo = Zoo.from_tables({"zoo": {"checkpoints": str((arguments.out / f"{source}-tokenizers").resolve())}})
        data = arguments.out / source
        make_data(zoo, source, data, train=arguments.train, test=arguments.test, seed=arguments.seed)
        derive_data(zoo, data)
        jobs = jobs_of(zoo, data, arguments.seed)
        list(train_tokenizers(zoo, jobs, arguments.workers))
        rows += [row(zoo, job.name, source) for job in jobs]
    note = f"{arguments.train:,} samples to train on, {arguments.test:,} held out, seed {arguments.seed}."
    publish("defaults", rows, note, arguments.write)


if __name__ == "__main__":
    main()
