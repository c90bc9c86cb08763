"""How often retrieval is right, from every modality to every other, on held-out samples: figures, a table, galleries.

OUT/retrieval.json, written when all is measured; one that is there is removed before the first gallery is written:

    identity    what the figures belong to: {"fingerprint" of the backbone, "embedding": EmbeddingConfig, "split",
                "codecs", "settings": RecallConfig}
    pairs       [{"query": name, "found": name, "samples", "recall": {"1", "5", "10"}, "median_rank",
                "chance": {"recall", "median_rank"}}]: each sample that has both modalities is looked for by one among
                all by the other; the share found among the first 1, 5, 10, and what guessing gives
    mean        {"recall", "median_rank", "chance"} over the pairs
    galleries   [{"query", "found", "picture": path relative to OUT, or null where all is text, "columns", "rows":
                [{"key", "hits": [keys], "cells": [text, or null where the picture shows it]}]}]
    seconds     time spent
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.data.samples import TEST
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.io import held, write_json
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.registry import Zoo
from zoo_backbone.evaluation.gallery import Shown, shown, text_of
from zoo_backbone.evaluation.pairs import ranked_names
from zoo_backbone.retrieval.config import EmbeddingConfig, RecallConfig
from zoo_backbone.retrieval.embedding import Embedder, Samples
from zoo_backbone.retrieval.pictures import framed, write_hits
from zoo_backbone.retrieval.recall import AT, Recall, chance, recall
from zoo_backbone.retrieval.spaces import Vectors

if TYPE_CHECKING:
    from rich.table import Table

FOLDER, FILE, GALLERY = "retrieval", "retrieval.json", "gallery"
BUSY = "{}: another zoo retrieve eval writes it right now; wait for its end, or give another --out"
HITS = 5
"""Hits in a gallery."""

Pair = tuple[str, str]


def place_of(run: Path, split: str) -> Path:
    """The folder in a run where the figures of a split are: those of TEST where the report looks."""
    return run / (FOLDER if split == TEST else f"{FOLDER}-{split}")


def evaluate_retrieval(
    run: Path,
    zoo: Zoo,
    out: Path,
    *,
    embedding: EmbeddingConfig,
    config: RecallConfig | None = None,
    split: str = TEST,
    modalities: Sequence[str] | None = None,
    data_root: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure recall between all pairs of modalities and write OUT/retrieval.json and galleries; gives the former.

    `data_root` are the values to show; default: the run's. Raises ConfigError for fewer than two modalities, DataError
    where no two samples have a pair of them, CheckpointError where another evaluation writes OUT, and ZooErrors for
    what does not fit together.
    """
    started, config = time.perf_counter(), config or RecallConfig()
    embedder = Embedder(run, zoo, embedding, device)
    names = embedder.names(modalities, split)
    if len(names) < 2:
        raise ConfigError(f"retrieve eval: expected at least two modalities, got {', '.join(names)}")
    data = embedder.stored(split, names)
    chosen = np.linspace(0, len(data) - 1, min(len(data), config.samples)).astype(np.int64)
    has = dict(zip(names, (data.rows[chosen] >= 0).T, strict=True))
    both = {pair: np.flatnonzero(has[pair[0]] & has[pair[1]]) for pair in itertools.permutations(names, 2)}
    both = {pair: samples for pair, samples in both.items() if len(samples) > 1}
    if not both:
        raise DataError(f"{embedder.run.tokens / split}: no two samples have two of {', '.join(names)}")
    embedder.fit(names, lambda total: progress_bar("fit the space", total))
    out.mkdir(parents=True, exist_ok=True)
    with held(out, BUSY.format(out)):
        vectors = _vectors(embedder, data, names, chosen)
        measured = [_measured(pair, vectors, samples) for pair, samples in both.items()]
        keys = [data.keys[sample] for sample in chosen]
        values = data_root or embedder.run.data
        galleries = []
        if values is not None and values.is_dir():
            store = ValueStore.of(values, zoo)

            def show(name: str, sample: int) -> Shown:
                return shown(store, zoo[name], split, keys[sample])

            (out / FILE).unlink(missing_ok=True)  # killed from here on, no figures tell of other pictures
            for pair in [pair for pair in gallery_pairs(embedder, names) if pair in both][: config.gallery_pairs]:
                galleries.append(_gallery(out, pair, vectors, both[pair], keys, show, config.gallery_samples))
        result = {
            "identity": {
                "fingerprint": embedder.fingerprint, "embedding": dataclasses.asdict(embedding), "split": split,
                "codecs": data.codecs | embedder.via_codec(), "settings": dataclasses.asdict(config),
            },
            "pairs": measured, "mean": _mean(measured), "galleries": galleries,
            "seconds": round(time.perf_counter() - started, 3),
        }  # fmt: skip
        write_json(out / FILE, result)
    return result


