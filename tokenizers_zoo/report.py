"""One self-contained HTML page about a run, made of what earlier commands left on disk, and every picture as PNG."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo import __version__
from tokenizers_zoo.checkpoint import CONFIG, read_json, replacing_file
from tokenizers_zoo.errors import CheckpointError, ZooError
from tokenizers_zoo.modality import layout_from_json

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

PICTURES_PER_TOKENIZER = 3
TEMPLATE = "report.html.j2"


@dataclass(kw_only=True)
class Pictures:
    """The page's pictures: each is written as PNG to `folder` and embedded in the page."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def add(self, name: str, png: bytes) -> str:
        """Write NAME.png; gives the data URI for the page."""
        with replacing_file(self.folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
        self.names.append(f"{name}.png")
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def write_report(zoo: Zoo, run: Path, out: Path | None = None) -> Path:
    """Write the page about the backbone in `run`; gives its path. Pictures go to a folder `pictures` beside it.

    Reads run.json, config.json, metrics.jsonl and evaluation/ of the run, its data, and the checkpoints of the
    zoo. Raises CheckpointError where `run` is not a run.
    """
    if not (run / "run.json").is_file() or not (run / CONFIG).is_file():
        raise CheckpointError(f"{run}: no trained backbone here (run.json and {CONFIG} were expected)")
    page = out or run / "report" / "index.html"
    pictures = Pictures(folder=page.parent / "pictures")
    config, where = read_json(run / CONFIG), read_json(run / "run.json")
    names = [spec["name"] for spec in config["specs"]]
    handles = {name: zoo[name] for name in names if name in zoo}
    evaluation = _read_if_there(run / "evaluation" / "evaluation.json") or {}
    lines = _read_lines(run / "metrics.jsonl")
    content = {
        "title": f"tokenizers-zoo: {run.name}",
        "headline": f"One model that makes any of {len(names)} modalities from any others",
        "summary": _summary(names, evaluation),
        "tiles": _tiles(run, config, evaluation),
        "galleries": _galleries(run, evaluation, pictures),
        "matrix": _matrix(evaluation, pictures),
        "tokenizers": [_tokenizer(handle, pictures) for handle in handles.values()],
        "curves": _curves(lines, names, pictures),
        "data": _data(zoo, where),
        "plugins": [_plugin(name, handles.get(name), config) for name in names],
        "configurations": [
            {"title": "Model and training settings", "text": json.dumps(_settings(config), indent=2)},
            {"title": "registry.toml", "text": _text(where.get("registry"))},
        ],
        "version": __version__,
        "run": str(run),
        "pictures_folder": pictures.folder.name,
    }
    with replacing_file(page) as temporary:
        temporary.write_text(_environment().get_template(TEMPLATE).render(content), encoding="utf-8")
    return page


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tokenizers_zoo", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _read_if_there(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _text(path: str | None) -> str:
    """A text file's content; a sentence where there is none."""
    if path is None or not Path(path).is_file():
        return "none: every installed modality with its default settings"
    return Path(path).read_text(encoding="utf-8")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("specs", "fingerprints")}


def _summary(names: Sequence[str], evaluation: Mapping[str, Any]) -> str:
    best = [pair for pair in evaluation.get("pairs", []) if pair["gap_closed"] is not None]
    text = (
        "Each modality below was turned into tokens by a plugin; one Transformer then learnt to predict some tokens "
        "of some modalities from some tokens of others. "
    )
    if best:
        top = max(best, key=lambda pair: pair["gap_closed"])
        text += (
            f"On samples that it has never seen, it closes {top['gap_closed']:.0%} of the gap between a constant "
            f"answer and the best that tokens allow when it makes {top['target']} from {' + '.join(top['given'])}."
        )
    return text


