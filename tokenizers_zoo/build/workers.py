"""Processes that do the jobs of a command, and survive values that kill or block them.

A job notes its values while it works on them (`working_on`). If its process dies, another one repeats the job, and
tries the noted values one by one first (`suspects`). If that succeeds, the death was chance, and the results are the
same as without it. If a second process dies while it works on one value alone, the value is lost: `working_on` raises
an error for it, so that the job drops it like an invalid value.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tokenizers_zoo.errors import DataError, MachineError, ZooError
from tokenizers_zoo.machine.process import Interrupted
from tokenizers_zoo.machine.progress import set_verbosity, verbosity
from tokenizers_zoo.stores.manifest import Split, shard_name

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo

Job = TypeVar("Job")
Result = TypeVar("Result")
Value = tuple[int, str]
"""A value in work: its row in the shard, and its modality or source."""
NOTHING: Value = (-1, "")
"""Placeholder for a process that died without a note."""
CONTEXT = multiprocessing.get_context("spawn")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TERMINAL = "TERM"
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Linux file with a container's CPU quota: microseconds per period, or "max"."""
MOST_LOST, IN_A_ROW = 20, 5
"""Lost values of a shard, and lost values in neighbouring rows, that show that the plugin or the machine is broken."""
MOST_DEATHS = 60
"""Deaths after which a job is given up."""
NOTE_BYTES = 1 << 20
SECONDS_BETWEEN_CHECKS = 0.5
SECONDS_TO_END = 10.0
ADVICE = (
    "run the same command again to go on, with fewer workers if memory was short; a script of yours has to call this "
    'under `if __name__ == "__main__":`'
)


def _ignore(count: int) -> None:
    """Show no progress."""


class WorkerError(ZooError):
    """A job killed process after process."""


