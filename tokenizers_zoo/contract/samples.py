"""Training samples of a tokenizer: values of one modality, split in train and test, and shared text."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Item = TypeVar("Item")
TRAIN, TEST = "train", "test"
"""The splits: training samples, and held-out samples."""
OWN_FILES = "folder"
"""The source of the user's own files."""
HASHED_VALUES = 16
"""Number of values, evenly spread, that are hashed where there is no `provenance`."""


class LazySequence(Sequence[Item]):
    """A sequence that computes its items on access. Subclasses define `__len__` and `item`."""

    def item(self, index: int) -> Item:
        """Return the item at an index in [0, len(self))."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.item(number) for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        return self.item(index % len(self))


def spread(count: int, limit: int) -> list[int]:
    """Return up to `limit` of `count` indices in order, evenly spaced: of sorted samples the first may all be alike."""
    size = min(count, limit)
    return [count * number // size for number in range(size)]


@dataclass(frozen=True, kw_only=True)
class TrainingSamples:
    """Lazy, aligned values of one modality, checked and at the configured size.

    `texts` returns the plain text of ALL modalities that share this modality's vocabulary, and `special_tokens` lists
    their special tokens in a fixed order; both may be empty. If `texts` is empty, a text modality learns from the text
    of `train`. `text_of` names the modalities that the texts belong to. `provenance` names the source, the digest of
    the shards and the reading settings (JSON types), for the model card and to recognise other values. Without it, some
    values are hashed, see `record`: pass one if values change between reads, such as random crops.
    """

    train: Sequence[Any]
    test: Sequence[Any]
    texts: Callable[[], Iterable[str]] = tuple
    special_tokens: tuple[str, ...] = ()
    text_of: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the record of the data for run.json (JSON types): numbers of values, and provenance.

        Without provenance, `contents` is a digest of up to HASHED_VALUES values of each split.
        """
        values = {TRAIN: self.train, TEST: self.test}
        counts = {split: len(samples) for split, samples in values.items()}
        provenance = dict(self.provenance) or {"contents": {split: _digest(values[split]) for split in values}}
        return {**counts, "provenance": provenance}


def _digest(values: Sequence[Any]) -> str:
    """Return the start of a sha256 (hex) over some values of any type; empty without values."""
    subset = [values[index] for index in spread(len(values), HASHED_VALUES)]
    return hashlib.sha256(b"".join(map(pickle.dumps, subset))).hexdigest()[:16] if subset else ""
