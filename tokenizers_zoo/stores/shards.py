"""Value shards: written whole, read by (shard, row) through their index. See `data/manifest.py` for the layout.

shard-00000.tar      members <key>.<extension> in row order
shard-00000.index    one INDEX record per row; offset and size are -1 where the sample has no value
shard-00000.json     the manifest
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shlex
import tarfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.contract.pretrained import networks_of
from tokenizers_zoo.contract.samples import OWN_FILES, LazySequence, spread
from tokenizers_zoo.contract.spec import WHOLE, Crop
from tokenizers_zoo.errors import DataError, InvalidValueError, ReadError, UnknownNameError, and_others, size_text
from tokenizers_zoo.files.tar import BLOCK, TARS, key_problem, read_at, split_name
from tokenizers_zoo.records.io import as_json, open_regular, read_error, replacing_file
from tokenizers_zoo.records.limits import limited, limits
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.stores.manifest import (
    DATASET,
    REPAIR,
    Dataset,
    FileRecord,
    Split,
    ValueManifest,
    file_problem,
    inputs_digest,
    manifest_path,
    read_manifest,
    shard_name,
    shards_of,
    write_manifest,
)

if TYPE_CHECKING:
    from tokenizers_zoo.contract.handle import ModalityHandle

INDEX = np.dtype([("offset", "<i8"), ("size", "<i8"), ("extension", "S16")])
OPEN_SHARDS = 64
"""Shards that a store keeps open."""
CACHE_BYTES = 1 << 30
TOKENIZER_KEY = "tokenizer"
"""Settings that change tokens, not values."""


# ---------------------------------------------------------------------------- writing


class ShardWriter:
    """Writes one shard row by row: `add` a value or `skip` a sample, then `finish`."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.dropped: dict[int, str] = {}
        self.count = 0
        self.index: list[tuple[int, int, bytes]] = []
        self.finished: dict[str, Any] = {}
        self.manifest: ValueManifest
        """The manifest of the finished shard."""
        self._tar = tar

    def add(self, key: str, data: bytes, extension: str) -> None:
        """Append the value of the next row. Raises DataError for a key or extension that would be read back otherwise.

        The row is then not written, so that the caller can `skip` it.
        """
        name, longest = f"{key}.{extension}", INDEX["extension"].itemsize
        if reason := key_problem(key):
            raise DataError(f"key {key!r}: {reason}")
        if split_name(name) != (key, extension) or len(extension) > longest:
            raise DataError.expected(
                key, f"an extension in lower case, without a dot, of up to {longest} characters", repr(extension)
            )
        info = tarfile.TarInfo(name)  # time and owner are 0, so that equal values give equal bytes
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self.index.append((self._tar.offset - len(data) - -len(data) % BLOCK, len(data), extension.encode()))
        self.count += 1

    def skip(self, reason: str = "") -> None:
        """Leave the next row without a value; with a reason it counts as dropped, else as absent."""
        if reason:
            self.dropped[len(self.index)] = reason
        self.index.append((-1, -1, b""))

    def finish(self, *, keys: str, inputs: str, record: Mapping[str, Any], retry: bool = False) -> None:
        """Set the remaining fields of the manifest; see `ValueManifest`.

        With `retry`, or if every sample was dropped, the manifest has no inputs digest: the next run makes the shard
        again.
        """
        retry = retry or (not self.count and bool(self.dropped))
        self.finished = {"keys": keys, "inputs": "" if retry else inputs, "record": record}


@contextlib.contextmanager
def writing_shard(folder: Path, shard: int) -> Iterator[ShardWriter]:
    """Yield a writer. The shard appears atomically if the block calls `finish` and succeeds; otherwise not at all."""
    with (
        replacing_file(folder / shard_name(shard, "tar")) as values,
        replacing_file(folder / shard_name(shard, "index")) as index,  # renamed first; see `check_foreign`
    ):
        with tarfile.open(values, "w", format=tarfile.PAX_FORMAT) as tar:
            yield (writer := ShardWriter(tar))
        index.write_bytes(np.array(writer.index, INDEX).tobytes())  # tofile hides a full disk
        writer.manifest = ValueManifest(
            rows=len(writer.index),
            count=writer.count,
            dropped=writer.dropped,
            **writer.finished,
            files={"tar": FileRecord.of(values), "index": FileRecord.of(index)},
        )
        manifest_path(folder, shard).unlink(missing_ok=True)  # remove the old manifest before replacing any file
    write_manifest(folder, shard, writer.manifest)


