"""What the backbone's training shows and leaves behind: the losses, whole and by modality."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from tokenizers_zoo.step_log import StepLog
from zoo_backbone.config import TrainConfig

DETAILS_EVERY = 10
"""Steps between losses by modality in metrics.jsonl."""


class TrainingLog(StepLog):
    """The log of a run that goes on after `done` steps.

    The lines of metrics.jsonl are `{"step": finished steps, "train/loss", "train/gradient_norm",
    "train/learning_rate", "train/<modality>"}` and `{"step", "held_out/loss", "held_out/<modality>"}`, all losses in
    nats per token, without factors of the modalities' losses; with an average of the weights also
    `"held_out_average/..."`, its losses, and with learned factors `"train/weight/<modality>"`.
    """

    def __init__(self, folder: Path, config: TrainConfig, done: int, title: str) -> None:
        super().__init__(folder, title, steps=config.steps, done=done, samples_per_step=config.batch_size)
        self.by_modality: Mapping[str, float] = {}
        """The last losses on held-out samples."""

    def step(self, done: int, loss: float, norm: float, rate: float, by_modality: Mapping[str, float]) -> None:
        """Log the step after which `done` are finished."""
        self.advance(done, loss)
        scalars = {"train/loss": loss, "train/gradient_norm": norm, "train/learning_rate": rate}
        if done % DETAILS_EVERY == 0 or done == self.steps:
            scalars |= {f"train/{name}": value for name, value in by_modality.items()}
            self.write_speed()
        self.write(done, scalars)

    def held_out(self, done: int, loss: float, by_modality: Mapping[str, float], title: str = "held_out") -> None:
        """Log the losses on held-out samples, where these have targets."""
        if not by_modality:
            self.note = "no held-out sample has a target"
            return
        self.write(done, {f"{title}/loss": loss} | {f"{title}/{name}": value for name, value in by_modality.items()})
        self.note = f"held-out loss {loss:.4g}"
        self.by_modality = by_modality

    def previews(self, done: int, shown: Mapping[str, Path | str]) -> None:
        """Show what the model makes: pictures and texts in TensorBoard, and where they are, with the losses, here."""
        for title, what in shown.items():
            if isinstance(what, str):
                self.board.add_text(title, what, done)
            else:
                with Image.open(what) as picture:
                    self.board.add_image(title, np.asarray(picture.convert("RGB")), done, dataformats="HWC")
                self.say(f"step {done}: {title}: {what}")
        losses = ", ".join(f"{name} {loss:.3g}" for name, loss in self.by_modality.items())
        if losses:
            self.say(f"step {done}: held-out losses: {losses}")


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

    def held_out(self, done: int, loss: float, by_modality: Mapping[str, float], title: str = "held_out") -> None:
        """Log nothing."""

    def previews(self, done: int, shown: Mapping[str, Path | str]) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def flush(self) -> None:
        """Nothing to hand on."""
