"""Work over many shards: a pool of processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers_zoo.data.ahead import cores
from tokenizers_zoo.errors import ZooError

if TYPE_CHECKING:
    from tokenizers_zoo.registry import Zoo

Job = TypeVar("Job")
Result = TypeVar("Result")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TERMINAL = "TERM"

_worker_zoo: Any = None
_tick: Callable[[], None] = lambda: None  # noqa: E731  (replaced in workers and by run_jobs)


def tick() -> None:
    """Tell the progress bar of `run_jobs`, from inside a job, that one more sample is done."""
    _tick()


def run_jobs(
    zoo: Zoo,
    function: Callable[[Zoo, Job], Result],
    jobs: Iterable[Job],
    workers: int | None,
    advance: Callable[[int], None],
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
    `advance` is called with the number of newly finished samples.
    """
    global _tick
    if count is None:
        jobs = list(jobs)
        count = len(jobs)
    workers = min(workers or cores(), max(of, count))
    if workers <= 1 or not count:
        _tick = lambda: advance(1)  # noqa: E731
        for job in jobs:
            yield function(zoo, job)
        return
    context = multiprocessing.get_context("spawn")
    done = context.Value("Q", 0)
    setup = (zoo.tables, zoo.path, done)
    started = min(workers, count)
    with _sharing_cores(workers), ProcessPoolExecutor(started, context, _start_worker, setup) as pool:
        # One job per worker: further jobs would be queued, and would start even after an error.
        waiting = iter(jobs)
        running: set[Future[Result]] = {pool.submit(_run, function, job) for job in islice(waiting, started)}
        shown, errors = 0, list[BaseException]()
        try:
            while running:
                finished, running = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
                now = done.value
                advance(now - shown)
                shown = now
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


def _start_worker(tables: Mapping[str, Any], path: Path | None, done: Any) -> None:
    from tokenizers_zoo.registry import Zoo

    def count() -> None:
        with done.get_lock():
            done.value += 1

    global _worker_zoo, _tick
    _worker_zoo, _tick = Zoo.from_tables(tables, path), count
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
