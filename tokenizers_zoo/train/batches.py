"""What a training step is made from: batches by number, read ahead, and random numbers of (seed, number)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers_zoo.train.task import TokenizerTask


@contextlib.contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed torch's generators inside the block, and leave the caller's as they were."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(_mixed(*seed))
        yield


def _mixed(*seed: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def batch_indices(seed: int, batch: int, size: int, count: int) -> list[int]:
    """Which of `count` samples batch number `batch` holds: `size` positions of an endless row of shuffled epochs."""
    positions = range(batch * size, (batch + 1) * size)
    return [int(_shuffled(seed, position // count, count)[position % count]) for position in positions]


class BatchReader:
    """Batches by number, read one ahead in a thread."""

    def __init__(self, task: TokenizerTask, train: Sequence[Any], size: int, seed: int) -> None:
        self.task, self.train, self.size, self.seed = task, train, size, seed
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer-batches")
        self.ahead: dict[int, Any] = {}

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def read(self, number: int) -> Any:
        """Batch `number`, and start on the next."""
        future = self.ahead.pop(number, None) or self.pool.submit(self._make, number)
        self.ahead = {number + 1: self.pool.submit(self._make, number + 1)}
        return future.result()

    def _make(self, number: int) -> Any:
        values = [self.train[index] for index in batch_indices(self.seed, number, self.size, len(self.train))]
        return self.task.batch(values, np.random.default_rng([self.seed, 1, number]))


def to_device(batch: Any, device: str) -> Any:
    """A batch's tensors on `device`, through lists, tuples and dicts."""
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch
