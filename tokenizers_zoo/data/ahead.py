"""Batches read ahead by threads, and how many cores there are."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Linux file with a container's CPU quota: microseconds per period, or "max"."""


def cores() -> int:
    """Return the number of cores that this process may use; fewer than the machine's in a container or cluster job."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        most, period = map(int, QUOTA.read_text(encoding="ascii").split())
        found = min(found, max(1, -(-most // period)))
    return found


def read_ahead(
    read: Callable[[Item], Result], batches: Iterable[Sequence[Item]], *, threads: int = 2, depth: int = 3
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """Batches with what `read` gives for each of their items, in order, up to `depth` batches read ahead by threads."""
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        waiting: deque[tuple[Sequence[Item], list[Future[list[Result]]]]] = deque()
        remaining = iter(batches)
        try:
            while True:
                while len(waiting) < depth and (batch := next(remaining, None)) is not None:
                    # One piece for each thread: a future costs more than many a value.
                    size = max(1, -(-len(batch) // threads))
                    pieces = [batch[start : start + size] for start in range(0, len(batch), size)]
                    waiting.append((batch, [pool.submit(lambda piece: list(map(read, piece)), p) for p in pieces]))
                if not waiting:
                    return
                batch, futures = waiting.popleft()
                yield batch, [result for future in futures for result in future.result()]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
