"""Tar shards of values: read by offset without extracting, written whole with the same bytes every time.

The layout is webdataset's: a member is `<key>.<extension>`, the key being everything before the first dot of the
basename, folders included (`a/b.c.png` has the key `a/b` and the extension `png`, its last suffix). A key is a path
below a folder: members whose key leads elsewhere are not used.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tokenizers_zoo.errors import CONTROL, DataError, ReadError
from tokenizers_zoo.io import not_read, replacing_file

BLOCK = 512
MAGIC = slice(257, 262)  # "ustar" in the header block, POSIX.1-1988
CUT_OFF = "cut off"
TARS = "[!.]*.tar"
"""A folder's shards; beside files that come from a Mac some disks have `._NAME` with what else it knows of NAME."""


class Member(NamedTuple):
    """Where one value's bytes are."""

    shard: Path
    offset: int
    size: int
    extension: str
    changed: int
    """When the shard was last changed, in ns, as its members were found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A member or a sample that is not used, and why."""

    shard: str
    key: str
    reason: str


@dataclass(slots=True)
class ShardIndex:
    """The members of one shard by key, in the order of the file, and what could not be used of it."""

    members: dict[str, Member] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension (lower case, no dot) of a member's name; the key is empty where the name has none."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffixes = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), suffixes.rpartition(".")[2].lower()


def key_problem(key: str) -> str | None:
    """Why a key is no path below a folder, where it is none: with it a file would be written elsewhere.

    One with control characters is refused, too: a terminal that it is shown on would obey them.
    """
    parts = key.split("/")
    if "\\" in key or not {"", ".", ".."}.isdisjoint(parts):
        return "a key has no backslash, and no part that is empty, '.' or '..'"
    if CONTROL.search(key):
        return "a key has no control character, such as a line break"
    return None


def shown_name(name: str) -> str:
    r"""A file's name as it can be printed: with `\xe9` for a byte that is not UTF-8, and the same where none is."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown_key(key: str) -> str:
    r"""Any key as `shown_name`, also with `\x1b` for a control character: those that are refused are shown, too."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", shown_name(key))


def scan_shard(path: Path) -> ShardIndex:
    """Index a shard by its headers alone.

    Damage inside (a bad header, an end that is cut off) costs the members that it hits: the others are used, and what
    is lost is listed in `dropped`. Raises DataError where nothing of the file is a tar, ReadError where the system does
    not read it.
    """
    index = ShardIndex()
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            size = stat.st_size
            start: int | None = 0
            while start is not None:
                start = _scan_from(file, path, start, stat, index)
    except OSError as error:
        raise not_read(path, error) from None
    if size == 0 or (index.dropped and not index.members and index.dropped[0].reason.startswith("not a tar")):
        raise DataError(f"{path}: not a tar file ({size} bytes); copy or make this shard again, or delete it")
    return index


def looks_whole(path: Path) -> bool:
    """True for a shard of `ShardWriter` from its first header to its end mark; no header in between is read."""
    size = path.stat().st_size
    if not size or size % tarfile.RECORDSIZE:
        return False
    with open(path, "rb") as file:
        first = file.read(BLOCK)
        file.seek(-2 * BLOCK, os.SEEK_END)
        return not any(file.read()) and (first[MAGIC] == b"ustar" or not any(first))


def _scan_from(file: BinaryIO, path: Path, start: int, stat: os.stat_result, index: ShardIndex) -> int | None:
    """Index the members from the header at `start` on; where damage stops it, the offset to go on from."""
    file.seek(start)
    end, size = start, stat.st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                end = tar.offset
                _add(index, path, info, stat)
            damaged = _damage_at(file, end, size)
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a place outside it
            raise not_read(path, error) from None
        damaged = f"not a tar: {error}" if end == 0 else f"damaged: {error}"
    if damaged is None:
        return None
    if end < size:
        index.dropped.append(Dropped(shard=path.name, key="", reason=f"{damaged} (byte {end} of {size})"))
    elif not (index.dropped and index.dropped[-1].reason.startswith(CUT_OFF)):
        index.dropped.append(Dropped(shard=path.name, key="", reason="ends without its end mark: perhaps cut off"))
    return _next_header(file, max(end, start) + BLOCK, size)


