"""Span masking of sequences (T5, arXiv 1910.10683, section 3.1.4), for all sequences of a batch at once.

A row is one sequence of one sample. At least one kept token separates its masked spans. The input reads the kept
tokens and one sentinel per span; the target stream reads `sentinel_0 span_0 sentinel_1 span_1 ...` and predicts a
closing id at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.uint64]

LAST = np.iinfo(np.uint64).max


def sorted_draw(keys: Keys, among: Ints) -> Ints:
    """Return a random order of the first `among` (`rows`) columns of each row, from random `keys` (`rows columns`).

    The remaining columns come last. Sorting keys that carry their column is faster than argsort, and gives the same
    result on every machine.
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
    """Return a mask with `count` (`rows`) random Trues among the first `among` columns of each row."""
    order = sorted_draw(keys, among)
    rows, columns = ragged(count)
    mask = np.zeros(keys.shape, bool)
    mask[rows, order[rows, columns]] = True
    return mask


def ragged(counts: Ints) -> tuple[Ints, Ints]:
    """Return row and column of every place of ragged rows: `[2, 1]` gives `[0 0 1], [0 1 0]`."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def mask_spans(
    lengths: Ints, quota: Ints, limits: Ints, span_length: float, offset: Floats, cuts: Keys, positions: Keys
) -> Bools:
    """Return the tokens to mask, `rows width`, so that kept tokens plus sentinels equal `quota` (`rows`).

    A quota of at least the length keeps everything; a quota of 0 masks everything. `limits` is the number of
    sentinels. Spans have `span_length` tokens on average; they are longer where sentinels, or kept tokens to separate
    the spans, run out. `offset` (`rows`, uniform in [0, 1)) rounds the number of spans. `cuts` (`rows width`) and
    `positions` (`rows width+1`) are random keys.
    """
    width = cuts.shape[1]
    is_partial = (quota > 0) & (quota < lengths)
    missing = np.where(is_partial, lengths - quota, 0)
    # `count` spans of s tokens shorten the input by count * (s - 1).
    count = np.floor(missing / max(span_length - 1, 1e-9) + offset)
    spans = np.where(is_partial, np.clip(count, 1, np.minimum(limits, (quota + 1) // 2)), 0).astype(np.int64)
    hidden = np.where(is_partial, missing + spans, 0)
    # Lengths of the spans: cut the hidden tokens at random places. Their places: random gaps between kept tokens.
    starts_new = choose(cuts[:, : width - 1], np.maximum(spans - 1, 0), np.maximum(hidden - 1, 0))
    span_of = np.zeros(cuts.shape, np.int64)
    np.cumsum(starts_new, axis=1, out=span_of[:, 1:])
    gaps = choose(positions, spans, np.where(is_partial, lengths - hidden + 1, 0))
    kept_before = np.nonzero(gaps)[1]
    rows, columns = ragged(hidden)
    masked_columns = columns + kept_before[(np.cumsum(spans) - spans)[rows] + span_of[rows, columns]]
    masked: Bools = (np.arange(width) < lengths[:, None]) & (quota == 0)[:, None]
    masked[rows, masked_columns] = True
    return masked


@dataclass(frozen=True)
class Spans:
    """The masked spans of some rows."""

    masked: Bools
    """`rows width`."""
    starts: Bools
    """`rows width`: the first token of each span."""
    index: Ints
    """`rows width`: at a masked token, the index of its span among the spans of all rows."""
    rank: Ints
    """`rows width`: at a masked token, the number of its span, and thus of its sentinel, within the row."""
    row: Ints
    """`spans`: row of each span."""
    length: Ints
    """`spans`: tokens of each span."""

    @classmethod
    def of(cls, masked: Bools) -> Spans:
        starts = masked.copy()
        starts[:, 1:] &= ~masked[:, :-1]
        index = np.cumsum(starts.ravel()).reshape(masked.shape) - 1
        rank = np.cumsum(starts, axis=1) - 1
        row = np.nonzero(starts)[0]
        length = np.bincount(index[masked], minlength=len(row))
        return cls(masked=masked, starts=starts, index=index, rank=rank, row=row, length=length)

    def cost(self) -> Ints:
        """Return the targets of each row, `rows`: masked tokens, a sentinel before each further span, and the end."""
        return self.masked.sum(axis=1) + self.starts.sum(axis=1)

    def select(self, budget: Ints, keys: Keys) -> Bools:
        """Return the spans to predict, `spans`, so that each row costs at most `budget` (`rows`).

        Rows that fit keep all their spans. Other rows take spans in random order as long as they fit.
        """
        need = self.cost()
        selected = (need <= budget)[self.row]
        over_budget = np.flatnonzero(need > budget)
        if not len(over_budget):
            return selected
        counts = self.starts.sum(axis=1)
        first = (np.cumsum(counts) - counts)[over_budget]
        order = sorted_draw(keys[over_budget], counts[over_budget])
        left = budget[over_budget].copy()
        for turn in range(int(counts[over_budget].max())):
            active = np.flatnonzero((turn < counts[over_budget]) & (left >= 2))
            if not len(active):
                break
            span = first[active] + order[active, turn]
            fits = self.length[span] + 1 <= left[active]
            selected[span[fits]] = True
            left[active[fits]] -= self.length[span[fits]] + 1
        return selected

    def closing(self, selected: Bools, sentinel: Ints, num_sentinels: Ints, end: Ints) -> Ints:
        """Return the last id of each row's targets, `rows`: its `end`.

        `sentinel` and `num_sentinels` (`rows`) are the first sentinel and the number of sentinels.
        """
        return end

    def input_tokens(self, tokens: Ints, lengths: Ints, quota: Ints, sentinel: Ints) -> tuple[Ints, Ints, Ints]:
        """Return row, rank within the row's input, and id of every input token of the rows whose quota is not 0.

        `tokens` is `rows width`, `sentinel` (`rows`) the id of the first sentinel.
        """
        visible = ~self.masked & (np.arange(tokens.shape[1]) < lengths[:, None])
        is_input = (visible | self.starts) & (quota > 0)[:, None]
        rows, columns = np.nonzero(is_input)
        rank = (np.cumsum(is_input, axis=1) - 1)[rows, columns]
        is_sentinel = self.starts[rows, columns]
        ids = np.where(is_sentinel, sentinel[rows] + self.rank[rows, columns], tokens[rows, columns])
        return rows, rank, ids

    def target_streams(self, tokens: Ints, selected: Bools, sentinel: Ints, closing: Ints) -> tuple[Ints, Ints]:
        """Return the ids that the selected spans read and predict, both `rows places`, left-aligned.

        Place j reads `read[:, j]` at position j and predicts `ids[:, j]`, the next id read; `closing` (`rows`) is
        predicted last. A row without spans reads its first sentinel and predicts `closing`.
        """
        is_target = self.masked.copy()
        is_target[is_target] = selected[self.index[is_target]]
        starts = self.starts & is_target
        stream_ends = np.cumsum(is_target, axis=1) + np.cumsum(starts, axis=1)
        lengths = np.maximum(stream_ends[:, -1], 1)
        read = np.zeros((len(tokens), int(lengths.max(initial=1))), np.int64)
        read[:, 0] = sentinel
        rows, columns = np.nonzero(is_target)
        read[rows, stream_ends[rows, columns] - 1] = tokens[rows, columns]
        rows, columns = np.nonzero(starts)
        read[rows, stream_ends[rows, columns] - 2] = sentinel[rows] + self.rank[rows, columns]
        ids = np.empty_like(read)
        ids[:, :-1] = read[:, 1:]
        ids[np.arange(len(ids)), lengths - 1] = closing
        return read, ids
