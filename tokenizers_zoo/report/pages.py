"""Self-contained HTML pages about all modalities and each tokenizer, made of files of earlier commands."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo import __version__
from tokenizers_zoo.errors import ZooError, count_of
from tokenizers_zoo.files.checkpoint import CONFIG, is_complete
from tokenizers_zoo.records.io import read_record, read_regular, read_table, replacing_file
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.report.pictures import (
    PICTURES,
    Pictures,
    curve_chart,
    legend_of,
    pictures_beside,
    range_text,
    signed,
)
from tokenizers_zoo.train.log import read_metrics
from tokenizers_zoo.train.report import EVALUATION, mean_and_least, mean_of
from tokenizers_zoo.train.report import PICTURES as SAMPLES

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle, Zoo


SAMPLES_PER_PAGE, SAMPLES_PER_CARD = 8, 3
"""Reconstructions on the page of a tokenizer, and on its card."""
REMEDY = "zoo tokenizer eval writes it anew"
SCRIPT = """addEventListener("beforeprint", () =>
  document.querySelectorAll("details:not(.screen)").forEach(it => it.open = true));"""
"""The only script of a page: what is folded on the screen is printed, too."""
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'; "
    "base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy of a page: it loads nothing, and runs no script but its own."""
DEFAULTS = "none: every installed modality with its default settings"
"""Text in place of a registry."""
Number = int | float | None


@dataclass(frozen=True, kw_only=True)
class Codes:
    """How a tokenizer uses its codes."""

    size: int | None = None
    usage: Number = None
    perplexity: Number = None
    codebooks: float | None = None
    least_usage: float | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerScores(Codes):
    """evaluation.json of a tokenizer, as far as pages show it."""

    metrics: Mapping[str, Number] = field(default_factory=dict)
    samples: int | None = None
    split: str = ""
    codebook: Codes | None = None


def write_page(path: Path, template: str, content: Mapping[str, Any], package: str = "tokenizers_zoo") -> None:
    """Write a page from a template of a package, which may include templates of the core."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, "tokenizers_zoo"))])
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"signed": signed, "digits": digits, "range_text": range_text}
    pages.filters |= {"mean_of": mean_of, "mean_and_least": mean_and_least}
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = POLICY.format(script=script)
    pages.globals |= {"count_of": count_of, "version": __version__, "script": Markup(SCRIPT), "policy": Markup(policy)}
    with replacing_file(path) as temporary:
        temporary.write_text(pages.get_template(template).render(content), encoding="utf-8")


def with_name(name: str, error: ZooError) -> str:
    """Return an error message that starts with the modality's name."""
    return str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}"


def digits(value: float | None) -> str:
    """Return a number with three digits; a dash for None."""
    return "–" if value is None else f"{value:.3g}"


def curve_of(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return step and value of the lines of a log that have a key."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def chart_of(
    pictures: Pictures, file: str, title: str, quantity: str, curves: Mapping[str, Sequence[tuple[int, float]]]
) -> list[dict[str, str]]:
    """Return a chart of the curves that have points, by label; [] if none has."""
    curves = {label: points for label, points in curves.items() if points}
    return [{"image": pictures.add(file, curve_chart(curves, quantity)), "title": title}] if curves else []


def read_inside(folder: Path, path: Path) -> bytes | None:
    """Return the content of a file in a folder. None if it is missing, or if a link leads out of the folder."""
    return read_regular(path) if path.resolve().is_relative_to(folder.resolve()) else None


def tokenizer_card(handle: ModalityHandle, pictures: Pictures, limit: int = SAMPLES_PER_CARD) -> dict[str, Any]:
    """Return the template's card of a tokenizer, from its checkpoint: up to `limit` samples, metrics, codes in use.

    Modalities that share a checkpoint store them in subfolders by name. Raises CheckpointError if evaluation.json is
    damaged.
    """
    folder = handle.checkpoint
    folder = folder / handle.name if handle.spec.shares_checkpoint else folder
    path = folder / EVALUATION
    figures = read_record(path, TokenizerScores, remedy=REMEDY) if path.is_file() else TokenizerScores()
    in_training = figures.codebook or Codes()
    codes = as_dicts(figures if figures.usage is not None else in_training)
    # Pairs of input and reconstruction are numbered, other sheets are not.
    images, texts = (
        [
            data
            for path in sorted((folder / SAMPLES).glob(f"[0-9]*.{end}"))[:limit]
            if (data := read_inside(folder, path)) is not None
        ]
        for end in ("png", "txt")
    )
    name = handle.name if folder.name == handle.name else f"{handle.name}-{folder.name}"
    return {
        "spec": handle.spec,
        "metrics": figures.metrics,
        "samples": figures.samples,
        "images": [pictures.add(f"tokenizer-{name}-{n}", png) for n, png in enumerate(images)],
        "texts": [pair_of_texts(text.decode(errors="replace")) for text in texts],
        "codes": {key: number for key, number in codes.items() if number is not None},
        "code_count": in_training.size or handle.spec.vocab_size,
    }