def _add(index: ShardIndex, path: Path, info: tarfile.TarInfo, stat: os.stat_result) -> None:
    """Take one member into the index, or say why not."""
    if info.isdir():
        return
    key, extension = split_name(info.name)
    reason = ""
    if not info.isfile() or info.issparse():
        reason = "a link, device or sparse file; a plain file was expected"
    elif not key:
        reason = f"the name {info.name!r} has no key before its first dot"
    elif info.name != shown_name(info.name):
        reason = "its name is not UTF-8"
    elif problem := key_problem(key):
        reason = f"the name {info.name!r}: {problem}"
    elif info.offset_data + info.size > stat.st_size:
        reason = f"{CUT_OFF}: the shard ends inside it"
    elif key in index.members:
        reason = f"a second member with this key ({info.name!r}); the first is used"
    if reason:
        index.dropped.append(Dropped(shard=path.name, key=shown_key(key or info.name), reason=reason))
    else:
        index.members[key] = Member(path, info.offset_data, info.size, extension, stat.st_mtime_ns)


def _damage_at(file: BinaryIO, end: int, size: int) -> str | None:
    """What is wrong at `end`, where the members seem to end: tarfile takes a bad header for the end of the archive."""
    if end >= size:
        return CUT_OFF
    file.seek(end)
    if any(file.read(BLOCK)):
        return "a damaged header; the members up to the next sound header are lost"
    while block := file.read(tarfile.RECORDSIZE):
        if any(block):  # the end mark has nothing behind it
            return "zeros in place of a header; the members up to the next sound header are lost"
    return None


def _next_header(file: BinaryIO, start: int, size: int) -> int | None:
    """The offset of the next sound member header from `start` on."""
    for offset in range(start, size - BLOCK + 1, BLOCK):
        file.seek(offset)
        block = file.read(BLOCK)
        if block[MAGIC] == b"ustar":
            with contextlib.suppress(tarfile.HeaderError):
                tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
                return offset
    return None


def read_member(member: Member) -> bytes:
    """One value's bytes. Raises ReadError where the shard cannot be read, or was replaced since it was indexed."""
    try:
        file = os.open(member.shard, os.O_RDONLY)
        try:
            same = os.fstat(file).st_mtime_ns == member.changed
            data = _bytes_at(file, member.offset, member.size)
        finally:
            os.close(file)
    except OSError as error:
        raise not_read(member.shard, error) from None
    if not same or len(data) != member.size:
        raise ReadError(f"{member.shard}: was replaced or changed since it was opened; run the same command again")
    return data


def _bytes_at(file: int, offset: int, size: int) -> bytes:
    """`size` bytes of an open file from `offset` on, or those up to its end: one read gives less than 2 GiB."""
    parts = []
    while size and (part := os.pread(file, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


class ShardWriter:
    """Adds members to one shard, in order."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.count = 0
        self.discarded = False

    def add(self, key: str, data: bytes, extension: str) -> None:
        """Append a value. Raises DataError for a key that would not be read back as it is."""
        name = f"{key}.{extension}"
        if split_name(name) != (key, extension) or key_problem(key):
            raise DataError(
                f"key {key!r} with extension {extension!r}: a key has no dot in its last part, no backslash, no "
                "control character, and no part that is empty, '.' or '..', and the extension is lower case without a "
                "dot"
            )
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0: the same values give the same bytes
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self.count += 1

    def discard(self) -> None:
        """Leave no file when the block ends, nor an older one in its place."""
        self.discarded = True


class _Discarded(Exception):
    """Ends a shard without a file."""


@contextlib.contextmanager
def writing_shard(path: Path) -> Iterator[ShardWriter]:
    """A writer whose shard appears at `path` whole when the block succeeds, and not at all when it fails."""
    with contextlib.suppress(_Discarded), replacing_file(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            yield (writer := ShardWriter(tar))
        if writer.discarded:
            path.unlink(missing_ok=True)
            raise _Discarded
