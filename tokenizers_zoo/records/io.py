"""Atomic writes, records with format and checksum, locks, hashes, and disk errors in one line.

A record is a JSON file of a table. Its first key is `format`, its last `checksum`: the sha256 of the text before it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from itertools import zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from tokenizers_zoo.errors import CheckpointError, DataError, OneLineError, PluginError, ReadError, ZooError
from tokenizers_zoo.records.typed import RecordError, as_dicts, convert

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; what was finished is kept: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "a file is larger than this disk or `ulimit -f` allows; what was finished is kept: raise the limit "
    "or give another folder, and run the same command again",
    errno.EROFS: "the disk is read-only; give another folder",
    errno.EACCES: "permission denied; give another folder",
    errno.ENOTDIR: "a file is where a folder should be; give another folder",
    errno.EEXIST: "a file is where a folder should be; give another folder",
    errno.EISDIR: "a folder is where a file should be; give another name",
}
FORMAT = 1
"""Version of every file format. Each file has the number, and newer ones are refused."""
CHECKSUM = "checksum"
LARGEST = 1e100
"""Largest number of a log that can be drawn."""
NO_DIGEST = 64 * "0"
"""Stands for a sha256 that is not known yet."""
DEEPEST = 100
"""Nested lists and tables of a record, or of a TOML file."""
METADATA = "__metadata__"
"""Key of a safetensors header."""
SHORT = 100
"""Maximal letters of a list that `difference` shows as a whole."""
REMEDY = "copy it again, or delete it and run what wrote it"
"""Default advice for a damaged file."""


def disk_problem(error: BaseException) -> str | None:
    """Return a message and advice for errors of the disk, None for other errors.

    Libraries may wrap the system's error, so its number is also searched in the text; a plugin's error has it as its
    cause.
    """
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno is not None:
            return DISK_ERRORS.get(cause.errno)
    if isinstance(error, OneLineError) and not isinstance(error, PluginError):
        return None
    number = re.search(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]", str(error))
    return DISK_ERRORS.get(int(number.group(1) or number.group(2))) if number else None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk into one clear DataError."""
    try:
        yield
    except (DataError, ReadError):
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if advice := disk_problem(error):
            raise DataError(f"{path}: {advice}") from error
        raise


