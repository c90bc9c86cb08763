"""What a killed generation had made, so that the same command goes on after it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.io import replacing_file

FILE = ".unfinished.jsonl"


class Unfinished:
    """OUT/.unfinished.jsonl, from the first sample of a generation to its last.

    A line {"of": what the generation depends on}, then for each sample that is done {"name", "files": below OUT}.
    """

    def __init__(self, out: Path, of: str) -> None:
        """With `of` empty nothing is done already."""
        self.out, self.path = out.resolve(), out / FILE
        self._head: dict[str, Any] = {"of": of}
        head, *rows = _tables(self.path) or [{}]
        same = rows if of and head == self._head else []
        self._rows = [row for row in same if all((self.out / file).is_file() for file in row["files"])]
        self.done: set[str] = {row["name"] for row in self._rows}
        """The samples that a generation of the same had made when it was killed, whose files are there."""

    def begin(self) -> None:
        """Keep what is done; what another generation left here is no longer."""
        with replacing_file(self.path) as temporary:
            temporary.write_text("".join(map(_line, (self._head, *self._rows))), encoding="utf-8")

    def add(self, name: str, files: Iterable[Path]) -> None:
        """A sample is done, and these are its files."""
        below = sorted(os.path.relpath(file, self.out) for file in files)
        with open(self.path, "a", encoding="utf-8") as lines:
            lines.write(_line({"name": name, "files": below}))

    def end(self) -> None:
        """All are."""
        self.path.unlink(missing_ok=True)


def _line(table: Mapping[str, Any]) -> str:
    return json.dumps(table, ensure_ascii=False) + "\n"


def _tables(path: Path) -> list[dict[str, Any]]:
    """The lines of a file as tables, up to one that was not finished; [] without a file."""
    found: list[dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            found.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return found


def digest_of(texts: Iterable[str], tokens: Iterable[Mapping[str, Any]]) -> str:
    """sha256 (hex) of texts, and of tokens by modality as codecs give them: arrays, or a sequence for each sample."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    for of_name in tokens:
        for name, whole in of_name.items():
            for item in [whole] if hasattr(whole, "shape") else whole:
                array = item.numpy(force=True) if isinstance(item, torch.Tensor) else np.asarray(item)
                head = f"{name} {array.dtype} {array.shape}".encode()
                digest.update(hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).digest())
    return digest.hexdigest()