def _vectors(embedder: Embedder, data: Samples, names: Sequence[str], chosen: Any) -> dict[str, Vectors]:
    """Unit vectors `samples dims` of each modality; zero where a sample lacks it."""
    table = data.rows[chosen]
    vectors: dict[str, Vectors] = {}
    with progress_bar("embed", int((table >= 0).sum())) as advance:
        for column, name in enumerate(names):
            has = np.flatnonzero(table[:, column] >= 0)
            if len(has):
                found = embedder.embed_stored(data, name, table[has, column].tolist(), advance)
                vectors[name] = np.zeros((len(chosen), found.shape[1]), np.float32)
                vectors[name][has] = found
    return vectors


def _measured(pair: Pair, vectors: Mapping[str, Vectors], both: Any) -> dict[str, Any]:
    """One entry of "pairs"; `both` are the numbers of the samples that have both modalities."""
    query, found = pair
    return {
        "query": query, "found": found, "samples": len(both),
        **_as_json(recall(vectors[query][both], vectors[found][both])), "chance": _as_json(chance(len(both))),
    }  # fmt: skip


def _as_json(found: Recall) -> dict[str, Any]:
    at = {str(k): round(share, 6) for k, share in found.at.items()}
    return {"recall": at, "median_rank": found.median_rank}


def _mean(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over pairs of all that is measured."""

    def over(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        at = {str(k): round(float(np.mean([entry["recall"][str(k)] for entry in entries])), 6) for k in AT}
        return {"recall": at, "median_rank": float(np.mean([entry["median_rank"] for entry in entries]))}

    return {**over(pairs), "chance": over([pair["chance"] for pair in pairs])}


def gallery_pairs(embedder: Embedder, names: Sequence[str]) -> list[Pair]:
    """All pairs: first those from and to the modality that shows a sample best, taking turns."""
    first, *others = ranked_names([embedder.layout.spec(name) for name in names])
    turns = [pair for other in others for pair in ((other, first), (first, other))]
    return [*turns, *(pair for pair in itertools.permutations(others, 2))]


def _gallery(
    out: Path, pair: Pair, vectors: Mapping[str, Vectors], both: Any, keys: Sequence[str],
    show: Callable[[str, int], Shown], count: int,
) -> dict[str, Any]:  # fmt: skip
    """One entry of "galleries", of `count` queries; writes its picture."""
    query, found = pair
    asked = both[np.linspace(0, len(both) - 1, min(len(both), count)).astype(np.int64)]
    cosines = vectors[query][asked] @ vectors[found][both].T
    nearest = both[np.argsort(-cosines, axis=1, kind="stable")[:, :HITS]]
    cells = [
        [framed(show(found, hit)) if hit == own else show(found, hit) for hit in hits]
        for own, hits in zip(asked, nearest, strict=True)
    ]
    queries = [[show(query, own)] for own in asked]
    picture = f"{GALLERY}/{query}-finds-{found}.png"
    drawn_any = write_hits(out / picture, [f"asked: {query}"], queries, cells)
    return {
        "query": query, "found": found, "picture": picture if drawn_any else None,
        "columns": [f"asked: {query}", *(str(number + 1) for number in range(nearest.shape[1]))],
        "rows": [
            {"key": keys[own], "hits": [keys[hit] for hit in hits], "cells": [text_of(cell) for cell in (*asks, *row)]}
            for own, hits, asks, row in zip(asked, nearest, queries, cells, strict=True)
        ],
    }  # fmt: skip


def recall_table(result: Mapping[str, Any]) -> Table:
    """Recall in percent, and the median rank, each with what chance gives, for a terminal of 80 columns."""
    from tokenizers_zoo.cli.options import plain_table

    table = plain_table("asked by", "found by", *(f">R@{k}" for k in AT), ">median", ">of")
    for entry in result["pairs"]:
        table.add_row(entry["query"], entry["found"], *_cells(entry), str(entry["samples"]))
    table.add_row("[mean]", "", *_cells(result["mean"]), "")
    return table


def _cells(entry: Mapping[str, Any]) -> list[str]:
    """`12.0/1.0`: measured and by chance."""
    guessed = entry["chance"]
    shares = [f"{100 * entry['recall'][str(k)]:.1f}/{100 * guessed['recall'][str(k)]:.1f}" for k in AT]
    return [*shares, f"{entry['median_rank']:.0f}/{guessed['median_rank']:.0f}"]
