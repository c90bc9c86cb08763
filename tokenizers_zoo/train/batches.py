"""Batches of both training loops: sample order, prefetching, and random numbers that depend on (seed, number) only."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Batch = TypeVar("Batch")
ROUNDS = 8
"""Rounds of the Feistel network that permutes samples."""
BLOCK = 1024
"""Places that are permuted together: many at once cost little more than a few."""


@contextlib.contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed torch's generators within the block, and restore their states after it."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield


def sample_order(first: int, end: int, count: int, seed: int, store: int = 0) -> npt.NDArray[np.int64]:
    """Return the samples at places `first` to `end - 1` of an endless row of epochs, each a permutation of `count`.

    Only some blocks of places are in memory. Orders of one seed and different stores are unrelated.
    """
    blocks = range(first // BLOCK, -(-end // BLOCK))
    orders = [_order_of_block(number, count, seed, store) for number in blocks]
    return np.concatenate(orders)[first - blocks.start * BLOCK : end - blocks.start * BLOCK]


@functools.lru_cache(maxsize=16)
def _order_of_block(number: int, count: int, seed: int, store: int) -> npt.NDArray[np.int64]:
    epochs, positions = np.divmod(np.arange(number * BLOCK, (number + 1) * BLOCK), count)
    parts = [permuted(positions[epochs == epoch], count, seed, epoch, store) for epoch in np.unique(epochs).tolist()]
    return np.concatenate(parts)


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


@contextlib.contextmanager
def prefetched(make: Callable[[int], Batch], first: int, last: int, depth: int = 3) -> Iterator[Iterator[Batch]]:
    """Yield an iterator over the batches `make(number)` for numbers `first` to `last - 1`.

    A thread makes them, at most `depth` in advance. An error in `make` is raised in place of its batch.
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        pending = deque(thread.submit(make, number) for number in range(first, min(first + depth, last)))

        def batches() -> Iterator[Batch]:
            next_number = first + depth
            while pending:
                batch = pending.popleft().result()
                if next_number < last:
                    pending.append(thread.submit(make, next_number))
                next_number += 1
                yield batch

        try:
            yield batches()
        finally:
            thread.shutdown(cancel_futures=True)


def to_device(batch: Any, device: str) -> Any:
    """Return a batch with its tensors on `device`, through lists, tuples and dicts."""
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch
