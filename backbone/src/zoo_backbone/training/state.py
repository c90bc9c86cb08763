"""What a run goes on from after a kill: weights, optimizer and step, on disk; DCP shards it among the processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tokenizers_zoo.errors import CheckpointError, is_of_the_machine
from tokenizers_zoo.io import check_opens, not_read, remove_folder, write_json
from zoo_backbone.model import FourM
from zoo_backbone.run import BACKBONE
from zoo_backbone.training.distributed import Ranks

PROGRESS = "progress.json"
MODEL = "model/"


@contextlib.contextmanager
def alone_is_fine() -> Iterator[None]:
    """DCP warns where there is one process, although it is told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


class StatePart(Protocol):
    """A part of a training that a later step depends on."""

    def state(self) -> dict[str, Tensor]:
        """Its tensors, by name."""

    def empty_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors like those of `state`, to be read into. Raises CheckpointError for names that are not its own."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""


class TrainingState:
    """Weights, the `parts` by name and the step in FOLDER/training_state/step-N, a safetensors file per process.

    Any number of processes can go on with what any other number wrote. Unlike DCP's own format, this has no pickle.
    """

    def __init__(self, folder: Path, model: FourM, parts: Mapping[str, StatePart], ranks: Ranks) -> None:
        self.folder = folder / BACKBONE.state
        self.model, self.parts, self.ranks = model, parts, ranks
        self.saved = 0

    def save(self, step: int, seconds: float) -> None:
        """Write the state after `step` steps, in one rename, and remove the one before."""
        weights = {f"{MODEL}{name}": tensor for name, tensor in self.model.state_dict().items()}
        kept = {f"{part}/{name}": tensor for part, of in self.parts.items() for name, tensor in of.state().items()}
        path, temporary = self.folder / folder_name(step), self.folder / f".{folder_name(step)}.tmp"
        if self.ranks.first:
            remove_folder(temporary)
            temporary.mkdir(parents=True)
        self.ranks.wait()
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        with alone_is_fine():
            save(weights | kept, storage_writer=writer, no_dist=self.ranks.size == 1)
        if self.ranks.first:
            write_json(temporary / PROGRESS, {"step": step, "seconds": seconds})
            remove_folder(path)
            os.replace(temporary, path)
            for old in self.folder.iterdir():
                if old != path:
                    remove_folder(old)
        self.ranks.wait()
        self.saved = step

    def load(self) -> tuple[int, float]:
        """Go on from the last state: the steps done and the seconds that they took. Raises CheckpointError."""
        found = sorted(self.folder.glob("step-*"))
        if not found:
            return 0, 0.0
        path = found[-1]
        step, seconds = read_progress(path)
        for file in sorted(path.glob("*.safetensors")):
            check_opens(file)
        reader = HuggingFaceStorageReader(str(path))
        weights = {f"{MODEL}{name}": tensor for name, tensor in self.model.state_dict().items()}
        try:
            stored = reader.read_metadata().state_dict_metadata
            if problem := incomplete(stored):
                raise damaged(path, f"expected the .safetensors files of all processes that wrote it, {problem}")
            kept = {
                part: of.empty_state(name.removeprefix(f"{part}/") for name in stored if name.startswith(f"{part}/"))
                for part, of in self.parts.items()
            }
            tensors = weights | {f"{part}/{name}": x for part, found in kept.items() for name, x in found.items()}
            with alone_is_fine():
                load(tensors, storage_reader=reader, no_dist=self.ranks.size == 1)
        except (CheckpointException, SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            cause = first_cause(error)
            if is_of_the_machine(cause):
                raise cause from None  # the state is sound
            raise damaged(path, f"its tensors cannot be read: {in_a_line(cause)}") from None
        for part, of in self.parts.items():
            of.load_state(kept[part])
        self.saved = step
        return step, seconds


def read_progress(state: Path) -> tuple[int, float]:
    """The step of a state's folder and the seconds that all steps took. Raises CheckpointError."""
    try:
        progress = json.loads((state / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise damaged(state, f"it has no {PROGRESS}") from None
    except OSError as error:
        raise not_read(state / PROGRESS, error) from None
    except ValueError as error:
        raise damaged(state, f"{PROGRESS} cannot be read as JSON: {error}") from None
    match progress:
        case {"step": int(step), "seconds": int(seconds) | float(seconds)} if (
            state.name == folder_name(step) and 0 <= seconds < math.inf
        ):
            return step, float(seconds)
    expected = 'the step in the name of its folder and a time, such as {"step": 4, "seconds": 1.5}'
    raise damaged(state, f"{PROGRESS}: expected {expected}, got {json.dumps(progress)[:80]}")


def incomplete(stored: Mapping[str, Any]) -> str | None:
    """What the files of a state lack, as DCP describes their tensors; None where they lack nothing.

    DCP itself reads what there is of a tensor whose first part is missing, and leaves the rest as it was.
    """
    if not stored:
        return "found none"
    for name, tensor in stored.items():
        if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) < math.prod(tensor.size):
            return f"found a part of {name}"
    return None


def folder_name(step: int) -> str:
    """That of the state after `step` steps."""
    return f"step-{step:08}"


def damaged(state: Path, problem: str) -> CheckpointError:
    """The error of a state that a run cannot go on with."""
    return CheckpointError(f"{state}: damaged: {problem}; remove it to start anew")


def first_cause(error: BaseException) -> BaseException:
    """What went wrong; DCP wraps the errors of all processes into one."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return error


def in_a_line(error: BaseException) -> str:
    """The first line of an error, its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
