"""The source `hf`: a dataset of the Hugging Face hub, or local parquet, arrow, csv and json files, by `datasets`.

Pictures, sounds and videos stay bytes until the modality's own reader decodes them.
"""

from __future__ import annotations

import functools
import itertools
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.file_samples import is_in_split
from tokenizers_zoo.contract.samples import TEST, TRAIN, LazySequence
from tokenizers_zoo.contract.source import FileBytes, ModalityNames, OwnData, Sample, SourceSpec
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.errors import (
    ConfigError,
    DataError,
    InvalidValueError,
    ReadError,
    UnknownNameError,
    is_of_the_machine,
)
from tokenizers_zoo.files.tar import read_member, regular_member
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.limits import limits

KINDS = {"Image": "png", "Audio": "wav", "Video": "mp4"}
"""Types of columns of files, and an extension of such files."""
SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
}
"""Kinds of single files, as `datasets` names them."""
HELD_OUT = ("test", "validation", "valid", "val", "dev")
"""Splits that are taken for testing if `splits` says nothing, the first that is there."""
MAGIC = {
    b"RIFF": "wav",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
    b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3",
    b"\xff\xf2": "mp3",
    b"\x1a\x45\xdf\xa3": "webm",
}
"""First bytes of sounds and videos, for files without a name. WebP pictures begin with RIFF, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSettings(OwnData):
    """The dataset, its splits, and the modalities of its columns."""

    path: str
    """A hub id (`owner/name`), a folder, or a .parquet, .arrow, .csv or .json file. `~` is your home."""
    config: str = ""
    """Configuration (subset) of the dataset, if it has several."""
    revision: str = ""
    """Branch, tag or commit on the hub. Default: the main branch."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Modality of each column: `{image = "rgb", text = "caption"}`. An empty name leaves a column out. Other columns
    are matched by name, and columns of pictures, sounds and videos by type."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """The dataset's splits for `train` and `test`: `{test = "validation"}`. Default: splits of the same name, or
    validation for test; without either, test is a share of train."""
    streaming: bool = False
    """Read rows from the hub in order, without downloading the dataset first. Every process reads from the start."""

    def __post_init__(self) -> None:
        OwnData.__post_init__(self)
        if unknown := set(self.splits) - {TRAIN, TEST}:
            raise ValueError(f"splits: expected {TRAIN} and {TEST}, got {', '.join(sorted(unknown))}")


class HubSource:
    """The source plugin."""

    @hookimpl
    def source_spec(self) -> SourceSpec:
        """Return the spec; `modalities` is empty, as the samples name them."""
        return SourceSpec(
            name="hf",
            summary="a dataset of the Hugging Face hub, or local parquet, arrow, csv and json files",
            modalities=(),
            licence="that of the dataset",
            settings=HubSettings,
        )

    @hookimpl
    def samples(
        self, split: str, count: int | None, seed: int, settings: Settings, names: ModalityNames
    ) -> HubRows | StreamedRows:
        """Return the rows of a split in stored order. Raises ConfigError or DataError."""
        config = settings.take(HubSettings)
        tables = load(config)
        source_split, test_fraction = choose_split(config, split, list(tables))
        table = tables[source_split]
        if table.features is None:  # of a stream; reads its first rows
            table = table._resolve_features()
        rows: HubRows | StreamedRows = (StreamedRows if config.streaming else HubRows)(
            table,
            columns_of(table, config, names),
            prefix=source_split,
            split=split,
            test_fraction=test_fraction,
            file_roots=FileRoots.of(config),
        )
        rows.limit(count)
        return rows


def choose_split(config: HubSettings, split: str, split_names: Sequence[str]) -> tuple[str, float | None]:
    """Return the dataset's split for `split`, and the share of its rows for testing if train and test share it.

    Raises ConfigError.
    """
    train = config.splits.get(TRAIN) or (TRAIN if TRAIN in split_names else split_names[0])
    test = config.splits.get(TEST) or next((name for name in HELD_OUT if name in split_names and name != train), "")
    source_split = test if test and split == TEST else train
    if source_split not in split_names:
        raise ConfigError(f"hf: {config.path}: no split {source_split!r}; here: {', '.join(split_names)}; set splits")
    return source_split, None if test else config.test_fraction


def load(config: HubSettings) -> Any:
    """Return the splits of a dataset by name. Raises ConfigError."""
    try:
        import datasets
    except ImportError:
        raise ConfigError('hf: needs the package datasets; pip install "zoo-hub-data[hf]"') from None
    path = Path(config.path).expanduser()
    if path.is_file() and path.suffix not in SUFFIXES:
        raise ConfigError(f"hf: {path}: expected a folder, a hub id, or a file {', '.join(SUFFIXES)}")
    options: dict[str, Any] = {"name": config.config or None, "revision": config.revision or None}
    options["streaming"] = config.streaming
    try:
        if path.is_file():
            options |= {"sep": "\t"} if path.suffix == ".tsv" else {}
            dataset = datasets.load_dataset(SUFFIXES[path.suffix], data_files={TRAIN: str(path)}, **options)
        elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():  # of `save_to_disk`
            dataset = datasets.load_from_disk(str(path))
        else:
            dataset = datasets.load_dataset(str(path) if path.is_dir() else config.path, **options)
    except Exception as error:  # of `datasets`, the hub and the network
        if is_of_the_machine(error):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"hf: {config.path}: cannot be opened: {why:.300}") from error
    return dataset if isinstance(dataset, dict) else {TRAIN: dataset}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRoots:
    """The places of a dataset's separate files. Paths come with the data, so other places are never read."""

    root: Path | None = None
    """The folder of a local dataset; relative paths start there. None for the hub."""
    hub: str = ""
    """The hub id, `owner/name`."""
    caches: tuple[Path, ...] = ()
    """Folders of downloads."""

    @classmethod
    def of(cls, config: HubSettings) -> FileRoots:
        """Return the places of a local dataset, or of a hub id and its downloads."""
        path = Path(config.path).expanduser()
        if path.exists():
            return cls(root=path.resolve() if path.is_dir() else path.resolve().parent)
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.file_download import repo_folder_name

        folders = (
            Path(HF_HUB_CACHE) / repo_folder_name(repo_id=config.path, repo_type="dataset"),
            Path(datasets.config.DOWNLOADED_DATASETS_PATH),
        )
        return cls(hub=config.path, caches=tuple(folder.expanduser().resolve() for folder in folders))

    def find(self, address: str) -> Path | str | None:
        """Return the file or hub address of `address`; None if it is not the dataset's."""
        if address.startswith("hf://"):
            hub_prefix = f"hf://datasets/{self.hub}"
            inside = "/" in self.hub and address.startswith((f"{hub_prefix}@", f"{hub_prefix}/"))
            return address if inside and "::" not in address and ".." not in unquote(address).split("/") else None
        if not address or (self.root is None and not Path(address).is_absolute()):
            return None
        try:
            path = (self.root / address if self.root else Path(address)).resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or no path at all
            return None
        roots = (self.root,) if self.root else self.caches
        return path if any(path.is_relative_to(root) for root in roots) else None

    def read(self, address: str) -> bytes:
        """Return the bytes of a path, an hf:// address, or `zip://MEMBER::ARCHIVE`.

        Raises InvalidValueError if it is not the dataset's or is damaged, ReadError if it cannot be read now.
        """
        member, archive = "", ""
        if address.startswith("zip://"):
            member, _, archive = address.removeprefix("zip://").partition("::")
        location = self.find(archive or address)
        if location is None:
            raise InvalidValueError(f"{address or 'a file'}: is not among the dataset's files")
        if isinstance(location, Path):
            file = regular_member(location)
            if not archive:
                return read_member(file)
        try:
            if archive:
                zip_file = open_zip(str(location), file.changed if isinstance(location, Path) else 0)
                size = zip_file.getinfo(member).file_size  # more is not decompressed
                limits().check("file_bytes", size, f"{address}: {size:,} bytes")
                return zip_file.read(member)
            import fsspec

            with fsspec.open(str(location), "rb") as stream:
                data = bytes(stream.read(limits().file_bytes + 1))
            limits().check("file_bytes", len(data), f"{address}: {len(data):,} bytes or more")
            return data
        except InvalidValueError:
            raise
        except (KeyError, FileNotFoundError):
            raise InvalidValueError(f"{address}: no such file") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise InvalidValueError(f"{address}: damaged, encrypted, or of an unknown compression: {error}") from None
        except Exception as error:  # of the hub and the network
            if is_of_the_machine(error):
                raise
            raise ReadError(f"{address}: cannot be read: {error}; run the same command again") from error


