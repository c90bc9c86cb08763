"""Tar files: the names of members, their headers, and foreign files read without trusting a number in them.

The layout is webdataset's: a member is `<key>.<extension>`, the key being everything before the first dot of the
basename, folders included (`a/b.c.png` has the key `a/b` and the extension `png`, its last suffix). A key is a path
below a folder: members whose key leads elsewhere are not used.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tokenizers_zoo.errors import CONTROL, DataError, ReadError
from tokenizers_zoo.io import not_read

BLOCK = 512
END = bytes(2 * BLOCK)
PLAIN = tarfile.TarInfo().tobuf(tarfile.PAX_FORMAT)
LONGEST_HEADER = 1 << 20
"""Bytes of an extended header (long names); larger ones are refused."""
TARS = "[!.]*.tar"
"""A folder's tar files. Copies from a Mac contain a hidden file `._NAME` for each NAME."""


class Member(NamedTuple):
    """Location of one value's bytes, in a tar file or a separate file."""

    path: Path
    offset: int
    size: int
    extension: str
    changed: int
    """Modification time of the file when it was found, ns."""


class Dropped(NamedTuple):
    """A member that cannot be used."""

    key: str
    reason: str


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension (lower case, no dot) of a member's name; the key may be empty."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffixes = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), suffixes.rpartition(".")[2].lower()


def key_problem(key: str) -> str | None:
    """Return why a key is not a path below a folder, or could not be printed on a terminal; None for a good key."""
    if "\\" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
        return "a key has no backslash, and no part that is empty, '.' or '..'"
    if CONTROL.search(key):
        return "a key has no control character, such as a line break"
    return None


def shown_name(name: str) -> str:
    r"""Return a file's name as it can be printed: with `\xe9` for a byte that is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown_key(key: str) -> str:
    r"""Return any key as it can be printed, with `\x1b` for control characters."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", shown_name(key))


def header(name: str, size: int) -> bytes:
    """Return the header of a member; time and owner are 0, so that equal values give equal bytes."""
    if len(name) > 100 or not name.isascii() or size >= 1 << 33:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    block = bytearray(PLAIN)  # same as tarfile, ten times faster
    block[: len(name)] = name.encode()
    block[124:135] = b"%011o" % size
    block[148:155] = b"%06o\0" % (sum(block) - sum(block[148:156]) + 8 * ord(" "))
    return bytes(block)


def padding(size: int) -> bytes:
    """Return the zeros that fill `size` bytes up to whole blocks."""
    return bytes(-size % BLOCK)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises ReadError if the system refuses, or if it is a pipe, device or folder."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ReadError(f"{path}: expected a regular file")
        return open(path, "rb")
    except OSError as error:
        raise not_read(path, error) from None


