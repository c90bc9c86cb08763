"""Splits, shards and manifests: the part of the file format that value stores and token stores share.

    ROOT/dataset.json or store.json                {"format": 1, "splits": {"train": {"samples": n, "shard_size": n}}}
    ROOT/<split>/keys/shard-00000.txt              the shard's sample keys, one a line, and the sha256 of these lines
    ROOT/<split>/<modality>/shard-00000.<suffix>   the shard's content
    ROOT/<split>/<modality>/shard-00000.json       its manifest, written last

Shard `i` of a split holds the same samples in the same rows in every modality. A shard without a manifest does not
exist. Memory grows with the shards; `find` and `verify` also keep a number per sample.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.errors import DataError
from tokenizers_zoo.records.io import file_digest, read_error, read_record, read_regular, replacing_file, write_table
from tokenizers_zoo.records.typed import OPTIONAL, convert

KEYS = "keys"
"""The folder of a split that holds the sample keys; no modality may have this name."""
DATASET = "dataset.json"
"""Record of a data folder's splits and their sources."""
REPAIR = "run `zoo data repair` on the folder"
MOST_SHARDS, MOST_ROWS = 1_000_000, 10_000_000
"""Limits of a split, and of a shard: lists of this length take seconds."""
REPEATED_KEY = "has a key that is there twice"
"""The damage of a key file that `verify` finds, and `zoo data repair` cannot mend."""
CACHED_SHARDS = 4
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
        return cls(size=path.stat().st_size, sha256=file_digest(path))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of one shard of one modality, and the inputs it was made from. Raises ValueError for other rows."""

    suffix: ClassVar[str]
    """Suffix of the file with the values or tokens."""
    rows: int
    """Samples of the shard, absent ones included."""
    count: int
    """Rows that have a value (or tokens)."""
    keys: str
    """sha256 of the shard's keys: the shard belongs to these samples in this order."""
    inputs: str
    """Inputs digest. Equal: the shard is up to date. Empty: make the shard again."""
    files: Mapping[str, FileRecord]
    """The shard's files by suffix, such as {"tar": ..., "index": ...}."""
    dropped: Mapping[int, str]
    """Row to reason, for samples that should have a value here and could not be written."""

    def __post_init__(self) -> None:
        if not all(suffix.isalnum() for suffix in self.files):
            raise ValueError("files: expected suffixes of letters")
        if not 0 <= self.count <= self.rows or any(not 0 <= row < self.rows for row in self.dropped):
            raise ValueError("rows, count or dropped")


AnyManifest = TypeVar("AnyManifest", bound=Manifest)


@dataclass(frozen=True, kw_only=True)
class ValueShape:
    """The shape of stored values; texts are sizes that vary."""

    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class ValueWriter:
    """The keys of the record of values that are read again."""

    source: str | None = None
    seed: int | None = None
    distribution: str | None = None
    derived_from: tuple[str, ...] = ()
    value: ValueShape = ValueShape(shape=())

    def __str__(self) -> str:
        """`shapes of zoo-showcase 0.1.0, seed 0`."""
        if self.source:
            return f"{self.source} of {self.distribution}, seed {self.seed}"
        return f"{self.distribution}, from {', '.join(self.derived_from)}" if self.derived_from else "not recorded"


@dataclass(frozen=True, kw_only=True)
class ValueManifest(Manifest):
    """The manifest of a shard of values."""

    suffix: ClassVar[str] = "tar"
    record: Mapping[str, Any]
    """Settings of the writer, for people and for messages (JSON types)."""

    def __post_init__(self) -> None:
        Manifest.__post_init__(self)
        _ = self.writer

    @functools.cached_property
    def writer(self) -> ValueWriter:
        """The record, checked."""
        return cast(ValueWriter, convert(self.record, ValueWriter, "record"))


def manifest_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard's manifest in a modality's folder."""
    return folder / shard_name(shard, "json")


def write_manifest(folder: Path, shard: int, manifest: Manifest) -> None:
    """Write a manifest atomically; from then on the shard exists."""
    write_table(manifest_path(folder, shard), manifest)


def read_manifest(folder: Path, shard: int, manifest_class: type[AnyManifest]) -> AnyManifest | None:
    """Return the manifest of a shard, or None. Raises DataError if it is damaged, or of another kind of shard."""
    path = manifest_path(folder, shard)
    if not path.exists():
        return None
    manifest = read_record(path, manifest_class, remedy=REPAIR, error=DataError)
    if manifest_class.suffix not in manifest.files:
        raise DataError(f"{path}: damaged: has no .{manifest_class.suffix} file; {REPAIR}")
    return manifest


def sound_manifest(folder: Path, shard: int, manifest_class: type[AnyManifest]) -> AnyManifest | None:
    """Return the manifest of a shard whose files have the recorded sizes; None if anything is missing or damaged."""
    try:
        manifest = read_manifest(folder, shard, manifest_class)
        files = manifest.files if manifest else {}
        sound = all((folder / shard_name(shard, end)).stat().st_size == file.size for end, file in files.items())
    except (DataError, OSError):
        return None
    return manifest if sound else None


def up_to_date(folder: Path, shard: int, inputs: str, keys: str) -> ValueManifest | None:
    """Return the manifest of a sound shard of values that was made of these inputs and keys, else None."""
    manifest = sound_manifest(folder, shard, ValueManifest)
    return manifest if manifest and (manifest.inputs, manifest.keys) == (inputs, keys) else None


def remove_shard(folder: Path, shard: int) -> None:
    """Delete a shard, its manifest first."""
    manifest_path(folder, shard).unlink(missing_ok=True)
    for path in folder.glob(shard_name(shard, "*")):
        path.unlink(missing_ok=True)


def shards_of(folder: Path) -> list[int]:
    """Return the numbers of the shards with a manifest in a modality's folder."""
    numbers = (path.stem.removeprefix("shard-") for path in folder.glob("shard-*.json"))
    return sorted(int(number) for number in numbers if number.isdecimal() and number == f"{int(number):05}")


