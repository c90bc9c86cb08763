"""Queries: weighted sums of vectors of several modalities, from values or stored samples; their hits on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError, ZooError
from tokenizers_zoo.io import write_json
from tokenizers_zoo.registry import Zoo
from zoo_backbone.evaluation_data import ranked_names
from zoo_backbone.gallery import CELL, Shown, shown, write_sheet
from zoo_backbone.generate.inputs import value_of_source
from zoo_backbone.retrieval.index import TOGETHER, Hit, Index
from zoo_backbone.retrieval.space import Vectors, unit
from zoo_backbone.run import Run

SHORTEST = 1e-6
"""Shorter weighted sums have no direction."""
FILE, PICTURE = "hits.json", "hits.png"
HITS_SHOWN, QUERIES_SHOWN = 10, 100
FRAME = 6
"""Width of the frame around a correct hit, in pixels of a cell."""
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
    largest = max(abs(weights.get(name, 1.0)) for name in vectors) or 1.0  # avoids overflow
    total = np.sum([weights.get(name, 1.0) / largest * rows for name, rows in vectors.items()], axis=0)
    if bool((np.linalg.norm(total, axis=1) < SHORTEST).any()):
        raise ConfigError("--weights: the weighted sum of the inputs is zero; change the weights")
    return unit(total.astype(np.float32))


def formula(inputs: Sequence[str], weights: Mapping[str, float]) -> str:
    """Return a weighted sum as text: `caption + 0.5 depth - semseg`."""
    terms = []
    for name in inputs:
        weight = weights.get(name, 1.0)
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        terms.append(f"{'-' if weight < 0 else '+'} {size}{name}")
    return " ".join(terms).removeprefix("+ ")


def query_values(
    index: Index, zoo: Zoo, sources: Mapping[str, str], weights: Mapping[str, float], k: int, find: str = TOGETHER,
    device: str = "cpu",
) -> list[Result]:  # fmt: skip
    """Query with one sample, given as files or values as text, by modality."""
    index.check([*sources, *([find] if find else [])])
    embedder = index.embedder(zoo, device)
    vectors = {name: embedder.embed_value(name, source) for name, source in sources.items()}
    (hits,) = index.search(weighted_sum(vectors, weights), k, find)
    return [Result(key=None, inputs=tuple(sources), hits=hits)]


def query_keys(
    index: Index, zoo: Zoo, keys: Sequence[str], inputs: Sequence[str], weights: Mapping[str, float], k: int, *,
    find: str = TOGETHER, split: str | None = None, exclude_self: bool = False, device: str = "cpu",
) -> list[Result]:  # fmt: skip
    """Query with stored samples: `keys` of a split (default: the index's).

    `exclude_self` excludes the query's own sample, if it is of the index's split. Raises UnknownNameError or DataError
    for a sample that is not there, or lacks a modality.
    """
    index.check([*inputs, *([find] if find else [])])
    embedder, split = index.embedder(zoo, device), split or index.split
    where = embedder.run.tokens / split
    samples = embedder.stored(split, inputs)
    rows = []
    for key in keys:
        number = samples.data.split.find(key)
        if number is None:
            known = [samples.data.split.key(row) for row in spread(samples.data.split.samples, 1000)]
            raise UnknownNameError.of("sample", key, known, f"(in {where}; see --split)")
        rows.append(number * samples.data.split.crops)
    vectors = {}
    present = samples.data.present(np.array(rows, np.int64))
    for name, has in zip(inputs, present.T, strict=True):
        if not has.all():
            raise DataError(f"{where}: sample {keys[int(has.argmin())]!r} has no {name}")
        vectors[name] = embedder.embed(name, samples.data.columns[name].take(rows))
    own = keys if exclude_self and split == index.split else None
    hits = index.search(weighted_sum(vectors, weights), k, find, own)
    return [Result(key=key, inputs=tuple(inputs), hits=found) for key, found in zip(keys, hits, strict=True)]


# ---------------------------------------------------------------- results on disk


def write_results(
    index: Index, zoo: Zoo, out: Path, results: Sequence[Result], *, sources: Mapping[str, str], find: str, split: str,
    weights: Mapping[str, float],
) -> str:  # fmt: skip
    """Write OUT/hits.json, and OUT/hits.png with queries and hits, the query's own sample framed.

    Hits are shown as the modality `find`, or as the modality that is best to look at. Returns why there is no picture,
    or "".
    """
    by = find or ranked_names([zoo[name].spec for name in index.names])[0]
    data = Run.load(index.run).data
    try:
        if data is None:
            raise DataError(f"{index.run}: its values are not known")
        store = ValueStore(data)
        store.folder(index.split, by)
        problem = ""
    except ZooError as error:
        problem = str(error)
    if not problem:
        queries: list[list[Shown]] = []
        hits: list[list[Shown]] = []
        for result in (results[place] for place in spread(len(results), QUERIES_SHOWN)):
            if result.key is not None:
                queries.append([shown(store, zoo[name], split, result.key) for name in result.inputs])
            else:
                queries.append([zoo[name].render(value_of_source(zoo[name], text)) for name, text in sources.items()])
            cells = [(hit.key, shown(store, zoo[by], index.split, hit.key)) for hit in result.hits[:HITS_SHOWN]]
            own = result.key if split == index.split else None
            hits.append([framed(cell) if key == own else cell for key, cell in cells])
        headers = [f"query: {formula([name], weights)}" for name in results[0].inputs]
        if not write_hits(out / PICTURE, headers, queries, hits):
            problem = "queries and hits are texts"
    if problem:
        (out / PICTURE).unlink(missing_ok=True)  # of an earlier query
    record = {
        "index": str(index.folder.resolve()), "fingerprint": index.fingerprint, "find": find, "split": split,
        "files": dict(sources), "weights": dict(weights),
        "queries": [dataclasses.asdict(result) for result in results],
    }  # fmt: skip
    write_json(out / FILE, record)
    return problem


def framed(cell: Shown) -> Shown:
    """Mark a cell as correct: images by a frame, texts by a prefix."""
    if isinstance(cell, str):
        return MARK + cell
    picture = cell.convert("RGB")
    factor = max(1, CELL // max(picture.size))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    width = FRAME * max(1, round(max(picture.size) / CELL))
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=CORRECT, width=width)
    return picture


def write_hits(
    path: Path, headers: Sequence[str], queries: Sequence[Sequence[Shown]], hits: Sequence[Sequence[Shown]]
) -> bool:
    """Write an image with a row per query: its inputs (with `headers`), then its hits. False if all cells are text."""
    most = max(len(row) for row in hits)
    columns = [*headers, *(f"{number}" for number in range(1, most + 1))]
    rows = [[*inputs, *found, *[""] * (most - len(found))] for inputs, found in zip(queries, hits, strict=True)]
    return write_sheet(path, columns, rows)