def read_error(path: Path, error: OSError) -> ReadError:
    """Return the error for a file or folder that cannot be read now."""
    return ReadError(f"{path}: cannot be read: {error.strerror}; run the same command again when it can")


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises ReadError if the system refuses, or if it is a pipe, socket, device or folder.

    All files are opened, or checked, here: reading a pipe would wait for its writer, and a device may have no end.
    """
    try:
        return _open(path)
    except OSError as error:
        raise read_error(path, error) from None


def read_regular(path: Path) -> bytes | None:
    """Return the bytes of a file, None if there is none. Raises ReadError as `open_regular`."""
    try:
        with _open(path) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise read_error(path, error) from None


def _open(path: Path) -> BufferedReader:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return open(handle, "rb")
    os.close(handle)
    raise ReadError(f"{path}: expected a regular file, got a folder, pipe or device")


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the same folder; rename it to `path` if the block succeeds, remove it if it fails.

    Removes temporary files of killed processes: a file that is still being written is locked. Raises ReadError for a
    device, pipe or socket, which it would replace.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ReadError(f"{path}: is a pipe, socket or device, which is not replaced; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError, ReadError), _open(stale) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(_scratch_folder(stale), ignore_errors=True)
            stale.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # the umask applies
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        with open(temporary, "rb+") as file:
            with contextlib.suppress(PermissionError):  # a disk whose files belong to another user
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(handle).st_mode))  # the mode of other files
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def write_tensors(
    temporary: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors of any device to the temporary file of `replacing_file`, as safetensors.

    safetensors writes to a file of its own in the same folder and renames it. It gets a folder of its own, which
    `replacing_file` removes after a kill. Metadata keep their order, which safetensors would not.
    """
    from safetensors.torch import save_file

    folder = _scratch_folder(temporary)
    folder.mkdir()
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            folder / temporary.name,
            None if metadata is None else dict(metadata),
        )
        if metadata:
            with open(folder / temporary.name, "r+b") as file:
                header = _header(file)
                length = file.tell() - 8
                file.seek(8)
                text = json.dumps({**header, METADATA: dict(metadata)}, ensure_ascii=False, separators=(",", ":"))
                file.write(text.encode().ljust(length))
        os.rename(folder / temporary.name, temporary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, in its order."""
    with open_regular(path) as file:
        metadata: dict[str, str] = _header(file).get(METADATA) or {}
    return metadata


def _header(file: IO[bytes]) -> dict[str, Any]:
    """Return the header of a safetensors file: JSON padded with spaces, after its length in 8 bytes."""
    return cast(dict[str, Any], json.loads(file.read(int.from_bytes(file.read(8), "little"))))


def write_state(path: Path, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> None:
    """Write tensors and numbers as one safetensors file, atomically.

    Its header has the numbers, the format, and the sha256 of the file with zeros in place of the sha256.
    """
    texts = {name: repr(number) for name, number in numbers.items()}
    with replacing_file(path) as temporary:
        write_tensors(temporary, tensors, {"format": str(FORMAT), **texts, CHECKSUM: NO_DIGEST})
        digest = file_digest(temporary)
        with open(temporary, "r+b") as file:
            start = file.read(8)
            file.seek((start + file.read(int.from_bytes(start, "little"))).index(NO_DIGEST.encode()))
            file.write(digest.encode())


def read_numbers(path: Path, remedy: str) -> dict[str, float]:
    """Return the numbers that `write_state` wrote. Raises CheckpointError unless the whole file has its checksum."""
    try:
        with open_regular(path) as file:
            start = file.read(8)
            start += file.read(min(int.from_bytes(start, "little"), os.fstat(file.fileno()).st_size))
            metadata = json.loads(start[8:])[METADATA]
            check_format(path, int(metadata.pop("format")))
            digest = metadata.pop(CHECKSUM)
            hashed = hashlib.sha256(start.replace(digest.encode(), NO_DIGEST.encode()))
            if hashlib.file_digest(file, lambda: hashed).hexdigest() == digest:
                return {name: float(number) for name, number in metadata.items()}
        reason = "its checksum is not the checksum of its content"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"its header cannot be read: {type(error).__name__}"
    raise CheckpointError(f"{path}: damaged: {reason}; {remedy}")


def _scratch_folder(temporary: Path) -> Path:
    """Return the folder for intermediate files of a temporary file."""
    return temporary.with_name(f"{temporary.name}.d")


def remove_folder(folder: Path) -> None:
    """Remove a folder that may not be there."""
    shutil.rmtree(folder, ignore_errors=True)


def short_name(name: str, longest: int) -> str:
    """Return a file name of at most `longest` bytes: a longer one is cut and gets a hash of the whole name."""
    written = name.encode()
    if len(written) <= longest:
        return name
    digest = hashlib.sha256(written).hexdigest()[:16]
    return f"{written[: longest - len(digest) - 1].decode(errors='ignore')}-{digest}"


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_table(path: Path, table: Any) -> None:
    """Write a record, a dataclass or a table, atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(table_text(table), encoding="utf-8")


def table_text(table: Any, indent: int | None = 2) -> str:
    """Return the text of a record: readable JSON with format and checksum; in one line without `indent`."""
    text = json_text({"format": FORMAT, **as_dicts(table), CHECKSUM: ""}, indent)
    start, end = text[: text.rindex('""') + 1], text[text.rindex('""') + 1 :]
    return f"{start}{hashlib.sha256(start.encode()).hexdigest()}{end}"


def json_text(data: Any, indent: int | None = 2) -> str:
    """Return data as JSON, by default readable."""
    return json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def as_json(record: Any) -> dict[str, Any]:
    """Return a record as JSON would read it back: lists for tuples, text for paths."""
    return cast(dict[str, Any], json.loads(json.dumps(as_dicts(record), default=str)))


def read_json(path: Path, remedy: str = REMEDY) -> Any:
    """Read a JSON file of another program. Raises CheckpointError with `remedy` if it is missing or damaged."""
    if (data := read_regular(path)) is None:
        raise CheckpointError(f"{path}: no such file")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}; {remedy}") from None


