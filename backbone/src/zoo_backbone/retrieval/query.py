"""Queries: weighted sums of the vectors of several modalities, from files or from stored samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError
from tokenizers_zoo.registry import Zoo
from zoo_backbone.retrieval.embedding import Embedder
from zoo_backbone.retrieval.index import TOGETHER, Hit, Index
from zoo_backbone.retrieval.spaces import Vectors, unit

LEAST = 1e-6
"""Length of a weighted sum from which on it points somewhere."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found for one query: the stored sample that was asked with (None: files), and hits, the closest first.

    `given` are the modalities that it was asked with.
    """

    key: str | None
    given: tuple[str, ...]
    hits: list[Hit]


def combined(vectors: Mapping[str, Vectors], weights: Mapping[str, float]) -> Vectors:
    """The weighted sum of unit vectors `samples dims` by modality, at length 1; a modality's weight is 1 by default.

    A negative weight asks for what is unlike it. Raises ConfigError for a weight of a modality that is not given, and
    where a sum is zero.
    """
    for name in weights:
        if name not in vectors:
            raise ConfigError(f"--weights {name}: is not given; given: {', '.join(vectors)}")
    largest = max(abs(weights.get(name, 1.0)) for name in vectors) or 1.0  # taken out, so that no sum is infinite
    total = np.sum([weights.get(name, 1.0) / largest * rows for name, rows in vectors.items()], axis=0)
    if bool((np.linalg.norm(total, axis=1) < LEAST).any()):
        raise ConfigError("the weighted sum of what is given is zero, and says nothing; change --weights")
    return unit(total.astype(np.float32))


def in_words(given: Sequence[str], weights: Mapping[str, float]) -> str:
    """What is asked with, as a sum: `caption + 0.5 depth - semseg`."""
    terms = []
    for name in given:
        weight = weights.get(name, 1.0)
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        terms.append(f"{'-' if weight < 0 else '+'} {size}{name}")
    return " ".join(terms).removeprefix("+ ")


def query_values(
    index: Index,
    zoo: Zoo,
    sources: Mapping[str, str],
    weights: Mapping[str, float],
    k: int,
    find: str = TOGETHER,
    device: str = "cpu",
) -> list[Answer]:
    """What is closest to one sample, whose modalities are files, or values written out as generation takes them.

    Raises ZooErrors for what does not fit together.
    """
    index.check([*sources, *([find] if find else [])])
    embedder = index.embedder(zoo, device)
    vectors = {name: embedder.embed(name, embedder.encode(name, source)) for name, source in sources.items()}
    (hits,) = index.search(combined(vectors, weights), k, find)
    return [Answer(key=None, given=tuple(sources), hits=hits)]


def query_keys(
    index: Index,
    zoo: Zoo,
    keys: Sequence[str],
    given: Sequence[str],
    weights: Mapping[str, float],
    k: int,
    *,
    find: str = TOGETHER,
    split: str | None = None,
    exclude_self: bool = False,
    device: str = "cpu",
) -> list[Answer]:
    """What is closest to each of the stored samples `keys` of a split, by default the index's.

    `exclude_self` leaves out the sample that was asked with; one of another split is not in the index, where its key is
    another sample's. Raises ZooErrors for what does not fit together.
    """
    index.check([*given, *([find] if find else [])])
    embedder = index.embedder(zoo, device)
    split = split or index.split
    known = index.keys if split == index.split else ()
    queries = combined(_stored(embedder, split, keys, given, known), weights)
    found = index.search(queries, k, find, list(keys) if exclude_self and split == index.split else None)
    return [Answer(key=key, given=tuple(given), hits=hits) for key, hits in zip(keys, found, strict=True)]


def _stored(
    embedder: Embedder, split: str, keys: Sequence[str], given: Sequence[str], known: Sequence[str]
) -> dict[str, Vectors]:
    """The vectors of stored samples, by modality; `known` are keys that are there, whatever is stored of them.

    Raises UnknownNameError, DataError.
    """
    data = embedder.stored(split, given)
    where = f"{embedder.run.tokens / split}"
    numbers = {key: number for number, key in enumerate(data.keys)}
    for key in keys:
        if key not in numbers and key in known:
            raise DataError(f"{where}: sample {key!r} has no {' and no '.join(given)}")
        if key not in numbers:
            raise UnknownNameError.of("sample", key, data.keys[:1000], f"(in {where}; --split gives another part)")
    vectors = {}
    for column, name in enumerate(given):
        rows = [int(data.rows[numbers[key], column]) for key in keys]
        if -1 in rows:
            raise DataError(f"{where}: sample {keys[rows.index(-1)]!r} has no {name}")
        vectors[name] = embedder.embed_stored(data, name, rows, lambda _: None)
    return vectors
