"""What a training run keeps on disk: which run it is, and the state from which it goes on after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.checkpoint import (
    CONFIG,
    WEIGHTS,
    check_weights,
    load_config,
    read_table,
    replacing_file,
    write_json,
)
from tokenizers_zoo.errors import CheckpointError

if TYPE_CHECKING:
    import torch

RUN, STATE, EVALUATION = "run.json", "training_state.safetensors", "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """What `TrainingRun.restore` found."""

    tensors: Mapping[str, torch.Tensor]
    counters: Mapping[str, float]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors that were saved as part `name`, by their own names."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A folder that belongs to one run, known by its `identity`: model, training settings, data and seed."""

    folder: Path
    identity: Mapping[str, Any]
    result: str = EVALUATION
    """The file that is written last."""

    @classmethod
    def open(
        cls, folder: Path, identity: Mapping[str, Any], what: str = "tokenizer", result: str = EVALUATION
    ) -> TrainingRun:
        """Take an empty folder, or one of the same run. Raises CheckpointError where it holds another."""
        identity = json.loads(json.dumps(identity, allow_nan=False))
        advice = "give another --out, or --overwrite to train it anew"
        if (folder / RUN).is_file():
            difference = _difference(read_table(folder / RUN), identity)
            if difference:
                raise CheckpointError(f"{folder}: holds a {what} trained otherwise ({difference}); {advice}")
        elif (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
            raise CheckpointError(f"{folder}: holds a checkpoint that was not trained here; {advice}")
        else:
            write_json(folder / RUN, identity)
        return cls(folder=folder, identity=identity, result=result)

    @property
    def finished(self) -> bool:
        """True where the checkpoint and its result, which is written last, are there.

        Raises CheckpointError where the checkpoint has been damaged or altered since.
        """
        if not all((self.folder / name).is_file() for name in (self.result, CONFIG, WEIGHTS)):
            return False
        check_weights(self.folder, load_config(self.folder))
        return True

    @property
    def digest(self) -> str:
        """sha256 of the identity: what ties a state file to its run."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def save(
        self,
        parts: Mapping[str, Mapping[str, torch.Tensor]],
        optimizer: torch.optim.Optimizer,
        counters: Mapping[str, float],
    ) -> None:
        """Write the state in one rename: tensors by part and name, with the counters in the file's own header."""
        from safetensors.torch import save_file

        tensors = {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in entry.items()}
        metadata = {"run": self.digest, **{name: repr(number) for name, number in counters.items()}}
        with replacing_file(self.folder / STATE) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)

    def restore(self, optimizer: torch.optim.Optimizer) -> SavedState | None:
        """The saved state, if there is one, with that of `optimizer` loaded into it."""
        from safetensors import SafetensorError, safe_open

        if not (self.folder / STATE).is_file():
            return None
        try:
            with safe_open(self.folder / STATE, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / STATE}: damaged: {error}; remove it to start anew") from None
        if metadata.pop("run", None) != self.digest:
            raise CheckpointError(f"{self.folder / STATE}: belongs to another run; remove it to start anew")
        saved = SavedState(tensors=tensors, counters={name: float(number) for name, number in metadata.items()})
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in saved.part("optimizer").items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return saved

    def forget_state(self) -> None:
        """Remove the state of a run that is finished."""
        (self.folder / STATE).unlink(missing_ok=True)


def _difference(old: Any, new: Any, path: str = "") -> str:
    """The first place where two JSON values differ, as 'training.steps was 400, is 800'; empty where they agree."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = _difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if inner:
                return inner
        return ""
    return "" if old == new else f"{path} was {json.dumps(old)}, is {json.dumps(new)}"
