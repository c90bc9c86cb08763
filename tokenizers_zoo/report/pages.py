"""Self-contained HTML pages about a run, all modalities, and each tokenizer, made of files of earlier commands."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo import __version__
from tokenizers_zoo.checkpoint import CONFIG, COPY_AGAIN, WEIGHTS, checkpoint_errors, is_complete
from tokenizers_zoo.config import TOML
from tokenizers_zoo.errors import CheckpointError, ZooError, count_of
from tokenizers_zoo.io import as_record, open_regular, read_record, read_regular, read_table, replacing_file
from tokenizers_zoo.report import records
from tokenizers_zoo.report.pictures import (
    PICTURES,
    Pictures,
    curve_chart,
    legend_of,
    pictures_beside,
    range_text,
    signed,
)
from tokenizers_zoo.report.samples import (
    overview,
    read_galleries,
    retrieval_section,
    tokenizer_card,
)
from tokenizers_zoo.report.transfer import transfer_section
from tokenizers_zoo.run_folder import RUN, read_run
from tokenizers_zoo.samples import TRAIN
from tokenizers_zoo.train.log import read_metrics
from tokenizers_zoo.train.report import mean_and_least, mean_of

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo


FOLDER = "evaluation"
"""Folder of the evaluation in a run."""
GROWTH = "growth.json"
"""Losses and skill scores of a grown run, before and after."""
SAMPLES = 8
"""Reconstructions on the page of a tokenizer."""
EXPORT_PREFIX = "ml4m."
"""How tensors begin that an imported backbone keeps for its export, and that are no parameters of the model."""
REASONS = 20
"""Reasons of dropped samples that are listed; the rest is counted."""
SCRIPT = """addEventListener("beforeprint", () =>
  document.querySelectorAll("details:not(.screen)").forEach(it => it.open = true));"""
"""The only script of a page: what is folded on the screen is printed, too."""
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'; "
    "base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy of a page: it loads nothing, and runs no script but its own."""
LOSS = "loss (nats per token)"
HELD_OUT, AVERAGED = "held_out", "held_out_average"
DEFAULTS = "none: every installed modality with its default settings"
"""Text in place of a registry."""


def registry_of(run: Path) -> Path | None:
    """Return the registry.toml of a run; None if it had none, did not record it, or the file is gone.

    Raises CheckpointError if `run` is not a finished run.
    """
    if (record := read_run(run)) is None:
        raise CheckpointError(f"{run}: no trained backbone here ({RUN} and {CONFIG} were expected)")
    if not (run / CONFIG).is_file():
        raise CheckpointError(f"{run}: its training has not come to its end; the command that began it goes on")
    path = record.places.get("registry")
    return Path(path) if path and Path(path).is_file() else None


def write_report(zoo: Zoo, run: Path, out: Path | None = None) -> Path:
    """Write the page about the backbone in `run`; gives its path. Pictures go to a folder `pictures` next to it.

    Reads run.json, config.json, metrics.jsonl, growth.json, evaluation/, retrieval/ and transfer/ of the run, its data,
    and the checkpoints of the zoo. Raises CheckpointError if `run` is not a run, ConfigError where `out` is a folder,
    and FolderError while another process writes pictures there.
    """
    registry_of(run)
    page = out or run / "report" / "index.html"
    with pictures_beside(page) as pictures, checkpoint_errors(run):
        write_page(page, "report.html.j2", _content(zoo, run, pictures))
    return page


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page from a template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("tokenizers_zoo", "templates")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"signed": signed, "digits": digits, "range_text": range_text}
    pages.filters |= {"mean_of": mean_of, "mean_and_least": mean_and_least}
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = POLICY.format(script=script)
    pages.globals |= {"count_of": count_of, "version": __version__, "script": Markup(SCRIPT), "policy": Markup(policy)}
    with replacing_file(path) as temporary:
        temporary.write_text(pages.get_template(template).render(content), encoding="utf-8")


