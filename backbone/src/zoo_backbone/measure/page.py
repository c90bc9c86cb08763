"""The page about a backbone, made of files of earlier commands."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.contract.samples import TRAIN
from tokenizers_zoo.errors import CheckpointError, ZooError, count_of
from tokenizers_zoo.files.checkpoint import CONFIG, COPY_AGAIN, WEIGHTS, checkpoint_errors, is_complete
from tokenizers_zoo.files.run_folder import RUN, read_run
from tokenizers_zoo.records.config import TOML
from tokenizers_zoo.records.io import as_record, open_regular, read_record, read_regular, read_table
from tokenizers_zoo.report.pages import DEFAULTS, chart_of, curve_of, tokenizer_card, with_name, write_page
from tokenizers_zoo.report.pictures import Pictures, legend_of, pictures_beside
from tokenizers_zoo.train.log import read_metrics
from zoo_backbone.measure.evaluation import FILE, FOLDER, PAIR_METRICS, read_evaluation
from zoo_backbone.measure.growth import GROWTH, Growth
from zoo_backbone.measure.probes import transfer_section
from zoo_backbone.measure.samples import overview, read_galleries, retrieval_section
from zoo_backbone.model.run import BackboneRecord

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle, Zoo


EXPORT_PREFIX = "ml4m."
"""How tensors begin that an imported backbone keeps for its export, and that are no parameters of the model."""
REASONS = 20
"""Reasons of dropped samples that are listed; the rest is counted."""
PACKAGE = "zoo_backbone.measure"
"""The package with the templates."""
LOSS = "loss (nats per token)"
HELD_OUT, AVERAGED = "held_out", "held_out_average"


@dataclass(frozen=True, kw_only=True)
class TrainingSize:
    """The length of a training and its batch size."""

    steps: int = 0
    batch_size: int = 0


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
        write_page(page, "report.html.j2", _content(zoo, run, pictures), PACKAGE)
    return page


def _content(zoo: Zoo, run: Path, pictures: Pictures) -> dict[str, Any]:
    """Return the template's variables."""
    record, table = read_run(run), read_table(run / CONFIG)
    config = as_record(table, BackboneRecord, run / CONFIG)
    paths = record.places if record else {}
    names = [spec.name for spec in config.specs]
    path = run / FOLDER / FILE
    evaluation = read_evaluation(path) if path.is_file() else None
    left_out = evaluation is not None and evaluation.identity.weights != config.weights_sha256
    evaluation = None if left_out else evaluation
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
    pairs = {(" + ".join(pair.inputs), pair.target): pair for pair in (evaluation.pairs if evaluation else ())}
    skills = {key: pair.figure() for key, pair in pairs.items()}
    forms = {spec.name: spec.input_form_of for spec in config.specs}
    copies = {key for key, pair in pairs.items() if pair.target in map(forms.get, pair.inputs)}
    predicted = [pair for key, pair in pairs.items() if key not in copies and (pair.figure() or 0) > 0]
    galleries, missing_sheets = read_galleries(run / FOLDER, evaluation.galleries if evaluation else (), pictures)
    only_read = config.model.get("inputs_only", ())
    registry = _registry_text(Path(registry_path), zoo) if (registry_path := paths.get("registry")) else ""
    settings = {key: value for key, value in table.items() if key not in ("specs", "fingerprints")}
    return {
        "title": f"tokenizers-zoo: {run.resolve().name}",
        "names": names,
        "makes": sum(spec.vocab_size > 0 and spec.name not in only_read for spec in config.specs),
        "best": max(predicted, key=lambda pair: pair.figure() or 0, default=None),
        "tiles": _tiles(run, config, len(pairs)),
        "overview": overview(galleries, skills, copies),
        "legends": [(handle, swatches) for handle in handles.values() if (swatches := legend_of(handle))],
        "galleries": galleries,
        "missing_sheets": missing_sheets,
        "left_out": left_out,
        "pairs": pairs,
        "pair_metrics": PAIR_METRICS,
        "retrieval": retrieval_section(run, pictures),
        "transfer": transfer_section(run, config.weights_sha256),
        "growth": read_record(run / GROWTH, Growth) if (run / GROWTH).is_file() else None,
        "tokenizers": tokenizers,
        "problems": errors,
        "curves": _curves(read_metrics(run), names, pictures),
        "data": _data(data),
        "handles": handles,
        "config": config,
        "evaluation": evaluation,
        "configurations": {
            "Model and training settings": json.dumps(settings, indent=2),
            "registry.toml": registry or DEFAULTS,
        },
        "run": str(run),
        "pictures_folder": pictures.folder.name,
    }


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


def _tiles(run: Path, config: BackboneRecord, pairs: int) -> list[str]:
    """Return numbers with their labels. Raises CheckpointError if the weights are damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(run / WEIGHTS), safe_open(run / WEIGHTS, framework="np") as file:
            learnt = [key for key in file.keys() if not key.startswith(EXPORT_PREFIX)]  # noqa: SIM118 - not a mapping
            parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in learnt)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{run / WEIGHTS}: damaged: {' '.join(str(error).split())}; {COPY_AGAIN}") from None
    tiles = [count_of(len(config.specs), "modality", "modalities"), f"{parameters / 1e6:.1f} million parameters"]
    training = as_record(config.train, TrainingSize, run / CONFIG, keys=("train",))
    if samples := training.steps * training.batch_size:
        tiles.append(f"{samples:,} samples seen in training")
    if config.training_seconds is not None:
        tiles.append(f"{config.training_seconds / 60:.1f} min of training")
    return [*tiles, count_of(pairs, "input → target pair scored", "input → target pairs scored")] if pairs else tiles


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


def _data(data: Path | None) -> dict[str, Any]:
    """Return counts and reasons of the values, a row per split and modality; only a reason if the data are gone."""
    from tokenizers_zoo.build.stores import StoreDescription, describe_data

    description, reason = StoreDescription(), "" if data else "the run does not say where its values are"
    try:
        description = describe_data(data) if data else description
    except ZooError as error:
        reason = str(error)
    splits = sorted({row.split for row in description.rows}, key=lambda split: (split != TRAIN, split))
    reasons = [f"{row.split}/{row.modality}/{reason}" for row in description.rows for reason in row.reasons]
    unlisted = max(0, sum(row.dropped for row in description.rows) - REASONS)
    return {
        "splits": splits,
        "rows": description.rows,
        "aligned": description.aligned,
        "problem": reason,
        "reasons": reasons[:REASONS],
        "more": unlisted,
    }
