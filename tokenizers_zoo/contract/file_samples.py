"""Samples made of a user's files: where each value's bytes are, by key and modality.

The join by key is done by SQLite in a temporary file, so that memory does not grow with the number of samples.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers_zoo.contract.samples import TEST, LazySequence
from tokenizers_zoo.contract.source import FileBytes
from tokenizers_zoo.errors import DataError, InvalidValueError, ReadError, ZooError, count_of
from tokenizers_zoo.files.tar import Member, read_member


class FileSamples(LazySequence[tuple[str, Mapping[str, FileBytes | ZooError]]]):
    """Samples of one split, sorted by key; a sample has the modalities that have a file with its key.

    A file that cannot be read is its error. `modalities` are the split's, unknown folders included; `offered` are those
    of all splits, `dropped` the number of unusable members by modality, with the first one, and `notes` lines for the
    user. The files are in a table on disk that is deleted with the object: SQLite creates a temporary file for an empty
    name.
    """

    def __init__(self) -> None:
        import sqlite3

        self.modalities: tuple[str, ...] = ()
        self.offered: tuple[str, ...] = ()
        self.dropped: dict[str, tuple[int, str]] = {}
        self.notes: list[str] = []
        self.contents = ""
        """Digest of the contents, where sizes and times of the files do not tell that they changed."""
        self._count = 0
        # Without the check of threads, because the last reference may be dropped in any thread.
        self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._table.close)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA cache_size = -32000")
        self._table.create_function("is_in_split", 3, is_in_split, deterministic=True)
        self._table.execute(
            "CREATE TABLE members (key TEXT, modality TEXT, path TEXT, offset INT, size INT, extension TEXT, time INT)"
        )
        self._table.execute("CREATE UNIQUE INDEX by_key ON members (key, modality)")
        self._table.execute("BEGIN")

    @property
    def key_count(self) -> int:
        """The number of keys so far."""
        ((count,),) = self.execute("SELECT COUNT(DISTINCT key) FROM members")
        return int(count)

    def execute(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self._table.execute(query, arguments).fetchall()

    def add(self, modality: str, key: str, member: Member) -> bool:
        """Add a member of a modality. Return False, and add nothing, if there is one with this key."""
        row = (key, modality, str(member.path), *member[1:])
        return self._table.execute("INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?, ?, ?, ?)", row).rowcount == 1

    def drop(self, modality: str, file_name: str, key: str, reason: str) -> None:
        """Count a member that cannot be used."""
        count, first = self.dropped.get(modality, (0, f"{file_name}: {key or 'unknown member'}: {reason}"))
        self.dropped[modality] = count + 1, first

    def drop_lone(self, among: Collection[str]) -> list[str]:
        """Remove the members of modalities in `among` whose key has no other member; return their keys, sorted."""
        names = sorted(among)
        in_names = f"modality IN ({', '.join('?' * len(names))})"
        lone = f"{in_names} AND key NOT IN (SELECT key FROM members WHERE NOT {in_names})"
        rows = self.execute(f"SELECT DISTINCT key FROM members WHERE {lone} ORDER BY key", *names, *names)
        self.execute(f"DELETE FROM members WHERE {lone}", *names, *names)
        return [key for (key,) in rows]

    def finish(self, count: int | None, offered: Collection[str], unknown: Collection[str]) -> FileSamples:
        """Sort by key and number the first `count` samples. Raises DataError if there are fewer."""
        self._table.execute("CREATE INDEX IF NOT EXISTS by_key ON members (key, modality)")
        self._table.execute("CREATE TABLE samples (number INTEGER PRIMARY KEY, key TEXT)")
        self._table.execute("INSERT INTO samples (key) SELECT DISTINCT key FROM members ORDER BY key")
        ((sample_count,),) = self.execute("SELECT COUNT(*) FROM samples")
        if count is not None and count > sample_count:
            raise DataError(f"there are {count_of(sample_count, 'sample')} for this split, asked for {count}")
        self._count = sample_count if count is None else count
        names = [name for (name,) in self.execute("SELECT DISTINCT modality FROM members")]
        self.modalities = tuple(sorted({*names, *unknown}))
        self.offered = tuple(sorted({*names, *offered}))
        return self

    def __len__(self) -> int:
        return self._count

    def item(self, index: int) -> tuple[str, dict[str, FileBytes | ZooError]]:
        return read_sample(*self.files(index, index + 1)[0])

    def files(self, start: int, stop: int) -> list[tuple[str, dict[str, Member]]]:
        """Return the samples [start, stop): the key of each, and the location of its file by modality."""
        rows = self.execute("SELECT key FROM samples WHERE number > ? AND number <= ?", start, min(stop, self._count))
        members_by_key: dict[str, dict[str, Member]] = {key: {} for (key,) in rows}
        if rows:
            query = "SELECT * FROM members WHERE key BETWEEN ? AND ? ORDER BY key, modality"
            for key, name, path, *location in self.execute(query, rows[0][0], rows[-1][0]):
                members_by_key[key][name] = Member(Path(path), *location)
        return list(members_by_key.items())

    def first_lone_keys(self, names: Collection[str]) -> dict[str, str]:
        """Return the modalities of `names` that share no sample with another, each with its first key."""
        among = f"FROM members WHERE modality IN ({', '.join('?' * len(names))})"
        together = self.execute(
            f"SELECT DISTINCT modality {among} AND key IN (SELECT key {among} GROUP BY key HAVING COUNT(*) > 1)",
            *names,
            *names,
        )
        first = self.execute(f"SELECT modality, MIN(key) {among} GROUP BY modality", *names)
        return {name: key for name, key in first if (name,) not in together}


def files_digest(files: Sequence[tuple[str, Mapping[str, Member]]], names: Collection[str]) -> str:
    """Return a sha256 of the keys, sizes and times of the files of some modalities."""
    stamps = [
        (key, name, *member[1:]) for key, members in files for name, member in sorted(members.items()) if name in names
    ]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def read_sample(key: str, files: Mapping[str, Member]) -> tuple[str, dict[str, FileBytes | ZooError]]:
    """Return a sample of these files, by modality, with its key; a file that cannot be read is its error."""
    values: dict[str, FileBytes | ZooError] = {}
    for name, member in files.items():
        try:
            values[name] = FileBytes(data=read_member(member), extension=member.extension)
        except (ReadError, InvalidValueError) as error:
            values[name] = error
    return key, values


def is_in_split(key: str, split: str, test_fraction: float) -> bool:
    """Return whether a sample belongs to a split. Its key alone decides, so that no sample changes its split when
    others are added."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return (share < test_fraction) == (split == TEST)
