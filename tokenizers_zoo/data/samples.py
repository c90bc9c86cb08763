"""What a tokenizer is trained on: values of one modality, split in train and test, and the text it shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

TRAIN, TEST = "train", "test"
"""The splits: what is learned from, and what is held out."""
ADDED_PROVENANCE = ("contents", "settings")
"""Keys of `provenance` that runs of older versions did not record; without one a run goes on, and stays, as it is."""


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` of `count` places in order, evenly spaced: of sorted samples the first may all be alike."""
    chosen = min(count, limit)
    return [count * number // chosen for number in range(chosen)]


@dataclass(frozen=True, kw_only=True)
class TrainingSamples:
    """Lazy, aligned values of one modality, already checked and at the size that its settings say.

    `texts` gives the plain text of ALL modalities that write in this one's vocabulary, `special_tokens` their special
    tokens in a fixed order; both are empty where they have none. `provenance` says where the
    values come from, what is in their shards and with which settings they are read, for the model card, and so that a
    tokenizer of other values is told from this one's (JSON types).
    """

    train: Sequence[Any]
    test: Sequence[Any]
    texts: Callable[[], Iterable[str]] = tuple
    special_tokens: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
