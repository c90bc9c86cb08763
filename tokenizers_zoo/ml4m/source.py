"""The files of a published checkpoint: config.json beside one or several .safetensors, or one that says all by itself.

The hub has both: files of 4M have their configuration in their metadata, too.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.checkpoint import CONFIG, WEIGHTS, fingerprint, joint_fingerprint
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.io import file_digest, metadata_of, read_table, replacing_file, write_json, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
PLAIN_METADATA = {"format": "pt"}
"""Metadata of a safetensors file that says no more than that torch wrote it."""
SAID = "file_metadata"
"""Key under which an imported checkpoint keeps what else the published file says of itself."""
KNOWN_AS = "known_as"
"""Key in the config.json of an imported backbone to which codecs were added later: its fingerprint before."""


@dataclass(frozen=True, kw_only=True)
class PublishedCheckpoint:
    """A configuration and tensors under their published names.

    `same_as` maps names to that of the tensor which stands for them: where a module holds one tensor under two names,
    files hold one of them and say so in their metadata. `tensors` has both. `metadata` is what else they say there,
    such as the configuration, which 4M's `load_safetensors` reads from it; all of it where it is not in this order.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    same_as: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=lambda: PLAIN_METADATA)
    place: str = "the checkpoint"
    """Where it was read from, for messages."""

    def said(self) -> dict[str, dict[str, str]]:
        """What an import keeps of the metadata: nothing of plain ones that stand first, which change no fingerprint."""
        return {} if self.metadata == PLAIN_METADATA else {SAID: dict(self.metadata)}

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


def read_published(source: Path) -> PublishedCheckpoint:
    """The checkpoint in a folder, or in one .safetensors file whose metadata has the configuration.

    Raises CheckpointError where a file is missing or damaged, or two disagree.
    """
    config = published_config(source)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for path in weight_files(source):
        with opened(path) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata |= metadata_of(path)
        if twice := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(
                f"{path}: has {twice[0]}, as another file of the folder has; keep one checkpoint in it"
            )
        tensors |= found
    same_as = {name: kept for name, kept in metadata.items() if kept in tensors and name not in tensors}
    tensors |= {name: tensors[kept] for name, kept in same_as.items()}
    said = {key: value for key, value in metadata.items() if key not in same_as}
    if list({**said, **same_as}) == list(metadata):
        metadata = said
    return PublishedCheckpoint(config=config, tensors=tensors, same_as=same_as, metadata=metadata, place=str(source))


def published_config(source: Path) -> dict[str, Any]:
    """The configuration of a checkpoint: a folder's config.json; of a file, what its metadata says key by key.

    4M's `load_safetensors` reads it from there. Raises CheckpointError where there is none, or it holds a number that
    JSON does not know.
    """
    config = _read_config(source)
    try:
        json.dumps(config, allow_nan=False)
    except ValueError:
        raise CheckpointError(
            f"{source}: {CONFIG} has a number that is not finite; write another in its place"
        ) from None
    return config


def _read_config(source: Path) -> dict[str, Any]:
    if source.is_dir():
        return read_table(source / CONFIG)
    if not source.is_file():
        raise CheckpointError(f"{source}: no such folder; give that of a checkpoint, with {CONFIG} and {WEIGHTS}")
    with opened(source) as file:
        names = set(file.keys())
    said = metadata_of(source)
    config = {key: _value(text) for key, text in said.items() if key not in PLAIN_METADATA and text not in names}
    if not config:
        raise CheckpointError(
            f"{source}: has no configuration in its metadata; download the {CONFIG} that was published with it, too, "
            "and give the folder of the two"
        )
    return config


def _value(text: str) -> Any:
    """What a text of a file's metadata means: JSON, or as Python writes it; else it is a text."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return json.loads(json.dumps(read(text)))
    return text


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A .safetensors file to read from. Raises CheckpointError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged: {reason}; copy the file again") from None


def weight_files(source: Path) -> list[Path]:
    """The files with the tensors of a checkpoint. Raises CheckpointError where there is none."""
    files = [source] if source.is_file() else sorted(source.glob(f"[!.]*{SUFFIX}"))
    if not files:
        raise CheckpointError(f"{source}: has no {SUFFIX} file; download all files of the checkpoint")
    return files


def weights_digest(source: Path) -> str:
    """sha256 (hex) of the files with the tensors of a checkpoint. Raises CheckpointError where there is none."""
    return joint_fingerprint(*map(file_digest, weight_files(source)))


def known_fingerprint(backbone: Path) -> str:
    """The fingerprint of a backbone that stays the same when codecs are added to what its config.json says.

    What was made with it before knows it by that. Raises CheckpointError where there is no checkpoint.
    """
    current = fingerprint(backbone)
    return str(read_table(backbone / CONFIG).get(KNOWN_AS, current))


def write_published(checkpoint: PublishedCheckpoint, folder: Path) -> None:
    """Write a checkpoint as it was published; a folder that holds one is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in checkpoint.same_as}
    with replacing_file(folder / WEIGHTS) as temporary:
        write_tensors(temporary, kept, {**checkpoint.metadata, **checkpoint.same_as} or None)
    write_json(folder / CONFIG, checkpoint.config)
