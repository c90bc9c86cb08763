"""The ids of a list of objects: a flat grammar of coordinates and codes, or words of the shared text vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.contract.pictures import Array
from tokenizers_zoo.contract.spec import Crop, OrderedIds
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.families.text import fitting_groups
from tokenizers_zoo.tokenizers.text_vocab import Coordinate, Piece, TextVocabulary, VocabularyConfig

BINS = 1000
"""Levels of each coordinate in published sequences."""
CODES_PER_AXIS = 512
"""A code is a coordinate, too: v0=0 to v0=511, then v1=0 and so on."""
Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One number of every object, written as a coordinate token: evenly spaced levels from `low` to `high`."""

    name: str
    low: float = 0.0
    high: float = 1.0


def levels_of(axes: Sequence[Axis], numbers: NDArray[np.floating], bins: int) -> Ids:
    """Return the nearest of `bins` levels of each number, (objects, axes). Numbers outside their axis are clipped."""
    low, high = (np.array([getattr(axis, end) for axis in axes]) for end in ("low", "high"))
    return np.rint((np.clip(numbers, low, high) - low) / (high - low) * (bins - 1)).astype(np.int64)


def numbers_of(axes: Sequence[Axis], levels: Ids, bins: int) -> NDArray[np.float64]:
    """Return the numbers of levels (objects, axes); `low` and `high` are exact."""
    low, high = (np.array([getattr(axis, end) for axis in axes]) for end in ("low", "high"))
    share = levels / (bins - 1)
    result: NDArray[np.float64] = low * (1 - share) + high * share
    return result


