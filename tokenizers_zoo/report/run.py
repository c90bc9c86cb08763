"""One self-contained HTML page about a run, made of what earlier commands left on disk, and every picture as PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo import __version__
from tokenizers_zoo.checkpoint import AGAIN, CONFIG, WEIGHTS, is_complete
from tokenizers_zoo.data.samples import TRAIN
from tokenizers_zoo.errors import CheckpointError, ConfigError, ZooError, count_of
from tokenizers_zoo.io import read_lines, read_table, replacing_file
from tokenizers_zoo.report.pictures import (
    Pictures,
    curve_chart,
    legend_of,
    matrix_chart,
    range_text,
    skill_cell,
    skill_text,
)
from tokenizers_zoo.report.retrieval import retrieval_section
from tokenizers_zoo.report.samples import FOLDER, gone_sheets, overview, read_galleries, reconstructions
from tokenizers_zoo.report.transfer import transfer_section
from tokenizers_zoo.run_folder import RUN
from tokenizers_zoo.spec import ModalitySpec, TokenLayout, layout_from_json
from tokenizers_zoo.train.log import METRICS

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

TEMPLATE = "report.html.j2"
EVALUATION = f"{FOLDER}/evaluation.json"
GROWTH = "growth.json"
"""What `zoo backbone grow` measured of a run: the losses before and after."""
KEPT = "ml4m."
"""How tensors begin that an imported backbone keeps for its export, and that are no parameters of the model."""
REASONS = 20
"""Reasons of dropped samples that are listed; the rest is counted."""

Skills = Mapping[tuple[str, str], float | None]
"""Skill score by inputs, joined by " + ", and target."""


def registry_of(run: Path) -> Path | None:
    """Return the registry.toml of a run; None if it had none, did not record it, or the file is gone.

    Raises CheckpointError if `run` is not a finished run.
    """
    if (run / RUN).is_file() and not (run / CONFIG).is_file():
        raise CheckpointError(f"{run}: its training has not come to its end; the command that began it goes on")
    if not (run / RUN).is_file():
        raise CheckpointError(f"{run}: no trained backbone here ({RUN} and {CONFIG} were expected)")
    path = _places(run).get("registry")
    return Path(path) if path and Path(path).is_file() else None


def _places(run: Path) -> dict[str, Any]:
    """Return the paths in run.json."""
    places: dict[str, Any] = read_table(run / RUN, "places")["places"]
    return places


def write_report(zoo: Zoo, run: Path, out: Path | None = None) -> Path:
    """Write the page about the backbone in `run`; gives its path. Pictures go to a folder `pictures` next to it.

    Reads run.json, config.json, metrics.jsonl, growth.json, evaluation/, retrieval/ and transfer/ of the run, its data,
    and the checkpoints of the zoo. Raises CheckpointError if `run` is not a run, and ConfigError where `out` is a
    folder.
    """
    registry_of(run)
    page = no_folder(out or run / "report" / "index.html")
    with replacing_file(page) as temporary:
        temporary.write_text(environment().get_template(TEMPLATE).render(_content(zoo, run, page)), encoding="utf-8")
    return page


def no_folder(page: Path) -> Path:
    """Return the path of a page. Raises ConfigError if it is a folder, before anything is written."""
    if page.is_dir():
        raise ConfigError(f"{page}: a folder is where the page should be; give a file, such as {page / 'index.html'}")
    return page


def environment() -> Any:
    """Return the environment of the page templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tokenizers_zoo", "templates")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters["skill_text"] = skill_text
    pages.globals["count_of"] = count_of
    return pages