def _content(zoo: Zoo, run: Path, pictures: Pictures) -> dict[str, Any]:
    """Return the template's variables."""
    record, table = read_run(run), read_table(run / CONFIG)
    config = as_record(table, records.BackboneRecord, run / CONFIG)
    paths = record.places if record else {}
    names = [spec.name for spec in config.specs]
    scores = run / FOLDER / "evaluation.json"
    evaluation = records.read_evaluation(scores) if scores.is_file() else records.NO_EVALUATION
    left_out = scores.is_file() and evaluation.identity.weights != config.weights_sha256
    evaluation = records.NO_EVALUATION if left_out else evaluation
    data = Path(data_path) if (data_path := paths.get("data")) else None
    handles: dict[str, ModalityHandle] = {}
    tokenizers, errors = [], []
    for name in names:
        try:
            if name in zoo:
                handle = handles[name] = zoo[name]
                _check_fingerprint(handle, config.fingerprints.get(name))
                tokenizers.append(tokenizer_card(handle, pictures))
        except ZooError as error:
            errors.append(with_name(name, error))
    pairs = {(" + ".join(pair.inputs), pair.target): pair for pair in evaluation.pairs}
    skills = {key: pair.skill for key, pair in pairs.items()}
    forms = {spec.name: spec.input_form_of for spec in config.specs}
    copies = {key for key, pair in pairs.items() if pair.target in map(forms.get, pair.inputs)}
    predicted = [pair for key, pair in pairs.items() if key not in copies and (pair.skill or 0) > 0]
    galleries, missing_sheets = read_galleries(run / FOLDER, evaluation.galleries, pictures)
    only_read = config.model.get("inputs_only", ())
    registry = _registry_text(Path(registry_path), zoo) if (registry_path := paths.get("registry")) else ""
    settings = {key: value for key, value in table.items() if key not in ("specs", "fingerprints")}
    return {
        "title": f"tokenizers-zoo: {run.resolve().name}",
        "names": names,
        "makes": sum(spec.vocab_size > 0 and spec.name not in only_read for spec in config.specs),
        "best": max(predicted, key=lambda pair: pair.skill or 0, default=None),
        "tiles": _tiles(run, config, len(pairs)),
        "overview": overview(galleries, skills, copies),
        "legends": [(handle, swatches) for handle in handles.values() if (swatches := legend_of(handle))],
        "galleries": galleries,
        "missing_sheets": missing_sheets,
        "left_out": left_out,
        "pairs": pairs,
        "retrieval": retrieval_section(run, pictures),
        "transfer": transfer_section(run, config.weights_sha256),
        "growth": read_record(run / GROWTH, records.Growth) if (run / GROWTH).is_file() else None,
        "tokenizers": tokenizers,
        "problems": errors,
        "curves": _curves(read_metrics(run), names, pictures),
        "data": _data(data),
        "handles": handles,
        "config": config,
        "evaluation": evaluation,
        "configurations": {
            "Model and training settings": json.dumps(settings, indent=2), "registry.toml": registry or DEFAULTS
        },
        "run": str(run),
        "pictures_folder": pictures.folder.name,
    }  # fmt: skip


def _registry_text(path: Path, zoo: Zoo) -> str:
    """Return the text of the run's registry if it is the one in use: the record of a stranger may name any file."""
    if not path.is_file():
        return f"{path}: not there any more"
    if zoo.path is None or zoo.path.resolve() != path.resolve():
        return f"{path}: not shown, because this page was made with {zoo.path or 'no registry'}"
    return (read_regular(path) or b"").decode(TOML)


def _check_fingerprint(handle: ModalityHandle, fingerprint: str | None) -> None:
    """Raise CheckpointError unless the tokenizer is `fingerprint`, which wrote the run's tokens, or grew from it.

    None means unknown. A tokenizer on the hub is not downloaded for this check.
    """
    is_local = handle.has_tokenizer and is_complete(handle.checkpoint)
    if fingerprint and is_local and not handle.can_read(fingerprint):
        raise CheckpointError(
            f"{handle.name}: its tokenizer in {handle.checkpoint} is another one ({handle.fingerprint[:12]}) than that "
            f"of the run's tokens ({fingerprint[:12]}); its figures are left out"
        )


def with_name(name: str, error: ZooError) -> str:
    """Return an error message that starts with the modality's name."""
    return str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}"


