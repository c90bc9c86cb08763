"""This process: memory that it keeps between steps, and signals that wait for the end of a step."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator

LIBC = ctypes.CDLL(None)
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
_lock, _blocks = threading.Lock(), 0


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc keep freed memory within the block for the next step, and return it at the end of the last block.

    Activations and gradients are freed and allocated again in every step. By default, large ones come from the
    operating system each time, page by page. Other C libraries have no such settings.
    """
    global _blocks
    is_glibc = hasattr(LIBC, "mallopt")
    with _lock:
        _blocks += 1
        if is_glibc and _blocks == 1:
            LIBC.mallopt(MMAP_MAX, 0)
            LIBC.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if is_glibc and not _blocks:  # the default, and the thresholds that glibc reaches by itself in time
                LIBC.mallopt(MMAP_MAX, 65536)
                LIBC.mallopt(MMAP_THRESHOLD, 32 << 20)
                LIBC.mallopt(TRIM_THRESHOLD, 64 << 20)
                LIBC.malloc_trim(0)


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
