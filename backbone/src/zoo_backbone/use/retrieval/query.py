"""Queries (weighted sums of vectors of several modalities) with their hits, and recall on held-out samples.

OUT/hits.json of a query:

    index, fingerprint  the index, and the backbone that built it
    find, split, files, weights
    queries             [{"key", "inputs", "hits": [{"key", "cosine"}]}]

Recall is written as a `RetrievalRecord`.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.samples import spread
from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError
from tokenizers_zoo.files.run_folder import locked
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.io import write_table
from tokenizers_zoo.stores.shards import ValueStore
from zoo_backbone.generate.sources import InputSource, item_of_source
from zoo_backbone.measure.evaluation import GalleryRecord
from zoo_backbone.measure.evaluation_data import ranked_names
from zoo_backbone.measure.gallery import Shown, shown, write_gallery, write_sheet
from zoo_backbone.measure.retrieval import (
    FILE,
    RECALL_AT,
    MeanRecall,
    PairRecall,
    Recall,
    RetrievalIdentity,
    RetrievalRecord,
)
from zoo_backbone.model.run import Run
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.retrieval import EmbeddingConfig, QueryConfig
from zoo_backbone.use.retrieval.embed import Embedder, Vectors, unit
from zoo_backbone.use.retrieval.index import Hit, Index

MIN_LENGTH = 1e-6
"""Shorter weighted sums have no direction."""
HITS, PICTURE = "hits.json", "hits.png"
HITS_SHOWN, QUERIES_SHOWN = 10, 100
FRAME = 20
"""Size of a picture over the width of the frame around a correct hit."""
GALLERY = "gallery"
QUERIES, NEAREST = 4, 5
"""Queries in a gallery of an evaluation, and their hits."""
TIE_TOLERANCE = 1e-6
"""Cosines that differ by less are ties."""
BLOCK_BYTES = 64 << 20
"""Memory for the cosines of a block of queries."""
CORRECT, MARK = "#1a9641", "[correct] "
"""Colour of the frame, and prefix of texts."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The hits of a query, the most similar first. `key` is the stored sample of the query, None for values."""

    key: str | None
    inputs: tuple[str, ...]
    hits: list[Hit]


def weighted_sum(vectors: Mapping[str, Vectors], weights: Mapping[str, float]) -> Vectors:
    """Return the normalised weighted sum of unit vectors `(samples, dims)`; weights are 1 by default.

    Raises ConfigError for a weight of a modality that is no input, and if a sum is zero.
    """
    for name in weights:
        if name not in vectors:
            raise ConfigError(f"--weights {name}: is not an input; inputs: {', '.join(vectors)}")
    total = np.sum([weights.get(name, 1.0) * rows for name, rows in vectors.items()], axis=0)
    if bool((np.linalg.norm(total, axis=1) < MIN_LENGTH).any()):
        raise ConfigError("--weights: the weighted sum of the inputs is zero; change the weights")
    return unit(total.astype(np.float32))


def query_values(index: Index, model: AnyToAny, sources: Mapping[str, InputSource], query: QueryConfig) -> list[Result]:
    """Query with one sample, given as files or values as text, by modality."""
    index.check([*sources, query.find])
    embedder = index.embedder(model)
    vectors = {name: embedder.embed_value(name, source) for name, source in sources.items()}
    (hits,) = index.search(weighted_sum(vectors, query.weights), query.k, query.find)
    return [Result(key=None, inputs=tuple(sources), hits=hits)]


def query_keys(
    index: Index, model: AnyToAny, keys: Sequence[str], inputs: Sequence[str], query: QueryConfig
) -> list[Result]:
    """Query with the stored samples `keys`.

    Raises UnknownNameError or DataError for a sample that is not there, or lacks a modality.
    """
    index.check([*inputs, query.find])
    embedder, split = index.embedder(model), query.split or index.split
    split_folder = embedder.run.tokens / split
    samples = embedder.load_split(split, inputs)
    rows = []
    for key in keys:
        number = samples.split.find(key)
        if number is None:
            example_keys = [samples.split.key(row) for row in spread(samples.split.samples, 1000)]
            raise UnknownNameError.of("sample", key, example_keys, f"(in {split_folder}; see --split)")
        rows.append(number * samples.split.crops)
    vectors = {}
    present = samples.present(np.array(rows, np.int64))
    for name, has in zip(inputs, present.T, strict=True):
        if not has.all():
            raise DataError(f"{split_folder}: sample {keys[int(has.argmin())]!r} has no {name}")
        vectors[name] = embedder.embed(name, samples.columns[name].take(rows))
    excluded_keys = keys if query.exclude_self and split == index.split else None
    hits = index.search(weighted_sum(vectors, query.weights), query.k, query.find, excluded_keys)
    return [Result(key=key, inputs=tuple(inputs), hits=key_hits) for key, key_hits in zip(keys, hits, strict=True)]


