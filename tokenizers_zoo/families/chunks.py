"""A model run on a batch in chunks of one size, so that what comes of a sample does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.progress import tick

if TYPE_CHECKING:
    from torch import Tensor


def chunk_size(budgets: Mapping[str, int], device: str, sample: int) -> int:
    """Samples of one chunk, at least 1, from the numbers that fit by kind of device and those that a sample has."""
    return max(1, budgets.get(device.split(":")[0], budgets["cpu"]) // sample)


def in_chunks(function: Callable[[Tensor], Tensor], batch: Tensor, size: int, device: str) -> Iterator[Tensor]:
    """What `function` gives on `device` for each `size` rows of `batch`, moved to where `batch` is.

    Always for `size` rows: the last ones are filled up, as libraries choose kernels that round otherwise for other
    sizes. Raises InvalidValueError for a batch of none.
    """
    if not len(batch):
        raise InvalidValueError("encode and decode need at least one sample")
    for number, chunk in enumerate(batch.split(size), 1):
        filled = torch.cat([chunk, chunk[-1:].expand(size - len(chunk), *chunk.shape[1:])])
        with torch.inference_mode():
            result = function(filled.to(device))[: len(chunk)].to(batch.device)
        tick(min(1.0, number * size / len(batch)))
        yield result
