"""The order of training samples: shuffled in two levels, and the same for any number of processes.

Samples are stored in blocks, and reading one sample costs its block. So each epoch permutes the blocks, cuts the row of
their samples into lanes of equal length, and reads all lanes side by side; in a lane, samples are shuffled within a
window of a few blocks. Neighbouring positions belong to different lanes, so that a batch has samples of many blocks.
Each process reads the blocks of its own lanes only. Everything is computed from (seed, store, position); only the order
of the blocks is stored.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.train.batches import permuted

EPOCHS = 2
"""Orders of blocks in memory: lanes do not begin an epoch at the same position."""


class SampleOrder:
    """An endless row of epochs, each a permutation of the samples of one store."""

    def __init__(self, starts: npt.NDArray[np.int64], lanes: int, window: int, *key: int) -> None:
        """`starts` are the first sample of each block, and the number of all samples; `key` selects the order, such as
        (seed, store). A window has `window` samples; there are fewer lanes where they would be shorter than that."""
        self._arguments = starts, lanes, window, *key
        self.starts, self.window, self.key = starts, window, key
        self.count = int(starts[-1])
        self.lanes = max(1, min(lanes, self.count // window))
        self._blocks = lru_cache(EPOCHS)(self._permuted_blocks)
        self._samples = lru_cache(EPOCHS * self.lanes)(self._samples_of_window)

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleOrder, self._arguments

    def samples(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the samples at some positions of the row."""
        epochs, in_epoch = np.divmod(positions, self.count)
        in_lane, lanes = np.divmod(in_epoch, self.lanes)
        windows, offsets = np.divmod(in_lane, self.window)
        coordinates, groups = np.unique(np.stack([epochs, lanes, windows]), axis=1, return_inverse=True)
        samples = np.empty(len(positions), np.int64)
        for group, (epoch, lane, window) in enumerate(coordinates.T.tolist()):
            in_group = groups.ravel() == group
            samples[in_group] = self._samples(epoch, lane, window)[offsets[in_group]]
        return samples

    def _samples_of_window(self, epoch: int, lane: int, window: int) -> npt.NDArray[np.int64]:
        """Return the samples of a lane's window, shuffled."""
        length, longer = divmod(self.count, self.lanes)
        first, end = (number * length + min(number, longer) for number in (lane, lane + 1))
        first += window * self.window
        size = min(self.window, end - first)
        positions = first + permuted(np.arange(size), size, *self.key, epoch, lane, window)
        order, edges = self._blocks(epoch)
        numbers = np.searchsorted(edges, positions, side="right") - 1
        return self.starts[order[numbers]] + positions - edges[numbers]

    def _permuted_blocks(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the blocks in their order, and the position of the first sample of each in the epoch."""
        count = len(self.starts) - 1
        order = permuted(np.arange(count), count, *self.key, epoch)
        sizes = np.diff(self.starts)[order]
        return order, np.cumsum(sizes) - sizes
