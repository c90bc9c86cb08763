"""Which stored values cannot be read, remembered in the data's folder until shards or settings change."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokenizers_zoo.data.ahead import cores, read_ahead
from tokenizers_zoo.data.made_of import FOLDER, stamps
from tokenizers_zoo.data.provenance import value_identity
from tokenizers_zoo.errors import CheckpointError, DataError, InvalidValueError, ReadError, ZooError, count_of, passing
from tokenizers_zoo.io import read_json, write_json
from tokenizers_zoo.progress import say

if TYPE_CHECKING:
    from tokenizers_zoo.data.shards import LazyValues, ValueStore
    from tokenizers_zoo.registry import ModalityHandle

AT_ONCE = 32
"""Values of a batch that is read ahead."""
SAVED_EVERY = 16
"""Shards after which what was found is written."""
READERS = 3
"""What of the project reads values; raised where some are refused that were read before, or read that were refused."""


def remembered(store: ValueStore, handle: ModalityHandle, split: str) -> dict[str, str] | None:
    """The keys of a split that cannot be read, with reasons, as `audit` found and said; None where that is not known.

    What it found of a shard stands as long as the shard (name, size, time), the settings and the plugin's version do.
    """
    counts = Counter(member.shard for member in store.index(split, handle.name).members.values())
    known = _known(store, handle, split, stamps(store, split, handle.name), counts)
    return _said(handle, split, _unreadable(known)) if known.keys() == counts.keys() else None


def audit(
    store: ValueStore, handle: ModalityHandle, split: str, values: LazyValues, on_read: Callable[[], None],
    *, keep: bool = True,
) -> dict[str, str]:  # fmt: skip
    """Read all `values` of a split once, calling `on_read` after each; gives, says and keeps those that cannot be read.

    Threads read them, and nothing of shards of which that is known. It is not kept of shards where a plugin failed, not
    the value, nor where the data's folder cannot be written, nor without `keep`, as of values that are a part of the
    split. Raises ReadError for a file that the system does not read now, MachineError where memory ran out.
    """
    stamp = stamps(store, split, handle.name)  # of the shards that are read now
    members = store.index(split, handle.name).members
    places: dict[Path, list[int]] = {}
    for position, key in enumerate(values.keys):
        places.setdefault(members[key].shard, []).append(position)
    counts = {shard: len(positions) for shard, positions in places.items()}
    to_keep = _known(store, handle, split, stamp, counts) if keep else {}
    found = _unreadable(to_keep)
    for _ in range(sum(of_shard.values for of_shard in to_keep.values())):
        on_read()
    todo = {shard: positions for shard, positions in places.items() if shard not in to_keep}
    for number, (shard, read) in enumerate(_read(values, todo), 1):
        errors = dict[str, ZooError]()
        for key, error in read:
            if error is not None:
                errors[key] = error
            on_read()
        unreadable = {key: str(error) for key, error in errors.items()}
        found |= unreadable
        if all(map(_of_the_value, errors.values())):
            to_keep[shard] = _OfShard(values=counts[shard], unreadable=unreadable)
        if keep and (number % SAVED_EVERY == 0 or number == len(todo)):
            _keep(store, handle, split, {stamp[shard]: of_shard for shard, of_shard in to_keep.items()})
    return _said(handle, split, found)


def _read(
    values: LazyValues, places: Mapping[Path, Sequence[int]]
) -> Iterator[tuple[Path, Iterator[tuple[str, ZooError | None]]]]:
    """Read the values at `places`, by shard: the key of each, and why it cannot be read; those that can be are kept.

    Threads read ahead, across the shards' borders, so what is given of a shard is to be taken before the next one.
    """

    def value_or_error(position: int) -> Any:
        try:
            return values.read(position)
        except ReadError:
            raise  # no value is to blame
        except ZooError as error:
            return error

    batches = (at[start : start + AT_ONCE] for at in places.values() for start in range(0, len(at), AT_ONCE))
    ahead = read_ahead(value_or_error, batches, threads=cores())

    def of_shard(count: int) -> Iterator[tuple[str, ZooError | None]]:
        for _ in range(0, count, AT_ONCE):
            for position, value in zip(*next(ahead), strict=True):
                error = value if isinstance(value, ZooError) else None
                if error is None:
                    values.keep(position, value)
                yield values.keys[position], error

    for shard, positions in places.items():
        yield shard, of_shard(len(positions))


@dataclass(frozen=True, kw_only=True, slots=True)
class _OfShard:
    """What was found of a shard: how many values were read, and which of them cannot be, with reasons."""

    values: int
    unreadable: Mapping[str, str]


def _of_the_value(error: ZooError) -> bool:
    """Whether it is the value that cannot be read, whoever reads it."""
    return isinstance(error, InvalidValueError | DataError) and not passing(error)


def _unreadable(shards: Mapping[Path, _OfShard]) -> dict[str, str]:
    return {key: reason for of_shard in shards.values() for key, reason in of_shard.unreadable.items()}


def _known(
    store: ValueStore, handle: ModalityHandle, split: str, stamp: Mapping[Path, str], counts: Mapping[Path, int]
) -> dict[Path, _OfShard]:
    """What is remembered of shards with these stamps and numbers of values, as far as it was found with these settings.

    How many values of a shard are used depends on the others, which may hold some of its keys.
    """
    with contextlib.suppress(CheckpointError, KeyError, TypeError, AttributeError, ValueError):
        known = read_json(_path(store, handle, split))
        if known["signature"] == _signature(handle):
            shards = {shard: known["shards"][stamp[shard]] for shard in counts if stamp[shard] in known["shards"]}
            return {
                shard: _OfShard(
                    values=counts[shard],
                    unreadable={str(key): str(reason) for key, reason in found["unreadable"].items()},
                )
                for shard, found in shards.items()
                if found["values"] == counts[shard]
            }
    return {}


def _keep(store: ValueStore, handle: ModalityHandle, split: str, shards: Mapping[str, _OfShard]) -> None:
    """Remember this, by the shards' stamps, and nothing else."""
    found = {stamp: dataclasses.asdict(of_shard) for stamp, of_shard in shards.items()}
    with contextlib.suppress(OSError):
        write_json(_path(store, handle, split), {"signature": _signature(handle), "shards": found})


def _said(handle: ModalityHandle, split: str, found: dict[str, str]) -> dict[str, str]:
    """These values by their keys' order, after a line on stderr that they are left out."""
    found = dict(sorted(found.items()))
    if found:
        key, reason = next(iter(found.items()))
        line = f"{handle.name}: {count_of(len(found), f'{split} value')} left out, first: {key}: {reason}"
        say(Console(stderr=True), line)
    return found


def _path(store: ValueStore, handle: ModalityHandle, split: str) -> Path:
    return store.root / FOLDER / f"{split}-{handle.name}.json"


def _signature(handle: ModalityHandle) -> str:
    """What values are read with."""
    settings = {"own": handle.settings.own, "shared": handle.settings.shared}
    parts = [READERS, settings, value_identity(handle), handle.plugin_name, handle.distribution]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
