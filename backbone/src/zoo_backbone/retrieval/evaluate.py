"""Recall of retrieval between all pairs of modalities on held-out samples, with galleries of queries and hits.

OUT/retrieval.json:

    identity    {"fingerprint", "embedding", "split", "tokenizers", "settings"}
    pairs       [{"query", "target", "samples", "recall": {"1", "5", "10"}, "median_rank", "chance": {"recall",
                "median_rank"}}]. Samples with both modalities are searched by their query among all targets.
    mean        {"recall", "median_rank", "chance"}: means over pairs.
    galleries   [{"query", "target", "picture": path relative to OUT, or null if all cells are text, "columns",
                "rows": [{"key", "hits": [keys], "cells": [text, or null for an image]}]}]
    seconds
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.data.samples import TEST, spread
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.io import write_json
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.run_folder import locked
from zoo_backbone.evaluation_data import ranked_names
from zoo_backbone.gallery import Shown, shown, text_of
from zoo_backbone.retrieval import EmbeddingConfig, RecallConfig
from zoo_backbone.retrieval.embed import Embedder
from zoo_backbone.retrieval.query import framed, write_hits
from zoo_backbone.retrieval.space import Vectors

FOLDER, FILE, GALLERY = "retrieval", "retrieval.json", "gallery"
HITS_SHOWN = 5
AT = (1, 5, 10)
SAME = 1e-6
"""Cosines that differ by less are ties."""
BLOCK_BYTES = 64 << 20
"""Memory for the cosines of a block of queries."""

Pair = tuple[str, str]


def default_folder(run: Path, split: str) -> Path:
    """Return RUN/retrieval, shown by the report, or RUN/retrieval-SPLIT for other splits than test."""
    return run / (FOLDER if split == TEST else f"{FOLDER}-{split}")


def evaluate_retrieval(
    run: Path, zoo: Zoo, out: Path, *, embedding: EmbeddingConfig, config: RecallConfig | None = None,
    split: str = TEST, modalities: Sequence[str] | None = None, data_root: Path | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Measure recall between all pairs of modalities; write OUT/retrieval.json and galleries; return the former.

    Galleries show the values in `data_root` (default: the run's). Raises ConfigError for fewer than two modalities,
    DataError if no two samples have a pair of them, FolderError if another process writes OUT.
    """
    started, config = time.perf_counter(), config or RecallConfig()
    embedder = Embedder(run, zoo, embedding, device)
    names = embedder.names(modalities, split)
    if len(names) < 2:
        raise ConfigError(f"retrieve eval: expected at least two modalities, got {', '.join(names)}")
    samples = embedder.stored(split, names)
    chosen = np.array(spread(len(samples), config.samples), np.int64)
    has = dict(zip(names, samples.present[chosen].T, strict=True))
    both = {pair: np.flatnonzero(has[pair[0]] & has[pair[1]]) for pair in itertools.permutations(names, 2)}
    both = {pair: found for pair, found in both.items() if len(found) > 1}
    if not both:
        raise DataError(f"{embedder.run.tokens / split}: no two samples have two of {', '.join(names)}")
    embedder.fit(names)
    with locked(out):
        vectors: dict[str, Vectors] = {}  # unit vectors of each modality; zero where a sample lacks it
        with progress_bar("embed", int(samples.present[chosen].sum())) as advance:
            for name in (name for name in names if has[name].any()):
                found = embedder.embed_stored(samples, name, chosen[has[name]], advance)
                vectors[name] = np.zeros((len(chosen), found.shape[1]), np.float32)
                vectors[name][has[name]] = found
        pairs = [
            {"query": query, "target": target, "samples": len(rows),
             **recall(vectors[query][rows], vectors[target][rows]), "chance": chance(len(rows))}
            for (query, target), rows in both.items()
        ]  # fmt: skip
        keys = [samples.keys[sample] for sample in chosen]
        values = data_root or embedder.run.data
        galleries = []
        if values is not None and values.is_dir():
            store = ValueStore(values)

            def show(name: str, sample: int) -> Shown:
                return shown(store, zoo[name], split, keys[sample])

            (out / FILE).unlink(missing_ok=True)  # so that a kill leaves no figures with pictures of others
            # First the pairs with the modality that is best to look at.
            first, *others = ranked_names([embedder.layout.spec(name) for name in names])
            ordered = [pair for other in others for pair in ((other, first), (first, other))]
            ordered += itertools.permutations(others, 2)
            for pair in [pair for pair in ordered if pair in both][: config.gallery_pairs]:
                galleries.append(_gallery(out, pair, vectors, both[pair], keys, show, config.gallery_samples))
        result = {
            "identity": {
                "fingerprint": embedder.fingerprint, "embedding": dataclasses.asdict(embedding), "split": split,
                "tokenizers": embedder.tokenizers(samples.data), "settings": dataclasses.asdict(config),
            },
            "pairs": pairs, "mean": {**_mean(pairs), "chance": _mean([pair["chance"] for pair in pairs])},
            "galleries": galleries, "seconds": round(time.perf_counter() - started, 3),
        }  # fmt: skip
        write_json(out / FILE, result)
    return result


