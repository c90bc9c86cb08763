"""Worker script of the tests, run by torchrun or alone: train for some steps and stop there as if killed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from backbone_samples import ADDED, SMALL, TRAINING, all_layouts

from zoo_backbone.distributed import TrainingState, leave
from zoo_backbone.train import train


def main(folder: str, tokens: str, stop_after: str, changes: str, start: str = "") -> None:
    """Train with settings changed by `changes` (JSON); exit once the state after `stop_after` steps is written.

    With `start`, a backbone of all layouts, training adds one modality.
    """
    torch.set_num_threads(1)
    save = TrainingState.save

    def save_and_die(state: TrainingState, step: int, seconds: float) -> None:
        save(state, step, seconds)
        if step == int(stop_after):
            os._exit(0)

    TrainingState.save = save_and_die  # type: ignore[method-assign]
    config = dataclasses.replace(TRAINING, **json.loads(changes))
    specs = [*all_layouts(), ADDED] if start else all_layouts()
    train(Path(folder), Path(tokens), specs, SMALL, config, start=Path(start) if start else None)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