def read_record(
    path: Path, record_class: type[T], *, remedy: str = REMEDY, error: type[ZooError] = CheckpointError
) -> T:
    """Read a record as its class, see `records.convert`. Raises `error`, ReadError."""
    return as_record(read_table(path, remedy=remedy, error=error), record_class, path, remedy=remedy, error=error)


def as_record(
    table: Mapping[str, Any],
    record_class: type[T],
    path: Path,
    *,
    remedy: str = REMEDY,
    error: type[ZooError] = CheckpointError,
    keys: Sequence[str] = (),
) -> T:
    """Return a table of the file at `path`, to which `keys` lead, as a record of its class. Raises `error`."""
    try:
        return cast(T, convert(table, record_class, *keys))
    except (RecordError, PluginError) as mismatch:  # PluginError: of a ModalitySpec
        raise error(f"{path}: damaged: {mismatch}; {remedy}") from None


def read_table(path: Path, *, remedy: str = REMEDY, error: type[ZooError] = CheckpointError) -> dict[str, Any]:
    """Read a record as a table, without format and checksum. Raises `error`, ReadError."""
    if (data := read_regular(path)) is None:
        raise error(f"{path}: no such file")
    if written := re.match(rb'\{\s*"format": (\d{1,9}),', data):
        check_format(path, int(written[1]), error)
    start, mark, rest = data.rpartition(f'"{CHECKSUM}": "'.encode())
    if not written or not mark:
        raise error(f"{path}: damaged: a record with its format and checksum was expected; {remedy}")
    if rest.rstrip(b' \n"}').decode(errors="replace") != hashlib.sha256(start + mark).hexdigest():
        raise error(f"{path}: damaged: its checksum is not the checksum of its content; {remedy}")
    try:
        table = json.loads(data, parse_int=_integer, parse_float=_float, parse_constant=_float)
        if b"\\u" in data:
            json.dumps(table, ensure_ascii=False).encode()  # fails for half a character, which no file can hold
        damage = f"is nested too deeply: {DEEPEST} levels at most" if too_deep(table) else ""
    except (ValueError, RecursionError) as reason:
        damage = f"cannot be read as JSON: {reason}"
    if damage:
        raise error(f"{path}: damaged: {damage}; {remedy}")
    return {key: value for key, value in table.items() if key not in ("format", CHECKSUM)}


def _integer(text: str) -> int:
    if not -(2**63) <= (number := int(text)) < 2**64:
        raise ValueError(f"an integer of {len(text)} digits")
    return number


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:SHORT]}")
    return number


def check_format(path: Path, written: int, error: type[ZooError] = CheckpointError) -> None:
    """Raise `error` if a file has a newer format than this version reads."""
    if written > FORMAT:
        raise error(
            f"{path}: was written by a newer version: format {written}, this version reads {FORMAT}; pip install "
            "--upgrade tokenizers-zoo"
        )


def too_deep(value: Any, deepest: int = DEEPEST) -> bool:
    """Return whether lists and dicts are nested more than `deepest` levels."""
    containers: list[Any] = [[value]]
    for _ in range(deepest + 1):
        nested = (container.values() if isinstance(container, dict) else container for container in containers)
        if not (containers := [item for container in nested for item in container if isinstance(item, dict | list)]):
            return False
    return True


