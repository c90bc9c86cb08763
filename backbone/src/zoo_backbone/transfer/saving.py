"""Probes on disk: model.safetensors holds the head, and of the encoder what was tuned; config.json all else.

config.json: "class"; "task": {"text", "wanted"}; "kind"; "given"; "head"; "settings": TransferConfig; "seed";
"backbone": {"run", "weights_sha256", "fingerprints", "model", "specs"}; "tokens"; "data"; "registry"; "constant": of
the best single answer to the training labels {"value"}, or where it is the tensor `constant` {}, or {"extension"} where
that holds the bytes of its file; "seen": of classes, those that the training labels had. Probes of earlier versions
have neither: those that the head has stand for the latter.
Tensors are `head.*`, and `encoder.*`: all of it for full and scratch, the additions for lora, none for frozen. What
needs the backbone's own weights loads them from its run, which must be as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizers_zoo.checkpoint import CARD, CONFIG, load_checkpoint, load_config, loading
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.data.provenance import samples_identity
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import CheckpointError, DataError, by
from tokenizers_zoo.io import replacing_file, write_json
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.spec import ModalitySpec
from tokenizers_zoo.validation import fixed_shape
from zoo_backbone.checkpoint import spec_from_json
from zoo_backbone.codecs import check_codec
from zoo_backbone.config import ModelConfig
from zoo_backbone.encoder import FourMEncoder
from zoo_backbone.model import FourM
from zoo_backbone.run import Run, registry_place, stored_config, zoo_of
from zoo_backbone.transfer.config import TransferConfig
from zoo_backbone.transfer.heads import Neighbours, build_head
from zoo_backbone.transfer.kinds import Classes, ClassMap, Kind, NumberMap, Numbers, Tokens, kind_from_json
from zoo_backbone.transfer.lora import MARK, lora_state
from zoo_backbone.transfer.metrics import probe_card, read_metrics
from zoo_backbone.transfer.probe import Network, Probe, encoder_of
from zoo_backbone.transfer.reading import Grid
from zoo_backbone.transfer.samples import Places
from zoo_backbone.transfer.tasks import Task

CLASS = "Probe"
HEAD, ENCODER = "head.", "encoder."
CONSTANT, SEEN = "constant", "seen"


def tensors_of(network: Network, config: TransferConfig) -> dict[str, Tensor]:
    """What a probe's file holds."""
    tensors = {HEAD + name: tensor for name, tensor in network.head.state_dict().items()}
    if config.tuning == "lora":
        tensors |= {ENCODER + name: tensor for name, tensor in lora_state(network.encoder).items()}
    elif config.tuning != "frozen":
        tensors |= {ENCODER + name: tensor for name, tensor in network.encoder.model.state_dict().items()}
    return tensors


