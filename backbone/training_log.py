"""What a training run shows and leaves behind: live progress, TensorBoard, metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from backbone.config import TrainConfig
from tokenizers_zoo.checkpoint import drop_lines_after

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
DETAILS_EVERY = 10
"""Steps between losses by modality in metrics.jsonl."""


class TrainingLog:
    """Progress of a run that goes on after `done` steps. metrics.jsonl holds nothing that depends on the clock.

    Its lines are `{"step": finished steps, "train/loss", "train/gradient_norm", "train/learning_rate",
    "train/<modality>"}` and `{"step", "held_out/loss", "held_out/<modality>"}`, all losses in nats per token.
    """

    def __init__(self, folder: Path, config: TrainConfig, done: int, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.folder, self.config, self.done = folder, config, done
        self.console = Console(stderr=True)
        fields = ("loss {task.fields[loss]}", "{task.fields[held_out]}", "{task.fields[speed]}")
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
            *(TextColumn(field) for field in fields), TimeRemainingColumn(), console=self.console,
        )  # fmt: skip
        self.bar = self.progress.add_task(title, total=config.steps, completed=done, loss="-", held_out="", speed="")
        self.started = time.perf_counter()

    def __enter__(self) -> Self:
        from torch.utils.tensorboard import SummaryWriter

        drop_lines_after(self.folder / METRICS, self.done)
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context(open(self.folder / METRICS, "a", 1, encoding="utf-8"))
            writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=self.done + 1 if self.done else None)
            self.board = stack.enter_context(contextlib.closing(writer))
            stack.enter_context(self.progress)
            self.stack = stack.pop_all()
        if self.done:
            self.console.print(f"goes on after step {self.done}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def seconds(self) -> float:
        """Since the log was opened."""
        return time.perf_counter() - self.started

    def step(self, done: int, loss: float, norm: float, rate: float, by_modality: Mapping[str, float]) -> None:
        """Log the step after which `done` are finished."""
        speed = (done - self.done) * self.config.batch_size / self.seconds
        self.progress.update(self.bar, completed=done, loss=f"{loss:.4f}", speed=f"{speed:.0f} samples/s")
        scalars = {"train/loss": loss, "train/gradient_norm": norm, "train/learning_rate": rate}
        if done % DETAILS_EVERY == 0 or done == self.config.steps:
            scalars |= {f"train/{name}": value for name, value in by_modality.items()}
            self.board.add_scalar("train/samples_per_second", speed, done)
        self._write(done, scalars)

    def held_out(self, done: int, loss: float, by_modality: Mapping[str, float]) -> None:
        """Log the losses on held-out samples."""
        self._write(done, {"held_out/loss": loss} | {f"held_out/{name}": value for name, value in by_modality.items()})
        self.progress.update(self.bar, held_out=f"held-out {loss:.4f}")

    def flush(self) -> None:
        """Hand what was logged so far to the system."""
        self.file.flush()
        self.board.flush()

    def _write(self, done: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.board.add_scalar(name, value, done)
        self.file.write(json.dumps({"step": done, **scalars}) + "\n")


class NoLog:
    """Keeps quiet: for all processes of a run but the first."""

    def __enter__(self) -> Self:
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        return

    @property
    def seconds(self) -> float:
        """Since the log was opened."""
        return time.perf_counter() - self.started

    def step(self, done: int, loss: float, norm: float, rate: float, by_modality: Mapping[str, float]) -> None:
        """Log nothing."""

    def held_out(self, done: int, loss: float, by_modality: Mapping[str, float]) -> None:
        """Log nothing."""

    def flush(self) -> None:
        """Nothing to hand on."""
