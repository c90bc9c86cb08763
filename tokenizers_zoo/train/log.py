"""Log of a training loop: live progress, TensorBoard, and metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tokenizers_zoo.io import drop_lines_after
from tokenizers_zoo.progress import Lines, clock, progress_of, say

if TYPE_CHECKING:
    from rich.console import RenderableType

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class StepLog:
    """Progress of a run of `steps` steps on stderr, and its scalars in `folder`.

    `done` steps were finished before. A line of metrics.jsonl is `{"step": finished steps, name: number}`, with null
    for numbers that are not finite. Lines do not depend on time, so a resumed run writes the lines of an uninterrupted
    one. TensorBoard has the same scalars and the speed.
    """

    def __init__(self, folder: Path, title: str, *, steps: int, done: int, samples_per_step: int) -> None:
        from rich.console import Console

        self.folder, self.title, self.steps, self.first, self.done = folder, title, steps, done, done
        self.samples_per_step = samples_per_step
        self.loss: float | None = None
        self.note = ""
        """The last evaluation in a few words."""
        self.console = Console(stderr=True)
        self.lines = Lines(self.console, steps, done)
        self.progress = progress_of(title, steps, self.console)
        self.bar = self.progress.add_task(title, total=steps, completed=done)

    def __enter__(self) -> Self:
        from rich.live import Live
        from torch.utils.tensorboard import SummaryWriter

        drop_lines_after(self.folder / METRICS, self.first)
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context(open(self.folder / METRICS, "a", 1, encoding="utf-8"))
            writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=self.first + 1)
            self.board = stack.enter_context(contextlib.closing(writer))
            if self.lines.live:
                stack.enter_context(Live(console=self.console, get_renderable=self._frame))
            self.stack = stack.pop_all()
        if self.first:
            self.say(f"{self.title}: goes on after step {self.first}")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stack.close()
        if kind is None and not self.lines.live:
            self.say(f"{self.title}: {', '.join(self._state())}, took {clock(self.lines.seconds)}")

    @property
    def samples_per_second(self) -> float:
        """Speed since the log was created, evaluations included."""
        return (self.done - self.first) * self.samples_per_step / self.lines.seconds

    def say(self, line: str, style: str = "") -> None:
        """Print a line above the progress."""
        say(self.console, line, style)

    def advance(self, done: int, loss: float) -> None:
        """Show that `done` steps are finished."""
        self.done, self.loss = done, loss
        self.progress.update(self.bar, completed=done)
        if left := self.lines.due(done):
            self.say(f"{self.title}: {', '.join(self._state())}, {left}")

    def write(self, done: int, scalars: Mapping[str, float]) -> None:
        """Log scalars to TensorBoard and as a line of metrics.jsonl."""
        for name, value in scalars.items():
            self.board.add_scalar(name, value, done)
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self.file.write(json.dumps({"step": done, **finite}) + "\n")

    def write_speed(self) -> None:
        """Log the speed, to TensorBoard alone."""
        self.board.add_scalar("speed/samples_per_second", self.samples_per_second, self.done)

    def flush(self) -> None:
        self.file.flush()
        self.board.flush()

    def _state(self) -> list[str]:
        parts = [f"step {self.done} of {self.steps}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.note:
            parts.append(self.note)
        if self.done > self.first:
            parts.append(f"{self.samples_per_second:.0f} samples/s")
        return parts

    def _frame(self) -> RenderableType:
        """Two lines, so that both fit into 80 columns."""
        from rich.console import Group
        from rich.text import Text

        return Group(self.progress, Text("  " + ", ".join(self._state()[1:]), no_wrap=True, overflow="ellipsis"))
