"""Training in one process or, under torchrun, in several, among which FSDP2 shards the model."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils._pytree import register_dataclass

from tokenizers_zoo.errors import ZooError
from zoo_backbone.model import FourM, Losses
from zoo_backbone.training.optim import local

PATIENCE = timedelta(hours=2)
"""Processes that wait for the first, which reads and hashes inputs, and writes results, alone, are not ended before."""


class ProcessEndedError(ZooError):
    """Another of the processes that train together has ended."""


class Ranks:
    """The processes that train together; here, one alone."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def first(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        return tensor

    def shard(self, model: FourM) -> None:
        """Leave to each process its part of the parameters."""

    def drop_unused(self, model: FourM) -> None:
        """Drop the gradients of parameters that no process's part of the batch used."""

    def whole_state(self, model: FourM) -> dict[str, Tensor]:
        """The model's state dict; whole in the first process, which writes it."""
        return model.state_dict()


class ManyRanks(Ranks):
    """The processes that torchrun started."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)

    def wait(self) -> None:
        """Until all processes are here. Raises ProcessEndedError where one has ended, as one that refuses its task."""
        try:
            dist.barrier()
        except RuntimeError as error:
            if "by peer" not in str(error):  # gloo: connection closed, or reset, by peer
                raise
            raise ProcessEndedError(
                f"process {self.rank} of {self.size}: ended, as another one has; the error of that one says why"
            ) from None

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def shard(self, model: FourM) -> None:
        """Shard each block, and what is left with the model itself."""
        # FSDP finds its place in the backward pass through the tensors that forward gives.
        register_dataclass(Losses)
        # Keys and values are views of one tensor, which nothing writes to.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        for block in (*model.encoder, *model.decoder):
            fully_shard(block)
        for block in model.decoder:
            register_fsdp_forward_method(block, "keys_and_values")
        fully_shard(model)

    def drop_unused(self, model: FourM) -> None:
        """Drop the gradients of parameters that no process's part of the batch used."""
        parameters = model.sometimes_used()
        if not parameters:  # all of them are frozen
            return
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        used = self.total(torch.stack([gradient.any() for gradient in gradients]).float())
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            if not count:
                parameter.grad = None

    def whole_state(self, model: FourM) -> dict[str, Tensor]:
        """The model's state dict; whole in the first process, which writes it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def processes() -> int:
    """How many torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave() -> None:
    """End this process, whose work is done, at once where torchrun started it; alone it goes on.

    Threads that communicate may outlive the interpreter, and a process in which one then needs it is aborted.
    """
    if processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def leave_but_first() -> None:
    """`leave` in all processes that torchrun started but the first, which has results to tell."""
    if os.environ.get("RANK", "0") != "0":
        leave()


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes that torchrun started, joined for as long as the block lasts; else this one alone."""
    if processes() == 1:
        yield Ranks()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield ManyRanks()
    finally:
        dist.destroy_process_group()