def packed_constant(task: Task, constant: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The best single answer to the training labels as what a probe's two files have of it."""
    if isinstance(constant, np.ndarray):
        return {CONSTANT: torch.from_numpy(np.array(constant, order="C"))}, {}
    if isinstance(constant, str | int | float):
        return {}, {"value": constant}
    assert task.whole is not None
    data, extension = task.whole.write(constant)
    return {CONSTANT: torch.frombuffer(bytearray(data), dtype=torch.uint8)}, {"extension": extension}


def unpacked_constant(task: Task, tensors: Mapping[str, Tensor], stored: Mapping[str, Any]) -> Any:
    """The answer that `packed_constant` wrote; None in probes of earlier versions."""
    record = stored.get(CONSTANT)
    if record is None or "value" in record:
        return record and record["value"]
    found = tensors[CONSTANT].numpy()
    if "extension" not in record:
        return found
    assert task.whole is not None
    return task.whole.read(found.tobytes(), record["extension"])


def load(
    folder: Path | str, zoo: Zoo | None = None, *, run: Path | None = None, device: torch.device | str = "cpu"
) -> Probe:
    """The probe in a folder, in eval mode. Raises CheckpointError where it, the run that it needs, or its labels have
    changed: their shape, or the numbers of their classes.

    `zoo` and `run` take the place of the registry and the run of its training, where those have moved.
    """
    if not (Path(folder) / CONFIG).is_file():
        raise CheckpointError(f"{folder}: no probe here; train one with zoo transfer train")
    tensors, stored = load_checkpoint(Path(folder), CLASS)
    config = from_mapping(TransferConfig, stored["settings"])
    zoo = zoo or zoo_of(Path(folder), Path(stored["registry"]) if stored["registry"] else None)
    task = Task.parse(stored["task"]["text"], zoo, stored["task"]["wanted"])
    kind, backbone = kind_from_json(stored["kind"]), stored["backbone"]
    if isinstance(kind, Tokens) and task.handle is not None:
        check_codec(task.handle, kind.codec)
    if task.whole is not None and (problem := _other_labels(kind, task.whole.spec)):
        raise CheckpointError(
            f"{folder}: was trained on labels of {problem}; use the registry of its training, or train it again"
        )
    model = from_mapping(ModelConfig, backbone["model"])
    inner = {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    with loading():
        encoder = _encoder(Path(folder), stored, config, run)
        grid = Grid.of(encoder.layout, stored["given"]) if kind.kind.endswith("map") else None
        if stored["head"] == "knn":
            bank, answers = torch.zeros_like(inner["bank"]), torch.zeros_like(inner["answers"])
            head: Any = Neighbours(bank, answers, config.neighbours, config.temperature, kind.outputs)
        else:
            head = build_head(stored["head"], kind, config, model, grid)
    tuned = {name.removeprefix(ENCODER): tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}
    try:
        head.load_state_dict(inner)
        wanted = {name for name in encoder.model.state_dict() if config.tuning != "lora" or MARK in name}
        if config.tuning != "frozen" and wanted != set(tuned):
            raise RuntimeError(f"the encoder's {min(wanted ^ set(tuned))} is missing or too much")
        encoder.model.load_state_dict(tuned, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: its tensors do not fit its config.json: {reason}") from None
    network = Network(encoder, head, grid).requires_grad_(False).to(device)
    constant = unpacked_constant(task, tensors, stored)
    seen = stored.get(SEEN, kind.names if isinstance(kind, Classes) else ())
    return Probe(network, task, kind, stored["given"], zoo, backbone["fingerprints"], constant, seen)


def _other_labels(kind: Kind, spec: ModalitySpec) -> str:
    """How a modality's labels differ from those that a head was trained for; empty where they do not.

    Further classes may have come after those of the training.
    """
    before: tuple[int, ...] | None = None
    now = spec.value.shape
    if isinstance(kind, ClassMap | NumberMap):
        before, now = kind.size, now[-2:]
    elif isinstance(kind, Numbers):
        before = kind.shape
    elif isinstance(kind, Tokens) and kind.end is None:
        before, now = kind.shape, fixed_shape(spec.layout)
    if before is not None and before != now:
        what = "tokens" if isinstance(kind, Tokens) else "values"
        return f"{spec.name} with {what} of {by(before)}, and the registry has {by(now)}"
    if isinstance(kind, ClassMap):
        for number, (name, known) in enumerate(zip_longest(kind.names, spec.value.classes[: len(kind.names)])):
            if name != known:
                there = "none" if known is None else repr(known)
                return f"{spec.name} whose class {number} is {name!r}, and the registry has {there} there"
    return ""


def _encoder(folder: Path, stored: Mapping[str, Any], config: TransferConfig, run: Path | None) -> FourMEncoder:
    """The encoder before what was tuned of it is loaded."""
    backbone = stored["backbone"]
    if config.tuning in ("full", "scratch"):
        specs = list(map(spec_from_json, backbone["specs"]))
        return FourMEncoder(FourM.unfilled(from_mapping(ModelConfig, backbone["model"]), specs)).eval()
    run = run or Path(backbone["run"])
    if not run.is_dir():
        raise CheckpointError(f"{folder}: the backbone that it needs was in {run}, which is gone; give --run FOLDER")
    if stored_config(run)["weights_sha256"] != backbone["weights_sha256"]:
        raise CheckpointError(
            f"{folder}: the backbone in {run} has changed since this was trained on it; give that backbone with --run, "
            "or train it again"
        )
    return encoder_of(run, config, 0)


def places_of(folder: Path, probe: Probe, tokens: Path | None = None, data: Path | None = None) -> Places:
    """Where a probe's samples are: those of its training, or others. Raises CheckpointError, DataError."""
    stored = load_config(folder, CLASS)
    store = values_of(folder, probe, data)
    if store is None and probe.task.handle is not None:
        raise CheckpointError(f"{folder}: does not know where its labels are; give --data DATA")
    return Places(
        tokens=tokens or Path(stored["tokens"]), store=store, zoo=probe.zoo, owner=str(folder),
        specs=[probe.network.encoder.layout.spec(name) for name in probe.given], trained_on=probe.trained_on,
    )  # fmt: skip


def samples_of(folder: Path, probe: Probe, split: str, tokens: Path | None, data: Path | None) -> Places:
    """As `places_of`, of what belongs together: with `tokens` alone come the values that they were made of.

    Raises DataError for `data` alone that may be of other samples than the tokens of the probe's training: their keys
    may be the same.
    """
    if tokens is not None and data is None:
        made_of = TokenStore(tokens).data
        data = made_of if probe.task.handle is not None or (made_of and made_of.is_dir()) else None
    elif data is not None and tokens is None:
        trained_on = Path(load_config(folder, CLASS)["tokens"])
        store = TokenStore(trained_on)
        known = split in store.splits() and store.split(split).source and samples_identity(data, split)
        if not known and store.data not in (None, data.resolve()):
            raise DataError(
                f"{data}: the tokens of the probe's training, {trained_on}, were made of {store.data}, and by their "
                "keys its samples could be taken for others; give the tokens of these values, too: --tokens TOKENS"
            )
    return places_of(folder, probe, tokens, data)


def values_of(folder: Path, probe: Probe, data: Path | None = None) -> ValueStore | None:
    """The values in `data`, or those of a probe's training; None where it has none, or can do without those that are
    gone: its labels are a table. Raises CheckpointError, DataError."""
    stored = load_config(folder, CLASS)["data"]
    if data is None and not (stored and Path(stored).is_dir()):
        if stored and probe.task.handle is not None:
            raise CheckpointError(
                f"{folder}: its labels were in {stored}, which is gone; give their folder: --data DATA"
            )
        return None
    return ValueStore.of(data or Path(stored), probe.zoo)


def described(
    run: Path, task: Task, kind: Mapping[str, Any], given: list[str], head: str, config: TransferConfig, seed: int,
    place: Run, zoo: Zoo, data: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """The config.json of a probe."""
    model = stored_config(run)
    return {
        "class": CLASS,
        "task": {"text": task.text, "wanted": task.wanted},
        "kind": dict(kind), "given": given, "head": head, "settings": dataclasses.asdict(config), "seed": seed,
        "backbone": {"run": str(run.resolve()),
                     **{key: model[key] for key in ("weights_sha256", "fingerprints", "model", "specs")}},
        "tokens": str(place.tokens), "data": None if data is None else str(data.resolve()),
        "registry": registry_place(zoo.path),
    }  # fmt: skip


def note_places(folder: Path, now: Mapping[str, Any]) -> None:
    """Have a finished probe, its config.json and card, say where its task, backbone, tokens, data and registry are.

    That is what `now`, see `described`, says of a probe of the same samples, weights and settings: nothing else is
    taken from it.
    """
    stored = load_config(folder, CLASS)
    moved = {
        **stored,
        "task": {**stored["task"], "text": now["task"]["text"]},
        "backbone": {**stored["backbone"], "run": now["backbone"]["run"]},
        **{key: now[key] for key in ("tokens", "data", "registry")},
    }
    if moved != stored:
        with replacing_file(folder / CARD) as card:
            card.write_text(probe_card(moved, read_metrics(folder)), encoding="utf-8")
        write_json(folder / CONFIG, moved)