def read_at(file: int, offset: int, size: int) -> bytes:
    """Return up to `size` bytes of a file descriptor from `offset` on; one system call gives less than 2 GiB."""
    parts = []
    while size > 0 and (part := os.pread(file, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def read_member(member: Member) -> bytes:
    """Return one value's bytes. Raises ReadError if the file cannot be read or has changed since it was listed."""
    with open_regular(member.path) as file:
        try:
            same = os.fstat(file.fileno()).st_mtime_ns == member.changed
            data = read_at(file.fileno(), member.offset, member.size)
        except OSError as error:
            raise not_read(member.path, error) from None
    if not same or len(data) != member.size:
        raise ReadError(f"{member.path}: changed since it was listed; run the same command again")
    return data


def scan_tar(path: Path) -> Iterator[tuple[str, Member] | Dropped]:
    """Yield the members of a foreign tar file, by key, in the order of the file, from its headers alone.

    Damage (a bad header, a file that is cut off) costs the members that it hits; they are yielded as `Dropped`. Raises
    DataError if the file is not a tar file, ReadError if the system cannot read it.
    """
    with open_regular(path) as file:
        try:
            status = os.fstat(file.fileno())
            members, damage = 0, ""
            for item in _scan(file.fileno(), path, status.st_size, status.st_mtime_ns):
                if isinstance(item, Dropped):
                    damage = damage or item.reason
                else:
                    members += 1
                yield item
        except OSError as error:
            raise not_read(path, error) from None
    if not members and (damage or not status.st_size):
        raise DataError(f"{path}: no usable member ({damage or '0 bytes'}); copy or make this tar again, or delete it")


def _scan(file: int, path: Path, size: int, changed: int) -> Iterator[tuple[str, Member] | Dropped]:
    """Yield members and damage from the first header on; every offset and size is checked against the file."""
    start: int | None = 0
    long_name, long_size, sparse = "", None, False  # of the extended headers before a member
    while start is not None:
        block = read_at(file, start, BLOCK)
        if len(block) < BLOCK:
            if size:
                yield Dropped("", f"ends without its end mark at byte {start} of {size}: perhaps cut off")
            return
        if not any(block):
            behind = _first_not_zero(file, start, size)
            if behind is None:
                return
            yield Dropped("", f"zeros in place of a header (byte {start} of {size}); members are lost")
            start = _next_header(file, behind, size)
            continue
        try:
            info = _parse(block)
        except tarfile.HeaderError as error:
            yield Dropped("", f"damaged header (byte {start} of {size}): {error}")
            start = _next_header(file, start + BLOCK, size)
            continue
        extended = info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
        skipped = info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
        length = info.size if extended or skipped or long_size is None else long_size
        data, name = start + BLOCK, info.name if extended or skipped else long_name or info.name
        cut_off = data + length > size
        if cut_off:
            reason = f"cut off: the file ends inside it (byte {start} of {size})"
            yield Dropped(shown_key(split_name(name)[0] or name), reason)
        elif extended and length > LONGEST_HEADER:
            yield Dropped(shown_key(name), f"an extended header of {length} bytes")
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = read_at(file, data, length).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif extended:
            records = _pax(read_at(file, data, length))
            long_name, long_size = records.get("path", long_name), _number(records.get("size"))
            sparse = any(record.startswith("GNU.sparse") for record in records)
        elif not skipped and not info.isdir():
            key, extension = split_name(name)
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) or sparse:
                yield Dropped(shown_key(key or name), "a link, device or sparse file; a plain file was expected")
            elif not key:
                yield Dropped(shown_key(name), f"the name {name!r} has no key before its first dot")
            elif name != shown_name(name):
                yield Dropped(shown_key(key), "its name is not UTF-8")
            elif problem := key_problem(key):
                yield Dropped(shown_key(key), f"the name {name!r}: {problem}")
            else:
                yield key, Member(path, data, length, extension, changed)
        if cut_off or not (extended or skipped):
            long_name, long_size, sparse = "", None, False
        start = _next_header(file, data, size) if cut_off else data + length + -length % BLOCK


def _parse(block: bytes) -> tarfile.TarInfo:
    """Return a header of any tar format. Raises tarfile.HeaderError for a damaged one."""
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if info.size < 0:
        raise tarfile.HeaderError("its size is negative")
    return info


def _pax(data: bytes) -> dict[str, str]:
    """Return the records `LENGTH KEY=VALUE` of an extended header, as many as are sound."""
    records: dict[str, str] = {}
    while data:
        length = _number(data.partition(b" ")[0].decode("ascii", "replace"))
        if not length or length > len(data):
            break
        key, _, value = data[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


def _number(text: str | None) -> int | None:
    """Return a number of up to 18 decimal digits, None for anything else."""
    return int(text) if text and len(text) <= 18 and text.isascii() and text.isdigit() else None


def _first_not_zero(file: int, start: int, size: int) -> int | None:
    """Return the first block from `start` on that is not all zeros, or None."""
    while start < size:
        chunk = read_at(file, start, tarfile.RECORDSIZE)
        if any(chunk):
            return start + (len(chunk) - len(chunk.lstrip(b"\0"))) // BLOCK * BLOCK
        start += len(chunk)
    return None


def _next_header(file: int, start: int, size: int) -> int | None:
    """Return the offset of the next valid header from `start` on, None where there is none."""
    for offset in range(start, size - BLOCK + 1, BLOCK):
        block = read_at(file, offset, BLOCK)
        if block[257:262] == b"ustar":
            with contextlib.suppress(tarfile.HeaderError):
                _parse(block)
                return offset
    return None
