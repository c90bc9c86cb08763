"""Training in one process or, under torchrun, in several with FSDP2; training states on disk by DCP."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

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

from tokenizers_zoo.errors import CheckpointError, ZooError, is_of_the_machine
from tokenizers_zoo.io import check_opens, not_read, remove_folder, write_json
from zoo_backbone.model import FourM, Losses
from zoo_backbone.optim import local
from zoo_backbone.run import BACKBONE

TIMEOUT = timedelta(hours=2)
"""Processes wait this long for the first one, which reads and hashes inputs and writes results alone."""
PROGRESS = "progress.json"


class ProcessEndedError(ZooError):
    """Another training process has ended."""


class Ranks:
    """The processes that train together; this class is a single process."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def first(self) -> bool:
        """True in the process that writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all processes."""

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes."""
        return tensor

    def shard(self, model: FourM) -> None:
        """Shard the model's parameters over the processes."""

    def drop_unused(self, model: FourM) -> None:
        """Drop gradients of parameters that no process used in this step."""

    def whole_state(self, model: FourM) -> dict[str, Tensor]:
        """Return the model's state dict; complete in the first process only."""
        return model.state_dict()


class ManyRanks(Ranks):
    """The processes started by torchrun."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)

    def wait(self) -> None:
        """Wait for all processes. Raises ProcessEndedError if one has ended, for example with an error."""
        try:
            dist.barrier()
        except RuntimeError as error:
            if "by peer" not in str(error):  # gloo: connection closed, or reset, by peer
                raise
            raise ProcessEndedError(
                f"process {self.rank} of {self.size}: ended, as another one has; the error of that one says why"
            ) from None

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes."""
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def shard(self, model: FourM) -> None:
        """Shard each block, and all other parameters with the model itself."""
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
        parameters = model.sometimes_used()
        if not parameters:  # frozen
            return
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        used = self.total(torch.stack([gradient.any() for gradient in gradients]).float())
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            if not count:
                parameter.grad = None

    def whole_state(self, model: FourM) -> dict[str, Tensor]:
        """Return the model's state dict; complete in the first process only."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def processes() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave() -> None:
    """End this process if torchrun started it.

    Communication threads may outlive the interpreter, which would abort the process at its exit.
    """
    if processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def leave_but_first() -> None:
    """End all processes that torchrun started except the first, which prints results."""
    if os.environ.get("RANK", "0") != "0":
        leave()


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started within the block; without torchrun, this process alone."""
    if processes() == 1:
        yield Ranks()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield ManyRanks()
    finally:
        dist.destroy_process_group()


class StatePart(Protocol):
    """A part of the training state besides the weights."""

    def state(self) -> dict[str, Tensor]:
        """Return its tensors by name."""

    def empty_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors like those of `state` to read into. Raises CheckpointError for unknown names."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""


class TrainingState:
    """Weights, further `parts` and the step in FOLDER/training_state/step-N, with one safetensors file per process.

    Any number of processes can resume from it. Unlike DCP's own format, it has no pickle.
    """

    def __init__(self, folder: Path, model: FourM, parts: Mapping[str, StatePart], ranks: Ranks) -> None:
        self.folder = folder / BACKBONE.state
        self.model, self.parts, self.ranks = model, parts, ranks

    def _weights(self) -> dict[str, Tensor]:
        return {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}

    def save(self, step: int, seconds: float) -> None:
        """Write the state after `step` steps with one rename, and remove the previous one."""
        parts = {f"{part}/{name}": tensor for part, of in self.parts.items() for name, tensor in of.state().items()}
        path, temporary = self.folder / f"step-{step:08}", self.folder / f".step-{step:08}.tmp"
        if self.ranks.first:
            remove_folder(temporary)
            temporary.mkdir(parents=True)
        self.ranks.wait()
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        with _without_warnings():
            save(self._weights() | parts, storage_writer=writer, no_dist=self.ranks.size == 1)
        if self.ranks.first:
            write_json(temporary / PROGRESS, {"step": step, "seconds": seconds})
            remove_folder(path)
            os.replace(temporary, path)
            for old in self.folder.iterdir():
                if old != path:
                    remove_folder(old)
        self.ranks.wait()

    def load(self) -> tuple[int, float]:
        """Load the last state; return its step and the seconds that all steps took. Raises CheckpointError."""
        found = sorted(self.folder.glob("step-*"))
        if not found:
            return 0, 0.0
        path = found[-1]
        step, seconds = _read_progress(path)
        for file in sorted(path.glob("*.safetensors")):
            check_opens(file)
        reader = HuggingFaceStorageReader(str(path))
        try:
            stored = reader.read_metadata().state_dict_metadata
            if problem := _missing(stored):
                raise _damaged(path, f"expected the .safetensors files of all processes that wrote it, {problem}")
            parts = {
                part: of.empty_state(name.removeprefix(f"{part}/") for name in stored if name.startswith(f"{part}/"))
                for part, of in self.parts.items()
            }
            flat = {f"{part}/{name}": tensor for part, found in parts.items() for name, tensor in found.items()}
            with _without_warnings():
                load(self._weights() | flat, storage_reader=reader, no_dist=self.ranks.size == 1)
        except (CheckpointException, SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            cause: BaseException = error
            while isinstance(cause, CheckpointException) and cause.failures:  # DCP wraps the errors of all processes
                cause = next(iter(cause.failures.values()))[0]
            if is_of_the_machine(cause):
                raise cause from None  # the state is sound
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise _damaged(path, f"its tensors cannot be read: {reason}") from None
        for part, of in self.parts.items():
            of.load_state(parts[part])
        return step, seconds


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence DCP's warning about a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _read_progress(state: Path) -> tuple[int, float]:
    try:
        progress = json.loads((state / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _damaged(state, f"it has no {PROGRESS}") from None
    except OSError as error:
        raise not_read(state / PROGRESS, error) from None
    except ValueError as error:
        raise _damaged(state, f"{PROGRESS} cannot be read as JSON: {error}") from None
    match progress:
        case {"step": int(step), "seconds": int(seconds) | float(seconds)} if (
            state.name == f"step-{step:08}" and 0 <= seconds < math.inf
        ):
            return step, float(seconds)
    expected = 'the step in the name of its folder and a time, such as {"step": 4, "seconds": 1.5}'
    raise _damaged(state, f"{PROGRESS}: expected {expected}, got {json.dumps(progress)[:80]}")


def _missing(stored: Mapping[str, Any]) -> str:
    """Describe missing files of a state. DCP itself would leave missing parts of a tensor as they are."""
    for name, tensor in stored.items():
        if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) < math.prod(tensor.size):
            return f"found a part of {name}"
    return "" if stored else "found none"


def _damaged(state: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{state}: damaged: {problem}; remove it to start again")
