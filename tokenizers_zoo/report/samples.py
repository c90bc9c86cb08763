"""Samples in the report: inputs, generated values and truth; values with their reconstructions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokenizers_zoo.data.samples import TEST, spread
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tar import key_problem
from tokenizers_zoo.errors import CheckpointError, ZooError
from tokenizers_zoo.io import read_table
from tokenizers_zoo.report.pictures import Pictures, cells_of, png_of
from tokenizers_zoo.train.report import EVALUATION, PICTURES, mean_and_least, mean_of, picture_rows

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

Role = Literal["input", "generated", "truth"]
FOLDER = "evaluation"
"""Folder of the evaluation in a run."""
SHOWN = 3
"""Reconstructions per tokenizer."""
SCORED = 100
"""Held-out values that are encoded and decoded to judge a tokenizer without a checkpoint of its own."""
CODEBOOK = ("usage", "perplexity", "size", "codebooks", "least_usage")
"""Figures about a codebook that are shown."""
LONG_TEXT = 300
"""With longer texts, only some samples of a gallery are shown at once."""
ANEW = "zoo tokenizer eval writes it anew"
AT_ONCE = 2
"""Samples of a gallery with long texts that are shown at once."""


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
    sheet: str | None = None
    """The whole gallery as one image, if it cannot be cut into cells."""

    @property
    def texts(self) -> bool:
        """True where any cell is text."""
        return any(cell.text is not None for row in self.rows for cell in row)

    @property
    def wide(self) -> bool:
        """True if the target is text."""
        return any(cell.text is not None for row in self.rows for cell in row if cell.role != "input")

    @property
    def at_once(self) -> int:
        """Rows that are shown at once; the others on request."""
        longest = max((len(cell.text or "") for row in self.rows for cell in row), default=0)
        return AT_ONCE if longest > LONG_TEXT else len(self.rows)


def read_galleries(run: Path, evaluation: Mapping[str, Any], pictures: Pictures) -> list[Gallery]:
    """Return the galleries of the evaluation; each sheet is copied to the page's image folder.

    Galleries without their sheet are skipped.
    """
    entries = evaluation.get("galleries", [])
    gone = gone_sheets(run / FOLDER, entries)
    return [_gallery(run, entry, pictures) for entry in entries if entry["picture"] not in gone]


def gone_sheets(folder: Path, galleries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the images of galleries that are missing from `folder` or have invalid names."""
    sheets = [entry["picture"] for entry in galleries if entry["picture"]]
    return [sheet for sheet in sheets if key_problem(sheet) or not (folder / sheet).is_file()]


def _gallery(run: Path, entry: Mapping[str, Any], pictures: Pictures) -> Gallery:
    target, inputs = entry["target"], tuple(entry["inputs"])
    gallery = Gallery(inputs=inputs, target=target, keys=[row["key"] for row in entry["rows"]])
    images: list[list[str | None]] = [[None] * len(entry["columns"]) for _ in entry["rows"]]
    if entry["picture"]:
        sheet = run / FOLDER / entry["picture"]
        uri = pictures.add(f"generated-{sheet.stem}", sheet.read_bytes())
        cut = cells_of(sheet)
        if cut is None:
            gallery.sheet = uri
        else:
            images = cut
    columns = _columns(inputs, target, len(entry["columns"]))
    for row, drawn in zip(entry["rows"], images, strict=True):
        cells = [
            Cell(role=role, modality=name, label=label, image=image, text=text)
            for (role, name, label), image, text in zip(columns, drawn, row["cells"], strict=True)
        ]
        gallery.rows.append([cell for cell in cells if cell.image or cell.text is not None])
    return gallery


def _columns(inputs: Sequence[str], target: str, count: int) -> list[tuple[Role, str, str]]:
    """Return role, modality and label of a gallery's columns: inputs, draws, truth."""
    draws = count - len(inputs) - 1
    columns: list[tuple[Role, str, str]] = []
    columns += [("input", name, f"input: {name}" if len(inputs) > 1 else "input") for name in inputs]
    columns += [("generated", target, f"draw {number + 1}" if draws > 1 else "generated") for number in range(draws)]
    return [*columns, ("truth", target, "truth")]


def overview(galleries: Sequence[Gallery], skills: Mapping[tuple[str, str], float | None]) -> dict[str, Any] | None:
    """Return one sample with everything generated from the input set that has most galleries.

    None if no sample is in two galleries.
    """
    sets: dict[tuple[tuple[str, ...], str], list[tuple[Gallery, list[Cell]]]] = {}
    for gallery in galleries:
        for key, row in zip(gallery.keys, gallery.rows, strict=True):
            if gallery.sheet is None:
                sets.setdefault((gallery.inputs, key), []).append((gallery, row))
    chosen = max(sets.items(), key=lambda item: len(item[1]), default=None)
    if chosen is None or len(chosen[1]) < 2:
        return None
    (inputs, key), members = chosen

    def rank(member: tuple[Gallery, list[Cell]]) -> tuple[bool, float]:
        skill = skills.get((" + ".join(inputs), member[0].target))
        return member[1][-1].text is not None, -(skill if skill is not None else -np.inf)

    cards = []
    for gallery, row in sorted(members, key=rank):
        generated = next(cell for cell in row if cell.role == "generated")
        skill = skills.get((" + ".join(inputs), gallery.target))
        cells = [replace(generated, label="generated"), row[-1]]
        cards.append({"name": gallery.target, "skill": skill, "cells": cells})
    return {"key": key, "inputs": [cell for cell in members[0][1] if cell.role == "input"], "cards": cards}


@dataclass(kw_only=True)
class Reconstructions:
    """Reconstructions of held-out values: images or texts, metrics, and codes in use."""

    images: list[str] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    codes: list[dict[str, str]] = field(default_factory=list)
    samples: int | None = None
    judged: str = "held-out"
    """Samples of the metrics and codes; older versions stored figures of other splits in the same file."""


def reconstructions(zoo: Zoo, handle: ModalityHandle, data: Path | None, pictures: Pictures) -> Reconstructions:
    """Return the reconstructions stored in the checkpoint; if modalities share it, compute them from `data`.

    They are empty if neither exists.
    """
    if handle.spec.shares_checkpoint and data:
        try:
            return _computed(handle, ValueStore(data), pictures)
        except ZooError:
            return Reconstructions()
    return left_behind(handle, handle.files.evaluations, pictures, f"tokenizer-{handle.name}", SHOWN)


def left_behind(handle: ModalityHandle, checkpoint: Path, pictures: Pictures, name: str, shown: int) -> Reconstructions:
    """Return results stored in a checkpoint of the modality: up to `shown` samples, metrics, codes in use.

    Modalities that share a checkpoint store them in subfolders by name. Raises CheckpointError if evaluation.json is
    damaged.
    """
    folder = checkpoint / handle.name if handle.spec.shares_checkpoint else checkpoint
    figures = read_table(folder / EVALUATION, remedy=ANEW) if (folder / EVALUATION).is_file() else {}
    metrics = figures.get("metrics", {})
    codebook = figures if "usage" in figures else figures.get("codebook") or {}
    for table, what, keys in (
        (figures, "", ["samples"]), (metrics, "metrics", [m.name for m in handle.spec.metrics]),
        (codebook, "codebook", CODEBOOK),
    ):  # fmt: skip
        _check_figures(folder / EVALUATION, table, what, keys)
    usage, perplexity = codebook.get("usage"), codebook.get("perplexity")
    size = int(codebook.get("size") or handle.spec.vocab_size)
    split = figures.get("split", TEST)
    judged = "held-out" if split == TEST else split
    codes = []
    if usage is not None and perplexity is not None:
        codes = [
            {"name": "codes in use", "value": f"{100 * usage:.0f}", "unit": "%",
             "meaning": f"of {size}, on {judged} samples{mean_and_least(codebook)}"},
            {"name": "perplexity", "value": f"{perplexity:.0f}", "unit": "",
             "meaning": f"as varied as this many codes that are equally frequent{mean_of(codebook)}"},
        ]  # fmt: skip
    images = sorted((folder / PICTURES).glob("[0-9]*.png"))[:shown]  # pairs are numbered, other sheets are not
    texts = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted((folder / PICTURES).glob("[0-9]*.txt"))[:shown]
    ]
    return Reconstructions(
        images=[pictures.add(f"{name}-{number}", path.read_bytes()) for number, path in enumerate(images)],
        texts=[pair_of_texts(text) for text in texts],
        metrics=metrics, codes=codes, samples=figures.get("samples"), judged=judged,
    )  # fmt: skip


def _check_figures(path: Path, table: Any, name: str, keys: Sequence[str]) -> None:
    """Raise CheckpointError if what `path` has as `name` is no table, or one of `keys` in it no number or null."""
    if not isinstance(table, dict):
        raise _damaged(path, "a table", name, table)
    for key in keys:
        if not isinstance(table.get(key), int | float | None):
            raise _damaged(path, "a number", f"{name} {key}".strip(), table[key])


def _damaged(path: Path, wanted: str, what: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{path}: expected {wanted} as {what}, got {json.dumps(value):.40}; {ANEW}")


def pair_of_texts(written: str) -> tuple[str, str]:
    """Input and reconstruction from a text file of samples/."""
    before, _, after = written.removesuffix("\n").partition("\nreconstruction: ")
    return before.removeprefix("input:").strip(), after


def _computed(handle: ModalityHandle, store: ValueStore, pictures: Pictures) -> Reconstructions:
    """Encode and decode held-out values that can be read. Raises ZooError if they or the tokenizer are gone."""
    values = []
    rows = store.rows(TEST, [handle.name])
    for place in (rows[number] for number in spread(len(rows), SCORED)):
        with contextlib.suppress(ZooError):  # a damaged value is left out
            values.append(store.read(handle, TEST, *place))
    tokens = handle.encode(values)
    back = handle.decode(tokens)
    used = np.unique(np.concatenate([np.asarray(row).ravel() for row in tokens])).size
    result = Reconstructions(metrics=handle.score(back, values), samples=len(values))
    result.codes = [{"name": "ids in use", "value": f"{used}", "unit": "", "meaning": f"of {handle.spec.vocab_size}"}]
    for number, pair in enumerate(zip(values[:SHOWN], back[:SHOWN], strict=True)):
        shown = handle.render(pair[0]), handle.render(pair[1])
        picture = picture_rows([shown])
        if picture is not None:
            result.images.append(pictures.add(f"tokenizer-{handle.name}-{number}", png_of(picture)))
        else:
            result.texts.append((str(shown[0]), str(shown[1])))
    return result