# ---------------------------------------------------------------- results on disk


def write_results(
    index: Index, zoo: Zoo, out: Path, results: Sequence[Result], sources: Mapping[str, InputSource], query: QueryConfig
) -> str:
    """Write OUT/hits.json, and OUT/hits.png with queries and hits, the query's own sample framed.

    Hits are shown as the modality that is searched, or as the modality that is best to look at. Returns why there is
    no picture, or "".
    """
    split = query.split or index.split
    by = query.find or ranked_names([zoo[name].spec for name in index.names])[0]
    data = Run.load(index.run).data
    store = ValueStore(data) if data is not None and data.is_dir() else None
    reason = ""
    if store is None or by not in store.modalities(index.split):
        reason = f"there are no values of {by} in {data}"
    else:
        queries: list[list[Shown]] = []
        hits: list[list[Shown]] = []
        for result in (results[i] for i in spread(len(results), QUERIES_SHOWN)):
            if result.key is not None:
                queries.append([shown(store, zoo[name], split, result.key) for name in result.inputs])
            else:
                items = [(zoo[name], item_of_source(zoo[name], source)) for name, source in sources.items()]
                queries.append([handle.render(handle.fitted(item)) for handle, item in items])
            cells = [(hit.key, shown(store, zoo[by], index.split, hit.key)) for hit in result.hits[:HITS_SHOWN]]
            query_key = result.key if split == index.split else None
            hits.append([mark_correct(cell) if key == query_key else cell for key, cell in cells])
        if not write_hits(out / PICTURE, [f"query: {name}" for name in results[0].inputs], queries, hits):
            reason = "queries and hits are texts"
    if reason:
        (out / PICTURE).unlink(missing_ok=True)  # of an earlier query
    record = {
        "index": str(index.folder.resolve()),
        "fingerprint": index.fingerprint,
        "find": query.find,
        "split": split,
        "files": {name: str(source) for name, source in sources.items()},
        "weights": query.weights,
        "queries": [dataclasses.asdict(result) for result in results],
    }
    write_table(out / HITS, record)
    return reason


