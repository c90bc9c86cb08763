"""Probes: an encoder with a head, their folders and predictions.

A probe's folder holds

    model.safetensors   `head.*`; `encoder.*`: all weights (full, scratch), the adapters (lora), or none (frozen)
    config.json         "task", "target", "value" (the shape and classes of labels that are whole values), "inputs",
                        "head", "settings", "seed", "backbone", "constant_baseline", "train_classes"
    metrics.json        see results.py
    run.json            see `RunFolder`; "places" has the task as given, "run", "tokens", "data" and "registry"

Frozen and LoRA probes load the encoder from the run, whose weights must not have changed.
"""

from __future__ import annotations

import csv
import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.checkpoint import CONFIG, COPY_AGAIN, check_sizes, checkpoint_errors, load_record, loading
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError
from tokenizers_zoo.io import as_record, difference
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.report.records import BackboneRecord
from tokenizers_zoo.run_folder import RUN, read_run, replacing_folder
from tokenizers_zoo.samples import spread
from tokenizers_zoo.tar import key_problem
from zoo_backbone.checkpoint import architecture_for, load_model, model_config
from zoo_backbone.encoder import FourMEncoder
from zoo_backbone.gallery import shown, write_sheet
from zoo_backbone.model import check_handle
from zoo_backbone.packing import spans_of
from zoo_backbone.run import stored_config, training_zoo
from zoo_backbone.transfer.config import HEADS, TransferConfig
from zoo_backbone.transfer.head import Grid, Head, Neighbours, build_head
from zoo_backbone.transfer.targets import Target, Tokens, target_from_json
from zoo_backbone.transfer.task import Samples, Stores, Task

CLASS = "Probe"
HEAD, ENCODER, ADAPTER = "head.", "encoder.", "lora_"
"""Prefixes of tensor names, and a part of the names of LoRA adapters."""
BASELINE = "constant_baseline"
"""Tensor of a constant baseline that is an array."""
LORA_LAYERS = r"encoder\.\d+\.(attention\.(qkv|out)|mlp\.(up|down))"
"""Layers that get LoRA adapters: all linear layers of the encoder's attention and MLP."""
KIND = "probe"
"""Kind of run in run.json."""
BATCH = 32
TABLE, PICTURE = "predictions.csv", "predictions.png"
MAX_PICTURED = 100
"""Maximum number of samples in the picture."""


@dataclass(frozen=True, kw_only=True)
class StoredTask:
    """The task that a probe was trained for."""

    wanted: Literal["classes", "tokens"] | None
    """The requested kind of target."""


@dataclass(frozen=True, kw_only=True)
class ProbeRecord:
    """config.json of a probe."""

    task: StoredTask
    target: Mapping[str, Any]
    """See `target_to_json`."""
    value: Any = None
    """Settings of the labels' modality that predictions depend on."""
    inputs: tuple[str, ...]
    head: str
    settings: Mapping[str, Any]
    backbone: BackboneRecord
    train_classes: tuple[str, ...]
    constant_baseline: Any = None


@dataclass(frozen=True, kw_only=True)
class ProbePlaces:
    """Where a probe's inputs are: the places of its run.json."""

    task: str
    run: str
    tokens: str
    data: str | None = None
    registry: str | None


