"""The built-in source `folder`: files or tar files in folders, one folder per modality, aligned once by their keys.

    PATH/<modality>/<key>.<ext>                 split by the keys' hash, `test_fraction` of them for testing
    PATH/<train or test>/<modality>/<key>.<ext> split as the folders say
    PATH/<modality>/<train or test>/<key>.<ext> the same, where a modality has both of these folders
    PATH/<split>/<modality>/<any>.tar           tar files in the layout of ml-4m and WebDataset
    PATH/<key>.<ext>, PATH/<split>/<key>.<ext>  files of several modalities in one folder, told apart by extension

It gives bytes, not values: `zoo data make` decodes them with each modality's own reader.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers_zoo.contract.file_samples import FileSamples
from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.samples import OWN_FILES, TEST, TRAIN
from tokenizers_zoo.contract.source import ModalityNames, OwnData, SourceSpec
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.files.tar import (
    TARS,
    Dropped,
    Member,
    file_key,
    key_problem,
    scan_tar,
    shown_key,
    shown_name,
    split_name,
)
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.io import read_error

SIDECARS = (".aux.xml", ".ovr", ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".xmp")
"""Endings of sidecar files that programs for maps and photographs write; they are no values."""
NOTHING = "no <modality>/<key>.<extension> here; one folder per modality was expected, or pictures"


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSettings(OwnData):
    """Folder of the files."""

    path: str
    """The folder. `~` is your home."""
    follow_links: bool = False
    """Read files outside of the folder if a link in it points there. Otherwise such a link is an error."""


class FolderSource:
    """The source plugin."""

    @hookimpl
    def source_spec(self) -> SourceSpec:
        """Return the spec; `modalities` is empty, as the samples name them."""
        return SourceSpec(
            name=OWN_FILES,
            summary="your own files: a folder of pictures, one folder per modality, or tar files, aligned by key",
            modalities=(),
            licence="that of your files",
            settings=FolderSettings,
        )

    @hookimpl
    def samples(
        self, split: str, count: int | None, seed: int, settings: Settings, names: ModalityNames
    ) -> FileSamples:
        """Return the samples of a split; `count` None means all. Raises ConfigError or DataError for none."""
        return open_folder(settings.take(FolderSettings), split, count, names=names)


class Bounds(NamedTuple):
    """The files that are not read."""

    out: Path | None
    """A folder of new shards, which is skipped."""
    root: Path | None
    """The folder that no link may leave; None: links are followed."""

    def resolve(self, path: Path) -> Path:
        """Return the path that a link leads to. Raises DataError if it is outside of `root`."""
        target = path.resolve()
        if self.root is not None and not target.is_relative_to(self.root):
            raise DataError(
                f"{path}: a link out of the folder, to {target}; add --follow-links if that may be read, or replace "
                "the link by a copy"
            )
        return target


def open_folder(
    config: FolderSettings,
    split: str,
    count: int | None,
    out: Path | None = None,
    names: ModalityNames | None = None,
) -> FileSamples:
    """Return the samples of a split, aligned by key.

    `names` says which folders belong to modalities; other folders are not read. None means that all folders are
    modalities. If no folder is known, the files next to the folders are read by their extensions. Without such files
    there are no samples, and `modalities` lists all folders. `out`, the folder of the new shards, is skipped. Raises
    ConfigError if the folder is missing or `out` is the folder itself, DataError if it lacks the split or `count`
    samples, or has a link that leaves it, ReadError if it cannot be read.
    """
    root, out = Path(os.path.expanduser(config.path)), None if out is None else out.resolve()
    try:
        if not root.is_dir():
            raise ConfigError(f"path: {config.path}: no such folder")
        if root.resolve() == out:
            raise ConfigError(f"path: {config.path}: what is made of its files cannot go there, too; give another DATA")
        bounds = Bounds(out=out, root=None if config.follow_links else root.resolve())
        return _open_split(root, split, count, config.test_fraction, bounds, names)
    except OSError as error:
        raise read_error(Path(error.filename or root), error) from None


def _open_split(
    root: Path, split: str, count: int | None, test_fraction: float, bounds: Bounds, names: ModalityNames | None
) -> FileSamples:
    modality_of = None if names is None else names.by_name
    unconfined = bounds._replace(root=None)  # only looks whether there are files

    def has_files(folder: Path) -> bool:
        return next(_files(folder, unconfined), None) is not None

    folders = _folders(root)
    split_folders = [folder for folder in folders if folder.name in (TRAIN, TEST)]
    has_modality = any(folder.name in (modality_of or ()) for folder in folders)
    if not split_folders and not has_modality and any(root.glob(f"*/*/{TARS}")):
        split_folders = folders  # splits of other names
    if split_folders and not (root / split).is_dir():
        split_names = ", ".join(folder.name for folder in folders)
        advice = f"give --{split} 0, or make a folder {split}"
        raise DataError(f"{root}: no split {split!r}; splits here: {split_names}; {advice}")
    base = root / split if split_folders else root
    modality_folders = _modality_folders(_folders(base), modality_of)
    all_folders = [path for folder in split_folders for path in _folders(folder)] if split_folders else folders
    offered = {(modality_of or {}).get(path.name, path.name) for path in all_folders if has_files(path)}
    unknown = {path.name for path in _folders(base) if path not in modality_folders and has_files(path)}
    samples = FileSamples()
    for folder, name in modality_folders.items():
        _add_modality(samples, folder, name, bounds)
    if names is not None and not modality_folders and _add_by_extension(samples, base, bounds, names):
        offered = set(names.by_extension.values())
        if unknown:
            ignored = ", ".join(sorted(unknown)[:5])
            samples.notes.append(f"folders next to the pictures are not read ({ignored}); use one folder per modality")
        unknown = set()
    elif not offered:
        raise DataError(f"{root}: {NOTHING}")
    elif not modality_folders:
        if names is not None and (example := _picture_below(base, unconfined, names)):
            path, name = example
            raise DataError(
                f"{root}: {path.relative_to(root)} is in a folder that is named after no modality; put its folder into "
                f"{base / name}, or its files into {base}"
            )
        return samples.finish(None, offered, offered)
    if not split_folders and not _keep_inner_split(samples, modality_folders, split):
        total = samples.key_count
        samples.execute("DELETE FROM members WHERE NOT is_in_split(key, ?, ?)", split, test_fraction)
        if total and not samples.key_count:
            raise DataError(
                f"{root}: none of its {total} samples falls to the split {split!r} with test_fraction "
                f"{test_fraction:g}: set another test_fraction, ask for none (--{split} 0), or add files"
            )
    if split_folders and not samples.key_count:
        raise DataError(f"{base}: {NOTHING}; to go without the split, ask for none (--{split} 0)")
    return samples.finish(count, offered, unknown)


def _modality_folders(folders: Sequence[Path], names: Mapping[str, str] | None) -> dict[Path, str]:
    """Return the folders of modalities, each with its modality; a folder with the modality's own name goes first."""
    if names is None:
        return {folder: folder.name for folder in folders}
    folder_by_modality: dict[str, Path] = {}
    for folder in sorted(folders, key=lambda path: (names.get(path.name) != path.name, path.name)):
        if folder.name in names:
            folder_by_modality.setdefault(names[folder.name], folder)
    return {folder: name for name, folder in sorted(folder_by_modality.items())}