def _content(zoo: Zoo, run: Path, page: Path) -> dict[str, Any]:
    """Return the template's variables."""
    pictures = Pictures(folder=page.parent / "pictures")
    config, where = read_table(run / CONFIG, "specs", "fingerprints"), _places(run)
    names = [spec["name"] for spec in config["specs"]]
    scores = run / EVALUATION
    evaluation = read_table(scores, "pairs", "galleries") if scores.is_file() else {}
    left_out = bool(evaluation) and evaluation.get("identity", {}).get("weights") != config.get("weights_sha256")
    if left_out:
        evaluation = {}
    data = Path(where["data"]) if where.get("data") else None
    handles, tokenizers, problems = {}, [], []
    for name in names:
        try:
            if name in zoo:
                handles[name] = zoo[name]
                _check_codec(handles[name], config["fingerprints"].get(name))
                tokenizers.append(_tokenizer(zoo, handles[name], data, pictures))
        except ZooError as error:
            problems.append(about(name, error))
    pairs = evaluation.get("pairs", [])
    skills = {(" + ".join(pair["inputs"]), pair["target"]): pair["skill"] for pair in pairs}
    galleries = read_galleries(run, evaluation, pictures)
    only_read = config.get("model", {}).get("inputs_only", ())
    return {
        "title": f"tokenizers-zoo: {run.resolve().name}",
        "names": names,
        "makes": sum(spec["vocab_size"] > 0 and spec["name"] not in only_read for spec in config["specs"]),
        "summaries": {name: handle.spec.summary for name, handle in handles.items()},
        "best": max((pair for pair in pairs if (pair["skill"] or 0) > 0), key=_skill, default=None),
        "tiles": _tiles(run, config, evaluation),
        "overview": overview(galleries, skills),
        "legends": [legend for handle in handles.values() if (legend := legend_card(handle))["swatches"]],
        "galleries": galleries,
        "gone": gone_sheets(run / FOLDER, evaluation.get("galleries", [])),
        "left_out": left_out,
        "skills": skills,
        "retrieval": retrieval_section(run, pictures),
        "transfer": transfer_section(run, str(config.get("weights_sha256", ""))),
        "matrix": _matrix(pairs, evaluation.get("modalities", {}), skills, pictures),
        "start": _start(run, config),
        "tokenizers": tokenizers,
        "problems": problems,
        "curves": _curves(read_lines(run / METRICS), names, pictures),
        "cross_entropy": evaluation.get("cross_entropy", {}).get("modalities", {}),
        "data": _data(zoo, data),
        "plugins": [_plugin(name, handles.get(name), config) for name in names],
        "skipped": evaluation.get("skipped", {}),
        "configurations": [
            {"title": "Model and training settings", "text": json.dumps(_settings(config), indent=2)},
            {"title": "registry.toml", "text": _text(where.get("registry"))},
        ],
        "version": __version__,
        "run": str(run),
        "pictures_folder": pictures.folder.name,
    }


def _check_codec(handle: ModalityHandle, codec: str | None) -> None:
    """Raise CheckpointError unless the tokenizer is `codec`, which wrote the run's tokens, or grew from it.

    None means unknown. A tokenizer on the hub is not downloaded for this check.
    """
    here = handle.has_tokenizer and is_complete(handle.checkpoint)
    if codec and here and not handle.speaks(codec):
        raise CheckpointError(
            f"{handle.name}: its tokenizer in {handle.checkpoint} is another one ({handle.fingerprint[:12]}) than that "
            f"of the run's tokens ({codec[:12]}); its figures are left out"
        )


def about(name: str, error: ZooError) -> str:
    """Return an error message that starts with the modality's name."""
    return str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}"


def _skill(pair: Mapping[str, Any]) -> float:
    return float(pair["skill"])


def _text(path: str | None) -> str:
    """Return a registry's content, or a sentence if the run had none or the file is gone."""
    if path is None:
        return "none: every installed modality with its default settings"
    if not Path(path).is_file():
        return f"{path}: not there any more"
    return Path(path).read_text(encoding="utf-8")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("specs", "fingerprints")}


