"""Checkpoint folders (model.safetensors, config.json, README.md), written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers_zoo.errors import CheckpointError, ConfigError, OneLineError, first_line, is_of_the_machine
from tokenizers_zoo.records.io import (
    REMEDY,
    as_record,
    file_digest,
    read_record,
    read_table,
    replacing_file,
    table_text,
    write_tensors,
)

if TYPE_CHECKING:
    import torch

    StateDict = Mapping[str, torch.Tensor]

T = TypeVar("T")
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB_FILES = ("*.safetensors", "*.json", "*.toml", "golden/*", "samples/*", "tokens/*", "wheels/*")
"""Files of tokenizers, backbones and bundles that are downloaded from the hub."""
ORIGIN = "published"
"""Key of config.json for the origin of a checkpoint imported from 4M."""
COPY_AGAIN = "copy this folder again, or make it anew in another"
_torch_state_lock = threading.RLock()


def _unlock() -> None:
    """Replace the lock after a fork: the new process inherits the lock, but not the thread that would release it."""
    global _torch_state_lock
    _torch_state_lock = threading.RLock()


os.register_at_fork(after_in_child=_unlock)


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A checkpoint that another one grew from."""

    fingerprint: str
    length: int
    """Its number of ids."""


@dataclass(frozen=True, kw_only=True)
class PublishedOrigin:
    """The published checkpoint that a tokenizer was imported from."""

    config: Mapping[str, Any]
    same_as: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """The keys of config.json that checkpoints of several classes have, in addition to "class"."""

    weights_sha256: str = ""
    modality: str | None = None
    lineage: tuple[Ancestor, ...] = ()
    """The checkpoints that it grew from, oldest first."""
    published: PublishedOrigin | None = None


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Load networks independently of the caller's torch state.

    Weights are float32 on the CPU whatever the defaults, and trainable even in inference mode. Torch's random state on
    the CPU stays the same. Threads wait for one another.
    """
    import torch

    with (
        _torch_state_lock,
        float32_by_default(),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        yield


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Make float32 the default dtype of new tensors.

    The default belongs to the whole process: if it has to change, threads wait for each other.
    """
    import torch

    with contextlib.ExitStack() as stack:
        stack.enter_context(_torch_state_lock)  # another thread may have changed it for a while
        dtype = torch.get_default_dtype()
        if dtype == torch.float32:
            stack.close()
        else:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


def card_row(*cells: object) -> str:
    """Return a row of a Markdown table, with bars in cells escaped."""
    escaped = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def save_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], card: str) -> str:
    """Write a checkpoint folder, or replace its checkpoint, and return the fingerprint.

    config.json is written last: with it the checkpoint is complete. If the weights stay the same, only config.json is
    replaced. Other weights remove the old config.json first, so a kill never leaves new weights with an old config.
    Other files of the folder are kept. `config` needs the key "class", which says what can load it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (  # renamed in reverse order once all are written
        replacing_file(folder / CONFIG) as new_config,
        replacing_file(folder / CARD) as new_card,
        replacing_file(folder / WEIGHTS) as new_weights,
    ):
        write_tensors(new_weights, tensors)
        digest = file_digest(new_weights)
        new_card.write_text(card, encoding="utf-8")
        new_config.write_text(table_text({**config, "weights_sha256": digest}), encoding="utf-8")
        if not _has_weights(folder, digest):
            (folder / CONFIG).unlink(missing_ok=True)
    return fingerprint(folder)


def _has_weights(folder: Path, digest: str) -> bool:
    """Return whether the config in a folder records this sha256 of the weights."""
    with contextlib.suppress(CheckpointError):
        return read_record(folder / CONFIG, CheckpointRecord).weights_sha256 == digest
    return False


def load_checkpoint(folder: Path, expected_class: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the config of a checkpoint folder.

    Raises CheckpointError if a file is missing or damaged, the weights and the config do not belong together, or the
    config's "class" is not `expected_class`.
    """
    config, _ = verified_config(folder, expected_class)
    return _load_tensors(folder / WEIGHTS), config


def load_record(folder: Path, expected_class: str, record_class: type[T]) -> tuple[dict[str, torch.Tensor], T]:
    """As `load_checkpoint`, with the config as a record of its class."""
    config, _ = verified_config(folder, expected_class)
    record = as_record(config, record_class, folder / CONFIG)
    return _load_tensors(folder / WEIGHTS), record


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, all numbers finite. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; {COPY_AGAIN}") from None
    check_finite(path, tensors)
    return tensors


def config_record(folder: Path, expected_class: str | None, record_class: type[T]) -> T:
    """Return the config of a checkpoint folder as a record of its class. Raises CheckpointError."""
    return as_record(load_config(folder, expected_class), record_class, folder / CONFIG)