def check_foreign(folder: Path) -> None:
    """Raise DataError if a modality's folder holds tar files that another program wrote."""
    ours = (".index", ".json")
    foreign = sorted(path for path in folder.glob(TARS) if not any(path.with_suffix(end).exists() for end in ours))
    if foreign:
        raise DataError(
            f"{foreign[0]}{and_others(len(foreign) - 1)}: not written by zoo data; move it away, or import it into "
            "another folder with `zoo data make folder`"
        )


# ---------------------------------------------------------------------------- reading


class Location(NamedTuple):
    """Location of a sample in its split."""

    shard: int
    row: int


class _OpenShard:
    """The index and an open file of a shard."""

    def __init__(self, folder: Path, shard: int, manifest: ValueManifest) -> None:
        self.index = read_index(folder, shard, manifest)
        self.path = folder / shard_name(shard, "tar")
        with open_regular(self.path) as file:
            self.file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.file)


def read_index(folder: Path, shard: int, manifest: ValueManifest) -> npt.NDArray[Any]:
    """Return a shard's INDEX records, verified and within its tar file. Raises DataError if they are damaged."""
    path = folder / shard_name(shard, "index")
    with open_regular(path) as file:
        data = file.read() if os.fstat(file.fileno()).st_size == manifest.rows * INDEX.itemsize else b""
    expected = manifest.files["index"].sha256 if "index" in manifest.files else ""
    if len(data) == manifest.rows * INDEX.itemsize and hashlib.sha256(data).hexdigest() == expected:
        index = np.frombuffer(data, INDEX)
        present = index["offset"] >= 0
        size = manifest.files["tar"].size
        inside = (index["size"] >= 0) & (index["size"] <= size) & (index["offset"] <= size - index["size"])
        if inside[present].all() and present.sum() == manifest.count:
            return index
    raise DataError(f"{path}: damaged; {REPAIR}")


