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
class TrainingRun:
    """A folder that belongs to one run, known by its `identity`: model, training settings, data and seed."""

    folder: Path
    identity: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> TrainingRun:
        """Take an empty folder, or one of the same run. Raises CheckpointError where it holds another."""
        identity = json.loads(json.dumps(identity, allow_nan=False))
        advice = "give another --out, or --overwrite to train it anew"
        if (folder / RUN).is_file():
            difference = _difference(read_table(folder / RUN), identity)
            if difference:
                raise CheckpointError(f"{folder}: holds a tokenizer trained otherwise ({difference}); {advice}")
        elif (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
            raise CheckpointError(f"{folder}: holds a checkpoint that was not trained here; {advice}")
        else:
            write_json(folder / RUN, identity)
        return cls(folder=folder, identity=identity)

    @property
    def finished(self) -> bool:
        """True where the checkpoint and its evaluation, which is written last, are there.

        Raises CheckpointError where the checkpoint has been damaged or altered since.
        """
        if not all((self.folder / name).is_file() for name in (EVALUATION, CONFIG, WEIGHTS)):
            return False
        check_weights(self.folder, load_config(self.folder))
        return True

    @property
    def digest(self) -> str:
        """sha256 of the identity: what ties a state file to its run."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def save(
        self,
        module: torch.nn.Module,
        average: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        seconds: float,
    ) -> None:
        """Write the state after `step` steps in one rename: tensors, with the counters in the file's own header."""
        from safetensors.torch import save_file

        tensors = {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
        tensors |= {f"average/{name}": tensor for name, tensor in average.state_dict().items()}
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in entry.items()}
        metadata = {"run": self.digest, "step": str(step), "seconds": str(seconds)}
        with replacing_file(self.folder / STATE) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)

    def restore(
        self, module: torch.nn.Module, average: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[int, float]:
        """Load the saved state, if there is one; returns the finished steps and the seconds that they took."""
        from safetensors import SafetensorError, safe_open

        if not (self.folder / STATE).is_file():
            return 0, 0.0
        try:
            with safe_open(self.folder / STATE, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / STATE}: damaged: {error}; remove it to start anew") from None
        if metadata.get("run") != self.digest:
            raise CheckpointError(f"{self.folder / STATE}: belongs to another run; remove it to start anew")
        module.load_state_dict(_under(tensors, "module/"))
        average.load_state_dict(_under(tensors, "average/"))
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in _under(tensors, "optimizer/").items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(metadata["step"]), float(metadata["seconds"])

    def forget_state(self) -> None:
        """Remove the state of a run that is finished."""
        (self.folder / STATE).unlink(missing_ok=True)


def _under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _difference(old: Any, new: Any, path: str = "") -> str:
    """The first place where two JSON values differ, as 'training.steps was 400, is 800'; empty where they agree."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = _difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if inner:
                return inner
        return ""
    return "" if old == new else f"{path} was {json.dumps(old)}, is {json.dumps(new)}"
