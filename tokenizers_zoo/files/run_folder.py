"""RunFolder decides whether a folder may be written, resumed, overwritten or replaced, and holds its lock.

A run folder has a `run.json`: `{"kind", "identity", "places", "finished"}`. The identity is everything
that the result depends on. With an equal identity, the command resumes or has nothing to do. With another one, it fails
and names the keys that differ. With more steps only, it lengthens a finished training, which `"lengthened"` records.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.files.checkpoint import CARD, CONFIG, WEIGHTS, is_complete
from tokenizers_zoo.records.io import (
    absolute_place,
    as_json,
    differences,
    disk_problem,
    read_record,
    relative_place,
    remove_folder,
    write_table,
)
from tokenizers_zoo.records.typed import OPTIONAL, RecordError

RUN, LOCK = "run.json", ".lock"
REPLACED, MOVING = ".replaced", ".moving"
"""Subfolders with the old files: complete while a new run replaces them, and partly moved there or back."""
MOST_KEYS = 3
"""Differing keys that an error lists."""


class FolderError(ZooError):
    """A folder may not be written: it holds something else, or another process writes it."""


class OtherRunError(FolderError):
    """A folder holds a run with other settings or data."""


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """The files that a command writes into its folder."""

    name: str
    """Stored in run.json and used in messages, such as "tokenizer"."""
    files: tuple[str, ...]
    """Patterns of the names of all files and subfolders that the command writes; `--overwrite` removes only these."""
    state: str
    """The state of a killed run: a file or subfolder."""
    results: tuple[str, ...] = ()
    """Files without which a finished run starts again."""
    keeps_state: bool = False
    """Whether a finished run keeps its state, so that it can be lengthened."""


TOKENIZER = RunKind(
    name="tokenizer",
    files=(WEIGHTS, CONFIG, CARD, "evaluation*.json", "samples*", "metrics.jsonl", "tensorboard", "logs"),
    state="training_state.safetensors",
    results=(WEIGHTS, CONFIG),
    keeps_state=True,
)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json. Raises ValueError for a place that cannot be a path."""

    kind: str
    """`RunKind.name`."""
    identity: Mapping[str, Any]
    places: Mapping[str, str | None]
    """Paths, and other texts, that may change without making it another run."""
    finished: Mapping[str, Any] | None
    """Facts about the finished run; None while it is not finished."""
    lengthened: tuple[int, ...] = field(default=(), metadata=OPTIONAL)
    """Its numbers of steps before it was lengthened."""

    def __post_init__(self) -> None:
        for name, path in self.places.items():
            if "\0" in (path or ""):
                raise RecordError(("places", name), f"expected a path, got {path!r}")


class RunFolder:
    """A folder that belongs to one run of a command, opened as a context manager.

    with RunFolder(out, TOKENIZER, identity).open(overwrite) as run:
        if not run.finished:
            ...  # resume from out / TOKENIZER.state if `run.resuming`, else start
            run.finish(steps=400)
    """

    def __init__(
        self, path: Path, kind: RunKind, identity: Mapping[str, Any], places: Mapping[str, Any] | None = None
    ) -> None:
        """`places` are recorded texts that may change without making it another run; absolute paths are recorded
        relative to the folder."""
        self.path, self.kind = Path(path), kind
        self.identity, self.places = as_json(identity), as_json(places or {})
        self.finished: Mapping[str, Any] | None = None
        self.resuming = False
        self.lengthened: tuple[int, ...] = ()
        """Its numbers of steps before it was lengthened."""

    @contextlib.contextmanager
    def open(self, overwrite: bool = False) -> Iterator[RunFolder]:
        """Take the folder and hold its lock; see `finished` and `resuming` for its state.

        With `overwrite` the old run is set aside, removed at the end, and restored if the block fails before it saves a
        state. Raises FolderError if the folder holds another run or files of others, or is locked.
        """
        unused_state = _has_state(self.path, self.kind) and not self.kind.keeps_state
        if not overwrite and self._read() and not (_set_aside(self.path) or unused_state):
            yield self  # needs no lock, so that a finished run may be read-only
            return
        with replacing(self.path, self.kind, overwrite):
            if self._read():
                self._remove_state()  # the process was killed before it did
            self._write()
            try:
                yield self
            except BaseException:
                if entries(self.path) == [self.path / RUN]:  # a refused command leaves nothing behind
                    (self.path / RUN).unlink()
                raise

    def finish(self, **record: Any) -> None:
        """Note that the run is complete, and remove its state unless the kind keeps it."""
        self.finished = as_json(record)
        self._write()
        self._remove_state()

    def _remove_state(self) -> None:
        if self.kind.keeps_state:
            return
        state = self.path / self.kind.state
        remove_folder(state)
        state.unlink(missing_ok=True)

    def _read(self) -> bool:
        """Set `finished` and `resuming`; return whether there is nothing to do. Raises FolderError."""
        self.finished, self.resuming, self.lengthened = None, False, ()
        record = read_run(self.path)
        if record is None:
            file_names = [path.name for path in entries(self.path)]
            if CONFIG in file_names and WEIGHTS in file_names:
                advice = "give another folder, or replace it (--overwrite)"
                raise FolderError(f"{self.path}: holds a checkpoint that was not trained here; {advice}")
            if file_names:
                content = f"{file_names[0]}, which is not part of a {self.kind.name} run"
                raise FolderError(f"{self.path}: holds {content}; give an empty folder")
            return False
        _check_kind(self.path, self.kind, record)
        complete = all((self.path / name).is_file() for name in self.kind.results)
        finished = record.finished if complete else None
        has_state = (self.path / self.kind.state).exists()
        saved = finished is not None or has_state
        changed = list(differences(record.identity, self.identity))
        self.lengthened = record.lengthened
        if changed and finished and "steps" in finished and _is_longer(record.identity, self.identity):
            self.lengthened = (*self.lengthened, finished["steps"])
            finished, changed = None, []
        if not (complete or has_state):
            self.lengthened = ()
        elif self.lengthened and not (finished or has_state):
            raise FolderError(
                f"{self.path}: cannot be lengthened from step {self.lengthened[-1]}, because its {self.kind.state} is "
                "gone; give another folder, or train it anew with --overwrite"
            )
        if changed and saved:
            rest = f"; and {len(changed) - MOST_KEYS} more" if len(changed) > MOST_KEYS else ""
            raise OtherRunError(
                f"{self.path}: holds another {self.kind.name} ({'; '.join(changed[:MOST_KEYS])}{rest}); repeat its "
                "settings, give another folder, or replace it with --overwrite"
            )
        if not changed:
            self.finished, self.resuming = finished, finished is None and saved
        if self.finished is not None and record.places != self.places:
            self._write()
        return self.finished is not None

    def _write(self) -> None:
        record = RunRecord(
            kind=self.kind.name,
            identity=self.identity,
            places=self.places,
            finished=self.finished,
            lengthened=self.lengthened,
        )
        if read_run(self.path) != record:
            write_run(self.path, record)