def check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError for a tensor with NaN or infinite numbers."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        try:
            checkable = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch has no isfinite for float8
        except NotImplementedError:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}; expected float32, or another common type"
            ) from None
        if not checkable.isfinite().all():
            raise CheckpointError(f"{path}: {name} has numbers that are not finite; train it again, or copy it again")


def check_sizes(folder: Path, tensors: Mapping[str, torch.Tensor], build: Callable[[], StateDict]) -> None:
    """Raise CheckpointError unless a checkpoint has all tensors of the state dict that `build` returns, in their sizes.

    The device is "meta", without memory, while it is built: a stranger's config.json may describe a huge model.
    """
    import torch

    with checkpoint_errors(folder), torch.device("meta"):
        expected = build()
    for name, tensor in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{folder}: has no tensor {name}; {COPY_AGAIN}")
        if (size := tuple(tensors[name].shape)) != (expected_size := tuple(tensor.shape)):
            raise CheckpointError(f"{folder}: {name} is {size}, expected {expected_size}; {COPY_AGAIN}")


@contextlib.contextmanager
def checkpoint_errors(folder: Path | str) -> Iterator[None]:
    """Raise CheckpointError where the files in a folder, though undamaged, are not what this program writes."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        ConfigError,
        LookupError,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        if is_of_the_machine(error) or (isinstance(error, OneLineError) and not isinstance(error, ConfigError)):
            raise
        kind = f"{type(error).__name__} " if isinstance(error, LookupError) or not str(error) else ""
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: its files do not fit together: {kind}{reason}; {COPY_AGAIN}") from error


def verified_config(folder: Path, expected_class: str | None = None) -> tuple[dict[str, Any], str]:
    """Return the config of a checkpoint folder, and the sha256 of its weights.

    Raises CheckpointError as `load_config` does, and if the weights were not written with this config.
    """
    config = load_config(folder, expected_class)
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder}: has no {WEIGHTS}")
    digest, recorded_digest = file_digest(folder / WEIGHTS), str(config.get("weights_sha256", ""))
    if recorded_digest != digest:
        raise CheckpointError(
            f"{folder}: {WEIGHTS} is not the file that {CONFIG} was written with (its sha256 is {digest[:12]}, "
            f"expected {recorded_digest[:12]}); {COPY_AGAIN}"
        )
    return config, digest


def load_config(folder: Path, expected_class: str | None = None) -> dict[str, Any]:
    """Return the config of a checkpoint folder. Raises CheckpointError as `load_checkpoint` does."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: no checkpoint here (a folder with {WEIGHTS} and {CONFIG} was expected)")
    config = read_table(folder / CONFIG)
    if not isinstance(config.get("class"), str):
        raise CheckpointError(f"{folder / CONFIG}: damaged: class: expected str, got {config.get('class')!r}; {REMEDY}")
    if expected_class is not None and config["class"] != expected_class:
        raise CheckpointError(f"{folder}: holds a {config['class']}, expected a {expected_class}")
    return config


def fingerprint(folder: Path) -> str:
    """Return the sha256 (hex) over config and weights of a checkpoint folder. Raises CheckpointError if damaged."""
    config, digest = verified_config(folder)
    config_json = json.dumps(config, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(hashlib.sha256(config_json).digest() + bytes.fromhex(digest)).hexdigest()


def joint_fingerprint(*parts: str) -> str:
    """Return the sha256 (hex) of several fingerprints."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def is_complete(folder: Path) -> bool:
    """Return whether a folder has the files of a checkpoint."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def resolve_folder(name_or_path: str | Path) -> Path:
    """Return a local folder, or the downloaded snapshot of a hub id.

    Raises CheckpointError if there is neither.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if str(name_or_path).partition("@")[0].count("/") != 1 or path.is_absolute() or str(name_or_path).startswith("."):
        raise CheckpointError(f"{name_or_path}: no such folder, and not a hub id (owner/name, owner/name@REVISION)")
    return hub_folder(str(name_or_path))


def hub_folder(hub_id: str, revision: str | None = None) -> Path:
    """Return the snapshot of a hub id, `owner/name` or `owner/name@REVISION`, after downloading its HUB_FILES.

    The hub's cache records the commit of a branch or tag when it is first downloaded. This commit is used from then on,
    also when the branch has moved. Raises CheckpointError.
    """
    from huggingface_hub import snapshot_download

    name, _, pinned = hub_id.partition("@")
    download = partial(snapshot_download, name, allow_patterns=list(HUB_FILES))
    revision = revision or pinned or None
    try:
        with contextlib.suppress(OSError, ValueError):  # not in the cache
            revision = Path(download(revision=revision, local_files_only=True)).name
        return Path(download(revision=revision))
    except Exception as error:  # the hub's, its transport's and its file formats' errors have no class in common
        reason = first_line(error)
        raise CheckpointError(f"{hub_id}: no such folder, and the hub does not give it: {reason}") from None
