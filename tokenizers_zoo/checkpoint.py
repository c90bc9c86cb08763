"""Checkpoint folders: model.safetensors + config.json + README.md, written whole or not at all, with a fingerprint."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.errors import CheckpointError, PluginError, ZooError

if TYPE_CHECKING:
    import torch

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
AGAIN = "copy this folder again, or delete it and train anew"
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; what was finished is kept: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "a file is larger than this disk or `ulimit -f` allows; what was finished is kept: raise the limit "
    "or give another folder, and run the same command again",
    errno.EROFS: "the disk is read-only; give another folder",
    errno.EACCES: "permission denied; give another folder",
    errno.ENOTDIR: "a file is where a folder should be; give another folder",
    errno.EEXIST: "a file is where a folder should be; give another folder",
    errno.EISDIR: "a folder is where a file should be; give another name",
}


def disk_problem(error: BaseException) -> str | None:
    """What is wrong with the disk, and what to do, where that is what an error says; None for any other error.

    Libraries that write by themselves wrap the system's error, whose number is in their text then; a plugin's error
    has it as its cause.
    """
    for found in (error, error.__cause__):
        if isinstance(found, OSError) and found.errno is not None:
            return DISK_ERRORS.get(found.errno)
    if isinstance(error, ZooError) and not isinstance(error, PluginError):
        return None
    number = re.search(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]", str(error))
    return DISK_ERRORS.get(int(number.group(1) or number.group(2))) if number else None


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it over `path` if the block succeeds, remove it if it fails.

    What killed attempts at the same file left behind is removed: a temporary file is locked as long as it is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), open(stale, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(_beside(stale), ignore_errors=True)
            stale.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # of which the umask takes its part
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(handle).st_mode))  # whoever wrote it, as other files
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def write_tensors(
    temporary: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Fill the file of `replacing_file` with tensors, from wherever they are, as safetensors.

    safetensors writes a file of another name beside the one asked for and renames it. It gets a folder of its own, of
    which `replacing_file` knows, so that a kill does not leave it behind for ever.
    """
    from safetensors.torch import save_file

    folder = _beside(temporary)
    folder.mkdir()
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                  folder / WEIGHTS, None if metadata is None else dict(metadata))  # fmt: skip
        os.rename(folder / WEIGHTS, temporary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(temporary: Path) -> Path:
    """The folder for what is written on the way to a temporary file."""
    return temporary.with_name(f"{temporary.name}.d")


BUSY = "{}: another process trains it right now; wait for its end, or stop it"


@contextlib.contextmanager
def held(folder: Path, told: str = "") -> Iterator[None]:
    """Hold the lock of a folder, whatever it is renamed to; it is let go when the process ends.

    Raises CheckpointError, which says what is `told`, where another holds it; with nothing to tell, waits until it does
    not. Where a file system has no locks, nothing is held.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if told else 0))
            except BlockingIOError:
                raise CheckpointError(told) from None
        yield
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as readable JSON, atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(json_text(data), encoding="utf-8")


def json_text(data: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def drop_lines_after(path: Path, step: int) -> None:
    """Remove from a metrics.jsonl what a killed run logged after the state, at `step`, from which it goes on."""
    if path.is_file():
        kept = [line for line in read_lines(path) if line["step"] <= step]
        with replacing_file(path) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises CheckpointError where it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON: {error}; copy it again, or delete it and run what wrote it"
        ) from None


def read_table(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds a table with these keys. Raises CheckpointError where it does not."""
    table = read_json(path)
    missing = [key for key in keys if key not in table] if isinstance(table, dict) else ["any table"]
    if missing:
        wanted = f"a table with {', '.join(keys)}" if keys else "a table"
        raise CheckpointError(f"{path}: expected {wanted}, lacks {missing[0]}; delete it and run what wrote it")
    return table


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a .jsonl file, tables with a step, as a killed process may have left it; [] without one.

    Raises CheckpointError for a line that is damaged.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.endswith("}"):
            try:
                found.append(json.loads(line))
                _ = found[-1]["step"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise CheckpointError(f"{path}:{number}: damaged line ({error}); delete the line or the file") from None
    return found


def _has_weights(folder: Path, digest: str) -> bool:
    """Whether the config in a folder says that its weights have this sha256."""
    with contextlib.suppress(CheckpointError):
        return bool(read_table(folder / CONFIG, "weights_sha256")["weights_sha256"] == digest)
    return False


def save_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], card: str) -> str:
    """Write a checkpoint folder, or replace the checkpoint in it; returns its fingerprint.

    config.json comes last: where it is, the checkpoint is whole. Where the weights stay as they are, its rename is all
    that replaces an older one. Other weights take the older config.json away first: a kill in between leaves no
    checkpoint, and never the weights of one with the config of the other.

    Other files of an older folder (metrics, samples) are kept. `config` needs a "class" key that says what can load it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (  # renamed from the last to the first, once all are written
        replacing_file(folder / CONFIG) as new_config,
        replacing_file(folder / CARD) as new_card,
        replacing_file(folder / WEIGHTS) as new_weights,
    ):
        write_tensors(new_weights, tensors)
        digest = file_digest(new_weights)
        new_card.write_text(card, encoding="utf-8")
        new_config.write_text(json_text({**config, "weights_sha256": digest}), encoding="utf-8")
        if not _has_weights(folder, digest):
            (folder / CONFIG).unlink(missing_ok=True)
    return fingerprint(folder)


def load_checkpoint(folder: Path, expected_class: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the config of a checkpoint folder.

    Raises CheckpointError where a file is missing or damaged, the weights are not those that the config was written
    with, or the config's "class" is not `expected_class`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = load_config(folder, expected_class)
    try:
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {WEIGHTS}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: damaged: {error}; {AGAIN}") from None
    check_weights(folder, config)
    return tensors, config


def check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the weights of a folder are not those that its `config` was written with."""
    wanted, found = config.get("weights_sha256"), file_digest(folder / WEIGHTS)
    if wanted and wanted != found:
        raise CheckpointError(
            f"{folder}: {WEIGHTS} is not the file that {CONFIG} was written with (its sha256 is {found[:12]}, "
            f"expected {str(wanted)[:12]}); {AGAIN}"
        )


