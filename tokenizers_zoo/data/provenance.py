"""Provenance of values: the settings that they depend on, and the identity of a split's samples."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.data.manifest import DATASET, inputs_digest, read_record
from tokenizers_zoo.io import as_json, held
from tokenizers_zoo.pretrained import networks_of

if TYPE_CHECKING:
    from tokenizers_zoo.handle import ModalityHandle

TOKENIZER_KEYS = ("tokenizer",)
"""Settings that change tokens, not values."""
OWN_FILES = "folder"
"""The source of the user's own files."""


@contextlib.contextmanager
def one_writer(root: Path) -> Iterator[None]:
    """Lock a data folder, and create it if needed. Raises CheckpointError if another command writes into it."""
    root.mkdir(parents=True, exist_ok=True)
    with held(root, f"{root}: another zoo data command writes it right now; wait for its end, or stop it"):
        yield


def samples_identity(root: Path, split: str) -> str | None:
    """Return a digest (hex) of the source that made a split's samples, so that equal keys of other data are noticed.

    None without a record, and for a user's own files, which others may have under the same path.
    """
    source = read_record(root / DATASET).get("splits", {}).get(split, {}).get("source")
    return None if source is None or source["source"] == OWN_FILES else inputs_digest(source=source)[:16]


def value_identity(handle: ModalityHandle) -> dict[str, Any]:
    """Return the shape, type, bounds and classes of a modality's stored values.

    Classes of text are stored by name, so that more of them may follow. Which classes are scored changes no value.
    """
    spec = handle.spec.value
    value = dataclasses.asdict(dataclasses.replace(spec, classes=() if spec.kind == "text" else spec.classes))
    return as_json({key: item for key, item in value.items() if key not in ("description", "unscored")})


def own_settings(handle: ModalityHandle) -> dict[str, Any]:
    """Return a modality's own settings without its tokenizer and pretrained networks, which have their own records."""
    apart = (*TOKENIZER_KEYS, *networks_of(handle.known_settings()))
    return {key: value for key, value in handle.settings.items() if key not in apart}


def reading_settings(handle: ModalityHandle) -> dict[str, Any]:
    """Return the settings that decide how a modality's stored values are written and read, as JSON types.

    These are its own settings and the shared ones it takes, except settings that are only shown. The patch size belongs
    to the tokens.
    """
    shared = handle.settings.shared
    offered = {key: shared[key] for key in sorted(handle.known_settings()) if key in shared}
    found = as_json({**offered, **own_settings(handle)})
    fields = [field for config in handle.taken_settings() for field in dataclasses.fields(config)]
    apart = {*TOKENIZER_KEYS, "patch_size", *(field.name for field in fields if field.metadata.get("shown"))}
    return {key: value for key, value in found.items() if key not in apart}