def recall(queries: Vectors, targets: Vectors) -> dict[str, Any]:
    """Return recall and median rank of unit vectors `(samples, dim)`; row i of `targets` is correct for query i.

    Ties are in random order on average: equal vectors give the recall of chance.
    """
    count, exact = len(targets), targets.astype(np.float64).T
    closer, equal = np.empty(count, np.int64), np.empty(count, np.int64)
    step = max(1, BLOCK_BYTES // (exact.itemsize * count))
    for start in range(0, count, step):
        block = slice(start, start + step)
        cosines = queries[block].astype(np.float64) @ exact
        own = np.diagonal(cosines, start)[:, None]
        closer[block] = (cosines > own + SAME).sum(1)
        equal[block] = (np.abs(cosines - own) <= SAME).sum(1)  # includes the correct one
    ranks = closer + (equal + 1) / 2
    shares = {str(k): round(float(np.clip((k - closer) / equal, 0, 1).mean()), 6) for k in AT}
    return {"recall": shares, "median_rank": float(np.median(ranks))}


def chance(samples: int) -> dict[str, Any]:
    """Return recall and median rank of random order."""
    return {"recall": {str(k): round(min(1.0, k / samples), 6) for k in AT}, "median_rank": (samples + 1) / 2}


def _mean(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shares = {str(k): round(float(np.mean([entry["recall"][str(k)] for entry in entries])), 6) for k in AT}
    return {"recall": shares, "median_rank": float(np.mean([entry["median_rank"] for entry in entries]))}


def _gallery(
    out: Path, pair: Pair, vectors: Mapping[str, Vectors], both: Any, keys: Sequence[str],
    show: Callable[[str, int], Shown], count: int,
) -> dict[str, Any]:  # fmt: skip
    """Write a picture of `count` queries and their hits; return its entry of "galleries"."""
    query, target = pair
    chosen = both[spread(len(both), count)]
    cosines = vectors[query][chosen] @ vectors[target][both].T
    nearest = both[np.argsort(-cosines, axis=1, kind="stable")[:, :HITS_SHOWN]]
    queries = [[show(query, own)] for own in chosen]
    hits = [
        [framed(show(target, hit)) if hit == own else show(target, hit) for hit in found]
        for own, found in zip(chosen, nearest, strict=True)
    ]
    header, picture = f"query: {query}", f"{GALLERY}/{query}-finds-{target}.png"
    has_images = write_hits(out / picture, [header], queries, hits)
    return {
        "query": query, "target": target, "picture": picture if has_images else None,
        "columns": [header, *(str(number + 1) for number in range(nearest.shape[1]))],
        "rows": [
            {"key": keys[own], "hits": [keys[hit] for hit in found], "cells": list(map(text_of, (*first, *row)))}
            for own, found, first, row in zip(chosen, nearest, queries, hits, strict=True)
        ],
    }  # fmt: skip