@dataclass(frozen=True)
class Split:
    """The samples of one split of a store: sample `i` is row `i % shard_size` of shard `i // shard_size`.

    Raises DataError for impossible sizes, and for a name that is not the name of a folder.
    """

    manifest_class: ClassVar[type[Manifest]] = ValueManifest
    root: Path
    name: str
    samples: int
    shard_size: int
    _key_cache: dict[int, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    _checksums: list[npt.NDArray[np.uint32]] = field(default_factory=list, repr=False, compare=False)
    """Once `find` was called: a checksum of each key, 4 bytes per sample."""

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name in (".", ".."):
            raise DataError(f"{self.root}: expected the name of a split, got {self.name!r}")
        if not (self.samples >= 0 and 0 < self.shard_size <= MOST_ROWS):
            sizes = f"samples {self.samples}, shard_size {self.shard_size}"
            raise DataError(f"{self.folder}: expected up to {MOST_ROWS:,} samples in a shard, got {sizes}")
        if self.shards > MOST_SHARDS:
            raise DataError(f"{self.folder}: would have more than {MOST_SHARDS:,} shards; make several folders")

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def shards(self) -> int:
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

    def locate_in(self, target: Split, sample: int) -> tuple[int, int] | None:
        """Return shard and row of a sample in a split of another store, found by its key if it moved; or None."""
        shard, row = self.locate(sample)
        key = self.keys(shard)[row]
        if sample < target.samples:
            shard, row = target.locate(sample)
            if target.keys(shard)[row] == key:
                return shard, row
        number = target.find(key)
        return None if number is None else target.locate(number)

    def modalities(self) -> list[str]:
        """Return the modalities with at least one finished shard."""
        folders = sorted(path for path in self.folder.glob("*/") if path.name != KEYS)
        return [folder.name for folder in folders if any(folder.glob("shard-*.json"))]

    def check_summary(self, modality: str) -> DamagedShard | None:
        """Return the summary of a modality if it contradicts its shards; values have none."""
        return None

    # ------------------------------------------------------------------ keys

    def keys_path(self, shard: int) -> Path:
        """Return the path of a shard's sample keys."""
        return self.folder / KEYS / shard_name(shard, "txt")

    def keys(self, shard: int) -> tuple[str, ...]:
        """Return the sample keys of a shard, by row. Raises DataError if the file is missing or damaged."""
        if (keys := self._key_cache.get(shard)) is None:
            keys = tuple(self._read_keys(shard)[0].split("\n")[:-1])
            path = self.keys_path(shard)
            if len(keys) != self.rows(shard):
                raise DataError(f"{path}: has {len(keys)} keys, expected {self.rows(shard)}; {REPAIR}")
            if len(set(keys)) < len(keys):
                repeated = Counter(keys).most_common(1)[0][0]
                raise DataError(f"{path}: has the key {repeated!r} twice; make the folder again")
            self._key_cache[shard] = keys
            for oldest in list(self._key_cache)[:-CACHED_SHARDS]:  # threads read at once
                self._key_cache.pop(oldest, None)
        return keys

    def shards_with_repeated_keys(self, shards: Iterable[int]) -> set[int]:
        """Return the shards, of some with sound key files, that have a key twice, or a key of an earlier one."""
        shards = list(shards)
        texts = (self._read_keys(shard)[0] for shard in shards)
        shard_hashes = [np.fromiter(map(hash, text.split("\n")[:-1]), np.int64) for text in texts]
        hashes, ends = np.concatenate([np.zeros(0, np.int64), *shard_hashes]), np.cumsum(list(map(len, shard_hashes)))
        is_repeated = np.ones(len(hashes), bool)
        is_repeated[np.unique(hashes, return_index=True)[1]] = False
        return {shards[position] for position in np.searchsorted(ends, np.flatnonzero(is_repeated), side="right")}

    def _read_keys(self, shard: int) -> tuple[str, str]:
        """Return the lines of a shard's keys, and their sha256."""
        path = self.keys_path(shard)
        if (data := read_regular(path)) is None:
            raise DataError(f"{path}: no such file; run what made the folder again, or {REPAIR}")
        lines, mark, written = data.rpartition(b"sha256 ")
        digest = hashlib.sha256(lines).hexdigest()
        if not mark or written != f"{digest}\n".encode():
            raise DataError(f"{path}: damaged: its checksum is not the checksum of its keys; {REPAIR}")
        return lines.decode("utf-8", "replace"), digest

    def keys_digest(self, shard: int) -> str:
        """Return the sha256 (hex) of a shard's keys, see `Manifest.keys`. Raises DataError as `keys`."""
        return self._read_keys(shard)[1]

    def sound_keys_digest(self, shard: int) -> str:
        """As `keys_digest`, but empty if the file is missing or damaged."""
        try:
            return self.keys_digest(shard)
        except DataError:
            return ""

    def write_keys(self, shard: int, keys: Sequence[str]) -> str:
        """Write a shard's keys, unless they are there, and return their digest."""
        data = "".join(f"{key}\n" for key in keys).encode()
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.sound_keys_digest(shard):
            with replacing_file(self.keys_path(shard)) as temporary:
                temporary.write_bytes(data + f"sha256 {digest}\n".encode())
            self._key_cache.pop(shard, None)
            self._checksums.clear()
        return digest

    def key(self, sample: int) -> str:
        shard, row = self.locate(sample)
        return self.keys(shard)[row]

    def find(self, key: str) -> int | None:
        """Return the sample number of a key, or None."""
        if not self._checksums:
            keys = (key for shard in range(self.shards) for key in self.keys(shard))
            self._checksums.append(np.fromiter((zlib.crc32(key.encode()) for key in keys), np.uint32, self.samples))
        candidates = np.flatnonzero(self._checksums[0] == zlib.crc32(key.encode())).tolist()
        return next((sample for sample in candidates if self.key(sample) == key), None)


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """The source that made a split's samples, and its settings: the identity of the samples."""

    source: str
    seed: int
    options: Mapping[str, Any]
    image_size: int | tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """The entry of a split in dataset.json."""

    samples: int
    shard_size: int
    source: SourceRecord | None = field(default=None, metadata=OPTIONAL)

    def open(self, root: Path, name: str) -> Split:
        """Return the split. Raises DataError, see `Split`."""
        return Split(root, name, self.samples, self.shard_size)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The content of dataset.json."""

    splits: Mapping[str, SplitRecord]

    @classmethod
    def read(cls, root: Path) -> Dataset:
        """Return the splits of a data folder; none without the file. Raises DataError if it is damaged."""
        path = root / DATASET
        return read_record(path, cls, error=DataError) if path.exists() else cls(splits={})

    def write(self, root: Path) -> None:
        """Write the file, unless it is unchanged."""
        if self != Dataset.read(root):
            write_table(root / DATASET, self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedShard:
    """A shard that does not agree with its manifest, or a modality whose summary does not agree with its shards."""

    modality: str
    number: int | None
    """None for a summary."""
    path: Path
    reason: str


def verify(split: Split) -> Iterator[DamagedShard]:
    """Yield the shards and key files of a split that are damaged or disagree."""
    sound = [shard for shard in range(split.shards) if split.sound_keys_digest(shard)]
    repeated = split.shards_with_repeated_keys(sound)
    wrong_keys = sorted(repeated | (set(range(split.shards)) - set(sound)))
    for shard in wrong_keys:
        reason = REPEATED_KEY if shard in repeated else "is missing or damaged"
        yield DamagedShard(modality=KEYS, number=shard, path=split.keys_path(shard), reason=reason)
    for modality in split.modalities():
        checked = [check_shard(split, modality, shard) for shard in shards_of(split.folder / modality)]
        damaged = [shard for shard in checked if shard]
        yield from damaged
        if not (wrong_keys or damaged) and (summary := split.check_summary(modality)):
            yield summary


def check_shard(split: Split, modality: str, shard: int) -> DamagedShard | None:
    """Read the files of one shard; return it with the reason if it is damaged, else None."""
    folder = split.folder / modality
    path, reason = manifest_path(folder, shard), ""
    try:
        manifest = read_manifest(folder, shard, split.manifest_class)
        if manifest is None:
            reason = "is missing"
        elif shard >= split.shards:
            reason = f"shard {shard} of a split of {split.shards}"
        elif manifest.rows != split.rows(shard) or manifest.keys != (split.sound_keys_digest(shard) or manifest.keys):
            reason = "was written for other sample keys"
        for suffix, expected in manifest.files.items() if manifest and not reason else ():
            path = folder / shard_name(shard, suffix)
            if reason := file_problem(path, expected):
                break
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
    return DamagedShard(modality=modality, number=shard, path=path, reason=reason) if reason else None


def file_problem(path: Path, expected: FileRecord) -> str:
    """Return the problem with a file that is missing or has another size or checksum than `expected`, else ""."""
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != expected.size:
            return f"has {size} bytes, its manifest says {expected.size}"
        return "" if file_digest(path) == expected.sha256 else "has another checksum than its manifest says"
    except OSError as error:
        raise read_error(path, error) from None
