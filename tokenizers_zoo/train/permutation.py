"""A keyed permutation of [0, n) that needs no memory: the order in which training visits samples."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

ROUNDS = 8


def permuted(positions: npt.ArrayLike, n: int, *key: int) -> npt.NDArray[np.int64]:
    """Return the images of `positions` under the permutation of [0, n) that `key` selects, such as (seed, epoch).

    A balanced Feistel network over the next even number of bits, with cycle walking: numbers beyond n are encrypted
    again until they fall below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Vectorised;
    positions outside [0, n) raise ValueError.
    """
    values = np.asarray(positions, np.int64)
    if values.size and not (values.min() >= 0 and values.max() < n):
        raise ValueError(f"positions {values.min()}..{values.max()}: expected 0 to {n - 1}")
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    seeds = np.frombuffer(hashlib.sha512(repr(key).encode()).digest(), "<u8")
    result = values.astype(np.uint64).ravel()
    outside = np.arange(result.size)
    while outside.size:
        result[outside] = _feistel(result[outside], half, seeds)
        outside = outside[result[outside] >= n]
    return result.astype(np.int64).reshape(values.shape)


def _feistel(values: npt.NDArray[Any], half: np.uint64, seeds: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Apply the Feistel network to numbers of `2 * half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for seed in seeds[:ROUNDS]:
        # The finalizer of splitmix64 (Steele et al. 2014); products wrap around.
        mixed = (right + seed) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
    return (left << half) | right
