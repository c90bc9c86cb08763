"""What shards were made of, remembered in the data's folder, so that what is made of something else now is made again.

Where nothing is remembered, as of data that an older version made, shards are taken as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.checkpoint import joint_fingerprint
from tokenizers_zoo.data.tar import Member
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.io import file_digest, not_read, read_json, write_json

if TYPE_CHECKING:
    from tokenizers_zoo.data.shards import ValueStore

FOLDER = ".audit"
"""In the data's folder, where what was found of its shards is remembered."""


def read_made_of(root: Path, split: str, modality: str) -> dict[str, str] | None:
    """What each shard of a modality, by its name, was made of; None where nothing is known of any."""
    return _read(_path(root, "made", split, modality))


def note_made_of(root: Path, split: str, modality: str, shards: Mapping[str, str], *, alone: bool = False) -> None:
    """Remember what these shards are made of, beside what is known of others; `alone` where there are no others."""
    known = {} if alone else read_made_of(root, split, modality) or {}
    write_json(_path(root, "made", split, modality), {**known, **shards})


def contents(store: ValueStore, split: str, modality: str) -> dict[Path, str]:
    """sha256 of each shard of a modality; those of the size and time that they had before are not read again."""
    path = _path(store.root, "content", split, modality)
    known = _read(path) or {}
    keys = stamps(store, split, modality)
    try:
        found = {key: known.get(key) or file_digest(shard) for shard, key in keys.items()}
    except OSError as error:
        raise not_read(store.folder(split, modality), error) from None
    if found != known:
        with contextlib.suppress(OSError):
            write_json(path, found)
    return {shard: found[key] for shard, key in keys.items()}


def stamps(store: ValueStore, split: str, modality: str) -> dict[Path, str]:
    """Name, size and time of each shard of a modality, which change with what is in it."""
    found = {}
    for shard in store.shards(split, modality):
        stat = shard.stat()
        found[shard] = f"{shard.name} {stat.st_size} {stat.st_mtime_ns}"
    return found


def made_of(found: Mapping[Path, str], members: Iterable[Member]) -> str:
    """What is made of these members, by the contents of the shards that they are in."""
    return joint_fingerprint(*(found[shard] for shard in dict.fromkeys(member.shard for member in members)))


def _path(root: Path, what: str, split: str, modality: str) -> Path:
    return root / FOLDER / f"{what}-{split}-{modality}.json"


def _read(path: Path) -> dict[str, str] | None:
    with contextlib.suppress(CheckpointError, AttributeError):
        return {str(key): str(item) for key, item in read_json(path).items()}
    return None
