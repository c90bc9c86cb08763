"""Worker script of the tests, run by torchrun or alone: train for some steps and stop there, killed or interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from backbone_samples import ADDED, SMALL, TRAINING, all_layouts

from tokenizers_zoo.process import Interrupted
from zoo_backbone.distributed import TrainingState, leave
from zoo_backbone.train import Trainer, train


def main(folder: str, tokens: str, stop_after: str, changes: str, start: str = "") -> None:
    """Train with settings changed by `changes` (JSON); exit once the state after `stop_after` steps is written.

    If `stop_after` is negative, the last process gets a SIGINT after that many steps instead. With `start`, a backbone
    of all layouts, training adds one modality.
    """
    torch.set_num_threads(1)
    save = TrainingState.save

    def save_and_die(state: TrainingState, step: int, seconds: float) -> None:
        save(state, step, seconds)
        if step == int(stop_after):
            os._exit(0)

    TrainingState.save = save_and_die  # type: ignore[method-assign]
    step, rates = Trainer.train_step, []

    def interrupted(trainer: Trainer, *arguments: Any) -> Any:
        rates.append(arguments)
        if len(rates) == -int(stop_after) and trainer.ranks.rank == trainer.ranks.size - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, *arguments)

    Trainer.train_step = interrupted  # type: ignore[method-assign]
    config = dataclasses.replace(TRAINING, **json.loads(changes))
    specs = [*all_layouts(), ADDED] if start else all_layouts()
    try:
        train(Path(folder), Path(tokens), specs, SMALL, config, start=Path(start) if start else None)
    except Interrupted as error:
        print(f"saved {error.saved}", flush=True)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
