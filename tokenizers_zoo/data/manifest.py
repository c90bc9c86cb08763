"""Splits, shards and manifests: the part of the file format that value stores and token stores share.

    ROOT/dataset.json or store.json                {"format": 1, "splits": {"train": {"samples": n, "shard_size": n}}}
    ROOT/<split>/keys/shard-00000.txt              the shard's sample keys, one a line; the line number is the row
    ROOT/<split>/<modality>/shard-00000.<suffix>   the shard's content
    ROOT/<split>/<modality>/shard-00000.json       its manifest, written last

Shard `i` of a split holds the same samples in the same rows in every modality. A shard without a manifest does not
exist. Nothing here needs more memory than O(shards).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.errors import DataError
from tokenizers_zoo.io import not_read, replacing_file

FORMAT = 1
KEYS = "keys"
DATASET = "dataset.json"
"""Record of a data folder's splits and their sources."""
"""The folder of a split that holds the sample keys; no modality may have this name."""
KEPT_KEYS = 4
"""Shards whose keys a `Split` keeps in memory."""


def shard_name(shard: int, suffix: str = "") -> str:
    """Return the file name of shard number `shard`, with a suffix such as "tar" if given."""
    return f"shard-{shard:05d}.{suffix}" if suffix else f"shard-{shard:05d}"


