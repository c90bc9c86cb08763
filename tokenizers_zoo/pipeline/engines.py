"""Work over many shards: counts of their samples, a pool of processes, and threads that read ahead."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers_zoo.data.manifest import Manifest, Split
from tokenizers_zoo.errors import DataError, ZooError
from tokenizers_zoo.progress import set_verbosity, verbosity

if TYPE_CHECKING:
    from tokenizers_zoo.registry import Zoo

Item = TypeVar("Item")
Job = TypeVar("Job")
Result = TypeVar("Result")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TERMINAL = "TERM"
MOST_SKIPPED = 3
"""Skipped modalities that a short summary explains."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Linux file with a container's CPU quota: microseconds per period, or "max"."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """Counts for one split and modality: samples written now, kept in shards that are up to date, and dropped."""

    split: str
    modality: str
    written: int = 0
    kept: int = 0
    dropped: int = 0
    first_dropped: str = ""
    """Reason and key of the first sample that was dropped."""

    def add(self, split: Split, shard: int, manifest: Manifest, *, kept: bool = False) -> None:
        """Count one shard."""
        self.kept += manifest.count if kept else 0
        self.written += 0 if kept else manifest.count
        self.dropped += len(manifest.dropped)
        for row, reason in manifest.dropped.items() if not self.first_dropped else ():
            self.first_dropped = self.first_dropped or f"{reason} (sample {split.keys(shard)[row]})"

    @property
    def nothing(self) -> bool:
        """True if every sample was dropped."""
        return self.dropped > 0 and not self.written and not self.kept


@dataclass(kw_only=True, slots=True)
class RunResult:
    """The outcomes of a command, the modalities that it left out, each with the reason, and lines about its values."""

    outcomes: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    planned: bool = False
    """True for a plan: the outcomes count what would be written."""

    def summary(self, *, details: bool = True) -> str:
        """Return one line per split and modality; without `details` at most one line about many skipped modalities."""
        lines = []
        for one in self.outcomes:
            kept = f", {one.kept} unchanged" if one.kept else ""
            dropped = f", {one.dropped} dropped (first: {one.first_dropped})" if one.dropped else ""
            written = "to write" if self.planned else "written"
            lines.append(f"{one.split}/{one.modality}: {one.written} {written}{kept}{dropped}")
        if details or len(self.skipped) <= MOST_SKIPPED:
            lines += [f"{name}: skipped: {reason}" for name, reason in sorted(self.skipped.items())]
        else:
            names = ", ".join(sorted(self.skipped))
            lines.append(f"{len(self.skipped)} modalities skipped: {names} (--verbose says why)")
        lines += self.notes
        return "\n".join(lines) or "nothing to do"

    def check(self) -> RunResult:
        """Return this result. Raises DataError if every sample of a modality was dropped."""
        if wholly := [one for one in self.outcomes if one.nothing]:
            first, *others = wholly
            more = ", ".join(f"{one.split}/{one.modality} ({one.dropped})" for one in others)
            raise DataError(
                f"{first.split}/{first.modality}: all {first.dropped} samples were dropped; the first: "
                f"{first.first_dropped}{more and f'; so were all of {more}'}"
            )
        return self


# ---------------------------------------------------------------------- processes


def cores() -> int:
    """Return the number of cores that this process may use; fewer than the machine's in a container or cluster job."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        most, period = map(int, QUOTA.read_text(encoding="ascii").split())
        found = min(found, max(1, -(-most // period)))
    return found


_worker_zoo: Any = None


def run_jobs(
    zoo: Zoo,
    function: Callable[[Zoo, Job], Result],
    jobs: Iterable[Job],
    workers: int | None,
    *,
    count: int | None = None,
    of: int = 0,
) -> Iterator[Result]:
    """Yield results of `function(zoo, job)` as they finish: in this process for one worker, else in several.

    `jobs` is read lazily; `count` is the number of jobs if it is an iterator. `workers` None means one per core, at
    most one per job. Each process gets a share of the cores. Networks round differently with another number of threads:
    to resume a killed run with the same share, `jobs` gives the original number of jobs. Processes are spawned, not
    forked: `function` and the jobs are pickled, torch's threads are never copied. After the first error or an
    interrupt, no job starts. After an error, running jobs finish and their results are yielded before it is raised.
    """
    if count is None:
        jobs = list(jobs)
        count = len(jobs)
    workers = min(workers or cores(), max(of, count))
    if workers <= 1 or not count:
        for job in jobs:
            yield function(zoo, job)
        return
    context = multiprocessing.get_context("spawn")
    setup = (zoo.tables, zoo.path, verbosity())
    started = min(workers, count)
    with _sharing_cores(workers), ProcessPoolExecutor(started, context, _start_worker, setup) as pool:
        # One job per worker: further jobs would be queued, and would start even after an error.
        waiting = iter(jobs)
        running: set[Future[Result]] = {pool.submit(_run, function, job) for job in islice(waiting, started)}
        errors = list[BaseException]()
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                errors += filter(None, (future.exception() for future in finished))
                if not errors:
                    running |= {pool.submit(_run, function, job) for job in islice(waiting, len(finished))}
                yield from (future.result() for future in finished if future.exception() is None)
            if errors:
                raise errors[0]
        except BrokenProcessPool:
            raise ZooError(
                "a worker process died, perhaps for lack of memory; run the same command again to go on, with fewer "
                "workers, or with one to see the reason; a script of yours has to call this under "
                '`if __name__ == "__main__":`'
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(tables: Mapping[str, Any], path: Path | None, level: int) -> None:
    from tokenizers_zoo.registry import Zoo

    global _worker_zoo
    set_verbosity(level)
    _worker_zoo = Zoo.from_tables(tables, path)
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # quietly, removing unfinished files
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(function: Callable[[Zoo, Job], Result], job: Job) -> Result:
    return function(_worker_zoo, job)


@contextlib.contextmanager
def _sharing_cores(workers: int) -> Iterator[None]:
    """Let processes started meanwhile use their share of the cores for numerics, and print lines instead of live bars.

    The bars of several processes would be drawn over one another.
    """
    share = str(max(1, cores() // workers))
    old = {name: os.environ.get(name) for name in (*THREADS, TERMINAL)}
    os.environ.update({name: share for name in THREADS if old[name] is None} | {TERMINAL: "dumb"})
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# ---------------------------------------------------------------------- threads


def read_ahead(
    read: Callable[[Item], Result], batches: Iterable[Sequence[Item]], *, threads: int = 2, depth: int = 3
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """Yield batches with the results of `read` for their items, in order; threads read up to `depth` batches ahead."""
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        waiting: deque[tuple[Sequence[Item], Iterator[Result]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.map(read, batch)))
                if len(waiting) == depth:
                    first, results = waiting.popleft()
                    yield first, list(results)
            for first, results in waiting:
                yield first, list(results)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
