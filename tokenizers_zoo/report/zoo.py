"""HTML pages about a zoo: one of all modalities, and one per tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.checkpoint import CONFIG, WEIGHTS
from tokenizers_zoo.errors import CheckpointError, ZooError
from tokenizers_zoo.io import read_lines, read_table
from tokenizers_zoo.report.pictures import Pictures, curve_chart
from tokenizers_zoo.report.run import (
    DEFAULTS,
    about,
    curve_of,
    layout_in_words,
    legend_card,
    metric_rows,
    no_folder,
    tile,
    token_facts,
    write_page,
)
from tokenizers_zoo.report.samples import SHOWN, left_behind
from tokenizers_zoo.train.log import METRICS

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

SAMPLES = 8
"""Held-out samples on a tokenizer's page."""


def write_zoo_report(zoo: Zoo, out: Path | None = None) -> Path:
    """Write the page of all enabled modalities and a page NAME.html for each, and return the first page's path.

    Reads the checkpoint folders only; a modality with damaged files gets a problem instead of a page. Default:
    `report/index.html` next to the folder of the tokenizers. Pictures go to the folder `pictures` next to the page.
    Raises ConfigError if `out` is a folder.
    """
    page = no_folder(out or zoo.checkpoints.parent / "report" / "index.html")
    pictures = Pictures(folder=page.parent / "pictures")
    problems = list(zoo.problems().values())
    shown = []
    for handle in zoo.handles():
        try:
            shown.append(_tokenizer(zoo, handle, pictures))
        except ZooError as error:
            problems.append(about(handle.name, error))
    common = {"index": page.name, "pictures_folder": pictures.folder.name}
    families: dict[str, list[dict[str, Any]]] = {}
    for item in shown:
        name = item["spec"].name
        item["page"] = f"{name}.html" if f"{name}.html" != page.name else f"{name}-.html"
        families.setdefault(item["family"], []).append(item)
        write_page(page.parent / item["page"], "tokenizer.html.j2", {**common, **item})
    tiles = [
        tile(len(shown), "modality", "modalities"),
        {"value": str(sum(item["trained"] for item in shown)), "label": "with a tokenizer"},
        tile(len(families), "family", "families"),
        tile(len({item["distribution"] for item in shown}), "distribution", "distributions"),
    ]
    content = {"families": dict(sorted(families.items())), "rows": shown, "tiles": tiles, "problems": problems,
               "registry": str(zoo.path) if zoo.path else DEFAULTS}  # fmt: skip
    write_page(page, "zoo.html.j2", common | content)
    return page


def _tokenizer(zoo: Zoo, handle: ModalityHandle, pictures: Pictures) -> dict[str, Any]:
    """Return the contents of a modality's card and of its page."""
    spec = handle.spec
    own = left_behind(handle, handle.files.evaluations, pictures, f"tokenizer-{handle.name}", SHOWN)
    rows = metric_rows(spec, own.metrics)
    checkpoints = variants(zoo, handle)
    settings = []
    shown = []
    for name, folder in checkpoints.items():
        most = SAMPLES if len(checkpoints) == 1 else SHOWN
        found = left_behind(handle, folder, pictures, f"{handle.name}-{name}", most)
        config = read_table(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        apart = "class", "modality", "weights_sha256"
        settings.append(flat({key: value for key, value in config.items() if key not in apart}))
        shown.append({"name": name, "shown": found, "metrics": metric_rows(spec, found.metrics) + found.codes,
                      "text": json.dumps(config, indent=2, ensure_ascii=False)})  # fmt: skip
    for item, differing in zip(shown, differences(settings), strict=True):
        item["differs"] = differing
    return {
        "spec": spec,
        "family": spec.family or "of its own",
        "distribution": handle.distribution,
        "layout": layout_in_words(spec.layout),
        "trained": handle.has_tokenizer,
        "main": rows[0] if rows else None,
        "usage": next((row for row in own.codes if row["name"] == "codes in use"), None),
        "shown": own,
        "facts": token_facts(handle),
        "legend": legend_card(handle),
        "variants": shown,
        "curves": curves(handle, checkpoints, pictures),
        "checkpoint": str(handle.checkpoint),
        "fingerprint": handle.fingerprint if handle.checkpoint.is_dir() and handle.has_tokenizer else "",
    }


def variants(zoo: Zoo, handle: ModalityHandle) -> dict[str, Path]:
    """Return the checkpoints of this modality: its own, other instances, and other settings in neighbouring folders.

    Neighbouring folders count if their config.json names the modality (`zoo tokenizer train NAME --out FOLDER`).
    """
    found = {handle.name: handle.files.evaluations} if handle.has_tokenizer else {}
    if handle.spec.shares_checkpoint:
        return found
    for other in zoo.handles():
        if other.plugin_name == handle.plugin_name and other.has_tokenizer:
            found.setdefault(other.name, other.files.evaluations)
    taken = {path.resolve() for path in found.values()}
    for path in sorted(handle.checkpoint.parent.glob(f"[!.]*/{CONFIG}")):
        folder = path.parent
        if folder.resolve() not in taken and (folder / WEIGHTS).is_file() and modality_of(path) == handle.name:
            found.setdefault(folder.name, folder)
    return found


def modality_of(config: Path) -> str | None:
    """Return the modality named in a checkpoint's config.json, or None."""
    try:
        name: str | None = read_table(config).get("modality")
    except CheckpointError:
        return None
    return name


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables as one, keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            result |= {f"{key}.{inner}": item for inner, item in flat(value).items()}
        else:
            result[key] = value
    return result


def differences(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each table, the keys whose values differ between tables."""
    keys = dict.fromkeys(key for table in tables for key in table)
    unlike = [key for key in keys if any(table.get(key) != tables[0].get(key) for table in tables)]
    return [{key: table[key] for key in unlike if table.get(key) is not None} for table in tables]


def curves(handle: ModalityHandle, checkpoints: Mapping[str, Path], pictures: Pictures) -> list[dict[str, str]]:
    """Return charts of the logged loss, and of main metric and codebook usage on held-out samples."""
    logs = {name: read_lines(folder / METRICS) for name, folder in checkpoints.items()}
    main = handle.spec.metrics[0]
    quantity = f"{main.name} ({main.unit})" if main.unit else main.name
    shown = []
    for key, title, label in (
        ("train/loss", "Training loss", "loss"),
        (f"held_out/{main.name}", f"Held-out samples: {main.name}", quantity),
        ("codebook/usage", "Held-out samples: codes in use", "share of the codes"),
    ):
        drawn = {name: points for name, lines in logs.items() if len(points := curve_of(lines, key)) > 1}
        if drawn:
            image = pictures.add(f"{handle.name}-{key}", curve_chart(drawn, label))
            shown.append({"image": image, "title": title})
    return shown
