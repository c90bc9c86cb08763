"""Memory that glibc keeps for the next step of a training or generation instead of returning it to the system."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

LIBC = ctypes.CDLL(None)
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
_lock, _blocks = threading.Lock(), 0


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc keep freed memory within the block, and return it at the end of the last block.

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
