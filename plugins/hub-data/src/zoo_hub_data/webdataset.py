"""The source `webdataset`: tar files in the layout of WebDataset, local or at a URL.

The files of a sample have one name and different endings: `0001.jpg`, `0001.txt`, `0001.depth.npy`. Tar files at a URL
are downloaded once into a cache. A tar file is never unpacked: its headers are scanned within the bounds of the file,
and each value is read by its place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.file_samples import FileSamples, is_in_split
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.contract.source import ModalityNames, OwnData, SourceSpec
from tokenizers_zoo.errors import ConfigError, DataError, ReadError, count_of
from tokenizers_zoo.files.tar import TARS, Dropped, scan_tar, split_suffixes
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.io import disk_errors, replacing_file

RANGE = re.compile(r"\{(\d{1,99})\.\.(\d{1,99})\}")
MOST_SHARDS = 1_000_000
"""Tar files that one pattern may name."""
CHUNK = 1 << 20
"""Bytes of a download that are in memory at a time."""
CHANGED = 1_000_000_000
"""Modification time of downloaded files, s; the same after a second download, because shards depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebDatasetSettings(OwnData):
    """The tar files, their split, and the modalities of their files."""

    path: str | tuple[str, ...]
    """Tar files: a path, a URL or a folder of them, or a list. `{000..099}` stands for numbers, and `*` for any
    part of a local file's name."""
    test: str | tuple[str, ...] = ()
    """Tar files of the test split, given in the same way. Without them it is a share of the samples of `path`."""
    extensions: Mapping[str, str] = field(default_factory=dict)
    """Modality of each kind of file, by the ending after the key: `{jpg = "rgb", "seg.png" = "semseg"}`. An empty name
    leaves files out. Other endings are matched by name (`depth.npy`) or extension."""
    cache: str = "~/.cache/tokenizers-zoo/webdataset"
    """Folder of downloaded tar files. `~` is your home."""


class WebDatasetSource:
    """The source plugin."""

    @hookimpl
    def source_spec(self) -> SourceSpec:
        """Return the spec; `modalities` is empty, as the samples name them."""
        return SourceSpec(
            name="webdataset",
            summary="tar files in the layout of WebDataset, local or at a URL",
            modalities=(),
            licence="that of the files",
            settings=WebDatasetSettings,
        )

    @hookimpl
    def samples(
        self, split: str, count: int | None, seed: int, settings: Settings, names: ModalityNames
    ) -> FileSamples:
        """Return the samples of a split, sorted by key: the tar file's name and the key in it.

        With a count, tar files are scanned, and downloaded, only until it is reached. Raises ConfigError, DataError,
        and ReadError for a tar file that cannot be read or downloaded.
        """
        config = settings.take(WebDatasetSettings)
        declared = names.resolve(config.extensions, "extensions")
        modality_by_ending = {ending.lower().removeprefix("."): name for ending, name in declared.items()}
        patterns = config.test if split == TEST and config.test else config.path
        tars = tar_files((patterns,) if isinstance(patterns, str) else patterns)
        samples, unclaimed, damaged = FileSamples(), Counter[str](), list[str]()
        for stem, address in tars:
            path = local_file(address, Path(config.cache).expanduser())
            for item in scan_tar(path, split_suffixes):
                if isinstance(item, Dropped):
                    damaged.append(f"{path.name}: {item.key or 'unknown member'}: {item.reason}")
                    continue
                key, member = f"{stem}/{item[0]}", item[1]
                if not config.test and not is_in_split(key, split, config.test_fraction):
                    continue
                ending = member.extension
                name = modality_by_ending[ending] if ending in modality_by_ending else modality_of(ending, names)
                if name is None:
                    unclaimed[ending] += 1
                elif name and not samples.add(name, key, member._replace(extension=ending.rpartition(".")[2])):
                    samples.drop(name, path.name, item[0], "a second value with this key; the first is used")
            if count is not None and samples.key_count >= count:
                break
        if unclaimed:
            counts = ", ".join(f"{number} .{ending}" for ending, number in unclaimed.most_common(5))
            samples.notes.append(f"files that no enabled modality claims are not used: {counts}; see extensions")
        if damaged:
            samples.notes.append(f"{count_of(len(damaged), 'member')} cannot be used (first: {damaged[0]})")
        if not samples.key_count:
            share = "" if config.test else f" with test_fraction {config.test_fraction:g}"
            notes = "; ".join(samples.notes) or patterns
            raise DataError(
                f"webdataset: {split!r}: no sample of an enabled modality{share}: {notes}; to go without the split, ask"
                f" for none (--{split} 0)"
            )
        return samples.finish(count, {*modality_by_ending.values(), *names.by_extension.values()} - {""}, ())