def inputs_digest(**parts: Any) -> str:
    """Return the sha256 (hex) of everything a shard depends on, whatever the order of mappings."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read `path` once and return its record."""
        with open(path, "rb") as file:
            return cls(size=os.fstat(file.fileno()).st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of one shard of one modality, and the inputs it was made from."""

    rows: int
    """Samples of the shard, absent ones included."""
    count: int
    """Rows that have a value (or tokens)."""
    keys: str
    """sha256 of the shard's key file: the shard belongs to these samples in this order."""
    inputs: str
    """Inputs digest. Equal: the shard is up to date. Empty: make the shard again."""
    files: Mapping[str, FileRecord]
    """The shard's files by suffix, such as {"tar": ..., "index": ...}."""
    dropped: Mapping[int, str] = field(default_factory=dict)
    """Row to reason, for samples that should have a value here and could not be written."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the writer, for people and for messages (JSON types)."""


def manifest_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard's manifest in a modality's folder."""
    return folder / shard_name(shard, "json")


def write_manifest(folder: Path, shard: int, manifest: Manifest) -> None:
    """Write a manifest atomically; from then on the shard exists."""
    table = {"format": FORMAT, **dataclasses.asdict(manifest)}
    with replacing_file(manifest_path(folder, shard)) as temporary:
        temporary.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path, shard: int) -> Manifest | None:
    """Return the manifest of a shard, or None. Raises DataError if it is damaged."""
    path = manifest_path(folder, shard)
    try:
        table = json.loads(path.read_bytes())
        if table.pop("format") != FORMAT:
            raise ValueError("another format")
        files = {
            suffix: FileRecord(size=int(one["size"]), sha256=str(one["sha256"]))
            for suffix, one in table.pop("files").items()
            if suffix.isalnum()
        }
        dropped = {int(row): str(reason) for row, reason in table.pop("dropped").items()}
        manifest = Manifest(files=files, dropped=dropped, **table)
        rows, count = manifest.rows, manifest.count
        if not (type(rows) is type(count) is int and 0 <= count <= rows and isinstance(manifest.record, dict)):
            raise ValueError("rows, count or record")
        return manifest
    except FileNotFoundError:
        return None
    except OSError as error:
        raise not_read(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged manifest ({error}); {REPAIR}") from None


REPAIR = "run `zoo data repair` on the folder"


def is_finished(folder: Path, shard: int, inputs: str, keys: str | None = None) -> bool:
    """Return whether a shard exists with this inputs digest, and for these keys if given.

    A damaged manifest, or a file that is missing or has another size than its manifest says, is False.
    """
    try:
        manifest = read_manifest(folder, shard)
        if manifest is None or manifest.inputs != inputs or keys not in (None, manifest.keys):
            return False
        sizes = {suffix: (folder / shard_name(shard, suffix)).stat().st_size for suffix in manifest.files}
    except (DataError, OSError):
        return False
    return all(sizes[suffix] == file.size for suffix, file in manifest.files.items())


def remove_shard(folder: Path, shard: int) -> None:
    """Delete a shard, its manifest first."""
    manifest_path(folder, shard).unlink(missing_ok=True)
    for path in folder.glob(shard_name(shard, "*")):
        path.unlink(missing_ok=True)


def shards_of(folder: Path) -> list[int]:
    """Return the numbers of the shards with a manifest in a modality's folder."""
    return sorted(int(name[6:-5]) for name in _manifests(folder))


def _manifests(folder: Path) -> Iterator[str]:
    """Yield the names of the manifests in a modality's folder, unsorted."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("shard-") and entry.name.endswith(".json") and entry.name[6:-5].isdecimal():
                    yield entry.name


@dataclass(frozen=True)
class Split:
    """The samples of one split of a store: sample `i` is row `i % shard_size` of shard `i // shard_size`."""

    root: Path
    name: str
    samples: int
    shard_size: int
    _kept: OrderedDict[int, tuple[str, ...]] = field(default_factory=OrderedDict, repr=False, compare=False)
    _sums: list[npt.NDArray[np.uint32]] = field(default_factory=list, repr=False, compare=False)
    """Once `find` was called: a checksum of each key, 4 bytes per sample."""

    @property
    def folder(self) -> Path:
        """The split's folder."""
        return self.root / self.name

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard_size)

    def rows(self, shard: int) -> int:
        """Return how many samples a shard has."""
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} of {self.shards}")
        return min(self.shard_size, self.samples - shard * self.shard_size)

    def locate(self, sample: int) -> tuple[int, int]:
        """Return the shard and row of a sample number."""
        if not 0 <= sample < self.samples:
            raise IndexError(f"sample {sample} of {self.samples}")
        return divmod(sample, self.shard_size)

    def number(self, shard: int, row: int) -> int:
        """Return the sample number of a row: the inverse of `locate`."""
        return shard * self.shard_size + row

    def place_in(self, other: Split, sample: int) -> tuple[int, int] | None:
        """Return shard and row of a sample in another store, found by its key if it is elsewhere there; or None."""
        shard, row = self.locate(sample)
        key = self.keys(shard)[row]
        if sample < other.samples:
            shard, row = other.locate(sample)
            if other.keys(shard)[row] == key:
                return shard, row
        number = other.find(key)
        return None if number is None else other.locate(number)

    def modalities(self) -> list[str]:
        """Return the modalities with at least one finished shard."""
        names = [entry.name for entry in os.scandir(self.folder)] if self.folder.is_dir() else []
        return [name for name in sorted(names) if name != KEYS and next(_manifests(self.folder / name), None)]

    # ------------------------------------------------------------------ keys

    def keys_path(self, shard: int) -> Path:
        """Return the path of a shard's sample keys."""
        return self.folder / KEYS / shard_name(shard, "txt")

    def keys(self, shard: int) -> tuple[str, ...]:
        """Return the sample keys of a shard, by row. Raises DataError if the file is missing or damaged."""
        if shard not in self._kept:
            keys = tuple(self._read_keys(shard).decode("utf-8", "replace").split("\n")[:-1])
            if len(keys) != self.rows(shard):
                path = self.keys_path(shard)
                raise DataError(f"{path}: has {len(keys)} keys, expected {self.rows(shard)}; {REPAIR}")
            self._kept[shard] = keys
            if len(self._kept) > KEPT_KEYS:
                self._kept.pop(next(iter(self._kept)), None)
            return keys
        return self._kept[shard]

    def _read_keys(self, shard: int) -> bytes:
        path = self.keys_path(shard)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; run what made the folder again, or {REPAIR}") from None
        except OSError as error:
            raise not_read(path, error) from None

    def keys_digest(self, shard: int) -> str:
        """Return the sha256 (hex) of a shard's key file, empty where there is none: see `Manifest.keys`."""
        return hashlib.sha256(self._read_keys(shard)).hexdigest() if self.keys_path(shard).is_file() else ""

    def write_keys(self, shard: int, keys: Sequence[str]) -> str:
        """Write a shard's keys, unless they are there, and return the digest of the file."""
        data = "".join(f"{key}\n" for key in keys).encode()
        self._sums.clear()
        path = self.keys_path(shard)
        if not path.is_file() or path.read_bytes() != data:
            with replacing_file(path) as temporary:
                temporary.write_bytes(data)
            self._kept.pop(shard, None)
        return hashlib.sha256(data).hexdigest()

    def key(self, sample: int) -> str:
        """Return the key of a sample number."""
        shard, row = self.locate(sample)
        return self.keys(shard)[row]

    def find(self, key: str) -> int | None:
        """Return the sample number of a key, or None."""
        if not self._sums:
            keys = (key for shard in range(self.shards) for key in self.keys(shard))
            self._sums.append(np.fromiter((zlib.crc32(key.encode()) for key in keys), np.uint32, self.samples))
        likely = np.flatnonzero(self._sums[0] == zlib.crc32(key.encode())).tolist()
        return next((sample for sample in likely if self.key(sample) == key), None)


