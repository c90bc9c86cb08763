"""`DATA/dataset.json`: where the values of each split and modality come from, so that unlike data are never mixed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.data.tar import TARS
from tokenizers_zoo.errors import CheckpointError, DataError
from tokenizers_zoo.io import as_json, difference, held, read_json, write_json
from tokenizers_zoo.pretrained import networks_of

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle

DATASET = "dataset.json"
READ_WITH = "read_with"
"""Of an entry: the settings that files, or the values that others are derived from, were read with.

Where they are others now, values are made again. Entries of older versions lack them, and their values are taken as
they are.
"""
NOT_IDENTITY = ("count", "shard_size", READ_WITH)  # more of the same values are the same data
TOKENIZER_KEYS = ("tokenizer",)  # how values become tokens does not change the values
OWN_FILES = "folder"
"""The source of the user's own files."""
SOURCE_KEYS = ("source", "distribution", "seed", "options", "image_size")

Entries = dict[str, dict[str, dict[str, Any]]]


def read_entries(root: Path) -> Entries:
    """What dataset.json says, by split and modality; empty without one. Raises DataError where it is damaged."""
    if not (root / DATASET).exists():
        return {}
    try:
        data = read_json(root / DATASET, remedy="copy it again, or make the data in another folder")
        return {
            split: {name: dict(entry.items()) for name, entry in entries.items()}
            for split, entries in data["splits"].items()
        }
    except (CheckpointError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).removeprefix(f"{root / DATASET}: ")
        raise DataError(
            f"{root / DATASET}: damaged: {reason}; without it nothing is known about where these data come from"
        ) from None


def read_entry(root: Path, split: str, modality: str) -> dict[str, Any] | None:
    """The entry of one split and modality, None where these values were not written by this program."""
    return read_entries(root).get(split, {}).get(modality)


def record_entry(root: Path, split: str, modality: str, entry: Mapping[str, Any] | None) -> None:
    """Write one entry (None removes it); see `one_writer`."""
    entries = read_entries(root)
    if entry is None:
        entries.get(split, {}).pop(modality, None)
    else:
        entries.setdefault(split, {})[modality] = as_json(entry)
    ordered = {name: dict(sorted(table.items())) for name, table in sorted(entries.items())}
    write_json(root / DATASET, {"format": 1, "splits": ordered})


@contextlib.contextmanager
def one_writer(root: Path) -> Iterator[None]:
    """Hold a data folder, made where it is not there: what its entries say is then true as long as the block runs.

    Raises CheckpointError where another command writes into it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with held(root, f"{root}: another zoo data make or derive writes it right now; wait for its end, or stop it"):
        yield


def digest(entry: Mapping[str, Any] | None) -> str:
    """The identity of data (hex), whatever their number; of an empty entry where nothing is known about them."""
    identity = {key: value for key, value in as_json(entry or {}).items() if key not in NOT_IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def samples_identity(root: Path, split: str) -> str | None:
    """The identity (hex) of the samples of a split: of the source that made them.

    None where nothing tells them from others: without an entry, and of a source of the user's own files, which others
    may have under the same path.
    """
    for name, entry in sorted(read_entries(root).get(split, {}).items()):
        if "source" in entry and has_shards(root / split / name):  # these agree, see `check_same_source`
            return None if entry["source"] == OWN_FILES else digest({key: entry.get(key) for key in SOURCE_KEYS})
    return None


def has_shards(folder: Path) -> bool:
    """True where the folder holds a shard, whoever wrote it."""
    return any(folder.glob(TARS))


def value_identity(handle: ModalityHandle) -> dict[str, Any]:
    """What a modality's stored values have to agree on: their shape, type, bounds and classes.

    Classes of text are stored by name, so that there may be more of them later. Which classes are scored changes no
    value.
    """
    spec = handle.spec.value
    value = dataclasses.asdict(dataclasses.replace(spec, classes=() if spec.kind == "text" else spec.classes))
    return as_json({key: item for key, item in value.items() if key not in ("description", "unscored")})


def own_settings(handle: ModalityHandle) -> dict[str, Any]:
    """A modality's own settings but those of its tokenizer and of pretrained networks, which have records of theirs."""
    apart = (*TOKENIZER_KEYS, *networks_of(handle.known_settings()))
    return {key: value for key, value in handle.settings.items() if key not in apart}


def reading_settings(handle: ModalityHandle) -> dict[str, Any]:
    """What decides how a modality's stored values are read, and encoded by a given tokenizer, as JSON types.

    That is its own settings, over what `[zoo]` shares with it, but for those that are only SHOWN. The size of patches
    is the tokens', which know it.
    """
    shared = handle.settings.shared
    offered = {key: shared[key] for key in sorted(handle.known_settings()) if key in shared}
    found = as_json({**offered, **own_settings(handle)})
    fields = [field for config in handle.taken_settings() for field in dataclasses.fields(config)]
    apart = {*TOKENIZER_KEYS, "patch_size", *(field.name for field in fields if field.metadata.get("shown"))}
    return {key: value for key, value in found.items() if key not in apart}


def check_same_source(root: Path, split: str, modality: str, new: Mapping[str, Any]) -> None:
    """Raise DataError where the folder holds values of another source, seed, settings or size than `new`."""
    wanted = as_json(new)
    for other, entry in sorted(read_entries(root).get(split, {}).items()):
        if "source" not in entry or not has_shards(root / split / other):
            continue
        keys = (*SOURCE_KEYS, "value", "shard_size") if other == modality else SOURCE_KEYS
        for key in keys:
            old, asked = entry.get(key), wanted.get(key)
            if old != asked:
                said = f"with {key} {_short(old)}, now asked for {_short(asked)}"
                if key == "value" and isinstance(old, Mapping):
                    said = f"with another {key} ({difference(old, asked, key)})"
                place = root / split if key in SOURCE_KEYS else root / split / other
                raise DataError(
                    f"{root}: {split}/{other} was made {said}; give another folder, the same {key}, or delete {place}"
                )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