class ValueStore:
    """The values in a folder, by split, modality, shard and row. Raises DataError if the folder holds none.

    Up to OPEN_SHARDS shards are open at a time. Their files are checked against the manifests when they are first
    opened. Threads may read at once.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; `zoo data make SOURCE {shlex.quote(str(self.root))}` makes one"
            )
        splits = {name: record.open(self.root, name) for name, record in Dataset.read(self.root).splits.items()}
        self._splits = {name: split for name, split in splits.items() if split.modalities()}
        if not self._splits:
            raise DataError(f"{self.root}: {self._missing_values_reason()}")
        self._open_cached = lru_cache(OPEN_SHARDS)(self._open)  # a shard is closed when no thread reads it any more
        self._checked: set[tuple[str, str, int]] = set()

    def _missing_values_reason(self) -> str:
        if (self.root.parent / DATASET).is_file():
            return f"this is a split, not a data folder; give {self.root.parent}"
        if any(self.root.glob(f"*/{TARS}")) or any(self.root.glob(f"*/*/{TARS}")):
            path = shlex.quote(f"path={self.root}")
            return f"tar files of another program; `zoo data make folder DATA --set {path}` imports them"
        return "no values here; `zoo data make` writes them"

    def splits(self) -> list[str]:
        """Return the splits with at least one value shard."""
        return sorted(self._splits)

    def split(self, name: str) -> Split:
        """Return a split: its samples, shards and keys. Raises DataError if it is not there."""
        if name not in self._splits:
            raise DataError(f"{self.root}: no split {name!r}; splits here: {', '.join(self.splits())}")
        return self._splits[name]

    def modalities(self, split: str) -> list[str]:
        """Return the modalities of a split. Raises DataError for a split that is not there."""
        return self.split(split).modalities()

    def folder(self, split: str, modality: str) -> Path:
        """Return the folder of a modality's shards. Raises DataError if the data lack it."""
        if modality not in (names := self.modalities(split)):
            hint = f"(`zoo data derive {shlex.quote(str(self.root))}` makes what can be derived)"
            raise DataError(str(UnknownNameError.of(f"modality in {self.root / split}:", modality, names, hint)))
        return self.root / split / modality

    def source(self, split: str) -> str | None:
        """Return a digest (hex) of the source that made a split's samples: others may have equal keys.

        None without a record, and for a user's own files, which others may have under the same path.
        """
        record = Dataset.read(self.root).splits.get(split)
        if record is None or record.source is None or record.source.source == OWN_FILES:
            return None
        return inputs_digest(source=as_dicts(record.source))[:16]

    def record(self, split: str, modality: str) -> dict[str, Any]:
        """Return the record in the first shard's manifest (JSON types): source or inputs, settings."""
        return dict(self._first_manifest(split, modality).record)

    def _first_manifest(self, split: str, modality: str) -> ValueManifest:
        folder = self.folder(split, modality)
        manifest = read_manifest(folder, shards_of(folder)[0], ValueManifest)
        assert manifest is not None
        return manifest

    def contents(self, split: str, modality: str, shards: Iterable[int] | None = None) -> str:
        """Return a digest (hex) of a modality's values and keys in some shards or all, from manifests alone."""
        folder = self.split(split).folder / modality
        shards = range(self.split(split).shards) if shards is None else shards
        manifests = (read_manifest(folder, shard, ValueManifest) for shard in shards)
        digests = [manifest and [manifest.keys, manifest.files["tar"].sha256] for manifest in manifests]
        return inputs_digest(shards=digests)

    # ------------------------------------------------------------------ samples

    def present(self, split: str, modality: str, shard: int) -> npt.NDArray[np.bool_]:
        """Return which rows of a shard have a value, `(rows,)`; none where the shard is not there, or is out of date.

        It is out of date if it was written for other sample keys.
        """
        samples = self.split(split)
        folder = samples.folder / modality
        manifest = read_manifest(folder, shard, ValueManifest)
        if manifest is None or manifest.keys != samples.keys_digest(shard):
            return np.zeros(samples.rows(shard), np.bool_)
        if manifest.rows != samples.rows(shard):
            raise DataError(
                f"{manifest_path(folder, shard)}: has {manifest.rows} rows, expected {samples.rows(shard)}; {REPAIR}"
            )
        if manifest.count == manifest.rows:
            return np.ones(samples.rows(shard), np.bool_)
        return np.asarray(read_index(folder, shard, manifest)["offset"] >= 0)

    def rows(self, split: str, modalities: Sequence[str]) -> Rows:
        """Return the samples that have all of `modalities`, in stored order, with O(shards) memory."""
        for modality in modalities:
            self.folder(split, modality)
        return Rows(self, split, modalities)

    def keys(self, split: str, *modalities: str) -> list[str]:
        """Return the keys of the samples that have all of `modalities`: O(samples) memory."""
        return list(self.rows(split, modalities).keys())

    def find(self, split: str, key: str) -> Location:
        """Return the location of the sample with a key. Raises DataError if there is none."""
        samples = self.split(split)
        number = samples.find(key)
        if number is None:
            raise DataError(f"{self.root / split}: no sample with key {key!r}")
        return Location(*samples.locate(number))

    # ------------------------------------------------------------------ values

    def read_bytes(self, split: str, modality: str, shard: int, row: int) -> tuple[bytes, str]:
        """Return the stored bytes of one value, and the extension. Raises DataError if the sample has none."""
        opened = self._open_cached(split, modality, shard)
        offset, size, extension = opened.index[row].tolist()
        if offset < 0:
            key = self.split(split).keys(shard)[row]
            raise DataError(f"{self.root / split / modality}: no value for key {key!r}")
        limits().check("file_bytes", size, f"{opened.path}: a value of {size:,} bytes")
        try:
            data = read_at(opened.file, offset, size)
        except OSError as error:
            raise read_error(opened.path, error) from None
        if len(data) != size:
            raise DataError(f"{opened.path}: was cut off while it was open; {REPAIR}")
        return data, extension.decode("ascii", "replace")

    def check_size(self, handle: ModalityHandle, split: str) -> None:
        """Raise DataError if a modality's values are stored at a smaller size than its settings have now.

        Reading them would enlarge them. Larger values are reduced when they are read.
        """
        stored_shape = self._first_manifest(split, handle.name).writer.value.shape
        expected = handle.spec.value.shape
        sizes = list(zip(stored_shape, expected, strict=True)) if len(stored_shape) == len(expected) else []
        if any(isinstance(old, int) and isinstance(new, int) and old < new for old, new in sizes):
            raise DataError(
                f"{self.root / split / handle.name}: stored at {size_text(stored_shape[-2:])}, and the settings "
                f"({handle.settings.origin.at('image_size')}) are now {size_text(expected[-2:])}; "
                f"{self._repair_advice(split)}"
            )

    def _repair_advice(self, split: str) -> str:
        """Return advice with the command that makes the values of a split again, in another folder."""
        splits = Dataset.read(self.root).splits
        if split not in splits or (source := splits[split].source) is None:
            return "make the data again, or restore the setting"
        words = [source.source, f"{self.root}-new"]
        if source.source != OWN_FILES:
            words += [word for name, record in splits.items() for word in (f"--{name}", str(record.samples))]
        words += ["--seed", str(source.seed)] if source.seed else []
        for key, item in source.options.items():
            words += ["--set", f"{key}={item if isinstance(item, str) else json.dumps(item)}"]
        return f"run `zoo data make {shlex.join(words)}`, or restore the setting"

    def read(self, handle: ModalityHandle, split: str, shard: int, row: int, crop: Crop = WHOLE) -> Any:
        """Return one value, decoded, seen through `crop` at the size of the settings. Raises ZooError."""
        with limited(handle.limits):
            data, extension = self.read_bytes(split, handle.name, shard, row)
        value = handle.read(data, extension)
        return handle.transform(value, crop, trusted=True)

    def read_key(self, handle: ModalityHandle, split: str, key: str, crop: Crop = WHOLE) -> Any:
        """Return the value of the sample with a key; see `read`."""
        return self.read(handle, split, *self.find(split, key), crop)

    def values(
        self, handle: ModalityHandle, split: str, limit: int | None = None, cache_bytes: int = CACHE_BYTES
    ) -> LazyValues:
        """Return the values of a modality in stored order; with `limit` at most so many, spread over the split.

        Raises DataError if they are stored smaller than the settings say. Reading one raises InvalidValueError, with
        the sample's key, if the present settings refuse it.
        """
        self.check_size(handle, split)

        def read(location: Location) -> Any:
            try:
                return self.read(handle, split, *location)
            except InvalidValueError as error:
                key = self.split(split).keys(location.shard)[location.row]
                advice = f"if a setting has changed since it was written, make {self.root} again"
                raise InvalidValueError(f"{self.root / split / handle.name}: {key}: {error}; {advice}") from error

        rows: Sequence[Location] = self.rows(split, [handle.name])
        locations = rows if limit is None else [rows[number] for number in spread(len(rows), limit)]
        return LazyValues(locations, read, cache_bytes)

    def _open(self, split: str, modality: str, shard: int) -> _OpenShard:
        folder = self.root / split / modality
        if (manifest := read_manifest(folder, shard, ValueManifest)) is None:
            self.folder(split, modality)  # raises the error that lists the modalities
            raise DataError(f"{folder / shard_name(shard)}: was not written to its end; run what made it again")
        if (key := (split, modality, shard)) not in self._checked:
            for suffix, expected in manifest.files.items():
                path = folder / shard_name(shard, suffix)
                if reason := file_problem(path, expected):
                    raise ReadError(f"{path}: {reason}; {REPAIR}")
        opened = _OpenShard(folder, shard, manifest)
        self._checked.add(key)
        return opened


