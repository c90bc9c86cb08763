"""Which stored values cannot be read, remembered in the data's folder until shards or settings change."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tokenizers_zoo.data.provenance import value_identity
from tokenizers_zoo.errors import CheckpointError, DataError, InvalidValueError, ReadError, ZooError
from tokenizers_zoo.progress import say
from tokenizers_zoo.records import read_json, write_json
from tokenizers_zoo.wording import count_of

if TYPE_CHECKING:
    from tokenizers_zoo.data.shards import LazyValues, ValueStore
    from tokenizers_zoo.registry import ModalityHandle

FOLDER = ".audit"


def remembered(store: ValueStore, handle: ModalityHandle, split: str) -> dict[str, str] | None:
    """The keys of a split that cannot be read, with reasons, as `audit` found and said; None where that is not known.

    What it found stands as long as the shards (names, sizes, times), the settings and the plugin's version do.
    """
    with contextlib.suppress(CheckpointError, KeyError, TypeError, AttributeError):
        known = read_json(_path(store, handle, split))
        if known["signature"] == _signature(store, handle, split):
            return _said(handle, split, {str(key): str(reason) for key, reason in known["unreadable"].items()})
    return None


def audit(
    store: ValueStore, handle: ModalityHandle, split: str, values: LazyValues, on_read: Callable[[], None],
    *, keep: bool = True,
) -> dict[str, str]:  # fmt: skip
    """Read all `values` of a split once, calling `on_read` after each; gives, says and keeps those that cannot be read.

    They are not kept where a plugin failed, not the value, nor where the data's folder cannot be written, nor without
    `keep`, as of values that are a part of the split. Raises ReadError for a file that the system does not read now.
    """
    found: dict[str, str] = {}
    to_keep = {"signature": _signature(store, handle, split), "unreadable": found}  # of the shards that are read now
    of_values = True
    for position, key in enumerate(values.keys):
        try:
            values[position]
        except ReadError:
            raise
        except ZooError as error:
            found[key] = str(error)
            of_values &= isinstance(error, InvalidValueError | DataError)
        on_read()
    if of_values and keep:
        with contextlib.suppress(OSError):
            write_json(_path(store, handle, split), to_keep)
    return _said(handle, split, found)


def _said(handle: ModalityHandle, split: str, found: dict[str, str]) -> dict[str, str]:
    """These values, after a line on stderr that they are left out."""
    if found:
        key, reason = next(iter(found.items()))
        line = f"{handle.name}: {count_of(len(found), f'{split} value')} left out, first: {key}: {reason}"
        say(Console(stderr=True), line)
    return found


def _path(store: ValueStore, handle: ModalityHandle, split: str) -> Path:
    return store.root / FOLDER / f"{split}-{handle.name}.json"


def _signature(store: ValueStore, handle: ModalityHandle, split: str) -> str:
    shards = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in store.index(split, handle.name).shards
    ]
    settings = {"own": handle.settings.own, "shared": handle.settings.shared}
    parts = [shards, settings, value_identity(handle), handle.plugin_name, handle.distribution]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