def read_splits(path: Path) -> dict[str, Split]:
    """Return the splits that a dataset.json or store.json lists, none without the file. Raises DataError if damaged."""
    return {
        name: Split(path.parent, name, table["samples"], table["shard_size"])
        for name, table in read_record(path).get("splits", {}).items()
    }


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a dataset.json or store.json, checked; {} without the file. Raises DataError if damaged."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, expected {FORMAT}")
        for name, table in record["splits"].items():
            samples, size = table["samples"], table["shard_size"]
            if not (type(samples) is type(size) is int and samples >= 0 and size > 0):
                raise ValueError(f"samples and shard_size of {name!r}")
            if Path(name).name != name or name in (".", ".."):
                raise ValueError(f"the split name {name!r}")
        return record
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise not_read(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); copy it again, or run what made the folder again") from None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a dataset.json or store.json from `record`, which has "splits" and other entries; skip it if unchanged."""
    table = json.dumps({"format": FORMAT, **record}, ensure_ascii=False, indent=2, default=str) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != table:
        with replacing_file(path) as temporary:
            temporary.write_text(table, encoding="utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wrong:
    """A shard that does not agree with its manifest."""

    modality: str
    shard: int
    path: Path
    problem: str


def verify(split: Split, modalities: Iterable[str] | None = None) -> Iterator[Wrong]:
    """Yield the shards of a split that disagree with their manifests. Every file is read once."""
    digests = [split.keys_digest(shard) for shard in range(split.shards)]
    for modality in split.modalities() if modalities is None else modalities:
        folder = split.folder / modality
        for shard in shards_of(folder):
            for path, problem in _problems(folder, shard, digests, split):
                yield Wrong(modality=modality, shard=shard, path=path, problem=problem)
                break


def _problems(folder: Path, shard: int, digests: Sequence[str], split: Split) -> Iterator[tuple[Path, str]]:
    path = manifest_path(folder, shard)
    try:
        manifest = read_manifest(folder, shard)
    except DataError as error:
        yield path, str(error).removeprefix(f"{path}: ")
        return
    if manifest is None:
        return
    if shard >= split.shards:
        yield path, f"shard {shard} of a split of {split.shards}"
    elif manifest.rows != split.rows(shard) or manifest.keys != digests[shard]:
        yield path, "was written for other sample keys"
    for suffix, expected in manifest.files.items():
        yield from check_file(folder / shard_name(shard, suffix), expected)


def check_file(path: Path, expected: FileRecord) -> Iterator[tuple[Path, str]]:
    """Yield the problem with a file, if it is missing or has another size or checksum than `expected`."""
    try:
        if not path.is_file():
            yield path, "is missing"
        elif (size := path.stat().st_size) != expected.size:
            yield path, f"has {size} bytes, its manifest says {expected.size}"
        elif FileRecord.of(path) != expected:
            yield path, "has another checksum than its manifest says"
    except OSError as error:
        raise not_read(path, error) from None