def _tiles(run: Path, config: records.BackboneRecord, pairs: int) -> list[str]:
    """Return numbers with their labels. Raises CheckpointError if the weights are damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(run / WEIGHTS), safe_open(run / WEIGHTS, framework="np") as file:
            learnt = [key for key in file.keys() if not key.startswith(EXPORT_PREFIX)]  # noqa: SIM118 - not a mapping
            parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in learnt)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{run / WEIGHTS}: damaged: {' '.join(str(error).split())}; {COPY_AGAIN}") from None
    tiles = [count_of(len(config.specs), "modality", "modalities"), f"{parameters / 1e6:.1f} million parameters"]
    training = as_record(config.train, records.TrainingSize, run / CONFIG, keys=("train",))
    if samples := training.steps * training.batch_size:
        tiles.append(f"{samples:,} samples seen in training")
    if config.training_seconds is not None:
        tiles.append(f"{config.training_seconds / 60:.1f} min of training")
    return [*tiles, count_of(pairs, "input → target pair scored", "input → target pairs scored")] if pairs else tiles


def digits(value: float | None) -> str:
    """Return a number with three digits; a dash for None."""
    return "–" if value is None else f"{value:.3g}"


def _curves(lines: Sequence[Mapping[str, Any]], names: Sequence[str], pictures: Pictures) -> list[dict[str, str]]:
    """Return the training curves in metrics.jsonl: the losses, and the held-out losses per modality.

    If the run has EMA weights, the losses per modality are for these.
    """
    prefix = held_out_prefix(lines)
    suffix = "" if prefix == HELD_OUT else ", averaged weights"
    overall = {"training": "train/loss", "held-out": f"{HELD_OUT}/loss", f"held-out{suffix}": f"{prefix}/loss"}
    curves = {label: curve_of(lines, key) for label, key in overall.items()}
    modality_curves = {name: curve_of(lines, f"{prefix}/{name}") for name in names}
    return [
        *chart_of(pictures, "training-loss", "Loss on training and on held-out samples", LOSS, curves),
        *chart_of(pictures, "loss-per-modality", f"Held-out loss by modality{suffix}", LOSS, modality_curves),
    ]


def held_out_prefix(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the prefix of the keys of held-out losses in a log. Losses of the EMA weights come first."""
    return AVERAGED if any(f"{AVERAGED}/loss" in line for line in lines) else HELD_OUT


def curve_of(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return step and value of the lines of a log that have a key."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def chart_of(
    pictures: Pictures, file: str, title: str, quantity: str, curves: Mapping[str, Sequence[tuple[int, float]]]
) -> list[dict[str, str]]:
    """Return a chart of the curves that have points, by label; [] if none has."""
    curves = {label: points for label, points in curves.items() if points}
    return [{"image": pictures.add(file, curve_chart(curves, quantity)), "title": title}] if curves else []


def _data(data: Path | None) -> dict[str, Any]:
    """Return counts and reasons of the values, a row per split and modality; only a reason if the data are gone."""
    from tokenizers_zoo.pipeline.stores import StoreDescription, describe_data

    description, reason = StoreDescription(), "" if data else "the run does not say where its values are"
    try:
        description = describe_data(data) if data else description
    except ZooError as error:
        reason = str(error)
    splits = sorted({row.split for row in description.rows}, key=lambda split: (split != TRAIN, split))
    reasons = [f"{row.split}/{row.modality}/{reason}" for row in description.rows for reason in row.reasons]
    unlisted = max(0, sum(row.dropped for row in description.rows) - REASONS)
    return {"splits": splits, "rows": description.rows, "aligned": description.aligned, "problem": reason,
            "reasons": reasons[:REASONS], "more": unlisted}  # fmt: skip


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
                    "trained": trained, "distribution": handle.distribution,
                    "page": _write_tokenizer_page(page, zoo, handle, pictures), **tokenizer_card(handle, pictures),
                }  # fmt: skip
            except ZooError as error:
                errors.append(with_name(handle.name, error))
                continue
            rows.append(row)
            families.setdefault(handle.spec.family or "of its own", []).append(row)
        content = {"families": dict(sorted(families.items())), "rows": rows, "problems": errors,
                   "registry": zoo.path or DEFAULTS, "pictures_folder": PICTURES}  # fmt: skip
        write_page(page, "zoo.html.j2", content)
    return page


def _write_tokenizer_page(index: Path, zoo: Zoo, handle: ModalityHandle, pictures: Pictures) -> str:
    """Write the page of a modality's checkpoints and return its path relative to `index`; "" without a checkpoint."""
    if not (checkpoints := _checkpoints(zoo, handle)):
        return ""
    cards, errors = dict[str, dict[str, Any]](), []
    for name, checkpoint in checkpoints.items():
        try:
            card, log = tokenizer_card(checkpoint, pictures, SAMPLES), read_metrics(checkpoint.checkpoint)
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
    content = {"spec": handle.spec, "distribution": handle.distribution, "checkpoints": cards, "problems": errors,
               "legend": legend_of(handle), "curves": curves, "settings": rows, "index": index.name}  # fmt: skip
    write_page(index.parent / "tokenizers" / f"{handle.name}.html", "tokenizer.html.j2", content)
    return f"tokenizers/{handle.name}.html"


def _checkpoints(zoo: Zoo, handle: ModalityHandle) -> dict[str, ModalityHandle]:
    """Return handles of the checkpoints to compare, by name, with the modality's own first.

    The others belong to instances of the same plugin, or are the modality's checkpoints in neighbouring folders.
    """
    from tokenizers_zoo.pipeline.tokenizers import trained_for

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