class Rows(LazySequence[Location]):
    """The samples of a split that have all of some modalities, as locations; see `ValueStore.rows`."""

    def __init__(self, store: ValueStore, split: str, modalities: Sequence[str]) -> None:
        self.store, self.split, self.modalities = store, store.split(split), tuple(modalities)
        self._presence_bits: dict[int, npt.NDArray[np.uint8]] = {}
        """Presence bits of the shards that lack some rows."""
        counts = np.zeros(self.split.shards + 1, np.int64)
        for shard in range(self.split.shards):
            present = np.ones(self.split.rows(shard), np.bool_)
            for modality in self.modalities:
                present &= store.present(split, modality, shard)
            counts[shard + 1] = present.sum()
            if not present.all():
                self._presence_bits[shard] = np.packbits(present)
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __contains__(self, location: object) -> bool:
        assert isinstance(location, tuple)
        shard, row = location
        bits = self._presence_bits.get(shard)
        return bits is None or bool(bits[row >> 3] << (row & 7) & 128)

    def in_shard(self, shard: int) -> npt.NDArray[np.int64]:
        """Return the rows of a shard that are among these."""
        bits = self._presence_bits.get(shard)
        rows = self.split.rows(shard)
        return np.arange(rows) if bits is None else np.flatnonzero(np.unpackbits(bits, count=rows))

    def item(self, index: int) -> Location:
        shard = int(np.searchsorted(self._ends, index, side="right")) - 1
        within = index - int(self._ends[shard])
        return Location(shard, within if shard not in self._presence_bits else int(self.in_shard(shard)[within]))

    def __iter__(self) -> Iterator[Location]:
        for shard in range(self.split.shards):
            yield from (Location(shard, row) for row in self.in_shard(shard).tolist())

    def keys(self) -> Iterator[str]:
        for shard in range(self.split.shards):
            if len(rows := self.in_shard(shard)):
                keys = self.split.keys(shard)
                yield from (keys[row] for row in rows.tolist())

    def key(self, location: Location) -> str:
        return self.split.keys(location.shard)[location.row]


