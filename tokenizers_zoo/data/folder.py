"""The built-in source `folder`: files that lie in folders, one folder per modality, aligned by their stem.

    PATH/<modality>/<key>.<ext>                 split by the keys' hash, `test_fraction` of them for testing
    PATH/<train or test>/<modality>/<key>.<ext> split as the folders say
    PATH/<modality>/<train or test>/<key>.<ext> the same, where a modality has both of these folders
    PATH/<split>/<modality>/<any>.tar           value shards; these can also be used directly, without making data

It gives bytes, not values: `zoo data make` decodes them with each modality's own reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.provenance import OWN_FILES
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.shards import ModalityIndex, ValueStore
from tokenizers_zoo.data.tar import TARS, Dropped, Member, read_member, shown_name, split_name
from tokenizers_zoo.errors import ConfigError, DataError, count_of
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.io import not_read
from tokenizers_zoo.source import SourceSpec

SIDECARS = (".aux.xml", ".ovr", ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".xmp")
"""How the names of files end that programs for maps and photographs lay beside a picture; they are no values."""

NOTHING = "no <modality>/<key>.<extension> here; one folder per modality was expected"


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSettings:
    """Where the files are, and which part of them is for testing."""

    path: str
    """The folder. `~` is your home."""
    test_fraction: float = 0.1
    """Part of the keys that is for testing where the folder has no train and test folders, in [0, 1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction {self.test_fraction}: expected a number in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileBytes:
    """A value that is not decoded yet: a file's bytes and its extension, for `ModalityHandle.read`."""

    data: bytes
    extension: str


class FolderSamples(Sequence[tuple[str, Mapping[str, FileBytes | DataError]]]):
    """Samples of one split, sorted by key; a sample has the modalities that have a file with its stem.

    A file that cannot be read is its error. `files` are the keys with where each one's files lie, by modality;
    `offered` are the modalities of all splits, `modalities` those of this one, `dropped` what their shards hold and
    cannot be used. Samples that have none of `names`, unless these are None, come last.
    """

    def __init__(
        self, files: Mapping[str, Mapping[str, Member]], count: int | None, offered: Iterable[str] = (),
        names: Collection[str] | None = None, dropped: Mapping[str, Sequence[Dropped]] | None = None,
    ) -> None:  # fmt: skip
        self.modalities = tuple(sorted({modality for members in files.values() for modality in members}))
        self.offered = tuple(sorted({*self.modalities, *offered}))
        self.dropped = dict(dropped or {})
        keys = sorted(files, key=lambda key: (names is not None and files[key].keys().isdisjoint(names), key))
        if count is not None and count > len(keys):
            raise DataError(f"the folder has {count_of(len(keys), 'sample')} for this split, asked for {count}")
        self.files = tuple((key, files[key]) for key in keys[:count])

    def __len__(self) -> int:
        return len(self.files)

    def keys(self, name: str, start: int, stop: int) -> set[str]:
        """The keys of those of the samples [start, stop) that have this modality."""
        return {key for key, files in self.files[start:stop] if name in files}

    def signature(self, names: Collection[str], start: int, stop: int) -> str:
        """sha256 of the names, sizes and times of these modalities' files of the samples [start, stop)."""
        files = [
            (key, name, member.extension, member.offset, member.size, _changed(member.shard))
            for key, files in self.files[start:stop]
            for name, member in files.items()
            if name in names
        ]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    @overload
    def __getitem__(self, index: int) -> tuple[str, Mapping[str, FileBytes | DataError]]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, Mapping[str, FileBytes | DataError]]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return read_sample(*self.files[index])


def read_sample(key: str, files: Mapping[str, Member]) -> tuple[str, dict[str, FileBytes | DataError]]:
    """A sample of these files, by modality, with its key; a file that cannot be read is its error."""
    return key, {name: _read(member) for name, member in files.items()}


