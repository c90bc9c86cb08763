"""The built-in source `folder`: files or tar files in folders, one folder per modality, aligned once by their keys.

    PATH/<modality>/<key>.<ext>                 split by the keys' hash, `test_fraction` of them for testing
    PATH/<train or test>/<modality>/<key>.<ext> split as the folders say
    PATH/<modality>/<train or test>/<key>.<ext> the same, where a modality has both of these folders
    PATH/<split>/<modality>/<any>.tar           tar files in the layout of ml-4m and WebDataset

It gives bytes, not values: `zoo data make` decodes them with each modality's own reader. The join by key is done by
SQLite in a temporary file, so that memory does not grow with the number of samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_zoo.config import Settings, check_interval
from tokenizers_zoo.data.samples import OWN_FILES, TEST, TRAIN, LazySequence
from tokenizers_zoo.data.tar import (
    TARS,
    Dropped,
    Member,
    key_problem,
    read_member,
    scan_tar,
    shown_key,
    shown_name,
    split_name,
)
from tokenizers_zoo.errors import ConfigError, DataError, count_of
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.io import not_read
from tokenizers_zoo.source import SourceSpec

SIDECARS = (".aux.xml", ".ovr", ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".xmp")
"""Endings of sidecar files that programs for maps and photographs write; they are no values."""
NOTHING = "no <modality>/<key>.<extension> here; one folder per modality was expected"


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSettings:
    """Folder of the files, and the share of them for testing."""

    path: str
    """The folder. `~` is your home."""
    test_fraction: float = 0.1
    """Share of the keys for testing if the folder has no train and test folders, in [0, 1)."""

    def __post_init__(self) -> None:
        check_interval(self, "[0, 1)", "test_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileBytes:
    """A value that is not decoded yet: a file's bytes and its extension, for `ModalityHandle.read`."""

    data: bytes
    extension: str


