"""What a tokenizer is trained on: values of one modality, split in train and test, and the text it shares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

TRAIN, TEST = "train", "test"
"""The splits: what is learned from, and what is held out."""
ADDED_PROVENANCE = ("contents", "settings")
"""Keys of `provenance` that runs of older versions did not record; without one a run goes on, and stays, as it is."""
LOOKED_AT = 16
"""Values of a split, evenly spread, by which those of no `provenance` are known."""


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` of `count` places in order, evenly spaced: of sorted samples the first may all be alike."""
    chosen = min(count, limit)
    return [count * number // chosen for number in range(chosen)]


@dataclass(frozen=True, kw_only=True)
class TrainingSamples:
    """Lazy, aligned values of one modality, already checked and at the size that its settings say.

    `texts` gives the plain text of ALL modalities that write in this one's vocabulary, `special_tokens` their special
    tokens in a fixed order; both are empty where they have none. Where `texts` gives nothing, a text modality learns
    from the text of `train`. `provenance` says where the values come from, what is in their shards and with which
    settings they are read, for the model card, and so that a tokenizer of other values is told from this one's (JSON
    types). Without one some of the values tell, see `record`: give one where they are not the same each time that they
    are asked for, such as random crops.
    """

    train: Sequence[Any]
    test: Sequence[Any]
    texts: Callable[[], Iterable[str]] = tuple
    special_tokens: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def record(self) -> dict[str, Any]:
        """What a run says of its data (JSON types): how many values, and their provenance.

        Without one it is a digest of up to LOOKED_AT values of each split, as the `contents` of what comes from shards.
        """
        values = {TRAIN: self.train, TEST: self.test}
        provenance = dict(self.provenance) or {"contents": {split: _digest(some) for split, some in values.items()}}
        return {**{split: len(some) for split, some in values.items()}, "provenance": provenance}


def _digest(values: Sequence[Any]) -> str:
    """The start of a sha256 (hex) over some of the values, whatever they are; empty where there is none."""
    sha256 = hashlib.sha256()
    chosen = spread(len(values), LOOKED_AT)
    for place in chosen:
        try:
            text = json.dumps(values[place], sort_keys=True, default=_of_an_array)
        except (TypeError, ValueError, RuntimeError):  # such as keys that are no strings: of it only its type is told
            text = type(values[place]).__name__
        sha256.update(text.encode() + b"\n")
    return sha256.hexdigest()[:16] if chosen else ""


def _of_an_array(value: Any) -> list[Any]:
    """An array or number that JSON does not know, as JSON; of any other object no more than its type is told."""
    array = np.asarray(value)
    if array.dtype.hasobject:
        return [type(value).__name__]
    return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
