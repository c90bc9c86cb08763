"""Log of a training loop: live progress, metrics.jsonl, and loggers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tokenizers_zoo.files.run_folder import read_run
from tokenizers_zoo.machine.progress import Lines, clock, progress_of, say
from tokenizers_zoo.machine.terminal import console
from tokenizers_zoo.records.io import LARGEST, as_json, line_text, read_lines, start_lines
from tokenizers_zoo.train.loggers import new_loggers

if TYPE_CHECKING:
    import PIL.Image
    from rich.console import RenderableType

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of steps in a run's metrics.jsonl, which may lack its end while the run is lengthened."""
    record = read_run(folder)
    return read_lines(folder / METRICS, finished=record is None or record.finished is not None)


class StepLog:
    """Progress of a run of `steps` steps on stderr, and its scalars in `folder`.

    `done` steps were finished before. A line of metrics.jsonl is `{"step": finished steps, name: number}`, with null
    for numbers that are not finite; the first line gives the format, the last one the number of lines. Lines do not
    depend on time, so a resumed run writes the lines of an uninterrupted one. The `loggers` get the same scalars, the
    speed, and pictures; they start with `config`.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        *,
        steps: int,
        done: int,
        samples_per_step: int,
        loggers: Sequence[str] = (),
        config: Any = None,
    ) -> None:
        self.loggers, self.config = new_loggers(loggers), config or {}
        self.folder, self.title, self.steps, self.first, self.done = folder, title, steps, done, done
        self.samples_per_step = samples_per_step
        self.loss: float | None = None
        self.note = ""
        """The last evaluation in a few words."""
        self.console = console()
        self.lines = Lines(self.console, steps, done)
        self.progress = progress_of(title, steps, self.console)
        self.bar = self.progress.add_task(title, total=steps, completed=done)

    def __enter__(self) -> Self:
        from rich.live import Live

        self.written = start_lines(self.folder / METRICS, self.first)
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context(open(self.folder / METRICS, "a", 1, encoding="utf-8"))
            for logger in self.loggers:
                logger.start(self.folder, self.title, as_json(self.config), self.first)
                stack.callback(logger.finish)
            if self.lines.live:
                stack.enter_context(Live(console=self.console, get_renderable=self._frame))
            self.stack = stack.pop_all()
        if self.first:
            self.say(f"{self.title}: goes on after step {self.first}")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self.stack:
            if kind is None:
                self.file.write(line_text({"end": self.written}))
        if kind is None and not self.lines.live:
            self.say(f"{self.title}: {', '.join(self._state())}, took {clock(self.lines.seconds)}")

    @property
    def samples_per_second(self) -> float:
        """Speed since the log was created, evaluations included."""
        return (self.done - self.first) * self.samples_per_step / self.lines.seconds

    def say(self, line: str, style: str = "", *, warning: bool = False) -> None:
        """Print a line above the progress; with --quiet only a `warning`."""
        say(self.console, line, style, warning=warning)

    def advance(self, done: int, loss: float) -> None:
        """Show that `done` steps are finished."""
        self.done, self.loss = done, loss
        self.progress.update(self.bar, completed=done)
        if left := self.lines.due(done):
            self.say(f"{self.title}: {', '.join(self._state())}, {left}")

    def write(self, done: int, scalars: Mapping[str, float]) -> None:
        """Log scalars to the loggers and as a line of metrics.jsonl."""
        for logger in self.loggers:
            logger.log(done, scalars)
        finite = {name: x if abs(x) <= LARGEST else None for name, x in scalars.items()}  # None for NaN, too
        self.file.write(line_text({"step": done, **finite}))
        self.written += 1

    def write_speed(self) -> None:
        """Log the speed, to the loggers only."""
        for logger in self.loggers:
            logger.log(self.done, {"speed/samples_per_second": self.samples_per_second})

    def write_image(self, done: int, name: str, picture: PIL.Image.Image) -> None:
        """Log a picture to the loggers."""
        for logger in self.loggers:
            logger.image(done, name, picture.convert("RGB"))

    def flush(self) -> None:
        self.file.flush()
        for logger in self.loggers:
            logger.flush()

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
