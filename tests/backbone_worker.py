"""Run by torchrun or alone in the tests: trains on a store to a number of steps, and stops there as if killed."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal

import torch
from backbone_samples import SMALL, TRAINING, all_layouts

from backbone import distributed
from backbone.train import train


def main(folder: str, tokens: str, stop_after: str, optimizer: Literal["adamw", "muon"]) -> None:
    """Train; where the state after `stop_after` steps is written, end at once."""
    torch.set_num_threads(1)
    save = distributed.TrainingState.save

    def save_and_die(state: distributed.TrainingState, step: int, seconds: float) -> None:
        save(state, step, seconds)
        if step == int(stop_after):
            os._exit(0)

    distributed.TrainingState.save = save_and_die  # type: ignore[method-assign]
    config = dataclasses.replace(TRAINING, optimizer=optimizer)
    train(Path(folder), Path(tokens), all_layouts(), SMALL, config)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
