"""How far something is that takes long: a live line in a terminal, a printed one now and then where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

TIMES = 25
"""Columns that the time gone by, the time left, and the blanks between take."""
SHORTEST = 4
"""Columns that the title, and that the bar, takes at least."""
SECONDS_BETWEEN_LINES = 20.0
"""How often progress is printed where there is no terminal that could show it live."""


def progress_of(title: str, total: int, console: Console) -> Progress:
    """A line of a title, a bar as long as there is room, how many of `total` are done, and the time that is left.

    `title` is the longest that is shown; one that leaves no room for the rest is cut short.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.table import Column

    room = console.width - 2 * len(str(total)) - TIMES
    shown = Column(no_wrap=True, overflow="ellipsis", max_width=max(SHORTEST, room - SHORTEST))
    text = TextColumn("{task.description}", table_column=shown)
    bar = BarColumn(max(SHORTEST, min(40, room - len(title))))
    times = TimeElapsedColumn(), TextColumn("left"), Remaining()
    return Progress(text, bar, MofNCompleteColumn(), *times, console=console, disable=total == 0)


class Lines:
    """When a line about `total` steps, of which `first` were done before, is due where they cannot be shown live."""

    def __init__(self, console: Console, total: int, first: int = 0) -> None:
        self.live = console.is_terminal and not console.is_dumb_terminal
        self.total, self.first = total, first
        self.started = self.printed = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def due(self, done: int) -> str:
        """The time that is left, as text, where a line is due with so many of the steps done; else nothing."""
        now = time.perf_counter()
        if self.live or not self.first < done < self.total or now - self.printed < SECONDS_BETWEEN_LINES:
            return ""
        self.printed = now
        return clock(self.seconds / (done - self.first) * (self.total - done)) + " left"


class Advance(Protocol):
    """Moves progress on by `count`, under another title where one is given."""

    def __call__(self, count: int, title: str = "") -> None: ...


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """Progress on stderr towards `total`; `title` is its first title, and of several the longest."""
    from rich.console import Console

    console = Console(stderr=True)
    lines = Lines(console, total)
    with progress_of(title, total, console) as progress:
        task = progress.add_task(title, total=total)
        done, shown = 0, title

        def advance(count: int, title: str = "") -> None:
            nonlocal done, shown
            done, shown = done + count, title or shown
            progress.update(task, completed=done, description=shown)
            if left := lines.due(done):
                say(console, f"{shown}: {done} of {total}, {left}")

        yield advance


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is, above what is live."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
