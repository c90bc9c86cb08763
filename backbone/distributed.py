"""Training in one process or, under torchrun, in several: FSDP2 shards the model, DCP its state."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from backbone.model import FourM
from backbone.optim import Optimizer
from tokenizers_zoo.checkpoint import read_json, replacing_file, write_json
from tokenizers_zoo.errors import CheckpointError

STATE = "training_state.safetensors"
SHARDS = "training_state"
LAST = "training_state.last.json"


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

    def whole_state(self, model: FourM) -> dict[str, Tensor]:
        """The model's state dict; whole in the first process, which writes it."""
        return model.state_dict()

    def state(self, folder: Path, model: FourM, optimizer: Optimizer) -> FileState | ShardedState:
        """Where the state of training is kept."""
        return FileState(folder, model, optimizer)


class ManyRanks(Ranks):
    """The processes that torchrun started."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)

    def wait(self) -> None:
        """Until all processes are here."""
        dist.barrier()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def shard(self, model: FourM) -> None:
        """Shard each block, and what is left with the model itself."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for block in (*model.encoder, *model.decoder):
            fully_shard(block)
        for block in model.decoder:
            register_fsdp_forward_method(block, "keys_and_values")
        fully_shard(model)

    def whole_state(self, model: FourM) -> dict[str, Tensor]:
        """The model's state dict; whole in the first process, which writes it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def state(self, folder: Path, model: FourM, optimizer: Optimizer) -> FileState | ShardedState:
        """Where the state of training is kept."""
        return ShardedState(folder, model, optimizer, self)


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes that torchrun started, joined for as long as the block lasts; else this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield ManyRanks()
    finally:
        dist.destroy_process_group()


class FileState:
    """The state of training in one file: weights, optimizer, and in its header the step."""

    def __init__(self, folder: Path, model: FourM, optimizer: Optimizer) -> None:
        self.path = folder / STATE
        self.model, self.optimizer = model, optimizer
        self.saved = 0

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by name."""
        weights = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        return weights | {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}

    def save(self, step: int, seconds: float) -> None:
        """Write the state after `step` steps, in one rename."""
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        with replacing_file(self.path) as temporary:
            save_file(tensors, temporary, {"step": str(step), "seconds": str(seconds)})
        self.saved = step

    def load(self) -> tuple[int, float]:
        """Go on from the last state: the steps done and the seconds that they took. Raises CheckpointError."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return 0, 0.0
        try:
            with safe_open(self.path, "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            self.model.load_state_dict(under(tensors, "model/"))
            self.optimizer.load_state(under(tensors, "optimizer/"))
            self.saved = int(header["step"])
            return self.saved, float(header["seconds"])
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self.path}: damaged: {reason}; remove it to start anew") from None

    def forget(self) -> None:
        """Remove the state of a run that is finished."""
        self.path.unlink(missing_ok=True)


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