def mark_correct(cell: Shown) -> Shown:
    """Mark a cell as correct: images by a frame, texts by a prefix."""
    if isinstance(cell, str):
        return MARK + cell
    return ImageOps.expand(cell.convert("RGB"), -(-max(cell.size) // FRAME), CORRECT)


def write_hits(
    path: Path, headers: Sequence[str], queries: Sequence[Sequence[Shown]], hits: Sequence[Sequence[Shown]]
) -> bool:
    """Write an image with a row per query: its inputs (with `headers`), then its hits. False if all cells are text."""
    hit_count = max(len(row) for row in hits)
    columns = [*headers, *map(str, range(1, hit_count + 1))]
    rows = [[*inputs, *cells, *[""] * (hit_count - len(cells))] for inputs, cells in zip(queries, hits, strict=True)]
    return write_sheet(path, columns, rows)


def evaluate_retrieval(
    run: Run,
    zoo: Zoo,
    out: Path,
    config: EmbeddingConfig,
    *,
    samples: int = 1000,
    galleries: int = 8,
    device: str = "cpu",
) -> RetrievalRecord:
    """Measure recall between all pairs of modalities; write OUT/retrieval.json and galleries; return the former.

    Up to `samples` samples of the split are evenly spread; `galleries` pairs get a picture. Raises ConfigError for
    fewer than two modalities, DataError if no two samples have a pair of them, FolderError if another process writes
    OUT.
    """
    started = time.perf_counter()
    embedder = Embedder(AnyToAny.load(run, zoo, device=device), config)
    names, split = embedder.names(), config.split
    if len(names) < 2:
        raise ConfigError(f"retrieve eval: expected at least two modalities, got {', '.join(names)}")
    token_data = embedder.load_split(split, names)
    indices = np.array(spread(len(token_data), samples), np.int64)
    present = token_data.present(token_data.rows(indices))
    has = dict(zip(names, present.T, strict=True))
    rows_by_pair = {pair: np.flatnonzero(has[pair[0]] & has[pair[1]]) for pair in itertools.permutations(names, 2)}
    rows_by_pair = {pair: rows for pair, rows in rows_by_pair.items() if len(rows) > 1}
    if not rows_by_pair:
        raise DataError(f"{embedder.run.tokens / split}: no two samples have two of {', '.join(names)}")
    embedder.fit(names)
    with locked(out):
        vectors: dict[str, Vectors] = {}  # unit vectors of each modality; zero where a sample lacks it
        with progress_bar("embed", int(present.sum())) as advance:
            for name in (name for name in names if has[name].any()):
                embedded = embedder.embed_stored(token_data, name, indices[has[name]], advance)
                vectors[name] = np.zeros((len(indices), embedded.shape[1]), np.float32)
                vectors[name][has[name]] = embedded
        pairs = []
        for (query, target), rows in rows_by_pair.items():
            measured = recall(vectors[query][rows], vectors[target][rows])
            pairs.append(
                PairRecall(
                    query=query,
                    target=target,
                    samples=len(rows),
                    recall=measured.recall,
                    median_rank=measured.median_rank,
                    chance=chance(len(rows)),
                )
            )
        all_keys = token_data.sample_keys()
        keys = [all_keys[sample] for sample in indices]
        gallery_entries = []
        if embedder.run.data is not None and embedder.run.data.is_dir():
            store = ValueStore(embedder.run.data)

            def show(name: str, sample: int) -> Shown:
                return shown(store, zoo[name], split, keys[sample])

            (out / FILE).unlink(missing_ok=True)  # so that a kill leaves no figures with pictures of others
            # First the pairs with the modality that is best to look at.
            best, *lower_ranked = ranked_names([embedder.layout.spec(name) for name in names])
            ordered = [pair for name in lower_ranked for pair in ((name, best), (best, name))]
            ordered += itertools.permutations(lower_ranked, 2)
            gallery_entries = [
                _gallery(out, pair, vectors, rows_by_pair[pair], keys, show)
                for pair in [pair for pair in ordered if pair in rows_by_pair][:galleries]
            ]
        mean = _mean(pairs)
        result = RetrievalRecord(
            identity=RetrievalIdentity(
                fingerprint=embedder.fingerprint,
                embedding={"via": config.via, "space": config.space},
                split=split,
                tokenizers=embedder.tokenizers(token_data),
                settings={"samples": samples},
            ),
            pairs=tuple(pairs),
            mean=MeanRecall(
                recall=mean.recall, median_rank=mean.median_rank, chance=_mean([pair.chance for pair in pairs])
            ),
            galleries=tuple(gallery_entries),
            seconds=round(time.perf_counter() - started, 3),
        )
        write_table(out / FILE, result)
    return result


def recall(queries: Vectors, targets: Vectors) -> Recall:
    """Return recall and median rank of unit vectors `(samples, dim)`; row i of `targets` is correct for query i.

    Ties are in random order on average: equal vectors give the recall of chance.
    """
    count, exact = len(targets), targets.astype(np.float64).T
    closer, equal = np.empty(count, np.int64), np.empty(count, np.int64)
    step = max(1, BLOCK_BYTES // (exact.itemsize * count))
    for start in range(0, count, step):
        block = slice(start, start + step)
        cosines = queries[block].astype(np.float64) @ exact
        correct = np.diagonal(cosines, start)[:, None]
        closer[block] = (cosines > correct + TIE_TOLERANCE).sum(1)
        equal[block] = (np.abs(cosines - correct) <= TIE_TOLERANCE).sum(1)  # includes the correct one
    ranks = closer + (equal + 1) / 2
    shares = {k: round(float(np.clip((int(k) - closer) / equal, 0, 1).mean()), 6) for k in RECALL_AT}
    return Recall(recall=shares, median_rank=float(np.median(ranks)))


def chance(samples: int) -> Recall:
    """Return recall and median rank of random order."""
    shares = {k: round(min(1.0, int(k) / samples), 6) for k in RECALL_AT}
    return Recall(recall=shares, median_rank=(samples + 1) / 2)


def _mean(recalls: Sequence[Recall]) -> Recall:
    shares = {k: round(float(np.mean([entry.recall[k] for entry in recalls])), 6) for k in RECALL_AT}
    return Recall(recall=shares, median_rank=float(np.mean([entry.median_rank for entry in recalls])))


def _gallery(
    out: Path,
    pair: tuple[str, str],
    vectors: Mapping[str, Vectors],
    rows: Any,
    keys: Sequence[str],
    show: Callable[[str, int], Shown],
) -> GalleryRecord:
    """Write a picture of queries and their hits, and return its record."""
    query, target = pair
    query_rows = rows[spread(len(rows), QUERIES)]
    cosines = vectors[query][query_rows] @ vectors[target][rows].T
    nearest = rows[np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]]
    rows_shown = [
        [show(query, row), *(mark_correct(show(target, hit)) if hit == row else show(target, hit) for hit in hit_rows)]
        for row, hit_rows in zip(query_rows, nearest, strict=True)
    ]
    headers = f"query: {query}", *map(str, range(1, nearest.shape[1] + 1))
    picture = f"{GALLERY}/{query}-finds-{target}.png"
    gallery = GalleryRecord(query=query, target=target, picture=picture, columns=headers, rows=())
    gallery = write_gallery(out, gallery, [keys[row] for row in query_rows], rows_shown)
    hits = [tuple(keys[hit] for hit in hit_rows) for hit_rows in nearest]
    rows_with_hits = (dataclasses.replace(row, hits=row_hits) for row, row_hits in zip(gallery.rows, hits, strict=True))
    return dataclasses.replace(gallery, rows=tuple(rows_with_hits))