def modality_of(ending: str, names: ModalityNames) -> str | None:
    """Return the modality of a file by the ending after its key, such as `jpg` or `depth.npy`; None if unknown."""
    first, _, last = ending.rpartition(".")
    if not first:
        return names.by_extension.get(last)
    return next((names.by_name[part] for part in first.split(".") if part in names.by_name), None)


# ---------------------------------------------------------------------------- tar files


def tar_files(patterns: Sequence[str]) -> list[tuple[str, str]]:
    """Return the tar files that patterns name: the first part of the keys of each, and its path or URL, sorted.

    Raises ConfigError for a pattern without files, and for two files with the same name.
    """
    address_by_stem: dict[str, str] = {}
    for pattern in patterns:
        if math.prod(max(0, int(last) - int(first) + 1) for first, last in RANGE.findall(pattern)) > MOST_SHARDS:
            raise ConfigError(f"path: {pattern}: names more than {MOST_SHARDS} tar files")
        paths = list(expand_pattern(pattern))
        if not paths:
            raise ConfigError(f"path: {pattern}: no tar file here")
        for address in paths:
            stem = address.rpartition("/")[2].partition("?")[0].partition(".")[0]
            if stem in address_by_stem:
                raise ConfigError(f"path: {address}: has the name of {address_by_stem[stem]}; rename one")
            address_by_stem[stem] = address
    return sorted(address_by_stem.items(), key=lambda item: f"{item[0]}/")


def expand_pattern(pattern: str) -> Iterator[str]:
    """Yield the paths and URLs of one pattern; local ones without `file://`."""
    if number := RANGE.search(pattern):
        first, last = number.groups()
        for value in range(int(first), int(last) + 1):
            yield from expand_pattern(f"{pattern[: number.start()]}{value:0{len(first)}}{pattern[number.end() :]}")
    elif is_remote(pattern):
        yield pattern
    else:
        path = Path(pattern.removeprefix("file://")).expanduser()
        if path.is_dir():
            yield from (str(file) for file in sorted(path.glob(TARS)))
        elif "*" in path.name:
            yield from (str(file) for file in sorted(path.parent.glob(path.name)) if file.is_file())
        elif path.is_file():
            yield str(path)


def is_remote(address: str) -> bool:
    """Return whether a place is a URL of another scheme than file."""
    return "://" in address and not address.startswith("file://")


def local_file(address: str, cache: Path) -> Path:
    """Return a tar file on this machine; a URL is downloaded into the cache, unless it is there.

    A file with another size or ETag at the same URL is downloaded again. Raises ReadError.
    """
    if not is_remote(address):
        return Path(address)
    import fsspec

    try:
        file_system, name = fsspec.core.url_to_fs(address)
        info = file_system.info(name)
        size = info.get("size")
        identity = json.dumps([address, size, next((info[key] for key in ("ETag", "etag") if info.get(key)), "")])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        path = cache / f"{digest}-{address.rpartition('/')[2].partition('?')[0]}"
        if not path.is_file():
            with disk_errors(cache), replacing_file(path) as temporary:
                with file_system.open(name, "rb", block_size=0) as remote, open(temporary, "wb") as file:
                    copied = copy(remote.read, file.write, size)
                if size is not None and copied != size:
                    raise ReadError(f"{address}: expected {size} bytes, got {copied}; run the same command again")
                os.utime(temporary, (CHANGED, CHANGED))
    except ImportError as error:
        advice = 'pip install "zoo-hub-data[http]"' if address.startswith("http") else str(error)
        raise ConfigError(f"{address}: needs a package that is not installed; {advice}") from None
    except ValueError as error:
        raise ConfigError(f"path: {address}: {error}") from None
    except (DataError, ReadError):
        raise
    except Exception as error:  # the file systems of fsspec raise errors of their own libraries
        why = " ".join(str(error).split()).replace(address, "").strip() or "not found, or no connection"
        advice = "check the address, or run the same command again"
        raise ReadError(f"{address}: cannot be read: {why}; {advice}") from error
    return path


def copy(read: Callable[[int], Any], write: Callable[[Any], Any], size: int | None) -> int:
    """Copy up to one byte more than `size`, or to the end, in chunks; return the number of bytes."""
    copied = 0
    while (size is None or copied <= size) and (chunk := read(CHUNK)):
        write(chunk)
        copied += len(chunk)
    return copied


source = WebDatasetSource()