def _changed(path: Path) -> int:
    """When a file was last changed, in ns; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def _read(member: Member) -> FileBytes | DataError:
    try:
        return FileBytes(data=read_member(member), extension=member.extension)
    except DataError as error:
        return error


class FolderSource:
    """The source plugin."""

    @hookimpl
    def source_spec(self) -> SourceSpec:
        """What it gives is known once the folder is: `modalities` is empty, the samples name them."""
        return SourceSpec(
            name=OWN_FILES, summary="your own files: one folder per modality, or value shards, aligned by key",
            modalities=(), licence="that of your files", settings=FolderSettings,
        )  # fmt: skip

    @hookimpl
    def samples(self, split: str, count: int | None, seed: int, settings: Settings) -> FolderSamples:
        """The samples of a split: `count` None means all. Raises ConfigError or DataError where there are none."""
        return open_folder(settings.take(FolderSettings), split, count)


def open_folder(
    config: FolderSettings, split: str, count: int | None, out: Path | None = None, names: Collection[str] | None = None
) -> FolderSamples:
    """The samples of a split. Where `out`, which takes what is made of them, lies in the folder, it is passed over.

    Folders that are not of `names` may hold anything; None means that all are of modalities. Where none is of `names`,
    all that is there is given, more or fewer than `count`, so that it can be said what it is. Raises ConfigError
    without the folder, and where `out` is the folder itself, DataError without the split or `count` samples, ReadError
    for a folder in it that cannot be read.
    """
    root, out = Path(os.path.expanduser(config.path)), None if out is None else out.resolve()
    try:
        if not root.is_dir():
            raise ConfigError(f"path: {config.path}: no such folder")
        if root.resolve() == out:
            raise ConfigError(f"path: {config.path}: what is made of its files cannot go there, too; give another DATA")
        dropped: dict[str, list[Dropped]] = {}
        files, offered = _find(root, split, config.test_fraction, out, names, dropped)
        count = None if _of_none(offered, names) else count
        return FolderSamples(files, count, offered, names, dropped)
    except OSError as error:
        raise not_read(Path(error.filename or root), error) from None


def _find(
    root: Path, split: str, test_fraction: float, out: Path | None, names: Collection[str] | None,
    dropped: dict[str, list[Dropped]],
) -> tuple[dict[str, dict[str, Member]], set[str]]:  # fmt: skip
    """The files of a split, by key and modality; and the modalities of all splits. Fills `dropped`, by modality."""
    folders = _folders(root)
    both = [folder for folder in folders if folder.name in (TRAIN, TEST)]
    if not both and any(root.glob(f"*/*/{TARS}")) and not any(folder.name in (names or ()) for folder in folders):
        ValueStore(root).modalities(split)  # says which splits there are
    if both:
        if not (root / split).is_dir():
            here = ", ".join(folder.name for folder in folders)
            advice = f"give --{split} 0, or make a folder {split}"
            raise DataError(f"{root}: no split {split!r}; splits here: {here}; {advice}")
        found = _by_key({path.name: _members(path, out, names, dropped) for path in _folders(root / split)})
        if not found:
            raise DataError(f"{root / split}: {NOTHING}; to go without the split, ask for none (--{split} 0)")
        offered = {path.name for folder in both for path in _folders(folder) if any(path.iterdir())}
        return found, offered
    modalities = {folder: _files(folder, out, names) for folder in folders}
    everything = _by_key({folder.name: members for folder, members in modalities.items()})
    if not everything:
        raise DataError(f"{root}: {NOTHING}")
    offered = {name for files in everything.values() for name in files}
    if (below := _split_below(modalities, split, names)) is not None:
        return _by_key(below), offered
    if _of_none(offered, names):
        return everything, offered
    chosen = {key: files for key, files in everything.items() if (_share(key) < test_fraction) == (split == TEST)}
    if not chosen:
        raise DataError(
            f"{root}: none of its {len(everything)} samples falls to the split {split!r} with test_fraction "
            f"{test_fraction:g}: set another test_fraction, ask for none (--{split} 0), or add files"
        )
    return chosen, offered


def _split_below(
    modalities: Mapping[Path, Mapping[str, Member]], split: str, names: Collection[str] | None
) -> dict[str, dict[str, Member]] | None:
    """The files of a split by modality, without it in their keys, where folders in the modalities' are the splits.

    So it is where one of `names` has files in both `train` and `test`, as one of these may be a class. What lies in
    other folders is of other splits. Raises DataError for one of `names` that has neither; None is for no split here.
    """
    splits = {TRAIN, TEST}
    wanted = {
        folder: {key.partition("/")[0] for key in members if "/" in key}
        for folder, members in modalities.items()
        if members and _wanted(folder, names)
    }
    split_as = next((folder for folder, below in wanted.items() if below >= splits), None)
    if split_as is None:
        return None
    for folder, below in wanted.items():
        if below.isdisjoint(splits):
            raise DataError(
                f"{folder}: expected its files in folders {TRAIN} and {TEST}, which {split_as} has and which are the "
                "split; move them there"
            )
    start = f"{split}/"
    return {
        folder.name: {key.removeprefix(start): member for key, member in members.items() if key.startswith(start)}
        for folder, members in modalities.items()
    }


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _members(
    folder: Path, out: Path | None, names: Collection[str] | None, dropped: dict[str, list[Dropped]]
) -> dict[str, Member]:
    """What a modality's folder holds: the members of its shards, with what cannot be used of them, or files."""
    shards = sorted(path for path in folder.glob(TARS) if not path.is_dir())
    if not shards:
        return _files(folder, out, names)
    try:
        index = ModalityIndex(shards)
    except DataError:
        if _wanted(folder, names):
            raise
        return {}
    if _wanted(folder, names) and (unused := [*index.dropped, *_beside(folder, shards)]):
        dropped[folder.name] = unused
    return index.members