def _keep_inner_split(samples: FileSamples, folders: Mapping[Path, str], split: str) -> bool:
    """Keep the samples of a split if folders `train` and `test` inside the modalities' folders are the splits.

    This requires one modality with files in both folders, because a single one may be a class. Raises DataError for a
    modality that has neither.
    """
    inner: dict[str, set[str]] = {}
    query = "SELECT DISTINCT modality, substr(key, 1, instr(key, '/') - 1) FROM members"
    for name, inner_folder in samples.execute(query):
        inner.setdefault(name, set()).add(inner_folder)
    split_folder = next((path for path, name in folders.items() if inner.get(name, set()) >= {TRAIN, TEST}), None)
    if split_folder is None:
        return False
    for folder, name in folders.items():
        if inner.get(name, {TRAIN}).isdisjoint((TRAIN, TEST)):
            raise DataError(
                f"{folder}: expected its files in folders {TRAIN} and {TEST}, which {split_folder} has and which are "
                "the split; move them there"
            )
    samples.execute("DELETE FROM members WHERE substr(key, 1, ?) != ?", len(split) + 1, f"{split}/")
    samples.execute("DROP INDEX by_key")  # the keys are not distinct at each moment of the change
    samples.execute("UPDATE members SET key = substr(key, ?)", len(split) + 2)
    return True


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _add_modality(samples: FileSamples, folder: Path, name: str, bounds: Bounds) -> None:
    """Add a modality's files, or the members of its tar files.

    Raises DataError for a file whose name is not UTF-8, and for a second file with the same key.
    """
    tars = sorted(path for path in folder.glob(TARS) if not path.is_dir())
    for key, path in _files(folder, bounds) if not tars else ():
        _add_file(samples, name, key, path)
    for path in tars:
        bounds.resolve(path)
        for member in scan_tar(path):
            if isinstance(member, Dropped):
                samples.drop(name, path.name, *member)
            elif not samples.add(name, *member):
                samples.drop(name, path.name, member[0], "a second value with this key; the first is used")
    stems = {path.name.partition(".")[0] for path in tars}
    for path in _walk(folder, bounds._replace(root=None)) if tars else ():
        below = path.relative_to(folder)
        belongs_to_tar = path.parent == folder and path.name.partition(".")[0] in stems
        key, extension = split_name(below.as_posix())
        if key and extension and not belongs_to_tar and not _is_hidden_or_sidecar(below):
            reason = f"a file beside {tars[0].name}; move the tar files or the other files"
            samples.drop(name, below.as_posix(), key, reason)


