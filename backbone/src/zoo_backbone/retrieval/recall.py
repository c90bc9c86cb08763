"""How often the right sample is among the first ones found, and what chance would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoo_backbone.retrieval.spaces import Vectors

AT = (1, 5, 10)
SAME = 1e-6
"""Cosines that differ by less are equal: rounding does not decide who comes first."""
BLOCK = 64 * 2**20
"""Bytes of the cosines that are held at once, of some queries to all of the gallery."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """Over some queries: the share whose own sample is among the first 1, 5, 10, and its median rank from 1 on."""

    at: dict[int, float]
    median_rank: float


def recall(queries: Vectors, gallery: Vectors) -> Recall:
    """Look for each query, `samples dim`, in the gallery, `samples dim`, whose row of the same number is the right one.

    Vectors have length 1. Where others are as close as the right one, each order of them is as likely as another: a
    gallery of one vector repeated gives what chance gives.
    """
    count, exact = len(gallery), gallery.astype(np.float64).T
    closer, equal = np.empty(count, np.int64), np.empty(count, np.int64)
    step = max(1, BLOCK // (exact.itemsize * count))
    for start in range(0, count, step):
        block = slice(start, start + step)
        cosines = queries[block].astype(np.float64) @ exact
        own = np.diagonal(cosines, start)[:, None]
        closer[block] = (cosines > own + SAME).sum(1)
        equal[block] = (np.abs(cosines - own) <= SAME).sum(1)  # at least itself
    ranks = closer + (equal + 1) / 2
    at = {k: float(np.clip((k - closer) / equal, 0, 1).mean()) for k in AT}
    return Recall(at=at, median_rank=float(np.median(ranks)))


def chance(samples: int) -> Recall:
    """What guessing gives among so many samples."""
    return Recall(at={k: min(1.0, k / samples) for k in AT}, median_rank=(samples + 1) / 2)
