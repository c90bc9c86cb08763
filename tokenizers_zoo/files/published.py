"""Files of a published checkpoint: a folder with config.json and .safetensors files, or one .safetensors file.

A single file has the configuration in its metadata. The hub has both forms.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.files.checkpoint import CONFIG, WEIGHTS, check_finite, fingerprint, joint_fingerprint
from tokenizers_zoo.records.io import (
    file_digest,
    json_text,
    metadata_of,
    open_regular,
    read_json,
    read_table,
    replacing_file,
    write_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
PLAIN_METADATA = {"format": "pt"}
"""Default metadata of a safetensors file written by torch."""
EXTRA_METADATA = "file_metadata"
"""Key in an imported checkpoint for the other metadata of the published file."""
KNOWN_AS = "known_as"
"""Key in the config.json of an imported backbone for its fingerprint before tokenizers were added."""


@dataclass(frozen=True, kw_only=True)
class PublishedCheckpoint:
    """A configuration and tensors under their published names.

    If a module holds one tensor under two names, files store it once and list the other name in their metadata.
    `same_as` maps the other name to the stored name; `tensors` has both. `metadata` is the remaining metadata, such as
    the configuration, which 4M's `load_safetensors` reads from it. It is the complete metadata if the shared names do
    not come last.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    same_as: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=lambda: PLAIN_METADATA)
    path: str = "the checkpoint"
    """Path that it was read from, for error messages."""

    def extra_metadata(self) -> dict[str, dict[str, str]]:
        """Return the metadata that an import stores. Default metadata are not stored, so that fingerprints stay the
        same."""
        return {} if self.metadata == PLAIN_METADATA else {EXTRA_METADATA: dict(self.metadata)}

    @property
    def is_backbone(self) -> bool:
        """Whether it is a model over several modalities, and not a tokenizer of one."""
        return "domains_in" in self.config

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Return a tensor by name. Raises CheckpointError if it is absent or its shape is not `shape`."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: has no tensor {name}; copy the folder again")
        tensor = self.tensors[name]
        if shape and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.path}: {name} is {list(tensor.shape)}, and its config.json asks for {list(shape)}"
            )
        return tensor


def read_published(source: Path) -> PublishedCheckpoint:
    """Read the checkpoint in a folder, or in one .safetensors file with the configuration in its metadata.

    Raises CheckpointError if a file is missing or damaged, or two files have the same tensor.
    """
    config = published_config(source)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for path in weight_files(source):
        with open_tensors(path) as file:
            file_tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata |= metadata_of(path)
        if duplicates := sorted(file_tensors.keys() & tensors.keys()):
            raise CheckpointError(
                f"{path}: has {duplicates[0]}, as another file of the folder has; keep one checkpoint in it"
            )
        check_finite(path, file_tensors)
        tensors |= file_tensors
    same_as = {alias: name for alias, name in metadata.items() if name in tensors and alias not in tensors}
    tensors |= {alias: tensors[name] for alias, name in same_as.items()}
    other_metadata = {key: value for key, value in metadata.items() if key not in same_as}
    if list({**other_metadata, **same_as}) == list(metadata):
        metadata = other_metadata
    return PublishedCheckpoint(config=config, tensors=tensors, same_as=same_as, metadata=metadata, path=str(source))


def published_config(source: Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint: a folder's config.json, or the metadata of a file.

    4M's `load_safetensors` reads the metadata, too. Raises CheckpointError if there is no configuration, or it has a
    number that is not finite.
    """
    if source.is_dir():
        config = read_json(source / CONFIG)
        if not isinstance(config, dict):
            raise CheckpointError(f"{source / CONFIG}: expected a table; copy it again")
    elif source.is_file():
        with open_tensors(source) as file:
            names = set(file.keys())
        texts = metadata_of(source)
        config = {key: _value(text) for key, text in texts.items() if key not in PLAIN_METADATA and text not in names}
        if not config:
            remedy = f"download the {CONFIG} that was published with it, too, and give the folder of the two"
            raise CheckpointError(f"{source}: has no configuration in its metadata; {remedy}")
    else:
        raise CheckpointError(f"{source}: no such folder; give a checkpoint's folder, with {CONFIG} and {WEIGHTS}")
    try:
        json.dumps(config, allow_nan=False)
    except ValueError:
        reason = f"{CONFIG} has a number that is not finite; write another in its place"
        raise CheckpointError(f"{source}: {reason}") from None
    return config


def _value(text: str) -> Any:
    """Parse a metadata text as JSON or as a Python literal; return it unchanged if it is neither."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return json.loads(json.dumps(read(text)))
    return text


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a .safetensors file for reading. Raises CheckpointError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path), safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged: {reason}; copy the file again") from None


def weight_files(source: Path) -> list[Path]:
    """Return the files with the tensors of a checkpoint. Raises CheckpointError if there are none."""
    files = [source] if source.is_file() else sorted(source.glob(f"[!.]*{SUFFIX}"))
    if not files:
        raise CheckpointError(f"{source}: has no {SUFFIX} file; download all files of the checkpoint")
    return files


def weights_digest(source: Path) -> str:
    """Return the sha256 (hex) of the files with the tensors. Raises CheckpointError if there are none."""
    return joint_fingerprint(*map(file_digest, weight_files(source)))


def known_fingerprint(backbone: Path) -> str:
    """Return the fingerprint of a backbone, which stays the same when tokenizers are added to its config.json.

    Existing outputs refer to the backbone by it. Raises CheckpointError if there is no checkpoint.
    """
    digest = fingerprint(backbone)
    return str(read_table(backbone / CONFIG).get(KNOWN_AS, digest))


def write_published(checkpoint: PublishedCheckpoint, folder: Path) -> None:
    """Write a checkpoint in the published format; an existing checkpoint in the folder is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    unique_tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in checkpoint.same_as}
    with replacing_file(folder / WEIGHTS) as temporary:
        write_tensors(temporary, unique_tensors, {**checkpoint.metadata, **checkpoint.same_as} or None)
    with replacing_file(folder / CONFIG) as temporary:
        temporary.write_text(json_text(checkpoint.config), encoding="utf-8")
