"""Progress of long tasks: a live line in a terminal, otherwise a line printed at intervals."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

TIMES = 25
"""Columns of elapsed time, remaining time and spaces."""
SHORTEST = 4
"""Minimum columns of the title, and of the bar."""
SECONDS_BETWEEN_LINES = 20.0
"""Seconds between printed lines without a terminal."""
SECONDS_OF_SPEED = 3600.0
"""Maximum age of steps used to estimate the speed; longer than slow steps and turns of other tasks."""

_told: ContextVar[Callable[[int], None]] = ContextVar("_told", default=lambda count: None)
_share: ContextVar[Callable[[float], None]] = ContextVar("_share", default=lambda share: None)


def progress_of(title: str, total: int, console: Console) -> Progress:
    """Return a progress line: title, bar in the remaining width, count of `total`, elapsed and remaining time.

    `title` is the longest title to be shown; it is truncated if it leaves no room for the rest.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.table import Column

    room = console.width - 2 * len(str(total)) - TIMES
    shown = Column(no_wrap=True, overflow="ellipsis", max_width=max(SHORTEST, room - SHORTEST))
    text = TextColumn("{task.description}", table_column=shown)
    bar = BarColumn(max(SHORTEST, min(40, room - len(title))))
    times = TimeElapsedColumn(), TextColumn("left"), Remaining()
    columns = text, bar, MofNCompleteColumn(), *times
    return Progress(*columns, console=console, speed_estimate_period=SECONDS_OF_SPEED, disable=total == 0)


class Lines:
    """Timing of progress lines without a live display: `total` steps, `first` of them done in an earlier run."""

    def __init__(self, console: Console, total: int, first: int = 0) -> None:
        self.live = console.is_terminal and not console.is_dumb_terminal
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
    with progress_bars({title: total}) as (advance,):
        yield advance


@contextlib.contextmanager
def progress_bars(totals: Mapping[str, int]) -> Iterator[list[Advance]]:
    """Like `progress_bar` for several interleaved tasks; yields one `Advance` per task, in the order of `totals`.

    Each task has its own line and remaining time, because steps of different tasks take different times. Calling
    `advance(0)` before the first step starts the task's clock. A task with total 0 is not shown.
    """
    from rich.console import Console

    console = Console(stderr=True)
    clocks: dict[str, Lines] = {}
    with progress_of(max(totals, key=len), max(totals.values()), console) as progress:

        def bar(first: str, total: int) -> Advance:
            task = progress.add_task(first, total=total, visible=total > 0)
            clocks[first] = Lines(console, total)
            done, shown = 0, first

            def advance(count: int, title: str = "") -> None:
                nonlocal done, shown
                if done == count == 0:
                    clocks[first].started = time.perf_counter()
                done, shown = done + count, title or shown
                progress.update(task, completed=done, description=shown)
                if left := clocks[first].due(done):
                    say(console, f"{shown}: {done} of {total}, {left}")
                    for clock_of_all in clocks.values():
                        clock_of_all.printed = clocks[first].printed

            return advance

        yield [bar(title, total) for title, total in totals.items()]


@contextlib.contextmanager
def part_of(advance: Advance, total: int, title: str) -> Iterator[Advance]:
    """Report a subtask that counts as `total` steps: surplus steps are ignored, missing ones are added at the end."""
    done = 0
    advance(0, title)

    def within(count: int, title: str = "") -> None:
        nonlocal done
        now = min(total, done + count)
        advance(now - done, title)
        done = now

    yield within
    advance(total - done)


@contextlib.contextmanager
def decoded_samples(advance: Callable[[int], None]) -> Iterator[None]:
    """Within this context, call `advance` with the number of newly decoded samples of any modality."""
    before = _told.set(advance)
    try:
        yield
    finally:
        _told.reset(before)


@contextlib.contextmanager
def decoding(count: int) -> Iterator[None]:
    """Report the decoding of `count` samples: `tick` reports the share done, and all are done at the end."""
    advance, done = _told.get(), 0

    def to(share: float) -> None:
        nonlocal done
        if (now := int(share * count)) > done:
            advance(now - done)
            done = now

    before = _share.set(to)
    try:
        yield
    finally:
        _share.reset(before)
    to(1.0)


def tick(share: float) -> None:
    """Report that this share (0 to 1) of a batch is done; see `decoding`."""
    _share.get()(share)


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line without markup, above a live display."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