def _is_longer(old: Any, new: Any, key: str = "") -> bool:
    """Return whether two identities are equal but for larger numbers of steps in the new one."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        return all(_is_longer(old[name], new[name], name) for name in old)
    return bool(old == new or (key == "steps" and isinstance(old, int) and new > old))


def read_run(folder: Path) -> RunRecord | None:
    """Return the content of run.json, with absolute paths, or None without one. Raises CheckpointError if damaged."""
    if not (folder / RUN).is_file():
        return None
    record = read_record(folder / RUN, RunRecord, remedy="copy it again")
    is_relative = (os.curdir + os.sep, os.pardir + os.sep)
    places = {
        name: str(absolute_place(path, folder)) if path and path.startswith(is_relative) else path
        for name, path in record.places.items()
    }
    return replace(record, places=places)


def write_run(folder: Path, record: RunRecord) -> None:
    """Write run.json, with relative paths."""
    places = {
        name: relative_place(path, folder) if path and os.path.isabs(path) else path
        for name, path in record.places.items()
    }
    write_table(folder / RUN, replace(record, places=places))


def entries(folder: Path) -> list[Path]:
    """Return the files and subfolders of a folder, without locks, temporary files and replaced files."""
    if not folder.is_dir():
        return []
    hidden = (LOCK, REPLACED, MOVING, ".*.tmp", ".*.tmp.d")
    return sorted(path for path in folder.iterdir() if not any(fnmatchcase(path.name, name) for name in hidden))


@contextlib.contextmanager
def replacing_folder(out: Path, record: str = "", overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder, which becomes `out` if the block succeeds; `out` is locked meanwhile.

    Raises FolderError unless `out` is new or empty, or has the file `record` and may be overwritten.
    """
    target = out.absolute()
    beside = target.with_name(f".{target.name}.tmp")
    new, old = beside / "new", beside / "old"
    with locked(out, beside=beside):
        try:
            _put_back(old, target)  # after a kill
            if target.exists() and not (target.is_dir() and not any(target.iterdir())):
                is_own = bool(record) and (target / record).is_file()
                if not (is_own and overwrite):
                    advice = "replace it with --overwrite" if is_own else "give a new or empty folder"
                    raise FolderError(f"{out}: is there already; {advice}")
            remove_folder(new)
            new.mkdir()
            yield new
            if target.exists():
                os.replace(target, old)
            os.replace(new, target)
        finally:
            _put_back(old, target)
            remove_folder(new)


def _put_back(old: Path, target: Path) -> None:
    """Move the old folder back unless a new one has taken its place; then remove it."""
    if old.exists() and not target.exists():
        os.replace(old, target)
    remove_folder(old)


def check_replaceable(folder: Path, kind: RunKind) -> None:
    """Raise FolderError if a folder holds anything but a run of this kind or a checkpoint: it would be lost."""
    paths = entries(folder)
    for path in paths:
        if path.name not in (RUN, kind.state) and not _is_own(path, kind):
            raise FolderError(
                f"{folder}: holds {path.name}, which is not part of a {kind.name} run and would be removed; move it "
                "away, or give another folder"
            )
    if (record := read_run(folder)) is not None:
        _check_kind(folder, kind, record)
    elif paths and not {CONFIG, WEIGHTS, kind.state} & {path.name for path in paths}:
        raise FolderError(f"{folder}: holds neither a run nor a checkpoint, and is not replaced; give another folder")


def _check_kind(folder: Path, kind: RunKind, record: RunRecord) -> None:
    if record.kind != kind.name:
        raise FolderError(f"{folder}: holds a {record.kind}, expected a {kind.name}; give another folder")


def _is_own(path: Path, kind: RunKind) -> bool:
    if any(fnmatchcase(path.name, pattern) for pattern in kind.files):
        return True
    children = list(path.iterdir()) if path.is_dir() else []
    return bool(children) and all(_is_own(child, kind) for child in children)


_own_locks = set[tuple[Path, int]]()
"""Locks that this process holds: the lock file and the thread."""


@contextlib.contextmanager
def locked(folder: Path, *, beside: Path | None = None) -> Iterator[bool]:
    """Hold the lock of a folder, which is created; yield False if this thread holds it already.

    The lock file is in the folder, or in the temporary folder `beside` it; its holder removes it at the end. Raises
    FolderError if another process or thread holds it, or if the file system has no locks.
    """
    lock_folder = beside or folder
    is_new = not lock_folder.exists()
    path = lock_folder.resolve() / LOCK
    if (path, threading.get_ident()) in _own_locks:
        yield False
        return
    try:
        lock_folder.mkdir(parents=True, exist_ok=True)
        file = _take(path)
    except OSError as error:
        removed = isinstance(error, FileNotFoundError | FileExistsError) and not lock_folder.is_file()  # by its holder
        if removed or isinstance(error, BlockingIOError):
            raise FolderError(f"{folder}: another process writes it right now; wait for its end, or stop it") from None
        if disk_problem(error):
            raise
        raise FolderError(
            f"{folder}: cannot be locked ({error}); give a folder on a file system that supports locks"
        ) from None
    _own_locks.add((path, threading.get_ident()))
    try:
        yield True
    finally:
        _own_locks.discard((path, threading.get_ident()))
        with contextlib.suppress(OSError):
            path.unlink()
            if is_new or beside:
                lock_folder.rmdir()  # unless something was written
        os.close(file)  # releases the lock


def _take(path: Path) -> int:
    """Open and lock a file and return its descriptor. Raises BlockingIOError if it is locked already."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder removed it between the two calls: a lock on it would exclude nobody


@contextlib.contextmanager
def replacing(folder: Path, kind: RunKind, overwrite: bool) -> Iterator[None]:
    """Hold the lock of a folder and, with `overwrite`, set its files aside while the block writes new ones.

    They are removed when the block ends, and restored if it fails before it saves a state. Old files that a killed
    process set aside are restored, too, unless the new run has saved a state to resume from. Raises FolderError if
    anything would be removed that is not part of a run of this kind.
    """
    if overwrite and not _set_aside(folder):
        check_replaceable(folder, kind)  # before a lock file is written into a folder of others
    with locked(folder) as outermost:
        if not outermost:
            yield
            return
        if _set_aside(folder):
            if _is_finished(folder):
                remove_folder(folder / REPLACED)
            elif overwrite or not _has_state(folder, kind):
                _restore(folder, kind)
        if overwrite:
            check_replaceable(folder, kind)
            _move(folder, entries(folder), folder / MOVING)
            if (folder / MOVING).is_dir():
                os.replace(folder / MOVING, folder / REPLACED)
        try:
            yield
        except BaseException:
            if _set_aside(folder) and not _has_state(folder, kind) and not _is_finished(folder):
                _restore(folder, kind)
            raise
        remove_folder(folder / REPLACED)


def _set_aside(folder: Path) -> bool:
    return (folder / REPLACED).is_dir() or (folder / MOVING).is_dir()


def _has_state(folder: Path, kind: RunKind) -> bool:
    return not (folder / MOVING).is_dir() and (folder / kind.state).exists()


def _is_finished(folder: Path) -> bool:
    """Return whether the new files are complete. Tokenizers that are not trained in steps have no run.json."""
    if (folder / MOVING).is_dir():
        return False
    record = read_run(folder)
    return is_complete(folder) if record is None else record.finished is not None


def _restore(folder: Path, kind: RunKind) -> None:
    """Remove the new files and move the old ones back. After a kill at any moment, it can be called again."""
    if (folder / REPLACED).is_dir():
        check_replaceable(folder, kind)
        for path in sorted(entries(folder), key=lambda path: path.name != kind.state):  # without it, nothing resumes
            remove_folder(path)
            path.unlink(missing_ok=True)
        os.replace(folder / REPLACED, folder / MOVING)
    _move(folder / MOVING, list((folder / MOVING).iterdir()), folder)
    (folder / MOVING).rmdir()


def _move(source: Path, paths: list[Path], target: Path) -> None:
    for path in paths:
        target.mkdir(exist_ok=True)
        os.replace(path, target / path.relative_to(source))