class FolderSamples(LazySequence[tuple[str, Mapping[str, FileBytes | DataError]]]):
    """Samples of one split, sorted by key; a sample has the modalities that have a file with its key.

    A file that cannot be read is its error. `modalities` are the split's, unknown folders included; `offered` are those
    of all splits, `dropped` the number of unusable members by modality, with the first one. The files are in a table on
    disk that is deleted with the object: SQLite creates a temporary file for an empty name.
    """

    def __init__(self) -> None:
        self.modalities: tuple[str, ...] = ()
        self.offered: tuple[str, ...] = ()
        self.dropped: dict[str, tuple[int, str]] = {}
        self._count = 0
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA cache_size = -32000")
        self._table.create_function("share", 1, _share, deterministic=True)
        self._table.execute(
            "CREATE TABLE members (key TEXT, modality TEXT, path TEXT, offset INT, size INT, extension TEXT, time INT)"
        )
        self._table.execute("CREATE UNIQUE INDEX by_key ON members (key, modality)")
        self._table.execute("BEGIN")

    def ask(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self._table.execute(query, arguments).fetchall()

    def add(self, modality: str, key: str, member: Member) -> bool:
        """Add a member of a modality. Return False, and add nothing, if there is one with this key."""
        row = (key, modality, str(member.path), *member[1:])
        return self._table.execute("INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?, ?, ?, ?)", row).rowcount == 1

    def drop(self, modality: str, where: str, key: str, reason: str) -> None:
        """Count a member that cannot be used."""
        count, first = self.dropped.get(modality, (0, f"{where}: {key or 'unknown member'}: {reason}"))
        self.dropped[modality] = count + 1, first

    def finish(self, count: int | None, offered: Collection[str], unknown: Collection[str]) -> FolderSamples:
        """Sort by key and number the first `count` samples. Raises DataError if there are fewer."""
        self._table.execute("CREATE INDEX IF NOT EXISTS by_key ON members (key, modality)")
        self._table.execute("CREATE TABLE samples (number INTEGER PRIMARY KEY, key TEXT)")
        self._table.execute("INSERT INTO samples (key) SELECT DISTINCT key FROM members ORDER BY key")
        ((there,),) = self.ask("SELECT COUNT(*) FROM samples")
        if count is not None and count > there:
            raise DataError(f"the folder has {count_of(there, 'sample')} for this split, asked for {count}")
        self._count = there if count is None else count
        found = [name for (name,) in self.ask("SELECT DISTINCT modality FROM members")]
        self.modalities = tuple(sorted({*found, *unknown}))
        self.offered = tuple(sorted({*found, *offered}))
        return self

    def __len__(self) -> int:
        return self._count

    def item(self, index: int) -> tuple[str, dict[str, FileBytes | DataError]]:
        return read_sample(*self.files(index, index + 1)[0])

    def files(self, start: int, stop: int) -> list[tuple[str, dict[str, Member]]]:
        """Return the samples [start, stop): the key of each, and the location of its file by modality."""
        rows = self.ask("SELECT key FROM samples WHERE number > ? AND number <= ?", start, min(stop, self._count))
        found: dict[str, dict[str, Member]] = {key: {} for (key,) in rows}
        if rows:
            query = "SELECT * FROM members WHERE key BETWEEN ? AND ? ORDER BY key, modality"
            for key, name, path, *place in self.ask(query, rows[0][0], rows[-1][0]):
                found[key][name] = Member(Path(path), *place)
        return list(found.items())

    def alone(self, names: Collection[str]) -> dict[str, str]:
        """Return the modalities of `names` that share no sample with another, each with its first key."""
        among = f"FROM members WHERE modality IN ({', '.join('?' * len(names))})"
        together = self.ask(
            f"SELECT DISTINCT modality {among} AND key IN (SELECT key {among} GROUP BY key HAVING COUNT(*) > 1)",
            *names, *names,
        )  # fmt: skip
        first = self.ask(f"SELECT modality, MIN(key) {among} GROUP BY modality", *names)
        return {name: key for name, key in first if (name,) not in together}


def signature(files: Sequence[tuple[str, Mapping[str, Member]]], names: Collection[str]) -> str:
    """Return a sha256 of the keys, sizes and times of the files of some modalities."""
    found = [
        (key, name, *member[1:]) for key, members in files for name, member in sorted(members.items()) if name in names
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def read_sample(key: str, files: Mapping[str, Member]) -> tuple[str, dict[str, FileBytes | DataError]]:
    """Return a sample of these files, by modality, with its key; a file that cannot be read is its error."""
    found: dict[str, FileBytes | DataError] = {}
    for name, member in files.items():
        try:
            found[name] = FileBytes(data=read_member(member), extension=member.extension)
        except DataError as error:
            found[name] = error
    return key, found


class FolderSource:
    """The source plugin."""

    @hookimpl
    def source_spec(self) -> SourceSpec:
        """Return the spec; `modalities` is empty, as the samples name them."""
        return SourceSpec(
            name=OWN_FILES, summary="your own files: one folder per modality, or tar files, aligned by key",
            modalities=(), licence="that of your files", settings=FolderSettings,
        )  # fmt: skip

    @hookimpl
    def samples(self, split: str, count: int | None, seed: int, settings: Settings) -> FolderSamples:
        """Return the samples of a split; `count` None means all. Raises ConfigError or DataError for none."""
        return open_folder(settings.take(FolderSettings), split, count)


def open_folder(
    config: FolderSettings,
    split: str,
    count: int | None,
    out: Path | None = None,
    names: Mapping[str, str] | None = None,
) -> FolderSamples:
    """Return the samples of a split, aligned by key.

    `names` maps known folder names to modalities; other folders are not read. None means that all folders are
    modalities. If no folder is known, there are no samples, and `modalities` lists all folders. `out`, the folder of
    the new shards, is skipped. Raises ConfigError if the folder is missing or `out` is the folder itself, DataError if
    it lacks the split or `count` samples, ReadError if it cannot be read.
    """
    root, out = Path(os.path.expanduser(config.path)), None if out is None else out.resolve()
    try:
        if not root.is_dir():
            raise ConfigError(f"path: {config.path}: no such folder")
        if root.resolve() == out:
            raise ConfigError(f"path: {config.path}: what is made of its files cannot go there, too; give another DATA")
        return _open(root, split, count, config.test_fraction, out, names)
    except OSError as error:
        raise not_read(Path(error.filename or root), error) from None


def _open(
    root: Path, split: str, count: int | None, test_fraction: float, out: Path | None, names: Mapping[str, str] | None
) -> FolderSamples:
    folders = _folders(root)
    split_folders = [folder for folder in folders if folder.name in (TRAIN, TEST)]
    by_name = any(folder.name in (names or ()) for folder in folders)
    if not split_folders and not by_name and any(root.glob(f"*/*/{TARS}")):
        split_folders = folders  # splits of other names
    if split_folders and not (root / split).is_dir():
        here = ", ".join(folder.name for folder in folders)
        advice = f"give --{split} 0, or make a folder {split}"
        raise DataError(f"{root}: no split {split!r}; splits here: {here}; {advice}")
    base = root / split if split_folders else root
    known = _known(_folders(base), names)
    around = [folder for one in split_folders for folder in _folders(one)] if split_folders else folders
    offered = {(names or {}).get(path.name, path.name) for path in around if next(_files(path, out), None)}
    unknown = {path.name for path in _folders(base) if path not in known and next(_files(path, out), None)}
    samples = FolderSamples()
    for folder, name in known.items():
        _add(samples, folder, name, out)
    if not offered:
        raise DataError(f"{root}: {NOTHING}")
    if not known:
        return samples.finish(None, offered, offered)
    if not split_folders and not _split_below(samples, known, split):
        ((total,),) = samples.ask("SELECT COUNT(DISTINCT key) FROM members")
        samples.ask("DELETE FROM members WHERE (share(key) < ?) != ?", test_fraction, split == TEST)
        if total and not samples.ask("SELECT 1 FROM members LIMIT 1"):
            raise DataError(
                f"{root}: none of its {total} samples falls to the split {split!r} with test_fraction "
                f"{test_fraction:g}: set another test_fraction, ask for none (--{split} 0), or add files"
            )
    if split_folders and not samples.ask("SELECT 1 FROM members LIMIT 1"):
        raise DataError(f"{base}: {NOTHING}; to go without the split, ask for none (--{split} 0)")
    return samples.finish(count, offered, unknown)


def _known(folders: Sequence[Path], names: Mapping[str, str] | None) -> dict[Path, str]:
    """Return the folders of modalities, each with its modality; a folder with the modality's own name goes first."""
    if names is None:
        return {folder: folder.name for folder in folders}
    chosen: dict[str, Path] = {}
    for folder in sorted(folders, key=lambda path: (names.get(path.name) != path.name, path.name)):
        if folder.name in names:
            chosen.setdefault(names[folder.name], folder)
    return {folder: name for name, folder in sorted(chosen.items())}


def _split_below(samples: FolderSamples, known: Mapping[Path, str], split: str) -> bool:
    """Keep the samples of a split if folders `train` and `test` inside the modalities' folders are the splits.

    This requires one modality with files in both folders, because a single one may be a class. Raises DataError for a
    modality that has neither.
    """
    below: dict[str, set[str]] = {}
    top = "SELECT DISTINCT modality, substr(key, 1, instr(key, '/') - 1) FROM members"
    for name, first in samples.ask(top):
        below.setdefault(name, set()).add(first)
    split_as = next((folder for folder, name in known.items() if below.get(name, set()) >= {TRAIN, TEST}), None)
    if split_as is None:
        return False
    for folder, name in known.items():
        if below.get(name, {TRAIN}).isdisjoint((TRAIN, TEST)):
            raise DataError(
                f"{folder}: expected its files in folders {TRAIN} and {TEST}, which {split_as} has and which are the "
                "split; move them there"
            )
    samples.ask("DELETE FROM members WHERE substr(key, 1, ?) != ?", len(split) + 1, f"{split}/")
    samples.ask("DROP INDEX by_key")  # the keys are not distinct at each moment of the change
    samples.ask("UPDATE members SET key = substr(key, ?)", len(split) + 2)
    return True


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _add(samples: FolderSamples, folder: Path, name: str, out: Path | None) -> None:
    """Add a modality's files, or the members of its tar files.

    Raises DataError for a file whose name is not UTF-8, and for a second file with the same key.
    """
    tars = sorted(path for path in folder.glob(TARS) if not path.is_dir())
    for key, path in _files(folder, out) if not tars else ():
        if path.as_posix() != shown_name(path.as_posix()):
            raise DataError(f"{folder}: the name of {shown_name(path.name)} is not UTF-8; rename it, and its folders")
        status = path.stat() if path.exists() else path.lstat()
        if problem := key_problem(key):
            samples.drop(name, shown_key(path.name), shown_key(key), problem)
        elif not samples.add(name, key, Member(path, 0, status.st_size, split_name(path.name)[1], status.st_mtime_ns)):
            ((other,),) = samples.ask("SELECT path FROM members WHERE key = ? AND modality = ?", key, name)
            raise DataError(f"{path}: a second file with the key {key!r}, beside {Path(other).name}; keep one")
    for path in tars:
        for item in scan_tar(path):
            if isinstance(item, Dropped):
                samples.drop(name, path.name, *item)
            elif not samples.add(name, *item):
                samples.drop(name, path.name, item[0], "a second value with this key; the first is used")
    stems = {path.name.partition(".")[0] for path in tars}
    for path in _walk(folder, out) if tars else ():
        if (path.parent == folder and path.name.partition(".")[0] in stems) or _is_aside(path.relative_to(folder)):
            continue
        if all(split_name(below := path.relative_to(folder).as_posix())):
            reason = f"a file beside {tars[0].name}; move the tar files or the other files"
            samples.drop(name, below, split_name(below)[0], reason)


def _is_aside(below: Path) -> bool:
    """Return True for hidden files and sidecar files of pictures."""
    return any(part.startswith(".") for part in below.parts) or below.name.lower().endswith(SIDECARS)


def _files(folder: Path, out: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield the files below a modality's folder, but for those in `out`, by key: the path up to the name's first dot.

    A link to a file that is not there is a file that cannot be read.
    """
    for path in _walk(folder, out):
        below = path.relative_to(folder)
        key, extension = split_name(below.as_posix())
        if not _is_aside(below) and key and extension and (path.is_file() or (path.is_symlink() and not path.exists())):
            yield key, path


def _walk(folder: Path, out: Path | None, trail: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, following links except links back to a parent; `out` is skipped."""
    here = folder.resolve()
    if here == out:
        return
    trail, below = (*trail, here), []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_dir():
                yield path
            elif not (entry.is_symlink() and any(place.is_relative_to(path.resolve()) for place in trail)):
                below.append(path)
    for path in sorted(below):
        yield from _walk(path, out, trail)


def _share(key: str) -> float:
    """Return a number in [0, 1) that only the key decides, so that a key never changes sides when files are added."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


source = FolderSource()
