"""A step's batch computed in parts: side by side on a processor's cores, one after another elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from zoo_backbone.batch import PackedBatch
from zoo_backbone.model import Losses

Compute = Callable[[PackedBatch], Losses]


class Parts:
    """Gradients of a batch as the sum of those of `count` parts, whose losses add up to that of the batch.

    On a processor as many threads as there are cores, at most `count`, compute one part each: the operations of a
    small model are too short to be cut well across cores. The sum is always taken in the order of the parts, so the
    result depends on `count` and not on the threads. Use it in a `with` block, which ends them.
    """

    def __init__(self, model: nn.Module, count: int, *, together: bool) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.count = count
        self.cores = torch.get_num_threads()
        self.threads = min(count, self.cores) if together else 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.threads > 1:
            share = max(self.cores // self.threads, 1)
            self._pool = ThreadPoolExecutor(self.threads, "part", initializer=torch.set_num_threads, initargs=(share,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self.cores)

    def backward(self, batch: PackedBatch, compute: Compute, scale: float = 1.0) -> Losses:
        """Leave in `.grad` the gradient of `scale` times the loss; gives the losses of the whole batch."""
        parts = batch.split(self.count)
        if self._pool is None:
            losses = []
            for part in parts:
                losses.append(compute(part))
                torch.autograd.backward(losses[-1].loss * scale)
            return _whole(losses)
        results = list(self._pool.map(lambda part: self._gradients(compute(part), scale), parts))
        for parameter, *gradients in zip(self.parameters, *(gradients for _, gradients in results), strict=True):
            for gradient in gradients:
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return _whole([losses for losses, _ in results])

    def _gradients(self, losses: Losses, scale: float) -> tuple[Losses, Sequence[Tensor | None]]:
        return losses, torch.autograd.grad(losses.loss * scale, self.parameters, allow_unused=True)


def _whole(parts: Sequence[Losses]) -> Losses:
    """The losses of the batch that the parts make up."""
    first, *others = parts
    loss, sums, counts = first.loss.detach(), first.sums, first.counts
    for part in others:
        loss, sums, counts = loss + part.loss.detach(), sums + part.sums, counts + part.counts
    return Losses(loss=loss, sums=sums, counts=counts)
