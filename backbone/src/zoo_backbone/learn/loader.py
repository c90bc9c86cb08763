"""Loads training batches ahead: in a thread, or in processes that read, mask and pack their lanes."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Generator, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tokenizers_zoo.errors import MachineError, ZooError, first_line
from tokenizers_zoo.train.batches import prefetched
from zoo_backbone.learn.data import Mix, Slots
from zoo_backbone.learn.distributed import Ranks
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import TrainConfig

AHEAD = 3
"""Batches that are made in advance."""


@contextlib.contextmanager
def training_batches(mix: Mix, config: TrainConfig, ranks: Ranks, first: int) -> Iterator[Iterator[PackedBatch]]:
    """Yield an iterator over this process's part of the batches from step `first` to the last, trimmed.

    The batches do not depend on the number of loader processes. Raises MachineError if a loader process dies or hangs.
    """
    shares = _shares(mix, config, ranks, range(first, config.steps))

    def batch(step: int) -> PackedBatch:
        if config.loader_workers:
            parts = [part for _ in range(config.loader_workers) for part in next(shares)]
        else:
            parts = mix.parts(step, config.batch_size, ranks.rank, ranks.size)
        packed = mix.joined(parts, step, config.batch_size).trimmed()
        return packed.pinned() if ranks.device.type == "cuda" else packed

    with contextlib.closing(shares), prefetched(batch, first, config.steps, AHEAD) as batches:
        yield batches


def _shares(
    mix: Mix, config: TrainConfig, ranks: Ranks, steps: range
) -> Generator[list[tuple[Slots, PackedBatch]], None, None]:
    """Yield the shares of all loader processes in the batch of the first step, then of the next one, and so on."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # the user has decided
    loader = DataLoader(
        _Shares(mix, config.batch_size, ranks.rank, ranks.size, steps),
        batch_size=None,
        prefetch_factor=AHEAD,
        num_workers=config.loader_workers,
        multiprocessing_context="spawn",
        worker_init_fn=_ignore_interrupts,
        timeout=config.loader_seconds,
    )
    try:
        for share in loader:
            if isinstance(share, ZooError):
                raise share
            yield share
    except (RuntimeError, EOFError, OSError) as error:  # EOFError: it died while it sent a batch
        advice = "run the same command again, with fewer loader_workers or lanes if memory was short"
        reason = first_line(error) or "a process ended"
        raise MachineError(f"loader_workers {config.loader_workers}: {reason}; {advice}") from error


class _Shares(IterableDataset[Any]):
    """The shares of a loader process in the batches of some steps: its lanes."""

    def __init__(self, mix: Mix, size: int, rank: int, ranks: int, steps: range) -> None:
        self.mix, self.size, self.rank, self.ranks, self.steps = mix, size, rank, ranks, steps

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        reader, readers = self.rank + self.ranks * info.id, self.ranks * info.num_workers
        try:
            for step in self.steps:
                yield self.mix.parts(step, self.size, reader, readers)
        except ZooError as error:  # raised by the loader, it would be a traceback
            yield error


def _ignore_interrupts(worker: int) -> None:
    """Let the training end at an interrupt, which then ends the loader processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