@dataclass(frozen=True, kw_only=True)
class ObjectGrammar:
    """Ids: end, sentinels, `axes` x `bins` coordinates axis by axis, `codebooks` x `codebook_size` codes.

    An object is one coordinate of each axis in order, then the codes of its `positions` in order, and of each position
    one code of each codebook in order: always `object_length` tokens. A value is the concatenation of its objects.
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
        """The lowest valid id at each position of an object."""
        coordinates = self.coordinate_start + self.bins * np.arange(self.axes)
        codebooks = self.code_start + self.codebook_size * np.arange(self.codebooks)
        return np.concatenate([coordinates, np.tile(codebooks, self.positions)])

    @cached_property
    def stops(self) -> Ids:
        """The highest valid id plus 1 at each position of an object."""
        sizes = np.repeat([self.bins, self.codebook_size], [self.axes, self.codes])
        stops: Ids = self.starts + sizes
        return stops

    def write(self, levels: Ids, codes: Ids) -> Ids:
        """Return the ids of levels (objects, axes) and codes (objects, codes of one object)."""
        ids: Ids = (np.concatenate([levels, codes], axis=1) + self.starts).reshape(-1)
        return ids

    def read(self, ids: Iterable[int]) -> tuple[Ids, Ids]:
        """Return levels (objects, axes) and codes (objects, codes of one object) of any sequence of ids.

        Incomplete objects are skipped: an id that is invalid at its position ends the current object, and a first
        coordinate begins the next. The result is exact for the output of `write`.
        """
        starts, stops, length = self.starts.tolist(), self.stops.tolist(), self.object_length
        objects, partial = list[list[int]](), list[int]()
        for index in map(int, ids):
            position = len(partial)
            if not starts[position] <= index < stops[position]:
                partial, position = [], 0
                if not starts[0] <= index < stops[0]:
                    continue
            partial.append(index - starts[position])
            if len(partial) == length:
                objects.append(partial)
                partial = []
        table = np.array(objects, dtype=np.int64).reshape(-1, length)
        return table[:, : self.axes], table[:, self.axes :]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A word and its coordinates: levels of the object on these axes v0, v1, ..., then optionally its codes."""

    word: str
    axes: tuple[int, ...] = ()
    codes: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Spelling:
    """How an object is spelled: its head, then its other parts, in this order when written and in any when read.

    An object's levels are the levels of the head and then of each part, in this order.
    """

    head: Part
    parts: tuple[Part, ...]
    empty: tuple[Piece, ...]
    """Pieces that represent a value without objects."""
    repeats: bool = False
    """Whether the parts may repeat after one head, for several objects with the same head."""

    def check(self, config: VocabularyConfig, codebook_size: int, owner: str, name: str) -> None:
        """Raise ConfigError if the vocabulary `name` lacks coordinates to spell with."""
        axes = max(*self.head.axes, *(axis for part in self.parts for axis in part.axes)) + 1
        axes = max(axes, -(-codebook_size // CODES_PER_AXIS))
        for key, least in (("coordinate_bins", BINS), ("coordinate_axes", axes)):
            if getattr(config, key) < least:
                raise ConfigError(
                    f'{owner}: with layout = "4m" [vocabularies.{name}] {key} has to be {least} or more, and is'
                    f' {getattr(config, key)}; set its preset to "4m", or layout to "codes"'
                )


@dataclass(frozen=True, kw_only=True)
class SpelledGrammar:
    """Ids of a spelling over a vocabulary; `plain` says how many levels and codes an object has."""

    spelling: Spelling
    vocabulary: TextVocabulary
    plain: ObjectGrammar
    max_length: int

    def __post_init__(self) -> None:
        words = [part.word for part in (self.spelling.head, *self.spelling.parts)]
        words += [piece.strip() for piece in self.spelling.empty if isinstance(piece, str)]
        for word in words:
            if (read := self.vocabulary.decode_text(self.vocabulary.encode_text(f" {word}")).strip()) != word:
                raise CheckpointError(f"the vocabulary has no word {word!r}, it reads {read!r}; give it another one")

    def write(self, levels: Ids, codes: Ids) -> Ids:
        """Return the ids of the first objects that fit: levels (objects, axes), codes (objects, codes of one
        object)."""
        rows = zip(levels.tolist(), codes.tolist(), strict=True)
        groups = [self.vocabulary.encode(self._pieces(*row)) for row in rows]
        ids = fitting_groups(groups or [self.vocabulary.encode(self.spelling.empty)], self.max_length)
        return np.array(ids, dtype=np.int64)

    def read(self, ids: Iterable[int]) -> tuple[Ids, Ids]:
        """Return levels (objects, axes) and codes (objects, codes of one object) of any sequence of ids.

        Parts with unexpected coordinates are skipped, and so are objects that lack a part. With `repeats`, an object
        that repeats an earlier one under another head is skipped, too. The result is exact for the output of `write` if
        objects differ by more than their head.
        """
        spelling, objects, partial = self.spelling, list[list[int]](), dict[str, list[int]]()
        parts = {part.word: part for part in (spelling.head, *spelling.parts)}
        for word, coordinates in _runs(self.vocabulary.decode(ids)):
            if word == spelling.head.word:
                partial = {}
            if word not in parts or (word != spelling.head.word and spelling.head.word not in partial):
                continue
            numbers = self._numbers(parts[word], coordinates)
            if numbers is not None:
                partial[word] = numbers
            if len(partial) == len(parts):
                levels = [number for key, part in parts.items() for number in partial[key][: len(part.axes)]]
                codes = [number for key, part in parts.items() for number in partial[key][len(part.axes) :]]
                objects.append([*levels, *codes])
                partial = {spelling.head.word: partial[spelling.head.word]} if spelling.repeats else {}
        if spelling.repeats:
            distinct = dict[tuple[int, ...], list[int]]()
            for row in objects:
                distinct.setdefault(tuple(row[len(spelling.head.axes) :]), row)
            objects = list(distinct.values())
        table = np.array(objects, dtype=np.int64).reshape(-1, self.plain.object_length)
        return table[:, : self.plain.axes], table[:, self.plain.axes :]

    def _pieces(self, levels: Sequence[int], codes: Sequence[int]) -> Iterator[Piece]:
        """Yield the pieces of one object. Words start with a space, so that they get the same ids as in a sentence."""
        start = 0
        for part in (self.spelling.head, *self.spelling.parts):
            yield f" {part.word}"
            for axis, level in zip(part.axes, levels[start : start + len(part.axes)], strict=True):
                yield Coordinate(axis, level)
            start += len(part.axes)
            for code in codes if part.codes else ():
                yield Coordinate(*divmod(code, CODES_PER_AXIS))

    def _numbers(self, part: Part, coordinates: Sequence[Coordinate]) -> list[int] | None:
        """Return the levels of a part, then its codes; None if the coordinates do not match the part."""
        level_pieces, code_pieces = coordinates[: len(part.axes)], coordinates[len(part.axes) :]
        code_count = self.plain.codes if part.codes else 0
        if tuple(piece.axis for piece in level_pieces) != part.axes or len(code_pieces) != code_count:
            return None
        levels = [piece.level for piece in level_pieces]
        codes = [piece.axis * CODES_PER_AXIS + piece.level for piece in code_pieces]
        in_range = all(level < self.plain.bins for level in levels)
        in_range &= all(piece.level < CODES_PER_AXIS for piece in code_pieces)
        in_range &= all(code < self.plain.codebook_size for code in codes)
        return [*levels, *codes] if in_range else None


def _runs(pieces: Iterable[Piece]) -> Iterator[tuple[str, list[Coordinate]]]:
    """Yield each word with the coordinates after it. Coordinates that follow no word belong to the word ""."""
    word, run = "", list[Coordinate]()
    for piece in pieces:
        if isinstance(piece, Coordinate):
            run.append(piece)
            continue
        for following in piece.split() if isinstance(piece, str) else [""]:
            yield word, run
            word, run = following, []
    yield word, run


def box_seen_through(crop: Crop, box: Sequence[float], least: float) -> list[float] | None:
    """Return a box [xmin, ymin, xmax, ymax], in fractions of the image, relative to the crop and clipped to it.

    Return None if no part of the box, or less than the share `least` of its area, is inside.
    """
    if crop.is_whole:
        return list(box)
    xs = [(x - crop.left) / crop.width for x in (box[0], box[2])]
    ys = [(y - crop.top) / crop.height for y in (box[1], box[3])]
    left, right = (min(1.0, max(0.0, x)) for x in xs)
    top, bottom = (min(1.0, max(0.0, y)) for y in ys)
    inside, area = (right - left) * (bottom - top), (xs[1] - xs[0]) * (ys[1] - ys[0])
    if inside <= 0 or inside < least * area * (1 - 1e-9):
        return None
    return [1 - right, top, 1 - left, bottom] if crop.flip else [left, top, right, bottom]


def by_area(box: Sequence[float]) -> tuple[float, ...]:
    """Return a key that sorts boxes [xmin, ymin, xmax, ymax] by falling area, and equal ones by their place."""
    return (box[0] - box[2]) * (box[3] - box[1]), *box


def box_overlaps(first: Array, second: Array) -> Array:
    """Return intersection over union of boxes (n, 4) and (m, 4) of edges xmin, ymin, xmax, ymax: (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(edges[:, 2:] - edges[:, :2], 0, None).prod(axis=1) for edges in (first, second)]
    return shares_of_union(shared, *areas)


def best_pairs(table: Array, least: float) -> list[tuple[int, int, float]]:
    """Return row, column and number of the highest numbers from `least` on; each row and column is in one at most."""
    remaining, pairs = table.copy(), list[tuple[int, int, float]]()
    while remaining.size and float(remaining.max()) >= least:
        row, column = map(int, np.unravel_index(remaining.argmax(), remaining.shape))
        pairs.append((row, column, float(remaining[row, column])))
        remaining[row, :] = remaining[:, column] = -1.0
    return pairs


def shares_of_union(shared: Array, first: Array, second: Array) -> Array:
    """Return intersection over union of intersections (n, m) and sizes (n,) and (m,); 0 where there is no union."""
    union = first[:, None] + second[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