def load_config(folder: Path, expected_class: str | None = None) -> dict[str, Any]:
    """The config of a checkpoint folder alone; raises CheckpointError as `load_checkpoint` does."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: no checkpoint here (a folder with {WEIGHTS} and {CONFIG} was expected)")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or "class" not in config:
        raise CheckpointError(f'{folder / CONFIG}: expected a table with a "class" key')
    if expected_class is not None and config["class"] != expected_class:
        raise CheckpointError(f"{folder}: holds a {config['class']}, expected a {expected_class}")
    return config


def fingerprint(folder: Path) -> str:
    """sha256 (hex) over the configuration and the weights of a checkpoint folder: the codec's identity."""
    if not is_complete(folder):
        raise CheckpointError(f"{folder}: no checkpoint here (a folder with {WEIGHTS} and {CONFIG} was expected)")
    config = json.dumps(read_json(folder / CONFIG), sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(hashlib.sha256(config).digest() + bytes.fromhex(file_digest(folder / WEIGHTS))).hexdigest()


def joint_fingerprint(*parts: str) -> str:
    """sha256 (hex) of several fingerprints: the identity of a codec that is in several folders."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def is_complete(folder: Path) -> bool:
    """True for a folder with the files of a checkpoint."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or a hub id's snapshot (downloaded through huggingface_hub).

    Raises CheckpointError where neither is to be had.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if str(name_or_path).count("/") != 1 or path.is_absolute() or str(name_or_path).startswith("."):
        raise CheckpointError(f"{name_or_path}: no such folder, and not a hub id (owner/name)")
    return hub_folder(str(name_or_path), revision)


def hub_folder(hub_id: str, revision: str | None = None) -> Path:
    """The snapshot of a hub id, downloaded through huggingface_hub. Raises CheckpointError where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(hub_id, revision=revision))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{hub_id}: no such folder, and the hub does not give it: {reason}") from None


def remove_folder(folder: Path) -> None:
    """Remove a folder that may not be there."""
    shutil.rmtree(folder, ignore_errors=True)


def as_recorded(old: Mapping[str, Any], new: Mapping[str, Any], *added: str) -> dict[str, Any]:
    """`new` without those of the keys `added` that `old` lacks, as records of older versions do: it is as it was."""
    return {key: value for key, value in new.items() if key in old or key not in added}


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first place where two JSON values differ, as `train.steps was 400, is 800`; empty where they agree."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            if inner := difference(old.get(key), new.get(key), f"{where}.{key}" if where else key):
                return inner
        return ""
    return "" if old == new else f"{where} was {json.dumps(old)}, is {json.dumps(new)}"