def _tiles(run: Path, config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = [tile(len(config["specs"]), "modality", "modalities")]
    tiles.append({"value": f"{_learnt(run / WEIGHTS) / 1e6:.1f} million", "label": "parameters learnt"})
    training = config.get("train", {})
    if "steps" in training and "batch_size" in training:
        seen = training["steps"] * training["batch_size"]
        tiles.append({"value": f"{seen:,}", "label": "samples seen in training"})
    if "training_seconds" in config:
        tiles.append({"value": f"{config['training_seconds'] / 60:.1f} min", "label": "of training"})
    if evaluation.get("pairs"):
        tiles.append(tile(len(evaluation["pairs"]), "input → target pair scored", "input → target pairs scored"))
    return tiles


def _learnt(weights: Path) -> int:
    """Return the number of a model's parameters without torch. Raises CheckpointError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np") as file:
            learnt = [key for key in file.keys() if not key.startswith(KEPT)]  # noqa: SIM118 - not a mapping
            return sum(math.prod(file.get_slice(key).get_shape()) for key in learnt)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights}: damaged: {' '.join(str(error).split())}; {AGAIN}") from None


def tile(number: int, one: str, many: str) -> dict[str, str]:
    """Return a number with its label."""
    return {"value": str(number), "label": one if number == 1 else many}


def legend_card(handle: ModalityHandle) -> dict[str, Any]:
    """Return the colour legend of a modality."""
    value = handle.spec.value
    return {"name": handle.name, "meaning": value.description or handle.spec.summary, "swatches": legend_of(handle)}


def _matrix(
    pairs: Sequence[Mapping[str, Any]], modalities: Mapping[str, Any], skills: Skills, pictures: Pictures
) -> dict[str, Any] | None:
    """Return the skill scores by inputs and target as coloured cells, with the raw metrics; also drawn as a PNG."""
    if not pairs:
        return None
    rows = list(dict.fromkeys(inputs for inputs, _ in skills))
    columns = list(dict.fromkeys(target for _, target in skills))
    pictures.add("skill-scores", matrix_chart(rows, columns, skills))
    details = {(" + ".join(pair["inputs"]), pair["target"]): _detail(pair, modalities) for pair in pairs}
    cells = [
        {"name": row, "cells": [{"text": skill_cell(skills, row, c), "colour": _colour(skills.get((row, c))),
                                 "strong": (skills.get((row, c)) or 0) >= 0.5, "raw": details.get((row, c))}
                                for c in columns]}
        for row in rows
    ]  # fmt: skip
    return {
        "columns": columns,
        "rows": cells,
        "samples": range_text([pair["samples"] for pair in pairs]),
        "details": list(details.values()),
    }


def _colour(skill: float | None) -> str:
    """Return a colour for any background: clear at 0, blue towards 1, orange below 0."""
    if skill is None:
        return "transparent"
    red, green, blue = (33, 118, 210) if skill >= 0 else (230, 126, 20)
    return f"rgba({red}, {green}, {blue}, {0.6 * min(1.0, abs(skill)):.2f})"


def _detail(pair: Mapping[str, Any], modalities: Mapping[str, Any]) -> dict[str, str]:
    metric = modalities[pair["target"]]["metrics"][0]
    numbers = {key: _number(pair[key].get(metric["name"])) for key in ("score", "constant_baseline", "reconstruction")}
    return {
        "inputs": " + ".join(pair["inputs"]), "target": pair["target"],
        "metric": metric["name"], "unit": metric["unit"], "better": "higher" if metric["higher_is_better"] else "lower",
        "skill": skill_text(pair["skill"]), **numbers,
    }  # fmt: skip


def _start(run: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the backbone that a run started from, with the losses of growth.json; None for a new model."""
    if not (start := config.get("start")):
        return None
    rows, left_out = [], ""
    if (run / GROWTH).is_file():
        try:
            rows = _growth(run / GROWTH, start)
        except CheckpointError as error:
            left_out = f"{GROWTH} is left out: {error}"
    return {"folder": start["folder"], "added": start["added"], "rows": rows, "left_out": left_out}


def _growth(path: Path, start: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the losses in growth.json, a row per modality, old modalities first.

    Raises CheckpointError if it is damaged, or belongs to another `zoo backbone grow` than `start`.
    """
    found = read_table(path, "start", "losses", "new")
    again = "the same zoo backbone grow measures it again"
    try:
        same = all(found["start"][key] == start[key] for key in ("weights_sha256", "added"))
        rows = [
            {"name": name, "before": _loss(row["before"]), "after": _loss(row["after"]), "uniform": "",
             "change": "–" if None in (row["before"], row["after"]) else _change(row["after"] - row["before"])}
            for name, row in found["losses"].items()
        ] + [
            {"name": f"{name} (new)", "before": "", "after": _loss(row["after"]), "uniform": _loss(row["uniform"]),
             "change": ""}
            for name, row in found["new"].items()
        ]  # fmt: skip
    except (AttributeError, LookupError, TypeError, ValueError):
        raise CheckpointError(f"{path}: damaged: expected losses by modality; delete it, and {again}") from None
    if not same:
        raise CheckpointError(f"its figures are those of another growing; {again}")
    return rows


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _change(value: float) -> str:
    return f"{value:+z.3f}".replace("-", "\N{MINUS SIGN}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _tokenizer(zoo: Zoo, handle: ModalityHandle, data: Path | None, pictures: Pictures) -> dict[str, Any]:
    """Return a tokenizer's samples, held-out metrics and facts."""
    spec = handle.spec
    found = reconstructions(zoo, handle, data, pictures)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "images": found.images,
        "texts": found.texts,
        "samples": found.samples,
        "judged": found.judged,
        "metrics": metric_rows(spec, found.metrics) + found.codes,
        "facts": token_facts(handle),
    }


def metric_rows(spec: ModalitySpec, metrics: Mapping[str, float | None]) -> list[dict[str, str]]:
    """Return rows for the metrics that have a value."""
    return [
        {"name": m.name, "value": _number(metrics[m.name]), "unit": m.unit,
         "meaning": f"{m.meaning}; {'higher' if m.higher_is_better else 'lower'} is better"}
        for m in spec.metrics if m.name in metrics
    ]  # fmt: skip


def token_facts(handle: ModalityHandle) -> str:
    """Describe a modality's tokens in one line."""
    spec = handle.spec
    facts = [f"{'up to ' if hasattr(spec.layout, 'max_length') else ''}{count_of(spec.layout.length, 'token')}"]
    facts[0] += f" ({layout_in_words(spec.layout)})"
    facts.append(f"each one of {spec.vocab_size} ids" if spec.vocab_size else "numbers, not ids: input only")
    if spec.shared_vocabulary:
        facts.append(f"vocabulary {spec.vocabulary!r}, shared with others")
    if handle.token_space:
        facts.append(f"tokenized as {handle.token_space}")
    facts.append(f"licence {spec.licence}")
    return "; ".join(facts)


def layout_in_words(layout: TokenLayout) -> str:
    """`grid 8 x 8`, `sequence`, ..."""
    shape = getattr(layout, "shape", None)
    return layout.kind if shape is None else f"{layout.kind} {' x '.join(map(str, shape))}"


def _curves(lines: Sequence[Mapping[str, Any]], names: Sequence[str], pictures: Pictures) -> list[dict[str, str]]:
    """Return the training curves in metrics.jsonl: the losses, and the held-out losses per modality.

    If the run has EMA weights, the losses per modality are for these.
    """
    shown = []
    averaged = any("held_out_average/loss" in line for line in lines)
    given, suffix = ("held_out_average", ", averaged weights") if averaged else ("held_out", "")
    whole = {"train/loss": "training", "held_out/loss": "held-out", f"{given}/loss": f"held-out{suffix}"}
    groups = {
        "training-loss": ("Loss on training and on held-out samples", whole),
        "loss-per-modality": (f"Held-out loss by modality{suffix}", {f"{given}/{name}": name for name in names}),
    }
    for name, (title, keys) in groups.items():
        curves = {
            label: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            for key, label in keys.items()
        }
        curves = {label: points for label, points in curves.items() if points}
        if curves:
            image = pictures.add(name, curve_chart(curves, "loss (nats per token)"))
            shown.append({"image": image, "title": title})
    return shown


def _data(zoo: Zoo, data: Path | None) -> dict[str, Any]:
    """Return counts and reasons of the values, a row per modality; only a reason if the data are gone."""
    from tokenizers_zoo.pipeline.stores import StoreDescription, describe_data

    problem = "" if data else "the run does not say where its values are"
    try:
        found = describe_data(data) if data else StoreDescription()
    except ZooError as error:
        found, problem = StoreDescription(), str(error)
    splits = sorted({row.split for row in found.rows}, key=lambda split: (split != TRAIN, split))
    rows: dict[str, dict[str, Any]] = {}
    for row in sorted(found.rows, key=lambda row: splits.index(row.split)):
        kept = rows.setdefault(row.modality, {"samples": {}, "bytes": 0, "dropped": 0, "made_by": row.made_by})
        kept["samples"][row.split] = row.samples
        kept["bytes"] += row.bytes
        kept["dropped"] += row.dropped
    return {
        "splits": splits,
        "rows": dict(sorted(rows.items())),
        "aligned": found.aligned,
        "reasons": found.reasons[:REASONS],
        "more": max(0, sum(row.dropped for row in found.rows) - REASONS),
        "problem": problem,
    }


def _plugin(name: str, handle: ModalityHandle | None, config: Mapping[str, Any]) -> dict[str, str]:
    stored = next(spec for spec in config["specs"] if spec["name"] == name)
    layout = layout_from_json(stored["layout"])
    return {
        "name": name,
        "plugin": handle.distribution if handle else "not in use: not installed, not enabled, or does not load",
        "tokens": f"{layout.kind} of {layout.length}",
        "checkpoint": str(handle.checkpoint) if handle else "",
        "fingerprint": str(config.get("fingerprints", {}).get(name, ""))[:16],
    }
