"""All quantizers in one tokenizer at equal budget: codebook usage, reconstruction and time, as a table.

    python bench/quantizers.py --steps 400 --write docs/results/tokenizers.md

Samples are drawn from a source; encoder, decoder, batches and steps are the same for all rows. The first rows have
about 10 bits per patch, in one token or several; the others as many as their kind is for. With --write the table
replaces the one between the two comments in that page.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import publish
from rich.console import Console
from rich.progress import track

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.tokenizers.quantizers.config import KIND_DEFAULTS

SEVERAL = [kind for kind, fields in KIND_DEFAULTS.items() if "num_codebooks" in fields]
EQUAL: dict[str, dict[str, Any]] = {
    **{kind: {"codebook_size": 1024} for kind in KIND_DEFAULTS if kind not in SEVERAL},
    **{kind: {"codebook_size": 32, "num_codebooks": 2} for kind in SEVERAL},
    "fsq": {"codebook_size": 1000, "levels": [8, 5, 5, 5]},
    "residual_fsq": {"codebook_size": 27, "levels": [3, 3, 3], "num_codebooks": 2},
    "grouped_residual_vq": {"codebook_size": 6, "num_codebooks": 4},
}
"""Settings of each kind for about 1,000 combinations per patch."""


def rows_wanted(kinds: list[str]) -> list[dict[str, Any]]:
    """The tokenizer tables to be compared."""
    equal = [{"quantizer": kind, **EQUAL[kind]} for kind in kinds]
    return equal + [{"quantizer": kind, "num_codebooks": 4} for kind in kinds if kind in SEVERAL]


def measure(zoo: Zoo, name: str, samples: TrainingSamples, table: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train once; figures by column."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        zoo[name].train_tokenizer(samples, Path(folder) / "run", 0, **table, steps=steps, eval_every=steps)
        seconds = time.process_time() - started
        result = json.loads((Path(folder) / "run" / "evaluation.json").read_text())
    codebook = result["codebook"]
    codes, size = codebook.get("codebooks", 1), codebook["size"]
    return {
        "quantizer": table["quantizer"],
        "codes": f"{codes} x {size}" if codes > 1 else str(size),
        "bits per patch": round(codes * math.log2(size), 1),
        **{metric: round(value, 3) for metric, value in result["metrics"].items()},
        "usage": round(codebook["usage"], 3),
        "perplexity": round(codebook["perplexity"]),
        "processor seconds": round(seconds),
    }


def main() -> None:
    """Train, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modality", default="rgb")
    parser.add_argument("--source", default="scenes")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--train", type=int, default=1000, help="training samples")
    parser.add_argument("--test", type=int, default=200, help="held-out samples")
    parser.add_argument("--kinds", nargs="+", choices=list(KIND_DEFAULTS), default=list(KIND_DEFAULTS))
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    arguments = parser.parse_args()
    zoo = Zoo.installed()
    handle, source = zoo[arguments.modality], zoo.source(arguments.source)
    splits = {"train": arguments.train, "test": arguments.test}
    samples_by_split = {split: source.samples(split, count, 0) for split, count in splits.items()}
    values = {
        split: [handle.transform(samples[index][1][handle.name], Crop()) for index in range(splits[split])]
        for split, samples in samples_by_split.items()
    }
    samples = TrainingSamples(train=values["train"], test=values["test"])
    tables = rows_wanted(arguments.kinds)
    measure(zoo, handle.name, samples, tables[0], 1)  # what loads once should be no part of the first row
    rows = [
        measure(zoo, handle.name, samples, table, arguments.steps)
        for table in track(tables, "quantizers", console=Console(stderr=True))
    ]
    subject = f"`{handle.name}` of `{arguments.source}`: {arguments.steps} steps on {arguments.train} samples"
    note = f"{subject}, the rest by default, seed 0; all figures on {arguments.test} held-out samples."
    publish("quantizers", rows, note, arguments.write)


if __name__ == "__main__":
    main()
