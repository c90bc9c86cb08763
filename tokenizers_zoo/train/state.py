"""Training state of tokenizers and probes: tensors, optimizer and counters in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.io import check_opens, replacing_file, write_tensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """What `load_state` read."""

    tensors: Mapping[str, torch.Tensor]
    counters: Mapping[str, float]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors that were saved as part `name`, by their own names."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def save_state(
    path: Path,
    parts: Mapping[str, Mapping[str, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    counters: Mapping[str, float],
) -> None:
    """Write a state atomically; `counters` go into the file's header."""
    tensors = {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in entry.items()}
    with replacing_file(path) as temporary:
        write_tensors(temporary, tensors, {name: repr(number) for name, number in counters.items()})


def load_state(path: Path, optimizer: torch.optim.Optimizer) -> SavedState:
    """Read what `save_state` wrote, and load the optimizer's state. Raises CheckpointError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    check_opens(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; remove it to start again") from None
    saved = SavedState(tensors=tensors, counters={name: float(number) for name, number in metadata.items()})
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in saved.part("optimizer").items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return saved
