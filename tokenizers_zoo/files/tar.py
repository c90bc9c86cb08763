"""Tar files: the names of members, and foreign files read without trusting a number in them.

The layout is webdataset's: a member is `<key>.<extension>`, the key being everything before the first dot of the
basename, folders included (`a/b.c.png` has the key `a/b` and the extension `png`, its last suffix). A key is a path
below a folder: members whose key leads elsewhere are not used.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers_zoo.errors import CONTROL, DataError, ReadError
from tokenizers_zoo.records.io import open_regular, read_error
from tokenizers_zoo.records.limits import limits

BLOCK = 512
LONGEST_HEADER = 1 << 20
"""Bytes of an extended header (long names); larger ones are refused."""
LONG_NUMBER = re.compile(rb"\d{257}")
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


def split_suffixes(name: str) -> tuple[str, str]:
    """Return key and everything after the first dot of a member's name (lower case): ("a/b", "c.png") of a/b.c.png."""
    key, _ = split_name(name)
    return key, name.rpartition("/")[2].partition(".")[2].lower()


def key_problem(key: str) -> str | None:
    """Return why a text cannot be the key of a sample; None for a good key.

    A key is a path below a folder, the name of a member or file up to its first dot, and can be printed on a terminal.
    """
    parts = key.split("/")
    if {"", ".", ".."}.isdisjoint(parts) and "." not in parts[-1] and "\\" not in key and not CONTROL.search(key):
        return None
    return "a key has no backslash, no control character, no empty part, '.' or '..', and no dot in its last part"


def file_key(path: Path) -> str:
    """Return the key of a separate file: its name without the extension; dots become underscores."""
    return path.stem.replace(".", "_")


def shown_name(name: str) -> str:
    r"""Return a file's name as it can be printed: with `\xe9` for a byte that is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown_key(key: str) -> str:
    r"""Return any key as it can be printed, with `\x1b` for control characters."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", shown_name(key))


def regular_member(path: Path) -> Member:
    """Return a separate file as a value's location. Raises ReadError if it is not there or no regular file."""
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
    return Member(path, 0, status.st_size, split_name(path.name)[1], status.st_mtime_ns)


def read_at(file: int, offset: int, size: int) -> bytes:
    """Return up to `size` bytes of a file descriptor from `offset` on; one system call gives less than 2 GiB."""
    parts = []
    while size > 0 and (part := os.pread(file, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def read_member(member: Member) -> bytes:
    """Return one value's bytes. Raises ReadError if the file cannot be read or has changed since it was listed,
    InvalidValueError if the value is larger than the limit `file_bytes`."""
    limits().check("file_bytes", member.size, f"{member.path}: a value of {member.size:,} bytes")
    with open_regular(member.path) as file:
        try:
            same = os.fstat(file.fileno()).st_mtime_ns == member.changed
            data = read_at(file.fileno(), member.offset, member.size)
        except OSError as error:
            raise read_error(member.path, error) from None
    if not same or len(data) != member.size:
        raise ReadError(f"{member.path}: changed since it was listed; run the same command again")
    return data


def scan_tar(
    path: Path, split: Callable[[str], tuple[str, str]] = split_name
) -> Iterator[tuple[str, Member] | Dropped]:
    """Yield the members of a foreign tar file, by key, in the order of the file, from its headers alone.

    `split` returns key and extension of a member's name. Damage (a bad header, a file that is cut off) costs the
    members that it hits; they are yielded as `Dropped`. Raises DataError if the file is not a tar file, ReadError if
    the system cannot read it.
    """
    members, damage = 0, ""
    with open_regular(path) as file:
        try:
            for item in _scan(file.fileno(), path, split):
                if isinstance(item, Dropped):
                    damage = damage or item.reason
                else:
                    members += 1
                yield item
            if not members and not damage and not os.fstat(file.fileno()).st_size:
                damage = "0 bytes"
        except OSError as error:
            raise read_error(path, error) from None
    if not members and damage:
        raise DataError(f"{path}: no usable member ({damage}); copy or make this tar again, or delete it")


class _Headers(io.FileIO):
    """A file whose headers are read; tarfile would read an extended header of any length into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"an extended header of {size} bytes")
        data = super().read(size)
        if size > BLOCK and LONG_NUMBER.search(data):  # tarfile's search is quadratic in it (CVE-2024-6232)
            raise tarfile.ReadError("an extended header with a number of more than 256 digits")
        return data


def _scan(file: int, path: Path, split: Callable[[str], tuple[str, str]]) -> Iterator[tuple[str, Member] | Dropped]:
    """Yield members and damage; every offset and size is checked against the file."""
    status = os.fstat(file)
    tar: Any = None
    start: int | None = 0  # of the next header; None after a member that is cut off
    while True:
        try:
            if tar is None:  # `ignore_zeros` goes on at the next sound header after damage
                tar = tarfile.TarFile(fileobj=_Headers(file, closefd=False), encoding="utf-8", ignore_zeros=True)
            info = tar.next() if tar.firstmember or tar.offset <= status.st_size else None
        except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError) as error:
            yield Dropped("", f"damaged header: {error}")
            if tar is None:
                return
            start, tar.offset = None, tar.offset + BLOCK
            continue
        if start is not None and (info is None or info.offset > start):
            reason = _header_problem(read_at(file, start, BLOCK), at_end=info is None)
            yield from [Dropped("", f"{reason} (byte {start} of {status.st_size})")] if reason else ()
        if info is None:
            return
        tar.members.clear()
        key, extension = split(info.name)
        start = tar.offset
        if info.size < 0 or info.offset_data + info.size > status.st_size:
            start, tar.offset = None, info.offset_data
            yield Dropped(shown_key(key or info.name), "cut off: the file ends inside it")
        elif info.isdir():
            continue
        elif not info.isreg() or info.issparse():
            yield Dropped(shown_key(key or info.name), "a link, device or sparse file; a plain file was expected")
        elif info.name != shown_name(info.name):
            yield Dropped(shown_key(key or info.name), "its name is not UTF-8")
        elif reason := key_problem(key) or "":
            yield Dropped(shown_key(key or info.name), f"the name {info.name!r}: {reason}")
        else:
            yield key, Member(path, info.offset_data, info.size, extension, status.st_mtime_ns)


def _header_problem(block: bytes, *, at_end: bool) -> str:
    """Return the problem of a block that tarfile skipped; empty for the end mark and for headers of the whole file."""
    if len(block) < BLOCK:
        return "ends without its end mark: perhaps cut off"
    try:
        if tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size < 0:  # skipped by newer releases of Python
            return "damaged header: a negative size; a member is lost"
    except tarfile.HeaderError as error:
        if any(block) or not at_end:
            return f"damaged header: {error if any(block) else 'zeros'}; members are lost"
    return ""
