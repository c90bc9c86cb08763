"""The id space of a list of objects, and the flat grammar that its tokens follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.spec import OrderedIds

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One number of every object, told by a coordinate token: evenly spaced levels from `low` to `high`."""

    name: str
    low: float = 0.0
    high: float = 1.0


def levels_of(axes: Sequence[Axis], numbers: NDArray[np.floating], bins: int) -> Ids:
    """The nearest of `bins` levels of each number, (objects, axes); what lies outside its axis is clipped."""
    low, high = (np.array([getattr(axis, end) for axis in axes]) for end in ("low", "high"))
    return np.rint((np.clip(numbers, low, high) - low) / (high - low) * (bins - 1)).astype(np.int64)


def numbers_of(axes: Sequence[Axis], levels: Ids, bins: int) -> NDArray[np.float64]:
    """What levels (objects, axes) stand for: `low` and `high` are exact."""
    low, high = (np.array([getattr(axis, end) for axis in axes]) for end in ("low", "high"))
    share = levels / (bins - 1)
    result: NDArray[np.float64] = low * (1 - share) + high * share
    return result


@dataclass(frozen=True, kw_only=True)
class ObjectGrammar:
    """Ids: end, sentinels, `axes` x `bins` coordinates axis by axis, `codebooks` x `codebook_size` codes.

    An object is one coordinate of each axis in order, then the codes of its `positions` in order, and of each position
    one code of each codebook in order: always `object_length` tokens. A value is its objects one after the other.
    """

    sentinels: int
    axes: int
    bins: int
    positions: int
    codebooks: int
    codebook_size: int

    end = 0
    sentinel_start = 1

    @property
    def coordinate_start(self) -> int:
        """The first coordinate id."""
        return self.sentinel_start + self.sentinels

    @property
    def code_start(self) -> int:
        """The first code id."""
        return self.coordinate_start + self.axes * self.bins

    @property
    def ordered_ids(self) -> tuple[OrderedIds, ...]:
        """The coordinates of each axis, as a ModalitySpec names them."""
        return OrderedIds.of_axes(self.coordinate_start, self.axes, self.bins)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.code_start + self.codebooks * self.codebook_size

    @property
    def codes(self) -> int:
        """Codes of one object."""
        return self.positions * self.codebooks

    @property
    def object_length(self) -> int:
        """Tokens of one object."""
        return self.axes + self.codes

    @cached_property
    def starts(self) -> Ids:
        """The first id that may stand at each place of an object."""
        coordinates = self.coordinate_start + self.bins * np.arange(self.axes)
        codebooks = self.code_start + self.codebook_size * np.arange(self.codebooks)
        return np.concatenate([coordinates, np.tile(codebooks, self.positions)])

    @cached_property
    def stops(self) -> Ids:
        """The id after the last one that may stand at each place of an object."""
        sizes = np.repeat([self.bins, self.codebook_size], [self.axes, self.codes])
        stops: Ids = self.starts + sizes
        return stops

    def write(self, levels: Ids, codes: Ids) -> Ids:
        """The ids of levels (objects, axes) and codes (objects, codes of one object)."""
        ids: Ids = (np.concatenate([levels, codes], axis=1) + self.starts).reshape(-1)
        return ids

    def read(self, ids: Iterable[int]) -> tuple[Ids, Ids]:
        """Levels (objects, axes) and codes (objects, codes of one object) of any ids at all.

        What is not the whole of an object is skipped: a token that cannot stand where it stands ends the object that
        was begun, and a first coordinate begins the next. Exact for what `write` wrote.
        """
        starts, stops, length = self.starts.tolist(), self.stops.tolist(), self.object_length
        found, begun = list[list[int]](), list[int]()
        for index in map(int, ids):
            place = len(begun)
            if not starts[place] <= index < stops[place]:
                begun, place = [], 0
                if not starts[0] <= index < stops[0]:
                    continue
            begun.append(index - starts[place])
            if len(begun) == length:
                found.append(begun)
                begun = []
        table = np.array(found, dtype=np.int64).reshape(-1, length)
        return table[:, : self.axes], table[:, self.axes :]
