"""What quantizers exchange between processes that train together, so that all of them hold the same codebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


def world_size() -> int:
    """Processes that train together, asked anew each time: the library caches its answer for the process's life."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def add_up(tensor: Tensor) -> None:
    """Replace `tensor` by its sum over the processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def mean_with_gradient(tensor: Tensor) -> Tensor:
    """The mean over the processes, whose gradient reaches each process's part."""
    count = world_size()
    return dist_nn.all_reduce(tensor) / count if count > 1 else tensor


def take_first_process(module: nn.Module) -> None:
    """Give the buffers of `module` (codebooks that no optimizer moves) the values of the first process."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def sample_over_processes(local: Float[Tensor, "1 n dim"], count: int) -> Float[Tensor, "1 count dim"]:
    """`count` of the vectors of all processes at random, the same ones everywhere.

    The library's own version reads what its asynchronous broadcasts may not have written yet (gloo).
    """
    vectors = local[0]
    if len(vectors) >= count:
        chosen = torch.randperm(len(vectors), device=vectors.device)[:count]
    else:
        chosen = torch.randint(len(vectors), (count,), device=vectors.device)
    own = vectors[chosen].contiguous()
    offered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(offered, own)
    owner = torch.randint(world_size(), (count,), device=vectors.device)
    dist.broadcast(owner, src=0)
    return torch.stack(offered)[owner, torch.arange(count, device=vectors.device)][None]
