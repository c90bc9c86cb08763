"""The rows that tokens are made of: samples as they are, or seen through several crops that all modalities share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, overload

import numpy as np

from tokenizers_zoo.data.tar import Member
from tokenizers_zoo.data.tokens import view_key
from tokenizers_zoo.spec import Crop

CROP_SIDE = (0.5, 1.0)  # shortest and longest side of a random crop, as fractions of the picture's


class Row(NamedTuple):
    """One row to encode: its key in the token store, the stored value, and the crop that it is seen through."""

    key: str
    member: Member
    crop: Crop


class Views(Sequence[Row]):
    """The rows of a modality, the crops of one sample side by side; a crop is drawn when its row is asked for.

    With one crop a row's key is the sample's, with more it is `<key>#<number>`.
    """

    def __init__(self, members: Mapping[str, Member], crops: int, seed: int) -> None:
        self.keys = list(members)
        self._stored = members
        self.crops = crops
        self.seed = seed

    def __len__(self) -> int:
        return len(self.keys) * self.crops

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        sample, number = divmod(index, self.crops)
        key = self.keys[sample]
        return Row(self.key(index), self._stored[key], random_crop(self.seed, key, number))

    def key(self, index: int) -> str:
        """The key of a row."""
        sample, number = divmod(index, self.crops)
        key = self.keys[sample]
        return key if self.crops == 1 else view_key(key, number)

    def members(self, rows: range) -> list[Member]:
        """The stored values of some neighbouring rows, which begin and end with a sample's."""
        return [self._stored[key] for key in self.keys[rows.start // self.crops : -(-rows.stop // self.crops)]]


def random_crop(seed: int, key: str, number: int) -> Crop:
    """The crop `number` of a sample, from the seed and the key alone: all its modalities share it. 0 is the whole.

    Sides keep the picture's proportions and are uniform in [0.5, 1] of it, the place is uniform.
    """
    if number == 0:
        return Crop()
    name = hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(name[:16], "big"))
    side = float(rng.uniform(*CROP_SIDE))
    top, left = (float(place) for place in rng.uniform(0, 1 - side, 2))
    return Crop(top=top, left=left, height=side, width=side)