# ---------------------------------------------------------------------------- settings that values depend on


def value_identity(handle: ModalityHandle) -> dict[str, Any]:
    """Return the shape, type, bounds and classes of a modality's stored values.

    Classes of text are stored by name, so that more of them may follow. Which classes are scored changes no value.
    """
    spec = handle.spec.value
    value = dataclasses.asdict(dataclasses.replace(spec, classes=() if spec.kind == "text" else spec.classes))
    return as_json({key: item for key, item in value.items() if key not in ("description", "unscored")})


def reading_settings(handle: ModalityHandle) -> dict[str, Any]:
    """Return the settings that decide how a modality's stored values are written and read, as JSON types.

    These are its own settings and the shared ones it takes, except settings that are only shown. The patch size belongs
    to the tokens; the tokenizer and pretrained networks have their own records.
    """
    settings = handle.known_settings()
    fields = [field for config in handle.plugin_settings() for field in dataclasses.fields(config)]
    display_only = [field.name for field in fields if field.metadata.get("shown")]
    shared = {key: item for key, item in sorted(handle.settings.shared.items()) if key in settings}
    excluded = {TOKENIZER_KEY, "patch_size", *networks_of(settings), *display_only}
    return {key: item for key, item in as_json({**shared, **handle.settings}).items() if key not in excluded}


# ---------------------------------------------------------------------------- values in memory


class LazyValues(LazySequence[Any]):
    """The values of `keys`, read on demand and cached up to `cache_bytes` in total.

    Keys may be locations in a store or names. Nothing is evicted: in random order a least-recently-used cache would
    always miss.
    """

    def __init__(
        self, keys: Sequence[Any] | npt.NDArray[Any], read: Callable[[Any], Any], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.keys = keys
        self.read = read
        self._free_bytes = cache_bytes
        self._cache: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def item(self, index: int) -> Any:
        if index in self._cache:
            return self._cache[index]
        value = self.read(self.keys[index])
        size = int(value.nbytes) + 100 if hasattr(value, "nbytes") else 50 + len(repr(value))  # about its memory
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cache[index] = value
        return value
