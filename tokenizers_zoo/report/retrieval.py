"""The report's section on retrieval: recall next to chance, and galleries of queries with their hits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers_zoo.data.samples import TRAIN
from tokenizers_zoo.io import read_table
from tokenizers_zoo.ml4m.source import known_fingerprint
from tokenizers_zoo.report.pictures import Pictures, cells_of, range_text
from tokenizers_zoo.report.samples import Cell, gone_sheets

RECALL = "retrieval/retrieval.json"
AGAIN = "run zoo retrieve eval RUN again"


def retrieval_section(run: Path, pictures: Pictures) -> dict[str, Any] | None:
    """Return the results of `zoo retrieve eval` in a run for the template, or None.

    Results of another model or of training samples are not shown; "left_out" says why.
    """
    if not (run / RECALL).is_file():
        return None
    found = read_table(run / RECALL, "identity", "pairs", "mean", "galleries")
    if reason := _left_out(run, found["identity"]):
        return {"left_out": f"{RECALL} is left out: {reason}"}
    names = list(dict.fromkeys(entry["query"] for entry in found["pairs"]))
    shares = {(entry["query"], entry["target"]): entry for entry in found["pairs"]}
    gone = gone_sheets((run / RECALL).parent, found["galleries"])
    return {
        "left_out": "",
        "split": found["identity"]["split"],
        "names": names,
        "rows": [{"name": query, "cells": [_cell(shares.get((query, name))) for name in names]} for query in names],
        "samples": range_text([entry["samples"] for entry in found["pairs"]]),
        "mean": _numbers(found["mean"]),
        "details": [
            {"query": entry["query"], "target": entry["target"], "samples": entry["samples"], **_numbers(entry)}
            for entry in found["pairs"]
        ],
        "embedding": found["identity"]["embedding"],
        "galleries": [_gallery(run, entry, pictures) for entry in found["galleries"] if entry["picture"] not in gone],
        "gone": gone,
    }


def _left_out(run: Path, identity: Mapping[str, Any]) -> str:
    """Return why results are not of this model on held-out samples, or ""."""
    if identity.get("fingerprint") != known_fingerprint(run):
        return f"it belongs to another model; {AGAIN}"
    if identity.get("split") in (None, TRAIN):
        return f"it was measured on training samples; {AGAIN}"
    return ""


def _cell(entry: Mapping[str, Any] | None) -> dict[str, str]:
    """Return recall at 1 in percent, with a colour from transparent (chance) to full (all found)."""
    if entry is None:
        return {"text": "", "colour": "transparent"}
    share, guessed = entry["recall"]["1"], entry["chance"]["recall"]["1"]
    strength = max(0.0, (share - guessed) / (1 - guessed)) if guessed < 1 else 0.0
    return {"text": f"{100 * share:.0f}", "colour": f"rgba(33, 118, 210, {0.6 * strength:.2f})"}


def _numbers(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return recall in percent and the median rank, as `measured / chance`."""
    guessed = entry["chance"]
    numbers = {
        f"at_{k}": f"{100 * share:.1f} / {100 * guessed['recall'][k]:.1f}" for k, share in entry["recall"].items()
    }
    return {**numbers, "median": f"{entry['median_rank']:.0f} / {guessed['median_rank']:.0f}"}


def _gallery(run: Path, entry: Mapping[str, Any], pictures: Pictures) -> dict[str, Any]:
    """Return a row of cells per query with its hits; copies the picture next to the page."""
    query, target = entry["query"], entry["target"]
    images: list[list[str | None]] = [[None] * len(entry["columns"]) for _ in entry["rows"]]
    if entry["picture"]:
        sheet = run / Path(RECALL).parent / entry["picture"]
        pictures.add(f"{query}-finds-{target}", sheet.read_bytes())
        images = cells_of(sheet) or images
    rows = []
    for row, drawn in zip(entry["rows"], images, strict=True):
        cells = [Cell(role="input", modality=query, label="query", image=drawn[0], text=row["cells"][0])]
        for place, key in enumerate(row["hits"], 1):
            right = key == row["key"]
            label = f"{place}: correct" if right else str(place)
            role: Literal["truth", "generated"] = "truth" if right else "generated"
            text = row["cells"][place]
            cells.append(Cell(role=role, modality=target, label=label, image=drawn[place], text=text))
        rows.append([cell for cell in cells if cell.image or cell.text is not None])
    texts = any(cell.text is not None for row in rows for cell in row)
    wide = any(cell.text is not None for row in rows for cell in row if cell.role != "input")
    return {"query": query, "target": target, "rows": rows, "texts": texts, "wide": wide}
