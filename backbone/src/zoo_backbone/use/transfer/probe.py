"""Probes: an encoder with a head, their folders and predictions.

A probe's folder holds

    model.safetensors   `head.*`; `encoder.*`: all weights (full, scratch), the adapters (lora), or none (frozen)
    config.json         see `ProbeRecord`
    metrics.json        see `ProbeScores`
    run.json            see `RunFolder`; "places" has the task as given, "run", "tokens", "data" and "registry"

Frozen and LoRA probes load the encoder from the run, whose weights must not have changed.
"""

from __future__ import annotations

import csv
import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.samples import spread
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError
from tokenizers_zoo.files.checkpoint import (
    CONFIG,
    COPY_AGAIN,
    check_sizes,
    checkpoint_errors,
    load_record,
    loading,
    save_checkpoint,
)
from tokenizers_zoo.files.run_folder import RUN, read_run, replacing_folder
from tokenizers_zoo.files.tar import key_problem
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.io import as_record, difference, write_table
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenStore
from zoo_backbone.learn.checkpoint import architecture_for, load_model, model_config
from zoo_backbone.learn.encoder import FourMEncoder
from zoo_backbone.measure.gallery import shown, write_sheet
from zoo_backbone.measure.probes import METRICS, ProbeMetric, ProbeScores
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.packing import spans_of
from zoo_backbone.model.run import BackboneRecord, stored_config, training_zoo
from zoo_backbone.use.transfer.config import HEADS, HeadName, TransferConfig
from zoo_backbone.use.transfer.head import Grid, Head, build_head
from zoo_backbone.use.transfer.targets import Target
from zoo_backbone.use.transfer.task import Samples, Stores, Task

CLASS = "Probe"
BACKBONE = ("weights_sha256", "fingerprints", "architecture", "model", "specs")
"""Keys of the backbone's config.json that a probe keeps."""
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

    name: str = ""
    as_classes: bool = False
    """Each distinct label is a class, also numbers."""


@dataclass(frozen=True, kw_only=True)
class ProbeRecord:
    """config.json of a probe."""

    task: StoredTask
    target: Target
    value: Any = None
    """The shape and classes of labels that are whole values: predictions depend on them."""
    inputs: tuple[str, ...]
    head: HeadName
    settings: TransferConfig
    seed: int = 0
    backbone: BackboneRecord
    train_classes: tuple[str, ...] = ()
    """Classes with a training label."""
    constant_baseline: Any = None
    """The constant prediction that is best on the training labels; None: it is a tensor."""

    def __post_init__(self) -> None:
        if self.head not in HEADS[self.target.kind]:
            raise ValueError(f"head {self.head} cannot predict {self.target.kind}")

    def table(self) -> dict[str, Any]:
        """Return config.json; of the backbone, it has the keys that rebuild the encoder."""
        backbone = {key: value for key, value in as_dicts(self.backbone).items() if key in BACKBONE}
        return {"class": CLASS, **as_dicts(self), "backbone": backbone}


@dataclass(frozen=True, kw_only=True)
class ProbePlaces:
    """Where a probe's inputs are: the places of its run.json."""

    task: str
    run: str
    tokens: str
    data: str | None = None
    registry: str | None


class Network(nn.Module):
    """An encoder with a head: a new probe of `model`, the encoder at the start of its training.

    Only callers know whether peft is installed, which lora needs.
    """

    def __init__(self, model: FourM, record: ProbeRecord, zoo: Zoo | None = None) -> None:
        super().__init__()
        config, target = record.settings, record.target
        self.encoder = FourMEncoder(model, zoo, frozen=config.tuning in ("frozen", "lora")).eval()
        self.encoder.model.record = record.backbone
        self.tuning = config.tuning
        if config.tuning == "lora":
            from peft import LoraConfig, inject_adapter_in_model

            rank, alpha = config.lora_rank, config.lora_alpha
            lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_LAYERS, lora_dropout=0.0, bias="none")
            inject_adapter_in_model(lora, self.encoder.model)
            self.encoder.eval()
        self.grid = Grid.of(self.encoder.layout, record.inputs) if target.kind.endswith("map") else None
        self.head: Head = build_head(record.head, target, config, model.config, self.grid)

    def stored(self) -> dict[str, Tensor]:
        """Return the head, and the trained weights of the encoder, by their names in model.safetensors."""
        tensors = {HEAD + name: tensor for name, tensor in self.head.state_dict().items()}
        for name, tensor in self.encoder.model.state_dict().items() if self.tuning != "frozen" else ():
            if self.tuning != "lora" or ADAPTER in name:
                tensors[ENCODER + name] = tensor
        return tensors

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


