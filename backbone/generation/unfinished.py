"""What a killed generation had made, so that the same command goes on after it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.checkpoint import read_table, write_json
from tokenizers_zoo.errors import CheckpointError

FILE = ".unfinished.json"


class Unfinished:
    """OUT/.unfinished.json: {"of": what the generation depends on, "done": names of samples}, until all are done."""

    def __init__(self, out: Path, of: str) -> None:
        """With `of` empty nothing is ever done already."""
        self.path, self.of = out / FILE, of
        self.done: set[str] = set()
        """What a generation of the same had done when it was killed."""
        with contextlib.suppress(CheckpointError):
            earlier = read_table(self.path, "of", "done")
            if of and earlier["of"] == of:
                self.done = set(earlier["done"])

    def go_on(self, done: Iterable[str]) -> None:
        """These are on disk; what another generation left here is no longer."""
        write_json(self.path, {"of": self.of, "done": sorted(done)})

    def end(self) -> None:
        """All are."""
        self.path.unlink(missing_ok=True)


def digest_of(texts: Iterable[str], tokens: Sequence[Mapping[str, Any]]) -> str:
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