def _beside(folder: Path, shards: Sequence[Path]) -> list[Dropped]:
    """The values in files of their own below a folder that holds shards: these are taken, and the others are not."""
    reason = f"a file beside {shards[0].name}: a modality's folder has shards or files; move the ones or the others"
    others = set(folder.rglob("*")) - set(shards)
    files = sorted(path.relative_to(folder) for path in others if path.is_file())
    return [
        Dropped(shard=path.as_posix(), key=split_name(path.as_posix())[0], reason=reason)
        for path in files
        if not _is_aside(path) and all(split_name(path.as_posix()))
    ]


def _is_aside(below: Path) -> bool:
    """True for hidden files and what programs lay beside a picture."""
    return any(part.startswith(".") for part in below.parts) or below.name.lower().endswith(SIDECARS)


def _of_none(offered: Collection[str], names: Collection[str] | None) -> bool:
    """True where none of the modalities that a folder offers is of `names`."""
    return names is not None and not set(offered) & set(names)


def _wanted(folder: Path, names: Collection[str] | None) -> bool:
    return names is None or folder.name in names


def _files(folder: Path, out: Path | None, names: Collection[str] | None) -> dict[str, Member]:
    """The files below a modality's folder, but for those in `out`, by key: the path up to the file name's first dot.

    A link to a file that is not there is a file that cannot be read. What is wrong is an error where the folder is of
    `names`, or these are None; elsewhere it is passed over.
    """
    wanted = _wanted(folder, names)

    def refuse(error: OSError) -> None:
        if wanted:
            raise error

    found: dict[str, Member] = {}
    walk = os.walk(folder, onerror=refuse, followlinks=True)  # glob would leave out a folder that cannot be read
    for path in sorted(Path(base, name) for base, _, names in _without_loops(walk, out) for name in names):
        below = path.relative_to(folder)
        key, extension = split_name(below.as_posix())
        if _is_aside(below) or not key or not extension:
            continue
        gone = not path.is_file()
        if gone and (path.exists() or not path.is_symlink()):
            continue
        name = path.relative_to(folder.parent).as_posix()
        if not wanted and (key in found or name != shown_name(name)):
            continue
        if name != shown_name(name):
            raise DataError(f"{folder}: the name of {shown_name(path.name)} is not UTF-8; rename it, and its folders")
        if key in found:
            raise DataError(f"{path}: a second file with the key {key!r}, beside {found[key].shard.name}; keep one")
        stat = path.lstat() if gone else path.stat()
        found[key] = Member(path, 0, stat.st_size, extension, stat.st_mtime_ns)
    return found


def _without_loops(
    walk: Iterable[tuple[str, list[str], list[str]]], out: Path | None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """The folders of a walk that follows links, but for links that lead back to where the walk is, and for `out`."""
    trails: dict[str, tuple[Path, ...]] = {}
    for base, folders, names in walk:
        trail = (*trails.pop(base, ()), Path(base).resolve())
        if trail[-1] == out:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not _leads_back(Path(base, name), trail)]
        trails |= {os.path.join(base, name): trail for name in folders}
        yield base, folders, names


def _leads_back(path: Path, trail: Sequence[Path]) -> bool:
    """True for a link to a folder on the way to it, or to what such a folder is in."""
    return path.is_symlink() and any(place.is_relative_to(path.resolve()) for place in trail)


def _by_key(modalities: Mapping[str, Mapping[str, Member]]) -> dict[str, dict[str, Member]]:
    """Turn {modality: {key: file}} into {key: {modality: file}}."""
    samples: dict[str, dict[str, Member]] = {}
    for name, members in modalities.items():
        for key, member in members.items():
            samples.setdefault(key, {})[name] = member
    return samples


def _share(key: str) -> float:
    """A number in [0, 1) that only the key decides, so that a key never changes sides when files are added."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


source = FolderSource()
