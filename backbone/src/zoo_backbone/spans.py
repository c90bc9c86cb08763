"""Span masking of sequences (T5, arXiv 1910.10683, section 3.1.4), for all sequences of a batch at once.

Here a row is one sequence of one sample. Its masked spans are apart by at least one kept token. The input reads the
kept tokens with one sentinel for each span; the target stream reads `sentinel_0 span_0 sentinel_1 span_1 ...` and
ends with the id that closes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoo_backbone.budgets import Floats, Ints

Bools = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.uint64]

LAST = np.iinfo(np.uint64).max


def sorted_draw(keys: Keys, among: Ints) -> Ints:
    """A random order of the first `among` (`rows`) columns of each row, from random `keys` (`rows columns`).

    The columns from `among` on come last. Sorting keys that carry their column is faster than argsort, and the same on
    every machine.
    """
    width = keys.shape[1]
    bits = np.uint64(max(width - 1, 1).bit_length())
    low = (np.uint64(1) << bits) - np.uint64(1)
    column = np.arange(width, dtype=np.uint64)
    tagged = (keys & ~low) | column
    tagged[column >= among[:, None].astype(np.uint64)] = LAST
    tagged.sort(axis=1)
    return (tagged & low).astype(np.int64)


def choose(keys: Keys, count: Ints, among: Ints) -> Bools:
    """True at `count` (`rows`) random ones of the first `among` columns of each row."""
    order = sorted_draw(keys, among)
    rows, columns = ragged(count)
    chosen = np.zeros(keys.shape, bool)
    chosen[rows, order[rows, columns]] = True
    return chosen


def ragged(counts: Ints) -> tuple[Ints, Ints]:
    """Row and column of every place of ragged rows with `counts` places: `[2, 1]` gives `[0 0 1], [0 1 0]`."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def mask_spans(
    lengths: Ints, quota: Ints, limits: Ints, span_length: float, offset: Floats, cuts: Keys, places: Keys
) -> Bools:
    """Which tokens to mask, `rows width`, so that kept tokens and sentinels are exactly `quota` (`rows`).

    Rows whose quota is their length or more keep all; rows with a quota of 0 mask all. `limits` is the number of
    sentinels; the spans have `span_length` tokens on average unless the limit, or a quota too small to keep them
    apart, makes them longer. `offset` (`rows`, uniform in [0, 1)) rounds their number. `cuts` and `places` are random
    keys, `rows width` and `rows width + 1`.
    """
    width = cuts.shape[1]
    part = (quota > 0) & (quota < lengths)
    missing = np.where(part, lengths - quota, 0)
    # `count` spans of s tokens shorten the input by count * (s - 1).
    count = np.floor(missing / max(span_length - 1, 1e-9) + offset)
    spans = np.where(part, np.clip(count, 1, np.minimum(limits, (quota + 1) // 2)), 0).astype(np.int64)
    hidden = np.where(part, missing + spans, 0)
    # Lengths of the spans: cut the hidden tokens at random places. Their places: random gaps between kept tokens.
    starts_new = choose(cuts[:, : width - 1], np.maximum(spans - 1, 0), np.maximum(hidden - 1, 0))
    span_of = np.zeros(cuts.shape, np.int64)
    np.cumsum(starts_new, axis=1, out=span_of[:, 1:])
    gaps = choose(places, spans, np.where(part, lengths - hidden + 1, 0))
    kept_before = np.nonzero(gaps)[1]
    rows, columns = ragged(hidden)
    place = columns + kept_before[(np.cumsum(spans) - spans)[rows] + span_of[rows, columns]]
    masked: Bools = (np.arange(width) < lengths[:, None]) & (quota == 0)[:, None]
    masked[rows, place] = True
    return masked


@dataclass(frozen=True)
class Spans:
    """The masked spans of some rows."""

    masked: Bools
    """`rows width`."""
    starts: Bools
    """`rows width`: the first token of each span."""
    index: Ints
    """`rows width`: at a masked token, its span's index among the spans of all rows."""
    rank: Ints
    """`rows width`: at a masked token, its span's number in its row, which is its sentinel's."""
    row: Ints
    """`spans`: the row of each span."""
    length: Ints
    """`spans`: its number of tokens."""

    @classmethod
    def of(cls, masked: Bools) -> Spans:
        """Find the spans of a mask."""
        starts = masked.copy()
        starts[:, 1:] &= ~masked[:, :-1]
        index = np.cumsum(starts.ravel()).reshape(masked.shape) - 1
        rank = np.cumsum(starts, axis=1) - 1
        row = np.nonzero(starts)[0]
        length = np.bincount(index[masked], minlength=len(row))
        return cls(masked=masked, starts=starts, index=index, rank=rank, row=row, length=length)

    def cost(self) -> Ints:
        """Targets per row, `rows`: its masked tokens, a sentinel before each span but the first, and what closes."""
        cost: Ints = self.masked.sum(axis=1) + self.starts.sum(axis=1)
        return cost

    def that_fit(self, budget: Ints, keys: Keys, side_by_side: bool = False) -> Bools:
        """Which spans to ask for, `spans`, so that each row's cost is at most `budget` (`rows`).

        Rows that fit ask for all; in the others spans are taken in random order as long as they fit: any, or, with
        `side_by_side`, a random one and those that follow it.
        """
        need = self.cost()
        asked = (need <= budget)[self.row]
        tight = np.flatnonzero(need > budget)
        if not len(tight):
            return asked
        counts = self.starts.sum(axis=1)
        first = (np.cumsum(counts) - counts)[tight]
        order = sorted_draw(keys[tight], counts[tight])
        if side_by_side:
            order = order[:, :1] + np.arange(order.shape[1])
        left = budget[tight].copy()
        for turn in range(int(counts[tight].max())):
            live = np.flatnonzero((turn < counts[tight]) & (left >= 2))
            live = live[order[live, turn] < counts[tight[live]]]
            if not len(live):
                break
            span = first[live] + order[live, turn]
            fits = self.length[span] + 1 <= left[live]
            asked[span[fits]] = True
            left[live[fits]] -= self.length[span[fits]] + 1
            if side_by_side:
                left[live[~fits]] = 0
        return asked

    def last(self, asked: Bools) -> Ints:
        """The number in its row of the last span of each row that is asked for, `rows`; -1 without one."""
        rank = np.full(len(self.masked), -1, np.int64)
        _, number = ragged(self.starts.sum(axis=1))
        rank[self.row[asked]] = number[asked]  # spans of a row rise, so the last one stays
        return rank


def input_tokens(tokens: Ints, lengths: Ints, quota: Ints, spans: Spans, sentinel: Ints) -> tuple[Ints, Ints, Ints]:
    """What the input reads of rows whose quota is not 0: row, rank in the row's input, and id of each token.

    `tokens` is `rows width`, `sentinel` (`rows`) the id of the first sentinel.
    """
    kept = ~spans.masked & (np.arange(tokens.shape[1]) < lengths[:, None])
    shown = (kept | spans.starts) & (quota > 0)[:, None]
    rows, columns = np.nonzero(shown)
    rank = (np.cumsum(shown, axis=1) - 1)[rows, columns]
    is_sentinel = spans.starts[rows, columns]
    ids = np.where(is_sentinel, sentinel[rows] + spans.rank[rows, columns], tokens[rows, columns])
    return rows, rank, ids


def target_streams(tokens: Ints, spans: Spans, asked: Bools, sentinel: Ints, closing: Ints) -> tuple[Ints, Ints]:
    """The target streams of the asked spans: `read` and `ids`, both `rows places`, of which a row fills the first.

    Place j reads `read[:, j]`, at position j, and predicts `ids[:, j]`, which is read next; `closing` (`rows`) is
    predicted last. A row without spans reads its first sentinel and predicts that.
    """
    wanted = spans.masked.copy()
    wanted[wanted] = asked[spans.index[wanted]]
    starts = spans.starts & wanted
    through = np.cumsum(wanted, axis=1) + np.cumsum(starts, axis=1)
    lengths = np.maximum(through[:, -1], 1)
    read = np.zeros((len(tokens), int(lengths.max(initial=1))), np.int64)
    read[:, 0] = sentinel
    rows, columns = np.nonzero(wanted)
    read[rows, through[rows, columns] - 1] = tokens[rows, columns]
    rows, columns = np.nonzero(starts)
    read[rows, through[rows, columns] - 2] = sentinel[rows] + spans.rank[rows, columns]
    ids = np.empty_like(read)
    ids[:, :-1] = read[:, 1:]
    ids[np.arange(len(ids)), lengths - 1] = closing
    return read, ids