def initial_model(run: Path, config: TransferConfig, seed: int) -> FourM:
    """Return the backbone of a run: pretrained, or with random weights (scratch)."""
    model = load_model(run)
    if config.tuning == "scratch":
        positions = dict(model.named_buffers())  # fixed, also in a model from scratch
        model = type(model).seeded(model.config, model.layout.specs, seed)
        for name, buffer in model.named_buffers():
            buffer.copy_(positions[name])
    return model


def require_peft() -> None:
    """Raise ConfigError if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError('--tuning lora: needs peft; pip install "zoo-backbone[transfer]"')


class Probe(nn.Module):
    """A trained probe: `predict` takes tokens, `predict_values` takes values.

    Predictions are class names, numbers, or values of the task's modality.
    """

    def __init__(
        self, network: Network, task: Task, zoo: Zoo, config: ProbeRecord, sources: ProbePlaces, constant_baseline: Any
    ) -> None:
        super().__init__()
        self.network, self.task, self.zoo, self.config, self.sources = network, task, zoo, config, sources
        self.inputs, self.target, self.constant_baseline = config.inputs, config.target, constant_baseline
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
        return self.target.decode(self.network(*prepared))

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

    def score(self, samples: Samples) -> tuple[ProbeMetric, ...]:
        """Return the metrics of all samples, and of the constant baseline."""
        task, target = self.task, self.target
        labels = list(samples.labels)
        scores = task.score(target, self.predict_samples(samples, range(len(samples))), labels)
        baseline = task.score(target, [self.constant_baseline] * len(labels), labels)

        def finite(number: float) -> float | None:
            return number if math.isfinite(number) else None

        return tuple(
            ProbeMetric(**vars(metric), score=finite(scores[metric.name]), baseline=finite(baseline[metric.name]))
            for metric in task.metrics(target)
        )

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
            tokens=store.root,
            values=ValueStore(data_folder) if data_folder else None,
            zoo=self.zoo,
            owner=f"the probe of {self.task.text}",
            trained_on=self.network.encoder.model.trained_on,
            specs=[self.network.encoder.layout.spec(name) for name in self.inputs],
        )

    def save(self, folder: Path, scores: ProbeScores, card: str) -> None:
        """Write the files of the probe. A constant baseline that is an array becomes a tensor."""
        tensors, constant = self.network.stored(), self.constant_baseline
        if isinstance(constant, np.ndarray):
            tensors[BASELINE], constant = torch.from_numpy(np.array(constant, order="C")), None
        save_checkpoint(folder, tensors, replace(self.config, constant_baseline=constant).table(), card)
        write_table(folder / METRICS, scores)


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
    config, target = probe_record.settings, probe_record.target
    registry = Path(sources.registry) if sources.registry else None
    zoo = zoo or training_zoo(registry, folder)
    task = Task.parse(sources.task, zoo, probe_record.task.as_classes)
    if mismatch := difference(probe_record.value, task.value):
        advice = "use the registry of its training, or train again"
        raise CheckpointError(f"{folder}: the labels of {task.text} have changed: {mismatch}; {advice}")
    if config.tuning == "lora":
        require_peft()
    with loading(), checkpoint_errors(folder):
        shape, specs = model_config(probe_record.backbone), probe_record.backbone.specs
        model_class = architecture_for(shape)
        check_sizes(folder, tensors, lambda: Network(model_class(shape, specs), probe_record).stored())
        if config.tuning in ("frozen", "lora"):
            model = load_model(_checked_run(folder, run or Path(sources.run), probe_record.backbone))
        else:
            model = model_class.seeded(shape, specs, 0)
        network = Network(model, probe_record, zoo)
        stored_tensors = network.stored()
        if unexpected := tensors.keys() - stored_tensors.keys() - {BASELINE}:
            raise ValueError(f"tensor {min(unexpected)} is unexpected")
        for name, tensor in stored_tensors.items():
            if tensors[name].is_floating_point() != tensor.is_floating_point():
                raise ValueError(f"{name} is {tensors[name].dtype}, expected {tensor.dtype}")
            tensor.copy_(tensors[name])
        constant = tensors[BASELINE].numpy() if BASELINE in tensors else probe_record.constant_baseline
        if target.kind == "numbers" and not isinstance(constant, float | int | np.ndarray):
            raise ValueError(f"constant_baseline of numbers is {constant!r}")
    return Probe(network.requires_grad_(False).to(device), task, zoo, probe_record, sources, constant)


def _checked_run(folder: Path, run: Path, backbone: BackboneRecord) -> Path:
    """Return the run of a probe's backbone. Raises CheckpointError if it is gone, or has other weights."""
    if not run.is_dir():
        raise CheckpointError(f"{folder}: its backbone was in {run}, which is gone; give --run RUN")
    if stored_config(run).weights_sha256 != backbone.weights_sha256:
        raise CheckpointError(
            f"{folder}: the backbone in {run} has other weights than at its training; give --run RUN, or train again"
        )
    return run


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
