"""Progress of long tasks: a live line in a terminal, otherwise a line printed at intervals."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from tokenizers_zoo.machine.terminal import console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

QUIET, NORMAL, VERBOSE = -1, 0, 1
"""Levels of `verbosity`: results and problems only; progress, too; details, too."""
TIMES = 25
"""Columns of elapsed time, remaining time and spaces."""
SHORTEST = 4
"""Minimum columns of the title, and of the bar."""
SECONDS_BETWEEN_LINES = 20.0
"""Seconds between printed lines without a terminal."""
SECONDS_OF_SPEED = 3600.0
"""Maximum age of steps used to estimate the speed; longer than slow steps and turns of other tasks."""


_verbosity = NORMAL


def verbosity() -> int:
    """Return how much this process prints besides results, as set by `zoo --quiet` or `--verbose`."""
    return _verbosity


def set_verbosity(level: int) -> None:
    """Set `verbosity` for this process and the workers that it starts."""
    global _verbosity
    _verbosity = level


def progress_of(title: str, total: int, console: Console) -> Progress:
    """Return a progress line: title, bar in the remaining width, count of `total`, elapsed and remaining time.

    `title` is the longest title to be shown; it is truncated if it leaves no room for the rest.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.table import Column

    columns_left = console.width - 2 * len(str(total)) - TIMES
    title_column = Column(no_wrap=True, overflow="ellipsis", max_width=max(SHORTEST, columns_left - SHORTEST))
    text = TextColumn("{task.description}", markup=False, table_column=title_column)
    bar = BarColumn(max(SHORTEST, min(40, columns_left - len(title))))
    times = TimeElapsedColumn(), TextColumn("left"), Remaining()
    columns = text, bar, MofNCompleteColumn(), *times
    return Progress(
        *columns, console=console, speed_estimate_period=SECONDS_OF_SPEED, disable=total == 0 or _verbosity == QUIET
    )


class Lines:
    """Timing of progress lines without a live display: `total` steps, `first` of them done in an earlier run."""

    def __init__(self, console: Console, total: int, first: int = 0) -> None:
        self.live = console.is_terminal and not console.is_dumb_terminal and _verbosity > QUIET
        self.total, self.first = total, first
        self.started = self.printed = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def due(self, done: int) -> str:
        """Return the remaining time as text if a line is due after `done` steps; else ""."""
        now = time.perf_counter()
        if self.live or not self.first < done < self.total or now - self.printed < SECONDS_BETWEEN_LINES:
            return ""
        self.printed = now
        return clock(self.seconds / (done - self.first) * (self.total - done)) + " left"


class Advance(Protocol):
    """Advance the progress by `count`; `title`, if given, replaces the title."""

    def __call__(self, count: int, title: str = "") -> None: ...


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """Show progress on stderr towards `total`. `title` is the first title; later ones may not be longer."""
    screen = console()
    lines = Lines(screen, total)
    with progress_of(title, total, screen) as progress:
        task = progress.add_task(title, total=total, visible=total > 0)
        done, last_title = 0, title

        def advance(count: int, title: str = "") -> None:
            nonlocal done, last_title
            done, last_title = done + count, title or last_title
            progress.update(task, completed=done, description=last_title)
            if left := lines.due(done):
                say(screen, f"{last_title}: {done} of {total}, {left}")

        yield advance


def say(console: Console, line: str, style: str = "", *, warning: bool = False) -> None:
    """Print a line without markup, above a live display. With --quiet only a `warning` is printed."""
    if warning or _verbosity > QUIET:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