def _add_file(samples: FileSamples, name: str, key: str, path: Path) -> None:
    """Add one file, or drop it for its key. Raises DataError for a second file with the same key, and for a name that
    is not UTF-8.
    """
    if reason := key_problem(key):
        samples.drop(name, shown_key(path.name), shown_key(key), reason)
        return
    if path.as_posix() != shown_name(path.as_posix()):
        folder, file = shown_name(path.parent.as_posix()), shown_name(path.name)
        raise DataError(f"{folder}: the name of {file} is not UTF-8; rename it, and its folders")
    status = path.stat() if path.exists() else path.lstat()
    if not samples.add(name, key, Member(path, 0, status.st_size, split_name(path.name)[1], status.st_mtime_ns)):
        ((first_path,),) = samples.execute("SELECT path FROM members WHERE key = ? AND modality = ?", key, name)
        raise DataError(f"{path}: a second file with the key {key!r}, beside {Path(first_path).name}; keep one")


def _add_by_extension(samples: FileSamples, folder: Path, bounds: Bounds, names: ModalityNames) -> bool:
    """Add the files of a folder of pictures by their extensions; return whether there are any.

    A text without another file of its key, see `file_key`, is not used, because texts such as README.txt describe no
    picture.
    """
    unclaimed: Counter[str] = Counter()
    with os.scandir(folder) as entries:
        for path in (Path(entry.path) for entry in entries if not entry.is_dir()):
            key, extension = file_key(path), path.suffix[1:].lower()
            if _is_hidden_or_sidecar(Path(path.name)) or not extension:
                continue
            name = names.by_extension.get(extension)
            if name is None:
                unclaimed[extension] += 1
            else:
                bounds.resolve(path)
                _add_file(samples, name, key, path)
    lone_texts = samples.drop_lone(names.texts)
    if not samples.key_count:
        return False
    if lone_texts:
        samples.notes.append(
            f"texts without another file of the same name are not used: {len(lone_texts)}, such as {lone_texts[0]}"
        )
    if unclaimed:
        counts = ", ".join(f"{count} .{extension}" for extension, count in unclaimed.most_common(5))
        samples.notes.append(f"files that no enabled modality claims are not used: {counts}")
    return True


def _picture_below(folder: Path, bounds: Bounds, names: ModalityNames) -> tuple[Path, str] | None:
    """Return a file below a folder whose extension belongs to a modality that is no text, and this modality."""
    for key, path in _files(folder, bounds):
        name = names.by_extension.get(path.suffix[1:].lower()) if key else None
        if name is not None and name not in names.texts:
            return path, name
    return None


def _is_hidden_or_sidecar(below: Path) -> bool:
    """Return True for hidden files and sidecar files of pictures."""
    return any(part.startswith(".") for part in below.parts) or below.name.lower().endswith(SIDECARS)


def _files(folder: Path, bounds: Bounds) -> Iterator[tuple[str, Path]]:
    """Yield the files below a modality's folder, within `bounds`, by key: the path up to the name's first dot.

    A link to a file that is not there is a file that cannot be read.
    """
    for path in _walk(folder, bounds):
        below = path.relative_to(folder)
        key, extension = split_name(below.as_posix())
        is_broken_link = path.is_symlink() and not path.exists()
        if key and extension and not _is_hidden_or_sidecar(below) and (path.is_file() or is_broken_link):
            yield key, path


def _walk(folder: Path, bounds: Bounds, trail: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, following links except links back to a parent, within `bounds`.

    Raises DataError for a link out of `bounds.root`.
    """
    resolved = bounds.resolve(folder)
    if resolved == bounds.out:
        return
    trail, below = (*trail, resolved), []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_dir():
                if entry.is_symlink():
                    bounds.resolve(path)
                yield path
            elif not (entry.is_symlink() and any(parent.is_relative_to(path.resolve()) for parent in trail)):
                below.append(path)
    for path in sorted(below):
        yield from _walk(path, bounds, trail)


source = FolderSource()
