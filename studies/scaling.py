"""How the held-out loss falls with the size of the backbone, at equal tokens; a line through the logarithms.

python studies/scaling.py --steps 2000 --seeds 3
python studies/scaling.py --sizes 64,96,128,192,256 --steps 1000

A size is a preset, or the width of a model that has the other settings of nano.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from common import Study, Variant, begin, format_mean, interval
from rich.table import Table

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.learn.optim import for_width
from zoo_backbone.model.config import PRESETS, ModelConfig

SIZES = "nano,tiny,small"
HEAD = PRESETS["nano"].dim // PRESETS["nano"].heads
"""Numbers of a head, whatever the width."""


def model_of(size: str) -> ModelConfig:
    """The model of a size. Raises ConfigError for anything else."""
    if size in PRESETS:
        return PRESETS[size]
    if not size.isdecimal() or int(size) < HEAD or int(size) % HEAD:
        raise ConfigError(f"--sizes {size}: expected one of {', '.join(PRESETS)}, or a width that {HEAD} divides")
    return dataclasses.replace(PRESETS["nano"], dim=int(size), heads=int(size) // HEAD)


def main() -> None:
    study = Study.from_command_line(
        "scaling", __doc__, steps=2000, sizes=(SIZES, "presets, or widths of nano's shape, with commas between")
    )
    variants = []
    for size in dict.fromkeys(study.arguments.sizes.split(",")):
        model = model_of(size.strip())
        config = study.settings(learning_rate=for_width(study.arguments.rate, model.dim))
        variants.append(Variant(name=size.strip(), modalities=study.modalities, model=model, train=config))
    if len({study.parameters(variant) for variant in variants}) < 2:
        raise ConfigError(f"--sizes {study.arguments.sizes}: expected models of two sizes or more, for a line")
    rows: list[dict[str, Any]] = []
    for variant, runs in zip(variants, study.losses(variants), strict=True):
        losses = [sum(run.values()) / len(run) for run in runs]
        rows.append(
            {"size": variant.name, "parameters": study.parameters(variant), "runs": losses, "loss": interval(losses)}
        )
    x, y = np.log([row["parameters"] for row in rows]), np.log([row["loss"]["mean"] for row in rows])
    slope, start = np.polyfit(x, y, 1)
    rest = float(((y - slope * x - start) ** 2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-12))
    line = {"exponent": float(slope), "factor": float(np.exp(start)), "r_squared": 1 - rest}
    table = Table("size", box=None, pad_edge=False, title="loss by size, mean over modalities")
    for column in ("parameters", "held-out loss", "the line"):
        table.add_column(column, justify="right")
    for row, log_parameters in zip(rows, x, strict=True):
        table.add_row(
            row["size"],
            f"{row['parameters']:,}",
            format_mean(row["loss"]),
            f"{np.exp(slope * log_parameters + start):.3f}",
        )
    study.finish({"sizes": rows, "line": line}, table)
    text = f"loss = {line['factor']:.3g} x parameters ^ {slope:.4f}, R squared {line['r_squared']:.3f}"
    study.console.print(text, highlight=False)


if __name__ == "__main__":
    begin(main)