def cores() -> int:
    """Return the number of cores that this process may use; fewer than the machine's in a container or cluster job."""
    core_count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, QUOTA.read_text(encoding="ascii").split())
        core_count = min(core_count, max(1, -(-quota // period)))
    return core_count


# ---------------------------------------------------------------------- the command's process


class Workers:
    """The worker processes of a command: started when jobs need them, kept for later jobs, ended with the block.

    Processes are spawned, not forked: functions and jobs are pickled, torch's threads are never copied.
    """

    def __init__(self, zoo: Zoo, workers: int | None, jobs: int) -> None:
        """`workers` None means one per core, at most one per job. With 0, jobs run in this process, unprotected.

        Each process gets a share of the cores. Networks round differently with another number of threads: to resume a
        killed run with the same share, `jobs` is the number of jobs of the whole run.
        """
        self.zoo, self._idle = zoo, list[_Worker]()
        self.count = 0 if workers == 0 else max(1, min(workers or cores(), jobs))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self._idle)

    def run(
        self,
        function: Callable[[Zoo, Job], Result],
        jobs: Iterable[Job],
        advance: Callable[[int], None] = _ignore,
        *,
        max_processes: int | None = None,
        saves: bool = False,
    ) -> Iterator[Result]:
        """Yield results of `function(zoo, job)` as they finish, in at most `max_processes` processes.

        `jobs` is read lazily. After the first error or an interrupt, no job starts. After an error, running jobs finish
        and their results are yielded before it is raised. Raises WorkerError for a job that kills process after
        process. `advance` gets the numbers that jobs `report`; a negative number takes back the work of a dead process.
        If an interrupted job `saves` its state, this takes as long as it needs, and the raised Interrupted names it.
        """
        global _advance
        if not self.count:
            _advance = advance
            yield from (function(self.zoo, job) for job in jobs)
            return
        waiting, running, errors = map(_Task, jobs), dict[_Worker, _Task[Job]](), list[BaseException]()

        def give(task: _Task[Job]) -> None:
            worker = self._idle.pop() if self._idle else self._start()
            running[worker] = task
            worker.give(function, task)

        def show(worker: _Worker, task: _Task[Job]) -> None:
            count, task.done = worker.done.value - task.done, worker.done.value
            advance(count)

        try:
            while True:
                while not errors and len(running) < min(self.count, max_processes or self.count):
                    if (task := next(waiting, None)) is None:
                        break
                    give(task)
                if not running:
                    break
                ended = _ended(running, self.zoo.limits.value_seconds)
                for worker, task in running.items():
                    show(worker, task)
                for worker in ended:
                    task, answer = running.pop(worker), worker.answer()
                    if isinstance(answer, _Death):
                        advance(-task.done)
                        task.done = 0
                        if worker_error := task.died(answer):
                            errors.append(worker_error)
                        else:
                            give(task)
                        continue
                    self._idle.append(worker)
                    result, error = answer
                    if error is None:
                        yield result
                    else:
                        errors.append(error)
            if errors:
                raise errors[0]
        except KeyboardInterrupt as error:
            for worker in running:
                worker.process.terminate()
            answers = [worker.answer() for worker in running if saves and worker.connection.poll(None)]
            ends = [answer[1] for answer in answers if isinstance(answer, tuple)]
            saved = ", ".join(end.saved for end in ends if isinstance(end, Interrupted))
            raise Interrupted(getattr(error, "number", signal.SIGINT), saved) from None
        finally:
            for worker in running:
                worker.process.terminate()
            _stop(running)

    def _start(self) -> _Worker:
        with _sharing_cores(self.count):
            return _Worker(self.zoo)


def run_jobs(
    zoo: Zoo, function: Callable[[Zoo, Job], Result], jobs: Sequence[Job], workers: int | None
) -> Iterator[Result]:
    """Yield results of `function(zoo, job)` as they finish: in this process for one worker, else in several."""
    with Workers(zoo, 0 if workers == 1 else workers, len(jobs)) as started:
        yield from started.run(function, jobs, saves=True)


@dataclass(kw_only=True, slots=True)
class _Death:
    """The end of a process: its noted values, the reason as words, and whether the reason may pass."""

    values: set[Value]
    how: str
    passes: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """A job that writes one shard of a modality."""

    split: Split
    modality: str
    shard: int
    inputs: str
    """Digest of everything that the shard depends on."""
    device: str

    @property
    def place(self) -> str:
        return f"{self.split.name}/{self.modality}, {shard_name(self.shard)}"


@dataclass(slots=True)
class _Task(Generic[Job]):
    """A job, and the values that were in work when its processes died."""

    job: Job
    suspected: set[Value] = field(default_factory=set)
    """Values in work at a death."""
    lost: dict[Value, tuple[str, bool]] = field(default_factory=dict)
    """Why values are dropped, and whether that may pass."""
    deaths: int = 0
    done: int = 0
    """Values that are counted as done."""

    def died(self, death: _Death) -> WorkerError | None:
        """Count a death. Return the error if the job is given up, None if it is to be repeated."""
        values = death.values or {NOTHING}
        self.deaths += 1
        reason = f"{death.how}; {ADVICE}" if self.deaths == MOST_DEATHS else ""
        if values <= self.suspected:
            (row, name), *other_values = values
            if other_values or not death.values:
                reason = f"{death.how}, at both tries; {ADVICE}"
            else:
                self.lost[row, name] = f"{name}: {death.how}, at both tries", death.passes
                in_a_row = all((row - before, name) in self.lost for before in range(IN_A_ROW))
                if in_a_row or len(self.lost) == MOST_LOST:
                    rows = ", ".join(str(row) for row, _ in sorted(self.lost))
                    reason = (
                        f"the values in rows {rows} end their processes, so that the plugin or the machine seems to be "
                        f"broken; the last: {name}: {death.how}"
                    )
        self.suspected |= values
        location = getattr(self.job, "place", "")
        return WorkerError(f"{location}{location and ': '}{reason}") if reason else None


class _Worker:
    """A process that does one job at a time."""

    def __init__(self, zoo: Zoo) -> None:
        self.note, self.done = CONTEXT.RawArray("c", NOTE_BYTES), CONTEXT.RawValue("Q", 0)
        self.connection, theirs = CONTEXT.Pipe()
        self.limit = 0.0
        """The time limit that the process exceeded, s."""
        setup = (zoo.tables, zoo.path, verbosity(), theirs, self.note, self.done)
        self.process = CONTEXT.Process(target=_serve, args=setup)
        self.process.start()
        theirs.close()

    def give(self, function: Callable[[Zoo, Job], Any], task: _Task[Job]) -> None:
        self.done.value = 0
        with contextlib.suppress(OSError):  # it died while it was idle, which `answer` finds
            self.connection.send((function, task.job, task.suspected - {NOTHING}, task.lost))

    def noted(self) -> list[tuple[float, set[Value]]]:
        """Return the start of the work on values, and the values."""
        with contextlib.suppress(ValueError):  # read while it was written
            entries = json.loads(self.note.value or b"[]")
            return [(start, {(row, name) for row, name in values}) for start, values in entries]
        return []

    def answer(self) -> tuple[Any, BaseException | None] | _Death:
        """Return the result of the job and its error, or the process's death."""
        values = {value for _, values in self.noted() for value in values}
        try:
            if not self.connection.poll():
                raise EOFError
            result, error = self.connection.recv()
        except (EOFError, OSError):
            _stop([self])
            return _Death(values=values, how=self._end())
        if values and isinstance(error, MachineError):  # a new process has its memory and its device again
            _stop([self])
            return _Death(values=values, how=str(error), passes=True)
        return result, error

    def _end(self) -> str:
        if self.limit:
            return f"took more than {self.limit:g} s (value_seconds in [limits] of registry.toml)"
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended its process (exit code {code})"
        name = {int(number): number.name for number in signal.Signals}.get(-code, f"signal {-code}")
        why = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"its process was killed ({name}{why})"


def _ended(running: Mapping[_Worker, _Task[Any]], seconds: float) -> list[_Worker]:
    """Wait a moment; return the processes that have answered or died. A process that works on a value for more than
    `seconds` is killed."""
    ready = wait([worker.connection for worker in running], SECONDS_BETWEEN_CHECKS)
    for worker, task in running.items():
        for start, values in worker.noted():
            slow = task.deaths > 2 * len(task.lost)  # a process died, and no value of its batch was found guilty
            tried = len(values) if slow or values <= task.suspected else 1  # suspected values were fast enough alone
            if time.monotonic() - start > seconds * tried:
                worker.limit = seconds
                worker.process.kill()
    return [worker for worker in running if worker.connection in ready or not worker.process.is_alive()]


def _stop(workers: Iterable[_Worker]) -> None:
    """End processes; they clean up unless they are stuck."""
    workers = list(workers)
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.process.join(SECONDS_TO_END)
        worker.process.kill()
        worker.process.join()


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


# ---------------------------------------------------------------------- a worker's process


@dataclass(kw_only=True, slots=True)
class _Watch:
    """The values that this process works on, in the memory that its parent reads."""

    note: Any
    done: Any
    suspects: set[Value]
    lost: Mapping[Value, tuple[str, bool]]
    work: dict[int, tuple[float, list[Value]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, key: int, values: Sequence[Value]) -> None:
        """Note the values that the block `key` works on, or that it works on none."""
        with self.lock:
            self.work.pop(key, None)
            if values:
                self.work[key] = time.monotonic(), list(values)
            text = json.dumps(list(self.work.values())).encode()
            self.note.value = text if len(text) < NOTE_BYTES else b""


_watch: _Watch | None = None
_advance: Callable[[int], None] = _ignore
"""Advances the progress of jobs in the command's own process."""


def report(count: int) -> None:
    """Count values of the job as done, for the progress bar of the command."""
    if _watch is None:
        _advance(count)
    else:
        _watch.done.value += count


@contextlib.contextmanager
def working_on(*values: Value) -> Iterator[None]:
    """Note that the block works on these values of the job. Raises DataError for a value that was lost."""
    if _watch is None:
        yield
        return
    for value in values:
        if value in _watch.lost:
            how, passes = _watch.lost[value]
            raise DataError(how) from (MachineError(how) if passes else None)
    key = threading.get_ident()
    _watch.set(key, values)
    try:
        yield
    except MachineError:
        raise  # the parent reads the note
    except BaseException:
        _watch.set(key, ())
        raise
    _watch.set(key, ())


def suspects() -> list[int]:
    """Return the rows whose values the job has to try one by one before its work."""
    return sorted({row for row, _ in _watch.suspects}) if _watch else []


def _serve(
    tables: Mapping[str, Any], path: Path | None, level: int, connection: Connection, note: Any, done: Any
) -> None:
    """Do jobs until the command ends."""
    from tokenizers_zoo.contract.registry import Zoo

    global _watch
    set_verbosity(level)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, EOFError):  # interrupted, or the command has ended
        zoo = Zoo.from_tables(tables, path)
        while True:
            function, job, suspected, lost = connection.recv()
            _watch = _Watch(note=note, done=done, suspects=suspected, lost=lost)
            result, job_error = None, None
            try:
                result = function(zoo, job)
            except Exception as error:
                job_error = _sendable(error)
            except KeyboardInterrupt as error:
                for saved in (error, error.__context__):  # a second signal came after the training had saved its state
                    if isinstance(saved, Interrupted):
                        connection.send((None, saved))
                _interrupt()
            connection.send((result, job_error))
    atexit._run_exitfuncs()  # temporary folders of plugins
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # the end of an interpreter with torch takes a quarter of a second


def _sendable(error: Exception) -> Exception:
    """Return an error that can be sent, with its traceback as a note."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _interrupt(*_: object) -> None:
    """Leave the job, removing unfinished files; further signals do not disturb this."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _exit_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
