"""Where the figures of a training go besides metrics.jsonl: TensorBoard, Weights & Biases, or an installed logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from tokenizers_zoo.errors import ConfigError, PluginError, UnknownNameError
from tokenizers_zoo.records.io import read_regular

if TYPE_CHECKING:
    import PIL.Image

GROUP = "tokenizers_zoo.loggers"
"""Entry-point group of installed loggers; each is a subclass of `Logger`."""
BUILT_IN = {"tensorboard": f"{__name__}:TensorBoard", "wandb": f"{__name__}:WeightsAndBiases"}
LOGS, TENSORBOARD = "logs", "tensorboard"
"""Subfolders of a run for the files of loggers; TensorBoard has its own."""


class Logger:
    """Receives the figures and pictures of one training, in the process that writes metrics.jsonl.

    Subclass it without arguments of the constructor, and install it as an entry point of the group
    `tokenizers_zoo.loggers`. Its name can then be used in the setting `loggers` of training.
    """

    def start(self, folder: Path, title: str, config: Mapping[str, Any], step: int) -> None:
        """Begin, or resume a killed training after `step` finished steps; later steps are logged again.

        Files belong into `folder / "logs"`, which is removed with the run. `config` has the settings as JSON types.
        """

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Log figures by name, such as "train/loss", after `step` finished steps. They may be NaN."""

    def image(self, step: int, name: str, picture: PIL.Image.Image) -> None:
        """Log an RGB picture."""

    def flush(self) -> None:
        """Write everything that was logged; called before each saved training state."""

    def finish(self) -> None:
        """End, also after an error."""


class TensorBoard(Logger):
    """Event files in the run's subfolder `tensorboard`."""

    def start(self, folder: Path, title: str, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: PIL.Image.Image) -> None:
        self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()


class WeightsAndBiases(Logger):
    """A run of Weights & Biases; its environment variables, such as WANDB_PROJECT and WANDB_MODE, apply."""

    def start(self, folder: Path, title: str, config: Mapping[str, Any], step: int) -> None:
        try:
            import wandb
        except ImportError:
            advice = "pip install 'tokenizers-zoo[wandb]', or remove it from loggers"
            raise ConfigError(f"loggers: wandb is not installed; {advice}") from None
        id_file = folder / LOGS / "wandb-id"
        id_file.parent.mkdir(exist_ok=True)
        if not id_file.exists():
            id_file.write_text(uuid4().hex[:16], encoding="utf-8")
        self.wandb = wandb
        self.run = wandb.init(
            dir=str(folder / LOGS),
            name=title,
            config=dict(config),
            id=(read_regular(id_file) or b"").decode(),
            resume="allow",
        )
        # Their own step only grows, and a resumed training logs some steps again.
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log({"step": step, **figures})

    def image(self, step: int, name: str, picture: PIL.Image.Image) -> None:
        self.run.log({"step": step, name: self.wandb.Image(picture)})

    def finish(self) -> None:
        self.run.finish()


def new_loggers(names: Sequence[str]) -> list[Logger]:
    """Return new loggers. Raises UnknownNameError for a name that is not installed, PluginError if one fails."""
    points = {name: EntryPoint(name, target, GROUP) for name, target in BUILT_IN.items()}
    points |= {point.name: point for point in entry_points(group=GROUP)}
    loggers: list[Logger] = []
    for name in names:
        if name not in points:
            raise UnknownNameError.of("logger", name, points, "(setting loggers)")
        try:
            loggers.append(points[name].load()())
        except Exception as error:
            raise PluginError(f"logger {name} ({points[name].value}): {error}") from error
    return loggers
