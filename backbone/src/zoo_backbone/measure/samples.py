"""Samples on the page of a backbone: inputs, generated or found values, and truth; and the section on retrieval."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenizers_zoo.contract.samples import TRAIN
from tokenizers_zoo.files.published import known_fingerprint
from tokenizers_zoo.files.tar import key_problem
from tokenizers_zoo.records.io import read_record
from tokenizers_zoo.report.pages import read_inside
from tokenizers_zoo.report.pictures import Pictures, cells_of, range_text
from zoo_backbone.measure.evaluation import GalleryRecord, GalleryRow
from zoo_backbone.measure.retrieval import FILE, FOLDER, RetrievalRecord

Role = Literal["input", "generated", "truth"]
RECALL = f"{FOLDER}/{FILE}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture or text of a gallery."""

    role: Role
    modality: str
    label: str
    image: str | None = None
    text: str | None = None


@dataclass(kw_only=True)
class Gallery:
    """Samples of one pair of inputs and target, a row of cells each."""

    inputs: tuple[str, ...]
    target: str
    keys: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    @property
    def texts(self) -> bool:
        """True where any cell is text."""
        return any(cell.text is not None for row in self.rows for cell in row)

    @property
    def wide(self) -> bool:
        """True if the target is text."""
        return any(cell.text is not None for row in self.rows for cell in row if cell.role != "input")


def read_galleries(
    folder: Path, galleries: Sequence[GalleryRecord], pictures: Pictures
) -> tuple[list[Gallery], list[str]]:
    """Return the galleries that an evaluation in `folder` wrote, and the names of missing or invalid sheets.

    Each sheet is copied to the page's pictures. Galleries without their sheet are skipped.
    """
    loaded, missing_sheets = [], []
    for entry in galleries:
        inputs = entry.inputs or (entry.query,)
        gallery = Gallery(inputs=inputs, target=entry.target, keys=[row.key for row in entry.rows])
        images: list[list[str | None]] = [[None] * len(entry.columns) for _ in entry.rows]
        if name := entry.picture:
            if key_problem(name.removesuffix(".png")) or (sheet := read_inside(folder, folder / name)) is None:
                missing_sheets.append(name)
                continue
            images = cells_of(folder / name)
            prefix = "generated-" if entry.inputs else ""
            pictures.add(f"{prefix}{Path(name).stem}", sheet)
        for row, image_row in zip(entry.rows, images, strict=True):
            cells = [
                Cell(role=role, modality=name, label=label, image=image, text=text)
                for (role, name, label), image, text in zip(_columns(entry, row), image_row, row.cells, strict=False)
            ]
            gallery.rows.append([cell for cell in cells if cell.image or cell.text is not None])
        loaded.append(gallery)
    return loaded, missing_sheets


def _columns(entry: GalleryRecord, row: GalleryRow) -> Iterator[tuple[Role, str, str]]:
    """Yield role, modality and label of a row's cells: inputs, draws, truth; or a query and its hits."""
    target, inputs = entry.target, entry.inputs
    if entry.query:
        yield "input", entry.query, "query"
        for rank, key in enumerate(row.hits, 1):
            correct = key == row.key
            yield "truth" if correct else "generated", target, f"{rank}: correct" if correct else str(rank)
        return
    draws = len(entry.columns) - len(inputs) - 1
    for name in inputs:
        yield "input", name, f"input: {name}" if len(inputs) > 1 else "input"
    for number in range(draws):
        yield "generated", target, f"draw {number + 1}" if draws > 1 else "generated"
    yield "truth", target, "truth"


def overview(
    galleries: Sequence[Gallery],
    skills: Mapping[tuple[str, str], float | None],
    copies: Collection[tuple[str, str]] = (),
) -> dict[str, Any] | None:
    """Return one sample with everything generated from the input set that has most galleries, best skill score first.

    Texts, and before them pairs in `copies`, come last. None if no sample is in two galleries.
    """
    sets: dict[tuple[tuple[str, ...], str], list[tuple[Gallery, list[Cell]]]] = {}
    for gallery in galleries:
        for key, row in zip(gallery.keys, gallery.rows, strict=True):
            sets.setdefault((gallery.inputs, key), []).append((gallery, row))
    (inputs, key), members = max(sets.items(), key=lambda item: len(item[1]), default=(((), ""), []))
    if len(members) < 2:
        return None
    cards: list[dict[str, Any]] = []
    for gallery, row in members:
        generated, pair = next(cell for cell in row if cell.role == "generated"), (" + ".join(inputs), gallery.target)
        cells, skill = [replace(generated, label="generated"), row[-1]], skills.get(pair)
        order = row[-1].text is not None, pair in copies, np.inf if skill is None else -skill
        cards.append({"name": gallery.target, "skill": skill, "cells": cells, "order": order})
    cards.sort(key=lambda card: card["order"])
    return {"key": key, "inputs": [cell for cell in members[0][1] if cell.role == "input"], "cards": cards}


def retrieval_section(run: Path, pictures: Pictures) -> dict[str, Any] | None:
    """Return the results of `zoo retrieve eval` in a run for the template, or None.

    Results of another model or of training samples are not shown; "left_out" says why.
    """
    if not (run / RECALL).is_file():
        return None
    scores = read_record(run / RECALL, RetrievalRecord)
    identity = scores.identity
    another = identity.fingerprint != known_fingerprint(run)
    if another or identity.split == TRAIN:
        reason = "it belongs to another model" if another else "it was measured on training samples"
        return {"left_out": f"{RECALL} is left out: {reason}; run zoo retrieve eval RUN again"}
    galleries, missing_sheets = read_galleries((run / RECALL).parent, scores.galleries, pictures)
    return {
        "left_out": "",
        "split": identity.split,
        "names": list(dict.fromkeys(entry.query for entry in scores.pairs)),
        "pairs": {(entry.query, entry.target): entry for entry in scores.pairs},
        "samples": range_text([entry.samples for entry in scores.pairs]),
        "mean": scores.mean,
        "embedding": identity.embedding,
        "galleries": galleries,
        "missing_sheets": missing_sheets,
    }