@functools.lru_cache(maxsize=8)
def open_zip(address: str, changed: int) -> zipfile.ZipFile:
    """Return an archive with its table of members, which is read once. `changed` is its file's time."""
    import fsspec

    return zipfile.ZipFile(fsspec.open(address, "rb").open() if address.startswith("hf://") else address)


def columns_of(table: Any, config: HubSettings, names: ModalityNames) -> dict[str, str]:
    """Return the modality by column: as set, by name, then by type. Raises ConfigError if there is none."""
    features = table.features or {}
    for column in config.columns:
        if column not in features:
            raise UnknownNameError.of(f"column of {config.path}:", column, features)
    modalities = names.resolve(config.columns, "columns")
    for column in features:
        if column not in modalities and column in names.by_name and names.by_name[column] not in modalities.values():
            modalities[column] = names.by_name[column]
    for column, feature in features.items():
        claimed = names.by_extension.get(KINDS.get(type(feature).__name__, ""))
        if column not in modalities and claimed is not None and claimed not in modalities.values():
            modalities[column] = claimed
    modalities = {column: name for column, name in modalities.items() if name}
    if not modalities:
        example = f"columns = {{{next(iter(features), 'image')} = {next(iter(names.by_name), 'rgb')!r}}}"
        raise ConfigError(
            f"hf: {config.path}: no column of an enabled modality in {', '.join(features)}; set {example}"
        )
    if len(set(modalities.values())) < len(modalities):
        columns = ", ".join(modalities)
        raise ConfigError(f"hf: columns: two of {columns} are one modality; leave one out by an empty name")
    return modalities