class Network(nn.Module):
    """An encoder with a head."""

    def __init__(self, encoder: FourMEncoder, head: Head, grid: Grid | None) -> None:
        super().__init__()
        self.encoder, self.head, self.grid = encoder, head, grid

    def features(self, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the features that the head reads and their mask. Inputs come from `FourMEncoder.prepare`."""
        if self.head.reads == "vector":
            return self.encoder(tokens, used), None
        features, mask = self.encoder.forward_features(tokens, used)
        if self.head.reads == "tokens":
            return features, mask if used else None
        assert self.grid is not None
        spans, rows = spans_of(tokens), self.grid.shape[0]
        maps = [rearrange(features[:, spans[name]], "b (h w) d -> b d h w", h=rows) for name in self.grid.names]
        return torch.cat(maps, 1), None

    def forward(self, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> Tensor:
        return self.head(*self.features(tokens, used))


def build_encoder(run: Path, config: TransferConfig, seed: int) -> FourMEncoder:
    """Return the encoder of a run at the start of training: pretrained, random (scratch), or with LoRA adapters."""
    model = load_model(run)
    if config.tuning == "scratch":
        positions = dict(model.named_buffers())  # fixed, also in a model from scratch
        model = type(model).seeded(model.config, model.layout.specs, seed)
        for name, buffer in model.named_buffers():
            buffer.copy_(positions[name])
    encoder = FourMEncoder(model, frozen=config.tuning in ("frozen", "lora"))
    if config.tuning == "lora":  # callers have checked that peft is installed
        from peft import LoraConfig, inject_adapter_in_model

        lora = LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=LORA_LAYERS, lora_dropout=0.0, bias="none"
        )
        inject_adapter_in_model(lora, encoder.model)
    return encoder.eval()


def require_peft() -> None:
    """Raise ConfigError if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError('--tuning lora: needs peft; pip install "zoo-backbone[transfer]"')


class Probe(nn.Module):
    """A trained probe: `predict` takes tokens, `predict_values` takes values.

    Predictions are class names, numbers, or values of the task's modality.
    """

    def __init__(
        self, network: Network, task: Task, target: Target, zoo: Zoo, config: ProbeRecord,
        sources: ProbePlaces, constant_baseline: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.task, self.target, self.zoo = network, task, target, zoo
        self.config, self.sources, self.constant_baseline = config, sources, constant_baseline
        self.inputs = config.inputs
        network.encoder.zoo, network.encoder.model.record = zoo, config.backbone
        self.eval()

    def _select(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        for name in self.inputs:
            if name not in batch:
                raise ConfigError(f"probe of {self.task.text}: expected inputs {', '.join(self.inputs)}; no {name}")
        return {name: batch[name] for name in self.inputs}

    @torch.inference_mode()
    def predict(self, tokens: Mapping[str, Any]) -> list[Any]:
        """Predict from tokens of all inputs, as tokenizers encode them.

        Raises ConfigError if an input is missing, InvalidValueError for tokens that do not fit.
        """
        prepared = self.network.encoder.prepare(self._select(tokens))
        return self.task.predictions(self.target, self.network(*prepared))

    def predict_values(self, values: Mapping[str, Any]) -> list[Any]:
        """Predict from values of all inputs. Raises DataError if a tokenizer is not the backbone's."""
        return self.predict(self.network.encoder.tokenize(self._select(values)))

    def predict_samples(self, samples: Samples, indices: Sequence[int]) -> list[Any]:
        """Return the predictions for the samples with these indices, with a progress bar."""
        predicted: list[Any] = []
        with progress_bar("predict", len(indices)) as advance:
            for start in range(0, len(indices), BATCH):
                batch = indices[start : start + BATCH]
                predicted += self.predict(samples.tokens(batch))
                advance(len(batch))
        return predicted

    def score(self, samples: Samples) -> list[dict[str, Any]]:
        """Return the "metrics" of metrics.json for all samples."""
        task, target = self.task, self.target
        labels = list(samples.labels)
        scores = task.score(target, self.predict_samples(samples, range(len(samples))), labels)
        baseline = task.score(target, [self.constant_baseline] * len(labels), labels)
        return [
            {
                "name": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better,
                "meaning": metric.meaning,
                **{key: number[metric.name] if math.isfinite(number[metric.name]) else None
                   for key, number in (("score", scores), ("baseline", baseline))},
            }
            for metric in task.metrics(target)
        ]  # fmt: skip

    def unseen_classes(self, labels: Iterable[Any]) -> dict[str, int]:
        """Return the number of labels of each class without a training label; empty for other kinds of targets."""
        counts = Counter(map(str, labels)) if self.target.kind == "classes" else Counter[str]()
        return {name: counts[name] for name in sorted(counts.keys() - set(self.config.train_classes))}

    def stores(self, split: str, tokens: Path | None = None, data: Path | None = None) -> Stores:
        """Return where the samples of a split are: the stores of its training, or others.

        `tokens` alone implies the values that were encoded to these tokens. Raises CheckpointError if the labels are
        not found, DataError if `data` alone may hold other samples than the tokens of the training.
        """
        store = TokenStore(tokens or Path(self.sources.tokens))
        recorded = self.sources.data if tokens is None else store.data
        data_folder = data or (Path(recorded) if recorded else None)
        if data is None and not (data_folder and data_folder.is_dir()):
            if self.task.handle is not None:
                raise CheckpointError(
                    f"{self.task.text}: its labels were in {data_folder}, which is gone; give --data DATA"
                )
            data_folder = None
        elif data is not None and tokens is None:
            same_source = split in store.splits() and store.split(split).source and ValueStore(data).source(split)
            if not same_source and store.data not in (None, data.resolve()):
                raise DataError(
                    f"{data}: the probe's tokens {store.root} were made of {store.data}, other samples; "
                    "give the tokens of these values with --tokens TOKENS"
                )
        return Stores(
            tokens=store.root, values=ValueStore(data_folder) if data_folder else None, zoo=self.zoo,
            owner=f"the probe of {self.task.text}", trained_on=self.network.encoder.model.trained_on,
            specs=[self.network.encoder.layout.spec(name) for name in self.inputs],
        )  # fmt: skip

    def tensors(self) -> tuple[dict[str, Tensor], Any]:
        """Return the tensors of model.safetensors, and the constant baseline in config.json; arrays are tensors."""
        tensors = {HEAD + name: tensor for name, tensor in self.network.head.state_dict().items()}
        tuning = self.config.settings["tuning"]
        for name, tensor in self.network.encoder.model.state_dict().items() if tuning != "frozen" else ():
            if tuning != "lora" or ADAPTER in name:
                tensors[ENCODER + name] = tensor
        if isinstance(self.constant_baseline, np.ndarray):
            return {**tensors, BASELINE: torch.from_numpy(np.array(self.constant_baseline, order="C"))}, None
        return tensors, self.constant_baseline


def load(
    folder: Path | str, zoo: Zoo | None = None, *, run: Path | None = None, device: torch.device | str = "cpu"
) -> Probe:
    """Load a probe in eval mode. `zoo` and `run` replace the registry and the run of its training.

    Raises CheckpointError if there is no finished probe, or its run or the modality of its labels has changed.
    """
    folder = Path(folder)
    record = read_run(folder)
    if record is None or record.kind != KIND or not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: no finished probe; train one with zoo transfer train")
    sources = as_record(record.places, ProbePlaces, folder / RUN, remedy=COPY_AGAIN, keys=("places",))
    tensors, probe_record = load_record(folder, CLASS, ProbeRecord)
    with checkpoint_errors(folder):
        config = from_mapping(TransferConfig, probe_record.settings)
        target = target_from_json(probe_record.target)
        if probe_record.head not in HEADS[target.kind]:
            raise ValueError(f"head {probe_record.head} cannot predict {target.kind}")
    registry = Path(sources.registry) if sources.registry else None
    zoo = zoo or training_zoo(registry, folder)
    task = Task.parse(sources.task, zoo, probe_record.task.wanted)
    if isinstance(target, Tokens) and task.handle is not None:
        check_handle(task.handle, target.fingerprint)
    if mismatch := difference(probe_record.value, task.value):
        advice = "use the registry of its training, or train again"
        raise CheckpointError(f"{folder}: the labels of {task.text} have changed: {mismatch}; {advice}")
    head_tensors, tuned = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in (HEAD, ENCODER)
    )
    if config.tuning == "lora":
        require_peft()
    with loading(), checkpoint_errors(folder):
        encoder = _load_encoder(folder, probe_record.backbone, config, run or Path(sources.run), tuned)
        grid = Grid.of(encoder.layout, probe_record.inputs) if target.kind.endswith("map") else None
        if probe_record.head == "knn":
            head = _neighbours(head_tensors, target, config, encoder.model.config.dim)
        else:
            build = partial(build_head, probe_record.head, target, config, encoder.model.config, grid)
            check_sizes(folder, head_tensors, lambda: build().state_dict())
            head = build()
        constant = tensors[BASELINE].numpy() if BASELINE in tensors else probe_record.constant_baseline
        if target.kind == "numbers" and not isinstance(constant, float | int | np.ndarray):
            raise ValueError(f"constant_baseline of numbers is {constant!r}")
        head.load_state_dict(head_tensors)
        expected = {name for name in encoder.model.state_dict() if config.tuning != "lora" or ADAPTER in name}
        if config.tuning != "frozen" and expected != set(tuned):
            raise ValueError(f"encoder weight {min(expected ^ set(tuned))} is missing or unexpected")
        encoder.model.load_state_dict(tuned, strict=False)
    network = Network(encoder, head, grid).requires_grad_(False).to(device)
    return Probe(network, task, target, zoo, probe_record, sources, constant)


def _neighbours(tensors: Mapping[str, Tensor], target: Any, config: TransferConfig, dim: int) -> Head:
    """Return the head of stored features and their answers. Raises ValueError if they do not fit the target."""
    bank, answers = tensors["bank"], tensors["answers"]
    of_classes = target.kind == "classes"
    shapes = (len(bank), dim), (len(bank),) if of_classes else (len(bank), target.outputs)
    if (tuple(bank.shape), tuple(answers.shape)) != shapes or not len(bank):
        raise ValueError(f"bank is {tuple(bank.shape)} and answers {tuple(answers.shape)}, expected {shapes}")
    if of_classes and (answers.dtype != torch.int64 or answers.min() < 0 or answers.max() >= target.outputs):
        raise ValueError(f"answers: expected class ids below {target.outputs}")
    return Neighbours(bank, answers, config, target.outputs)


def _load_encoder(
    folder: Path, backbone: BackboneRecord, config: TransferConfig, run: Path, tuned: Mapping[str, Tensor]
) -> FourMEncoder:
    """Return the encoder before its `tuned` weights are loaded."""
    if config.tuning in ("full", "scratch"):
        shape, specs = model_config(backbone), backbone.specs
        model = architecture_for(shape)
        check_sizes(folder, tuned, lambda: FourMEncoder(model(shape, specs)).model.state_dict())
        return FourMEncoder(model.seeded(shape, specs, 0)).eval()
    if not run.is_dir():
        raise CheckpointError(f"{folder}: its backbone was in {run}, which is gone; give --run RUN")
    if stored_config(run).weights_sha256 != backbone.weights_sha256:
        raise CheckpointError(
            f"{folder}: the backbone in {run} has other weights than at its training; give --run RUN, or train again"
        )
    if config.tuning == "lora" and {len(x) for name, x in tuned.items() if "lora_A" in name} != {config.lora_rank}:
        raise CheckpointError(f"{folder}: its adapters are not of lora_rank {config.lora_rank}")
    return build_encoder(run, config, 0)


def predict_to_folder(
    probe: Probe, stores: Stores, out: Path, *, split: str, samples: int, keys: Sequence[str] | None = None
) -> list[str]:
    """Predict samples of a split (`keys`, or `samples` evenly spread ones), write files, and return the keys.

    Writes OUT/<key>.<ext> for values of a modality, else OUT/predictions.csv; and OUT/predictions.png with inputs,
    prediction and label. Raises DataError for a key without inputs or label, FolderError if OUT is not empty.
    """
    task, target, values = probe.task, probe.target, stores.values
    with replacing_folder(out) as folder:
        labelled = stores.samples(task, split)
        indices = spread(len(labelled), samples) if keys is None else [labelled.find(key) for key in keys]
        keys = [labelled.key(index) for index in indices]
        handle = None if target.kind == "classes" else task.value_modality
        for key in keys if handle is not None else ():
            if reason := key_problem(key):
                raise DataError(f"{stores.tokens / split}: sample {key!r}: {reason}; cannot be a file name")
        predicted = probe.predict_samples(labelled, indices)
        truth = [task.truth(target, labelled.labels[index]) for index in indices]
        if handle is not None:
            for key, value in zip(keys, predicted, strict=True):
                data, extension = handle.write(value)
                path = folder / f"{key}.{extension}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        else:
            with open(folder / TABLE, "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("key", "predicted", "true"), *zip(keys, predicted, truth, strict=True)])
        inputs = [name for name in probe.inputs if values is not None and name in values.modalities(split)]
        rows = []
        for i in spread(len(keys), MAX_PICTURED):
            cells = [shown(values, probe.zoo[name], split, keys[i]) for name in inputs if values is not None]
            rows.append([*cells, task.render(target, predicted[i]), task.render(target, truth[i])])
        write_sheet(folder / PICTURE, [*inputs, f"{task.title} predicted", f"true {task.title}"], rows)
    return keys