def pair_of_texts(written: str) -> tuple[str, str]:
    """Input and reconstruction from a text file of samples/."""
    before, _, after = written.removesuffix("\n").partition("\nreconstruction: ")
    return before.removeprefix("input:").strip(), after


def write_zoo_report(zoo: Zoo, out: Path | None = None) -> Path:
    """Write the page of all enabled modalities and return its path.

    It links to tokenizers/NAME.html for each modality with a checkpoint. Reads the checkpoint folders only; damaged
    files are a problem on the page. Default: `report/index.html` next to the folder of the tokenizers. Pictures go to
    the folder `pictures` next to the page. Raises ConfigError if `out` is a folder, and FolderError while another
    process writes pictures there.
    """
    page = out or zoo.checkpoints.parent / "report" / "index.html"
    errors = list(zoo.problems().values())
    rows, families = [], dict[str, list[dict[str, Any]]]()
    with pictures_beside(page) as pictures:
        for handle in zoo.handles():
            try:
                trained = handle.has_tokenizer
                row = {
                    "fingerprint": handle.fingerprint if trained and handle.checkpoint.is_dir() else "",
                    "trained": trained,
                    "distribution": handle.distribution,
                    "page": _write_tokenizer_page(page, zoo, handle, pictures),
                    **tokenizer_card(handle, pictures),
                }
            except ZooError as error:
                errors.append(with_name(handle.name, error))
                continue
            rows.append(row)
            families.setdefault(handle.spec.family or "of its own", []).append(row)
        content = {
            "families": dict(sorted(families.items())),
            "rows": rows,
            "problems": errors,
            "registry": zoo.path or DEFAULTS,
            "pictures_folder": PICTURES,
        }
        write_page(page, "zoo.html.j2", content)
    return page


def _write_tokenizer_page(index: Path, zoo: Zoo, handle: ModalityHandle, pictures: Pictures) -> str:
    """Write the page of a modality's checkpoints and return its path relative to `index`; "" without a checkpoint."""
    if not (checkpoints := _checkpoints(zoo, handle)):
        return ""
    cards, errors = dict[str, dict[str, Any]](), []
    for name, checkpoint in checkpoints.items():
        try:
            card, log = tokenizer_card(checkpoint, pictures, SAMPLES_PER_PAGE), read_metrics(checkpoint.checkpoint)
            settings = flatten_table(read_table(checkpoint.checkpoint / CONFIG))
            cards[name] = {**card, "folder": checkpoint.checkpoint, "settings": settings, "log": log}
        except ZooError as error:
            errors.append(with_name(name, error))
    main = handle.spec.metrics[0]
    charts = {
        "train/loss": ("Training loss", "loss"),
        f"held_out/{main.name}": (f"Held-out {main.name}", f"{main.name} ({main.unit})" if main.unit else main.name),
        "codebook/usage": ("Codes in use on held-out samples", "share of the codes"),
    }
    curves = list[dict[str, str]]()
    for key, labels in charts.items():
        points = {name: curve_of(item["log"], key) for name, item in cards.items()}
        curves += chart_of(pictures, f"{handle.name}-{key}", *labels, points)
    keys = dict.fromkeys(key for item in cards.values() for key in item["settings"])
    rows = {key: [item["settings"].get(key, "–") for item in cards.values()] for key in keys}
    content = {
        "spec": handle.spec,
        "distribution": handle.distribution,
        "checkpoints": cards,
        "problems": errors,
        "legend": legend_of(handle),
        "curves": curves,
        "settings": rows,
        "index": index.name,
    }
    write_page(index.parent / "tokenizers" / f"{handle.name}.html", "tokenizer.html.j2", content)
    return f"tokenizers/{handle.name}.html"


def _checkpoints(zoo: Zoo, handle: ModalityHandle) -> dict[str, ModalityHandle]:
    """Return handles of the checkpoints to compare, by name, with the modality's own first.

    The others belong to instances of the same plugin, or are the modality's checkpoints in neighbouring folders.
    """
    from tokenizers_zoo.build.tokenizers import trained_for

    instances = [handle, *(instance for instance in zoo.handles() if instance.plugin_name == handle.plugin_name)]
    checkpoints = {instance.name: instance for instance in instances if is_complete(instance.checkpoint)}
    folders = {checkpoint.checkpoint.resolve() for checkpoint in checkpoints.values()}
    for folder in sorted(handle.checkpoint.parent.glob("[!.]*")):
        if is_complete(folder) and folder.resolve() not in folders and trained_for(folder) == handle.name:
            checkpoints[f"{folder.name}/" if folder.name in checkpoints else folder.name] = handle.at(folder)
    return checkpoints


def flatten_table(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the values of nested tables as text, by keys joined with dots; without null, and the weights' digest."""
    result: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            result |= flatten_table(value, f"{prefix}{key}.")
        elif value is not None and key != "weights_sha256":
            result[prefix + key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return result
