"""What a query found, on disk: hits.json, and hits.png where any of it is a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.io import write_json
from tokenizers_zoo.registry import Zoo
from zoo_backbone.evaluation.gallery import Shown, shown
from zoo_backbone.evaluation.pairs import ranked_names
from zoo_backbone.generate.inputs import value_of_source
from zoo_backbone.retrieval.index import Index
from zoo_backbone.retrieval.pictures import framed, write_hits
from zoo_backbone.retrieval.query import Answer, in_words
from zoo_backbone.run import Run

FILE, PICTURE = "hits.json", "hits.png"
SHOWN, ASKED = 10, 100
"""In the picture: hits of a query, and queries, at most."""


def write_answers(
    index: Index,
    zoo: Zoo,
    out: Path,
    answers: Sequence[Answer],
    *,
    sources: Mapping[str, str],
    find: str,
    split: str,
    weights: Mapping[str, float],
) -> str:
    """Write OUT/hits.json and OUT/hits.png: what was asked with, then the hits, the sample asked with framed.

    Hits are shown by the modality `find`, or by the one that shows a sample best. `split` is that of the samples asked
    with. Of more than ASKED queries so many, spread over them, are in the picture. Without the run's values there is
    none; gives why, or "".
    """
    values, lacking = Run.load(index.run).data, ""
    if values is None:
        lacking = f"{index.run} names no values"
    elif not values.is_dir():
        lacking = f"the values of {index.run} were in {values}, which is gone"
    else:
        store = ValueStore.of(values, zoo)
        by = find or ranked_names([zoo[name].spec for name in index.names])[0]
        pictured = [answers[place] for place in spread(len(answers), ASKED)]
        asked = [_asked(store, zoo, answer, sources, split) for answer in pictured]
        hits: list[list[Shown]] = []
        for answer in pictured:
            cells = [shown(store, zoo[by], index.split, hit.key) for hit in answer.hits[:SHOWN]]
            own = answer.key if split == index.split else None
            hits.append([framed(c) if hit.key == own else c for c, hit in zip(cells, answer.hits, strict=False)])
        headers = [f"asked: {in_words([name], weights)}" for name in answers[0].given]
        if not write_hits(out / PICTURE, headers, asked, hits):
            lacking = _unread(store, by, index.split) or "all that would be shown is text"
    if lacking:
        (out / PICTURE).unlink(missing_ok=True)  # that of an earlier query
    result = {
        "index": str(index.folder.resolve()), "fingerprint": index.fingerprint, "find": find, "split": split,
        "files": dict(sources), "weights": dict(weights),
        "answers": [dataclasses.asdict(answer) for answer in answers],
    }  # fmt: skip
    write_json(out / FILE, result)
    return lacking


def _unread(store: ValueStore, name: str, split: str) -> str:
    """Why a modality's values cannot be read; "" where they can."""
    try:
        store.index(split, name)
    except ZooError as error:
        return str(error)
    return ""


def _asked(store: ValueStore, zoo: Zoo, answer: Answer, sources: Mapping[str, str], split: str) -> list[Shown]:
    """What a query was asked with, as pictures or texts."""
    if answer.key is not None:
        return [shown(store, zoo[name], split, answer.key) for name in answer.given]
    return [zoo[name].render(value_of_source(zoo[name], source)) for name, source in sources.items()]
