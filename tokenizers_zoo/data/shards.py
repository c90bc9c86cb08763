"""Value shards: `DATA/<split>/<modality>/<any name>.tar`, aligned by key, indexed by their headers, read by offset."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tokenizers_zoo.data.tar import TARS, Dropped, Member, read_member, scan_shard
from tokenizers_zoo.errors import DataError, UnknownNameError
from tokenizers_zoo.spec import Crop

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

SHARD_NAME = "shard-{:05d}.tar"
CACHE_BYTES = 1 << 30
WHOLE = Crop()


class ModalityIndex:
    """All members of one modality of one split: by key, in the order of the shards' names and of their members.

    With `most`, shards are scanned until there are so many.
    """

    def __init__(self, shards: Sequence[Path], most: float = math.inf) -> None:
        self.shards = tuple(shards)
        self.members: dict[str, Member] = {}
        self.dropped: list[Dropped] = []
        for path in self.shards:
            if len(self.members) >= most:
                break
            index = scan_shard(path)
            self.dropped += index.dropped
            for key, member in index.members.items():
                if key in self.members:
                    first = self.members[key].shard.name
                    reason = f"a second value with this key; the one in {first} is used"
                    self.dropped.append(Dropped(shard=path.name, key=key, reason=reason))
                else:
                    self.members[key] = member

    @property
    def bytes(self) -> int:
        """Size of all values together."""
        return sum(member.size for member in self.members.values())


OF_TOKENS = "tok_"
"""How ml-4m begins the names of folders that hold a modality's tokens, not its values."""


class ValueStore:
    """The values in a folder, by split, modality and key.

    Any folder in this layout can be read, whoever wrote it. `aliases` maps folder names to the modality's name, for
    folders that call it otherwise. Raises DataError where the folder is not there.
    """

    def __init__(self, root: Path, aliases: Mapping[str, str] | None = None) -> None:
        self.root = Path(root)
        self._aliases = dict(aliases or {})
        self._indexes: dict[tuple[str, str], ModalityIndex] = {}
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; `zoo data make SOURCE {self.root}` makes one")

    @classmethod
    def of(cls, root: Path, zoo: Zoo) -> ValueStore:
        """The store at `root`, with the other names that the enabled modalities go by, but for those of tokens.

        What is a modality's own name is no other name of another's. Of the instances of a plugin, which share its other
        names, the one of the plugin's own name has them, else the first.
        """
        handles = sorted(zoo.handles(), key=lambda handle: handle.name != handle.plugin_name)
        own = set(zoo.names())
        aliases: dict[str, str] = {}
        for alias, name in ((alias, handle.name) for handle in handles for alias in handle.spec.aliases):
            if not alias.startswith(OF_TOKENS) and alias not in own:
                aliases.setdefault(alias, name)
        return cls(root, aliases)

    def _folders(self, split: str) -> dict[str, Path]:
        """The folders that hold shards, by modality; a folder with the modality's own name goes first."""
        folder = self.root / split
        found: dict[str, Path] = {}
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        for name in sorted(names, key=lambda name: (name in self._aliases, name)):
            if not name.startswith(".") and (folder / name).is_dir() and any((folder / name).glob(TARS)):
                found.setdefault(self._aliases.get(name, name), folder / name)
        return dict(sorted(found.items()))

    def splits(self) -> list[str]:
        """The splits that hold at least one shard. Raises DataError where there are none."""
        found = sorted(path.name for path in self.root.iterdir() if path.is_dir() and self._folders(path.name))
        if not found and any(self.root.glob(f"*/{TARS}")):
            raise DataError(f"{self.root}: this is a split, not a data folder; give {self.root.parent}")
        if not found:
            raise DataError(f"{self.root}: no <split>/<modality>/*.tar here; `zoo data make` writes them")
        return found

    def modalities(self, split: str) -> list[str]:
        """The modalities of a split. Raises DataError for a split that is not there."""
        folders = self._folders(split)
        if not folders:
            raise DataError(f"{self.root}: no split {split!r}; splits here: {', '.join(self.splits())}")
        return list(folders)

    def folder(self, split: str, modality: str) -> Path:
        """The folder of a modality's shards; where there is none yet, the one they would be written to."""
        return self._folders(split).get(modality, self.root / split / modality)

    def shards(self, split: str, modality: str) -> list[Path]:
        """The shards of one modality, in order, none of them read. Raises DataError where the data lack it."""
        known = self.modalities(split)
        if modality not in known:
            hint = f"(`zoo data derive {self.root}` makes what can be derived)"
            raise DataError(str(UnknownNameError.of(f"modality in {self.root / split}:", modality, known, hint)))
        return sorted(self.folder(split, modality).glob(TARS))

    def index(self, split: str, modality: str) -> ModalityIndex:
        """The index of one modality, scanned once. Raises DataError where the data lack it."""
        if (split, modality) not in self._indexes:
            self._indexes[split, modality] = ModalityIndex(self.shards(split, modality))
        return self._indexes[split, modality]

    def forget(self, split: str, modality: str) -> None:
        """Scan again at the next use, after shards were written, or to have the index's memory back."""
        self._indexes.pop((split, modality), None)

    def keys(self, split: str, modality: str) -> list[str]:
        """The keys of one modality, in stored order."""
        return list(self.index(split, modality).members)

    def aligned_keys(self, split: str, modalities: Iterable[str]) -> list[str]:
        """The keys that all `modalities` have, in the order of the first: by key, never by position."""
        first, *others = [self.index(split, name).members for name in modalities]
        return [key for key in first if all(key in members for members in others)]

    def dropped(self, split: str, modality: str) -> list[Dropped]:
        """What the modality's shards hold and cannot be used, with reasons."""
        return list(self.index(split, modality).dropped)

    def member(self, split: str, modality: str, key: str) -> Member:
        """Where a value is. Raises DataError where the modality lacks the key."""
        try:
            return self.index(split, modality).members[key]
        except KeyError:
            raise DataError(f"{self.root / split / modality}: no value for key {key!r}") from None

    def read_bytes(self, split: str, modality: str, key: str) -> tuple[bytes, str]:
        """One value as it is stored, and its extension."""
        member = self.member(split, modality, key)
        return read_member(member), member.extension

    def read(self, handle: ModalityHandle, split: str, key: str, crop: Crop = WHOLE) -> Any:
        """One value, decoded, seen through `crop` at the size of the settings, checked. Raises ZooError."""
        return read_value(handle, self.member(split, handle.name, key), crop)


def read_value(handle: ModalityHandle, member: Member, crop: Crop = WHOLE) -> Any:
    """Decode and crop one member; both are checked by the handle. Raises ZooError."""
    return handle.transform(handle.read(read_member(member), member.extension), crop)


def value_bytes(value: Any) -> int:
    """About how much memory a value takes."""
    if (size := getattr(value, "nbytes", None)) is not None:
        return int(size) + 100
    if isinstance(value, Mapping):
        return 64 + sum(100 + value_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return 64 + sum(value_bytes(item) for item in value)
    return 50 + (len(value) if isinstance(value, str) else 0)


class LazyValues(Sequence[Any]):
    """The values of `keys`, read when asked for; kept in memory as long as they fit in `cache_bytes` together.

    Nothing is thrown out once kept: random order would find a least-recently-used cache empty every time.
    """

    def __init__(self, keys: Sequence[str], read: Callable[[str], Any], cache_bytes: int = CACHE_BYTES) -> None:
        self.keys = list(keys)
        self._read = read
        self._room = cache_bytes
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} values")
        index %= len(self)
        if index in self._kept:
            return self._kept[index]
        value = self.read(index)
        self.keep(index, value)
        return value

    def read(self, index: int) -> Any:
        """One value, read and not kept; threads may do so at once."""
        return self._read(self.keys[index])

    def keep(self, index: int, value: Any) -> None:
        """Have a value that was read in memory, where there is room."""
        if (size := value_bytes(value)) <= self._room:
            self._room -= size
            self._kept[index] = value

    def without(self, keys: Container[str]) -> LazyValues:
        """These values without those of `keys`, with what is in memory of them."""
        kept = [position for position, key in enumerate(self.keys) if key not in keys]
        values = LazyValues([self.keys[position] for position in kept], self._read, self._room)
        values._kept = {new: self._kept[old] for new, old in enumerate(kept) if old in self._kept}
        return values
