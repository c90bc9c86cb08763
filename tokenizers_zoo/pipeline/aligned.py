"""The values of one split by shard and row, in the same order for all modalities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.data.made_of import contents, made_of
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tar import Member

SHARD_SIZE = 500


class SplitValues:
    """The values of a split: its keys are those of all its modalities, in the order in which they are first met."""

    def __init__(self, store: ValueStore, split: str) -> None:
        self.store, self.name, self.root = store, split, store.root
        self.modalities = store.modalities(split)
        self.shard_size = SHARD_SIZE
        self._contents: dict[str, Mapping[Path, str]] = {}

    @cached_property
    def _keys(self) -> list[str]:
        return list(dict.fromkeys(key for name in self.modalities for key in self.store.keys(self.name, name)))

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self._keys)

    def keys(self, shard: int) -> list[str]:
        """Return the keys of a shard, by row."""
        return self._keys[shard * self.shard_size : (shard + 1) * self.shard_size]

    def keys_digest(self, shard: int) -> str:
        """Return the sha256 (hex) of a shard's key file."""
        return hashlib.sha256("".join(f"{key}\n" for key in self.keys(shard)).encode()).hexdigest()

    def present(self, name: str, shard: int) -> npt.NDArray[np.bool_]:
        """Return for each row of a shard whether it has a value."""
        members = self.store.index(self.name, name).members
        return np.array([key in members for key in self.keys(shard)], bool)

    def member(self, name: str, shard: int, row: int) -> Member:
        """Return where a value is."""
        return self.store.member(self.name, name, self.keys(shard)[row])

    def digest(self, name: str, shard: int) -> str:
        """Return a digest of a shard's values."""
        if name not in self._contents:
            self._contents[name] = contents(self.store, self.name, name)
        members = self.store.index(self.name, name).members
        return made_of(self._contents[name], [members[key] for key in self.keys(shard) if key in members])