class _Rows(LazySequence[Sample]):
    """Rows of a table as samples."""

    def __init__(
        self,
        table: Any,
        columns: Mapping[str, str],
        *,
        prefix: str,
        split: str,
        test_fraction: float | None,
        file_roots: FileRoots,
    ) -> None:
        """With `test_fraction` None all rows belong to `split`."""
        from datasets import ClassLabel

        features = table.features
        self.modalities = tuple(sorted(columns.values()))
        self.notes = [f"columns: {', '.join(f'{column} is {name}' for column, name in sorted(columns.items()))}"]
        self.contents = str(getattr(table, "_fingerprint", ""))
        self._columns, self._prefix, self._file_roots = columns, prefix, file_roots
        self._split, self._test_fraction = split, test_fraction
        self._classes = {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}
        table = table.select_columns(list(columns))
        for column in columns:
            if type(features[column]).__name__ in KINDS:
                table = table.cast_column(column, type(features[column])(decode=False))
        self._table = table
        self._count = 0

    def _key(self, number: int) -> str:
        return f"{self._prefix}-{number:08}"

    def _in_split(self, number: int) -> bool:
        return self._test_fraction is None or is_in_split(self._key(number), self._split, self._test_fraction)

    def __len__(self) -> int:
        return self._count

    def _sample(self, number: int, row: Mapping[str, Any]) -> Sample:
        values = {}
        for column, name in self._columns.items():
            value = row[column]
            if column in self._classes and isinstance(value, int):
                value = self._classes[column][value] if 0 <= value < len(self._classes[column]) else None
            if value is not None:
                values[name] = as_file(value, self._file_roots)
        return self._key(number), values


class HubRows(_Rows):
    """Rows with random access."""

    def limit(self, count: int | None) -> None:
        """Keep the first `count` rows. Raises DataError if there are fewer, or none."""
        total = len(self._table)
        self._row_numbers: Any = range(total)
        if self._test_fraction is not None:
            self._row_numbers = np.array([number for number in range(total) if self._in_split(number)], np.int64)
        row_count = len(self._row_numbers)
        if not row_count or (count is not None and count > row_count):
            advice = f", asked for {count}" if count is not None else f"; ask for none (--{self._split} 0)"
            raise DataError(f"hf: {self._prefix}: {row_count} samples for {self._split!r}{advice}")
        self._count = row_count if count is None else count

    def item(self, index: int) -> Sample:
        number = int(self._row_numbers[index])
        return self._sample(number, self._table[number])


class StreamedRows(_Rows):
    """Rows that are read in order; an earlier row starts the stream again."""

    def limit(self, count: int | None) -> None:
        """Set the number of rows. Raises ConfigError without one."""
        if count is None:
            raise ConfigError(
                f"hf: a stream has no known end; say how many samples to read, such as --{self._split} 1000"
            )
        self._count, self._next = count, 0
        self._stream: Iterator[tuple[int, Mapping[str, Any]]] = iter(())

    def item(self, index: int) -> Sample:
        if index < self._next or not self._next:
            numbered = enumerate(self._table)
            self._stream, self._next = ((number, row) for number, row in numbered if self._in_split(number)), 0
        numbered_row = next(itertools.islice(self._stream, index - self._next, None), None)
        if numbered_row is None:
            self._next = 0
            raise DataError(
                f"hf: {self._prefix}: the stream ended before sample {index}; ask for fewer, --{self._split} N"
            )
        self._next = index + 1
        return self._sample(*numbered_row)


def as_file(value: Any, file_roots: FileRoots) -> FileBytes | ReadError | InvalidValueError:
    """Return a column's value as a file of its modality's reader; the error replaces a file that cannot be read."""
    if isinstance(value, Mapping) and {"bytes", "path"} == value.keys():
        data, address = value["bytes"], str(value["path"] or "")
        if data is None:
            try:
                data = file_roots.read(address)
            except (ReadError, InvalidValueError) as error:
                return error
        extension = Path(address.partition("::")[0]).suffix[1:].lower()
        return FileBytes(data=data, extension=extension or sniff_extension(data))
    if isinstance(value, str):
        return FileBytes(data=value.encode(), extension="txt")
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        array = np.asarray(None)
    if array.ndim and array.dtype.kind in "biuf":
        return FileBytes(data=array_bytes(array), extension="npy")
    try:
        return FileBytes(data=json.dumps(value).encode(), extension="json")
    except TypeError:
        return InvalidValueError(f"a value of type {type(value).__name__} has no file")


def sniff_extension(data: bytes) -> str:
    """Return an extension for bytes without a name: a kind of sound or video by their first bytes, else png.

    Pictures are recognised by their content whatever their extension.
    """
    for start, extension in MAGIC.items():
        if data.startswith(start) and data[8:12] != b"WEBP":
            return extension
    return "mp4" if data[4:8] == b"ftyp" else "png"


source = HubSource()