def read_lines(path: Path, *, finished: bool = True) -> list[dict[str, Any]]:
    """Return the lines of steps in a metrics.jsonl, without their checksums; [] if there is no file.

    The first line is `{"format": 1}`, the last one `{"end": lines before it}`; only a log that is `finished` needs it.
    Raises CheckpointError for a damaged line, a log that was cut, and a newer format.
    """
    if (content := read_regular(path)) is None:
        return []
    tables: list[dict[str, Any]] = []
    *lines, unfinished_line = content.decode(errors="replace").split("\n")
    for number, line in enumerate(lines):
        try:
            table = json.loads(line)
            kind = next(iter(table))
            if kind not in (("step", "end") if number else ("format",)) or type(table[kind]) is not int:
                raise ValueError(f"starts with {kind}")
            check_format(path, table.get("format", FORMAT))
            if line_text(table) != f"{line}\n":
                raise ValueError("its checksum is not the checksum of its content")
            numbers = [value for key, value in table.items() if key not in (CHECKSUM, "format") and value is not None]
            if not all(isinstance(value, int | float) and abs(value) <= LARGEST for value in numbers):
                raise ValueError(f"expected numbers up to {LARGEST:g}")
        except (ValueError, KeyError, TypeError, RecursionError, StopIteration) as error:
            raise CheckpointError(f"{path}:{number + 1}: damaged line ({error}); delete the line or the file") from None
        tables.append({key: value for key, value in table.items() if key != CHECKSUM})
    if finished and (unfinished_line or not tables or tables[-1].get("end") != len(tables) - 1):
        raise CheckpointError(f"{path}: damaged: its end is missing; restore the file, or delete it")
    return [table for table in tables if "step" in table]


def line_text(table: Mapping[str, Any]) -> str:
    """Return a line of a log, such as metrics.jsonl: a table as JSON, with a checksum (CRC-32) last."""
    text = json.dumps({key: value for key, value in table.items() if key != CHECKSUM})
    return f'{text[:-1]}, "{CHECKSUM}": "{zlib.crc32(text.encode()):08x}"}}\n'


def start_lines(path: Path, step: int) -> int:
    """Write the beginning of a metrics.jsonl: its first line, and the lines up to `step`, where a killed run resumes.

    Returns how many lines it has.
    """
    lines = [{"format": FORMAT}, *(line for line in read_lines(path, finished=False) if line["step"] <= step)]
    with replacing_file(path) as temporary:
        temporary.write_text("".join(map(line_text, lines)), encoding="utf-8")
    return len(lines)


def differences(old: Any, new: Any, key_path: str = "") -> Iterator[str]:
    """Yield the places where two JSON values differ, as `train.steps was 400, is 800`.

    A table that only one has is named, without its content: `modalities.rgb is new`. Short lists are shown whole; of
    long ones, the items that differ: `fields[2] was "a", is "b"`.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key), new.get(key), f"{key_path}.{key}" if key_path else key)
    elif old is None and isinstance(new, Mapping):
        yield f"{key_path} is new"
    elif new is None and isinstance(old, Mapping):
        yield f"{key_path} is left out"
    elif old != new:
        was, now = json.dumps(old), json.dumps(new)
        if isinstance(old, list) and isinstance(new, list) and max(len(was), len(now)) > SHORT:
            for index, pair in enumerate(zip_longest(old, new)):
                yield from differences(*pair, f"{key_path}[{index}]")
        else:
            yield f"{key_path} was {was}, is {now}"


def relative_place(path: str | Path, folder: Path) -> str:
    """Return a path for a file in `folder`, relative to it, so that both can be moved together.

    Links in the folders of `path` are resolved, but not its last part.
    """
    path = Path(path)
    relative = os.path.relpath(path.parent.resolve() / path.name, folder.resolve())
    return relative if relative.startswith(os.pardir) else os.path.join(os.curdir, relative)


def absolute_place(relative: str, folder: Path) -> Path:
    """Return the path that `relative_place` recorded."""
    return Path(os.path.normpath(folder.resolve() / relative))


def difference(old: Any, new: Any, key_path: str = "") -> str:
    """Return the first place where two JSON values differ; empty if they are equal."""
    return next(differences(old, new, key_path), "")