def _tiles(run: Path, config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    from safetensors import safe_open

    tiles = [{"value": str(len(config["specs"])), "label": "modalities"}]
    with safe_open(run / "model.safetensors", framework="np") as file:
        count = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    tiles.append({"value": f"{count / 1e6:.1f} M", "label": "parameters with all tables"})
    training = config.get("train", {})
    if "steps" in training and "batch_size" in training:
        tiles.append({"value": f"{training['steps'] * training['batch_size']:,}", "label": "samples seen in training"})
    if "training_seconds" in config:
        tiles.append({"value": f"{config['training_seconds'] / 60:.1f} min", "label": "training time"})
    if evaluation.get("pairs"):
        tiles.append({"value": str(len(evaluation["pairs"])), "label": "given-made pairs evaluated"})
    return tiles


def _galleries(run: Path, evaluation: Mapping[str, Any], pictures: Pictures) -> list[dict[str, Any]]:
    """The galleries that evaluation left, a sheet of pictures and the texts beside it."""
    shown = []
    for gallery in evaluation.get("galleries", []):
        given, target = " + ".join(gallery["given"]), gallery["target"]
        image = None
        if gallery["picture"]:
            name = f"made-{'-'.join(gallery['given'])}-to-{target}"
            image = pictures.add(name, (run / "evaluation" / gallery["picture"]).read_bytes())
        texts = [
            column for i, column in enumerate(gallery["columns"]) if any(row["cells"][i] for row in gallery["rows"])
        ]
        places = [gallery["columns"].index(column) for column in texts]
        rows = [{"key": row["key"], "cells": [row["cells"][i] or "" for i in places]} for row in gallery["rows"]]
        shown.append({"title": f"{given} → {target}", "image": image, "columns": texts, "rows": rows if texts else []})
    return shown


def _matrix(evaluation: Mapping[str, Any], pictures: Pictures) -> dict[str, Any] | None:
    """The gap closed per given set and target: cells with colours, every score, and the same as a picture."""
    pairs = evaluation.get("pairs", [])
    if not pairs:
        return None
    rows = list(dict.fromkeys(" + ".join(pair["given"]) for pair in pairs))
    columns = list(dict.fromkeys(pair["target"] for pair in pairs))
    gaps = {(" + ".join(pair["given"]), pair["target"]): pair["gap_closed"] for pair in pairs}
    cells = [
        {"name": row, "cells": [{"text": _gap(gaps, row, c), "colour": _colour(gaps.get((row, c)))} for c in columns]}
        for row in rows
    ]
    return {
        "columns": columns,
        "rows": cells,
        "samples": _range([pair["samples"] for pair in pairs]),
        "details": [_detail(pair, evaluation["modalities"]) for pair in pairs],
        "image": pictures.add("gap-closed", _matrix_picture(rows, columns, gaps)),
    }


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _gap(gaps: Mapping[tuple[str, str], float | None], row: str, column: str) -> str:
    if (row, column) not in gaps:
        return ""
    gap = gaps[row, column]
    return "–" if gap is None else f"{gap:.2f}"


def _colour(gap: float | None) -> str:
    """White at 0 to green at 1; light red below 0."""
    if gap is None:
        return "transparent"
    share = min(1.0, abs(gap))
    ends = (46, 160, 67) if gap >= 0 else (218, 54, 51)
    strength = 0.75 * share if gap >= 0 else 0.45 * share
    return f"rgb({', '.join(str(round(255 - (255 - end) * strength)) for end in ends)})"


def _detail(pair: Mapping[str, Any], modalities: Mapping[str, Any]) -> dict[str, str]:
    metric = modalities[pair["target"]]["metrics"][0]
    numbers = {key: _number(pair[key].get(metric["name"])) for key in ("score", "floor", "ceiling")}
    unit = f" {metric['unit']}" if metric["unit"] else ""
    better = "higher" if metric["higher_is_better"] else "lower"
    gap = pair["gap_closed"]
    return {
        "given": " + ".join(pair["given"]), "made": pair["target"], "metric": f"{metric['name']}{unit} ({better})",
        "gap": "–" if gap is None else f"{gap:.2f}", **numbers,
    }  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _png(figure: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _matrix_picture(rows: Sequence[str], columns: Sequence[str], gaps: Mapping[tuple[str, str], float | None]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 0.75 * len(columns), 1.0 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    numbers = [[gap if (gap := gaps.get((row, c))) is not None else math.nan for c in columns] for row in rows]
    axes.imshow(numbers, cmap="RdYlGn", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylabel("given")
    axes.set_title("gap closed of what is made (columns)", fontsize=10)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            axes.text(x, y, _gap(gaps, row, column), ha="center", va="center", fontsize=8)
    return _png(figure)


def _tokenizer(handle: ModalityHandle, pictures: Pictures) -> dict[str, Any]:
    """A tokenizer's samples, held-out metrics and facts, as its training or evaluation left them."""
    folder, spec = handle.checkpoint, handle.spec
    figures = (_read_if_there(folder / "evaluation.json") or {}) if not spec.shared_vocabulary else {}
    samples = sorted((folder / "samples").glob("*.png"))[:PICTURES_PER_TOKENIZER] if not spec.shared_vocabulary else []
    codebook = figures.get("codebook") or {}
    rows = [
        {"name": m.name, "value": f"{_number(figures['metrics'][m.name])} {m.unit}".strip(), "meaning": m.meaning}
        for m in spec.metrics
        if m.name in figures.get("metrics", {})
    ]
    if codebook:
        rows.append(
            {
                "name": "codebook usage",
                "value": f"{codebook['usage']:.0%}",
                "meaning": "codes that occur on held-out samples",
            }
        )
        rows.append(
            {"name": "perplexity", "value": f"{codebook['perplexity']:.0f}", "meaning": f"of {spec.vocab_size} codes"}
        )
    facts = [
        f"{spec.layout.kind} of {spec.layout.length} tokens",
        f"{spec.vocab_size} ids" if spec.vocab_size else "continuous",
    ]
    if spec.shared_vocabulary:
        facts.append(
            f"shares the vocabulary {spec.vocabulary!r}; encoding and decoding lose nothing but the bins of numbers"
        )
    if spec.token_space:
        facts.append(f"tokenized as {spec.token_space}")
    facts.append(f"licence {spec.licence}")
    return {
        "name": spec.name,
        "summary": spec.summary,
        "pictures": [pictures.add(f"tokenizer-{spec.name}-{i}", path.read_bytes()) for i, path in enumerate(samples)],
        "metrics": rows,
        "facts": "; ".join(facts),
    }


def _curves(lines: Sequence[Mapping[str, Any]], names: Sequence[str], pictures: Pictures) -> list[dict[str, str]]:
    """Training curves of what metrics.jsonl holds: the losses, and the held-out losses per modality."""
    shown = []
    groups = {
        "training-loss": ("Training loss and held-out loss, nats per token.", ["train/loss", "held_out/loss"]),
        "loss-per-modality": ("Held-out loss per modality, nats per token.", [f"held_out/{name}" for name in names]),
    }
    for name, (caption, keys) in groups.items():
        curves = {key: [(line["step"], line[key]) for line in lines if line.get(key) is not None] for key in keys}
        curves = {key: points for key, points in curves.items() if points}
        if curves:
            shown.append({"image": pictures.add(name, _curve_picture(curves)), "caption": caption})
    return shown


def _curve_picture(curves: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for key, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=key, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return _png(figure)


def _data(zoo: Zoo, where: Mapping[str, Any]) -> Any:
    """Counts and reasons of the values, or nothing where they are gone."""
    from tokenizers_zoo.pipeline.info import DataDescription, describe_data

    try:
        return describe_data(zoo, Path(where["data"])) if where.get("data") else DataDescription()
    except ZooError as error:
        return DataDescription(reasons=[str(error)])


def _plugin(name: str, handle: ModalityHandle | None, config: Mapping[str, Any]) -> dict[str, str]:
    stored = next(spec for spec in config["specs"] if spec["name"] == name)
    layout = layout_from_json(stored["layout"])
    return {
        "name": name,
        "plugin": handle.distribution if handle else "not installed",
        "tokens": f"{layout.kind} of {layout.length}",
        "checkpoint": str(handle.checkpoint) if handle else "",
        "fingerprint": str(config.get("fingerprints", {}).get(name, ""))[:16],
    }
