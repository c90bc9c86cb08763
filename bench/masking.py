"""How many samples per second and core masking packs, and how full the budgets are.

    python bench/masking.py --repeats 10 --json out.json

Samples have modalities as in the 4M papers (14 x 14 grids, a vector, texts of 10 to 60 tokens, pixels); the mixture is
that of all-to-all training, alpha 0.01, 0.1, 1 and 10. "one by one" packs the same samples in batches of one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from backbone_data import modalities, samples, seconds
from rich.console import Console
from rich.table import Table

from zoo_backbone.learn.masking import Masker
from zoo_backbone.model.batch import RawBatch
from zoo_backbone.model.config import MaskingConfig, Mixture
from zoo_backbone.model.embedding_layout import EmbeddingLayout

MIXTURE = tuple(Mixture(input_alpha=alpha, target_alpha=alpha) for alpha in (0.01, 0.1, 1.0, 10.0))


def measure(count: int, budget: int, batch: int, repeats: int) -> dict[str, Any]:
    specs = modalities(count)
    masker = Masker(
        EmbeddingLayout(specs), MaskingConfig(input_budget=budget, min_input=0, target_budget=budget, mixtures=MIXTURE)
    )
    raw = samples(specs, batch)
    singles = [
        RawBatch(
            tokens={name: array[row : row + 1] for name, array in raw.tokens.items()},
            lengths=raw.lengths[row : row + 1], present=raw.present[row : row + 1],
        )
        for row in range(batch)
    ]  # fmt: skip
    (_, together), (_, alone) = seconds(
        [
            lambda: masker(raw, seed=0, step=0),
            lambda: [masker(single, seed=0, step=0, slots=np.array([slot])) for slot, single in enumerate(singles)],
        ],
        repeats,
    )
    packed = [masker(raw, seed=1, step=step) for step in range(20)]
    return {
        "modalities": count, "budget": budget, "batch": batch,
        "samples per second and core": batch / together, "one by one": batch / alone, "times faster": alone / together,
        "inputs filled": sum(float(p.inputs.mask.float().mean()) for p in packed) / len(packed),
        "targets filled": sum(float(p.targets.mask.float().mean()) for p in packed) / len(packed),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modalities", type=int, nargs="+", default=[7, 10, 21, 42])
    parser.add_argument("--budgets", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10, help="runs of which the shortest counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    rows = [
        measure(count, budget, arguments.batch, arguments.repeats)
        for count in arguments.modalities
        for budget in arguments.budgets
    ]
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(f"{value:.4g}" for value in row.values()))
    console = Console()
    console.print(table)
    console.print_json(json.dumps(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
