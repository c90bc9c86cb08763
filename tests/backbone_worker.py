"""Two processes that train together, as under torchrun; a fork server imports the slow modules once."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import torch
from backbone_samples import ADDED, SMALL, TRAINING, all_layouts

from tokenizers_zoo.machine.process import Interrupted
from zoo_backbone.learn.distributed import leave
from zoo_backbone.learn.train import Trainer, train


def train_in_two_processes(
    folder: Path, tokens: Path, changes: dict[str, Any], start: Path | None = None, interrupt_after: int = 0
) -> list[str]:
    """Train with settings changed by `changes`; return how far each process says that it was saved, "" at the end.

    With `interrupt_after`, the last process gets a SIGINT after that many steps. With `start`, a backbone of all
    layouts, training adds one modality.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo_backbone.learn.train"])
    saved = context.SimpleQueue()
    arguments = (port, folder, tokens, changes, start, interrupt_after, saved)
    workers = [context.Process(target=work, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(900)
        assert worker.exitcode == 0
    return [saved.get() for _ in workers]


def work(
    rank: int, port: int, folder: Path, tokens: Path, changes: dict[str, Any], start: Path | None,
    interrupt_after: int, saved: Any,
) -> None:  # fmt: skip
    """Train in this process; the environment is that of torchrun."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    step, rates = Trainer.train_step, []

    def interrupted(trainer: Trainer, *arguments: Any) -> Any:
        rates.append(arguments)
        if len(rates) == interrupt_after and trainer.ranks.rank == trainer.ranks.size - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, *arguments)

    Trainer.train_step = interrupted  # type: ignore[method-assign]
    config = dataclasses.replace(TRAINING, **changes)
    specs = [*all_layouts(), ADDED] if start else all_layouts()
    try:
        train(folder, tokens, specs, SMALL, config, start=start)
        saved.put("")
    except Interrupted as error:
        saved.put(error.saved)
    leave()
