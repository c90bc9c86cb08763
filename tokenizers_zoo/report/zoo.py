"""HTML pages about a zoo: one of all modalities, and one per tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo import __version__
from tokenizers_zoo.checkpoint import CONFIG, WEIGHTS
from tokenizers_zoo.errors import CheckpointError, ZooError
from tokenizers_zoo.io import read_lines, read_table, replacing_file
from tokenizers_zoo.report.pictures import Pictures, curve_chart
from tokenizers_zoo.report.run import (
    about,
    environment,
    layout_in_words,
    legend_card,
    metric_rows,
    no_folder,
    tile,
    token_facts,
)
from tokenizers_zoo.report.samples import SHOWN, left_behind
from tokenizers_zoo.train.log import METRICS

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

ZOO_TEMPLATE, TOKENIZER_TEMPLATE = "zoo.html.j2", "tokenizer.html.j2"
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
    contents: dict[str, dict[str, Any]] = {}
    for handle in zoo.handles():
        try:
            contents[handle.name] = card(handle, pictures) | tokenizer_content(zoo, handle, pictures)
        except ZooError as error:
            problems.append(about(handle.name, error))
    shown = list(contents.values())
    families: dict[str, list[dict[str, Any]]] = {}
    for item in shown:
        families.setdefault(item["family"], []).append(item)
    common = {"version": __version__, "index": page.name, "pictures_folder": pictures.folder.name}
    for name, item in contents.items():
        item["page"] = f"{name}.html" if f"{name}.html" != page.name else f"{name}-.html"
        _write(page.parent / item["page"], TOKENIZER_TEMPLATE, {**common, **item})
    tiles = [
        tile(len(shown), "modality", "modalities"),
        {"value": str(sum(item["trained"] for item in shown)), "label": "with a tokenizer"},
        tile(len(families), "family", "families"),
        tile(len({item["distribution"] for item in shown}), "distribution", "distributions"),
    ]
    where = str(zoo.path) if zoo.path else "none: every installed modality with its default settings"
    content = {**common, "families": dict(sorted(families.items())), "rows": shown, "tiles": tiles, "registry": where,
               "problems": problems}  # fmt: skip
    _write(page, ZOO_TEMPLATE, content)
    return page


def _write(path: Path, template: str, content: Mapping[str, Any]) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(environment().get_template(template).render(content), encoding="utf-8")


def card(handle: ModalityHandle, pictures: Pictures) -> dict[str, Any]:
    """Return a modality's entry on the page of the zoo."""
    spec = handle.spec
    found = left_behind(handle, handle.files.evaluations, pictures, f"tokenizer-{handle.name}", SHOWN)
    rows = metric_rows(spec, found.metrics)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "family": spec.family or "of its own",
        "distribution": handle.distribution,
        "layout": layout_in_words(spec.layout),
        "vocab_size": spec.vocab_size,
        "derived_from": spec.derived_from,
        "trained": handle.has_tokenizer,
        "main": rows[0] if rows else None,
        "usage": next((row for row in found.codes if row["name"] == "codes in use"), None),
        "images": found.images,
        "texts": found.texts,
        "facts": token_facts(handle),
    }


def tokenizer_content(zoo: Zoo, handle: ModalityHandle, pictures: Pictures) -> dict[str, Any]:
    """Return the contents of a tokenizer's page beyond its card."""
    spec = handle.spec
    found = variants(zoo, handle)
    shown = [
        variant(handle, name, folder, pictures, SAMPLES if len(found) == 1 else SHOWN) for name, folder in found.items()
    ]
    for item, differing in zip(shown, differences([item["settings"] for item in shown]), strict=True):
        item["differs"] = differing
    return {
        "value": str(spec.value),
        "description": spec.value.description,
        "legend": legend_card(handle),
        "licence": spec.licence,
        "metrics": [{"name": m.name, "unit": m.unit, "meaning": m.meaning, "higher": m.higher_is_better}
                    for m in spec.metrics],
        "variants": shown,
        "curves": curves(handle, found, pictures),
        "checkpoint": str(handle.checkpoint),
        "fingerprint": handle.fingerprint if handle.checkpoint.is_dir() and handle.has_tokenizer else "",
    }  # fmt: skip


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


def variant(handle: ModalityHandle, name: str, folder: Path, pictures: Pictures, shown: int) -> dict[str, Any]:
    """Return one tokenizer's held-out samples, metrics and settings."""
    found = left_behind(handle, folder, pictures, f"{handle.name}-{name}", shown)
    config = read_table(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    settings = flat({key: value for key, value in config.items() if key not in ("class", "modality", "weights_sha256")})
    return {
        "name": name,
        "images": found.images,
        "texts": found.texts,
        "samples": found.samples,
        "judged": found.judged,
        "metrics": metric_rows(handle.spec, found.metrics) + found.codes,
        "settings": settings,
        "text": json.dumps(config, indent=2, ensure_ascii=False),
    }


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
    charts = {
        "train/loss": ("Training loss", "loss"),
        f"held_out/{main.name}": (
            f"Held-out samples: {main.name}",
            f"{main.name} ({main.unit})" if main.unit else main.name,
        ),
        "codebook/usage": ("Held-out samples: codes in use", "share of the codes"),
    }
    shown = []
    for key, (title, quantity) in charts.items():
        found = {
            name: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            for name, lines in logs.items()
        }
        drawn = {name: points for name, points in found.items() if len(points) > 1}
        if drawn:
            image = pictures.add(f"{handle.name}-{key}", curve_chart(drawn, quantity))
            shown.append({"image": image, "title": title})
    return shown
