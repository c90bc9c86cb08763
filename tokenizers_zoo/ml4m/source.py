"""The files of a published checkpoint: config.json beside one or several .safetensors, as the hub has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.checkpoint import CONFIG, WEIGHTS, read_table, replacing_file, write_json, write_tensors
from tokenizers_zoo.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

NOT_NAMES = ("format",)
"""Keys of a safetensors file's metadata that are not names of tensors."""


@dataclass(frozen=True, kw_only=True)
class PublishedCheckpoint:
    """A configuration and tensors under their published names.

    `same_as` maps names to that of the tensor which stands for them: where a module holds one tensor under two names,
    files hold one of them and say so in their metadata. `tensors` has both.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    same_as: Mapping[str, str] = field(default_factory=dict)
    place: str = "the checkpoint"
    """Where it was read from, for messages."""

    @property
    def is_backbone(self) -> bool:
        """Whether it is a model over several modalities, and not a tokenizer of one."""
        return "domains_in" in self.config

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor by its name; `shape` is what it has to be. Raises CheckpointError where it is not so, or absent."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.place}: has no tensor {name}; copy the folder again")
        tensor = self.tensors[name]
        if shape and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.place}: {name} is {list(tensor.shape)}, and its config.json asks for {list(shape)}"
            )
        return tensor


def read_published(folder: Path) -> PublishedCheckpoint:
    """The checkpoint in a folder. Raises CheckpointError where a file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give that of a checkpoint, with {CONFIG} and {WEIGHTS}")
    config = read_table(folder / CONFIG)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: has no .safetensors file; download all files of the checkpoint")
    tensors: dict[str, Tensor] = {}
    same_as: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                same_as |= {key: name for key, name in (file.metadata() or {}).items() if key not in NOT_NAMES}
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: damaged: {reason}; copy the file again") from None
    same_as = {name: kept for name, kept in same_as.items() if kept in tensors and name not in tensors}
    tensors |= {name: tensors[kept] for name, kept in same_as.items()}
    return PublishedCheckpoint(config=config, tensors=tensors, same_as=same_as, place=str(folder))


def write_published(checkpoint: PublishedCheckpoint, folder: Path) -> None:
    """Write a checkpoint as it was published; a folder that holds one is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in checkpoint.same_as}
    with replacing_file(folder / WEIGHTS) as temporary:
        write_tensors(temporary, kept, {"format": "pt", **checkpoint.same_as})
    write_json(folder / CONFIG, checkpoint.config)
