"""Interrupts of a training: SIGINT and SIGTERM wait for the end of a step, so that its state is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """A command ends because of the signal `number`; `saved` says where a training goes on, such as "step 3 of 9"."""

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(number, saved)
        self.number, self.saved = number, saved


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Yield a list that gets the first SIGINT or SIGTERM of the block; a second Ctrl-C raises KeyboardInterrupt.

    A signal after which the block ends as usual is sent again. Outside the main thread, the list stays empty.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received[:] = received or [number]

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: handler for number in numbers if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    try:
        for number in handlers:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
