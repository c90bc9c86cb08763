"""Jobs of the server: one at a time in a thread, each with its events, and limits on their number and time."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Full, Queue
from typing import Any

from tokenizers_zoo.errors import OneLineError, ZooError

MAX_JOBS = 50
"""Finished jobs that are kept."""
Event = dict[str, Any]


class BusyError(ZooError):
    """Too many jobs are waiting."""


@dataclass
class Job:
    """A piece of work. `events` are JSON values, the last one with "done" or "error"; old pictures become None."""

    work: Callable[[Job], Any]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    events: list[Event | None] = field(default_factory=list)
    result: Any = None
    finished: bool = False
    cancelled: bool = False
    deadline: float = float("inf")

    def add_event(self, event: Event) -> None:
        """Add an event. Raises ZooError if the job was cancelled or takes too long."""
        if self.cancelled:
            raise ZooError("cancelled")
        if time.monotonic() > self.deadline:
            raise ZooError("takes too long; ask for fewer samples, targets or steps")
        if "shown" in event:
            self.events = [None if old is not None and "shown" in old else old for old in self.events]
        self.events.append(event)


class Jobs:
    """A queue of at most `waiting` jobs, which one thread works off; each may take `seconds`."""

    def __init__(self, waiting: int, seconds: float) -> None:
        self._seconds = seconds
        self._queue: Queue[Job] = Queue(waiting)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name="zoo-serve", daemon=True).start()

    def add(self, work: Callable[[Job], Any]) -> Job:
        """Queue a job. Raises BusyError."""
        job = Job(work)
        job.events.append({"waiting": self._queue.qsize()})
        try:
            self._queue.put_nowait(job)
        except Full:
            raise BusyError("too many requests are waiting; try again in a minute") from None
        with self._lock:
            self._jobs[job.id] = job
            while len(self._jobs) > MAX_JOBS:
                self._jobs.popitem(last=False)
        return job

    def get(self, job_id: str) -> Job | None:
        """Return a job that is still kept."""
        with self._lock:
            return self._jobs.get(job_id)

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            job.deadline = time.monotonic() + self._seconds
            try:
                job.add_event({"started": True})
                job.result = job.work(job)
                job.events.append({"done": True})
            except OneLineError as error:
                job.events.append({"error": str(error)})
            except Exception as error:  # the server goes on
                job.events.append({"error": f"unexpected {type(error).__name__}: {error}"})
            job.finished = True
