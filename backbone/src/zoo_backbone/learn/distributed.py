"""Training in one process or, under torchrun, in several with FSDP2; training states on disk by DCP."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils._pytree import register_dataclass

from tokenizers_zoo.errors import CheckpointError, ZooError, first_line, is_of_the_machine
from tokenizers_zoo.machine.device import AUTO, resolve_device
from tokenizers_zoo.records.io import file_digest, read_record, remove_folder, write_table
from zoo_backbone.learn.optim import local
from zoo_backbone.model.fourm import FourM, Losses
from zoo_backbone.model.run import BACKBONE

TIMEOUT = timedelta(hours=2)
"""Processes wait this long for the first one, which reads and hashes inputs and writes results alone."""
REMEDY = "remove it to start again"
"""Shape of the checksums of a training state."""


@dataclass(frozen=True, kw_only=True)
class StateRecord:
    """The files of one process in a training state."""

    files: Mapping[str, str]
    """sha256 of each file, by name."""
    processes: int
    """Number of processes that wrote the state."""


class Ranks:
    """The processes that train together on a kind of device: torchrun's (see `ranks`), or only this process."""

    def __init__(self, device: str = AUTO) -> None:
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = torch.device(resolve_device(device))
        if self.size > 1 and self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)

    @property
    def first(self) -> bool:
        """True in the process that writes files."""
        return self.rank == 0

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def shard(self, model: FourM) -> None:
        """Shard each block over the processes, and all other parameters with the model itself."""
        if self.size == 1:
            return
        # FSDP finds its place in the backward pass through the tensors that forward returns.
        register_dataclass(Losses)
        # Keys and values are views of one tensor, which nothing writes to.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        for block in (*model.encoder, *model.decoder):
            fully_shard(block)
        for block in model.decoder:
            register_fsdp_forward_method(block, "keys_and_values")
        fully_shard(model)

    def drop_unused(self, model: FourM) -> None:
        """Drop gradients of parameters that no process used in this step."""
        parameters = model.sometimes_used() if self.size > 1 else []
        if not parameters:  # frozen
            return
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        used = self.total(torch.stack([gradient.any() for gradient in gradients]).float())
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            if not count:
                parameter.grad = None

    def full_state(self, model: FourM) -> dict[str, Tensor]:
        """Return the model's state dict; complete in the first process only."""
        if self.size == 1:
            return model.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def processes() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave(*, first: bool = True) -> None:
    """End this process if torchrun started it; without `first`, not the first process, which prints results.

    Communication threads may outlive the interpreter, which would abort the process at its exit.
    """
    if processes() > 1 and (first or os.environ.get("RANK", "0") != "0"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextlib.contextmanager
def ranks(device: str = AUTO) -> Iterator[Ranks]:
    """Join the processes that torchrun started within the block; without torchrun, this process alone."""
    if processes() == 1:
        yield Ranks(device)
        return
    on_gpus = resolve_device(device).startswith("cuda")
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(device)
    finally:
        dist.destroy_process_group()


class TrainingState:
    """Weights, further `parts` and the step in FOLDER/training_state/step-N, with one safetensors file per process.

    A part returns its tensors by name, which loading writes into. Any number of processes can resume from the state.
    Unlike DCP's own format, it has no pickle. checksums-N.json, one per process, have the sha256 of the files.
    """

    def __init__(
        self, folder: Path, model: FourM, parts: Mapping[str, Callable[[], dict[str, Tensor]]], ranks: Ranks
    ) -> None:
        self.folder = folder / BACKBONE.state
        self.model, self.parts, self.ranks = model, parts, ranks
        self.seconds = torch.zeros((), dtype=torch.float64)
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # of a single process

    def _tensors(self) -> dict[str, Tensor]:
        states = {"model": self.model.state_dict(), **{name: part() for name, part in self.parts.items()}}
        tensors = {f"{part}/{name}": tensor for part, state in states.items() for name, tensor in state.items()}
        return tensors | {"seconds": self.seconds}

    def save(self, step: int, seconds: float) -> None:
        """Write the state after `step` steps with one rename, and remove the previous one."""
        path, temporary = self.folder / f"step-{step:08}", self.folder / f".step-{step:08}.tmp"
        if self.ranks.first:
            remove_folder(temporary)
            temporary.mkdir(parents=True)
        self.ranks.wait()
        self.seconds.fill_(seconds)
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        save(self._tensors(), storage_writer=writer, no_dist=self.ranks.size == 1)
        digests = {file.name: file_digest(file) for file in self._files_of_rank(temporary)}
        write_table(
            temporary / f"checksums-{self.ranks.rank:05}.json", StateRecord(files=digests, processes=self.ranks.size)
        )
        self.ranks.wait()
        if self.ranks.first:
            remove_folder(path)
            os.replace(temporary, path)
            self._remove_others(path)
        self.ranks.wait()

    def load(self) -> tuple[int, float]:
        """Load the last state; return its step and the seconds that all steps took. Raises CheckpointError."""
        path = max(self.folder.glob("step-" + 8 * "[0-9]"), default=None)
        if path is None:
            return 0, 0.0
        self._verify(path)
        reader = HuggingFaceStorageReader(str(path))
        try:
            load(self._tensors(), storage_reader=reader, no_dist=self.ranks.size == 1)
        except (CheckpointException, SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            cause: BaseException = error
            while isinstance(cause, CheckpointException) and cause.failures:  # DCP wraps the errors of all processes
                cause = next(iter(cause.failures.values()))[0]
            if is_of_the_machine(cause):
                raise cause from None  # the state is sound
            raise _damaged(path, f"its tensors cannot be read: {first_line(cause)}") from None
        if self.ranks.first:
            self._remove_others(path)  # of a process that was killed while it saved
        return int(path.name.removeprefix("step-")), float(self.seconds)

    def _remove_others(self, path: Path) -> None:
        for entry in self.folder.iterdir():
            if entry != path:
                remove_folder(entry)

    def _files_of_rank(self, path: Path) -> list[Path]:
        """Return the files that this process hashes."""
        return sorted(path.glob("*.safetensors"))[self.ranks.rank :: self.ranks.size]

    def _verify(self, path: Path) -> None:
        """Raise CheckpointError, in all processes, unless all files have their checksums."""
        failure: ZooError | None = None
        try:
            records = [read_record(file, StateRecord, remedy=REMEDY) for file in path.glob("checksums-*.json")]
            digest_by_file = {name: digest for record in records for name, digest in record.files.items()}
            complete = digest_by_file.keys() == {file.name for file in path.glob("*.safetensors")}
            if not records or not complete or records[0].processes != len(records):
                raise _damaged(path, "expected the files of all processes that wrote it, some are missing")
            for file in self._files_of_rank(path):
                if file_digest(file) != digest_by_file[file.name]:
                    raise _damaged(path, f"{file.name} has another checksum than when it was written")
        except ZooError as error:
            failure = error
        if self.ranks.total(torch.tensor(float(failure is not None), device=self.ranks.device)):
            raise failure or _damaged(path, "see the message of another process")


def _damaged(state: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{state}: damaged: {reason}; {REMEDY}")
