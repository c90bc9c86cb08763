"""Limits of untrusted values: the table `[limits]` of registry.toml, checked before anything is decoded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.records.config import Checked, changed_fields
from tokenizers_zoo.records.io import open_regular
from tokenizers_zoo.records.typed import Interval, PositiveInt


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits(Checked):
    """Limits of one value. Reading a file within these defaults takes at most 5 s and 1 GiB. Larger files are refused:
    `zoo data make` drops their samples."""

    file_bytes: PositiveInt = 268_435_456
    """Bytes of a file, or of a tar file's member."""
    image_pixels: PositiveInt = 50_000_000
    """Pixels of a picture, or of one frame of a video."""
    frames: PositiveInt = 20_000
    """Frames of a video that are decoded."""
    video_pixels: PositiveInt = 500_000_000
    """Pixels of all decoded frames of a video."""
    array_elements: PositiveInt = 50_000_000
    """Numbers of an array, or of a video's value."""
    text_bytes: PositiveInt = 8_388_608
    """Bytes of a text, a JSON file or a table (.csv)."""
    json_depth: PositiveInt = 200
    """Nested lists and tables of a JSON file."""
    json_elements: PositiveInt = 1_000_000
    """Items of a JSON file's lists and tables, all together."""
    audio_seconds: Annotated[float, Interval("(0, inf]")] = 7200.0
    """Length of a recording."""
    masks: PositiveInt = 1000
    """Masks of one file of instance masks."""
    value_seconds: Annotated[float, Interval("(0, inf]")] = 300.0
    """Time that making, deriving or encoding one value may take; a slower value is dropped."""

    def identity(self) -> dict[str, dict[str, float]]:
        """Return the limits that are not defaults, for inputs digests, as {"limits": {...}} or {}."""
        overrides = changed_fields(self)
        return {"limits": overrides} if overrides else {}

    def check(self, key: str, amount: float, description: str) -> None:
        """Raise InvalidValueError, which names the limit, if `amount` exceeds the limit `key`.

        `description` describes the amount: "13000 x 13000 pixels".
        """
        if amount > (maximum := getattr(self, key)):
            raise InvalidValueError(f"{description}, at most {maximum:,} ({key} in [limits] of registry.toml)")


DEFAULT = Limits()
_CURRENT: ContextVar[Limits] = ContextVar("limits", default=DEFAULT)


def limits() -> Limits:
    """Return the limits in use: the registry's inside a plugin's hooks, else the defaults."""
    return _CURRENT.get()


@contextlib.contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Use the limits `limits` in this thread, inside the block."""
    token = _CURRENT.set(limits)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def read_file(path: Path) -> bytes:
    """Return the bytes of a value's file. Raises ReadError, InvalidValueError for no file or above `file_bytes`."""
    if not path.exists():
        raise InvalidValueError(f"{path}: no such file")
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        limits().check("file_bytes", size, f"{path}: {size:,} bytes")
        return file.read()
