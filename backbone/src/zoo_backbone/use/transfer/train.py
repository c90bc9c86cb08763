"""Training of probes: the tokenizer training loop on cached features, or through the encoder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.samples import TEST, TRAIN, TrainingSamples, spread
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.files.checkpoint import CARD, CONFIG, WEIGHTS, float32_by_default
from tokenizers_zoo.files.run_folder import TOKENIZER, RunFolder, RunKind
from tokenizers_zoo.machine.device import AUTO, resolve_device
from tokenizers_zoo.machine.progress import progress_bar, say
from tokenizers_zoo.machine.terminal import console
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.train.batches import to_device
from tokenizers_zoo.train.loop import Best, train
from tokenizers_zoo.train.loop import Task as LoopTask
from zoo_backbone.learn.checkpoint import layout_for, model_config
from zoo_backbone.learn.encoder import parameter_groups
from zoo_backbone.measure.probes import METRICS, LabelCounts, PredictedLabels, ProbeScores
from zoo_backbone.model.run import Run, registry_path, stored_config
from zoo_backbone.use.transfer.config import TransferConfig, head_for
from zoo_backbone.use.transfer.head import Grid
from zoo_backbone.use.transfer.probe import (
    KIND,
    Network,
    Probe,
    ProbePlaces,
    ProbeRecord,
    StoredTask,
    initial_model,
    require_peft,
)
from zoo_backbone.use.transfer.results import probe_card
from zoo_backbone.use.transfer.task import Samples, Stores, Task, split_labels

FOLDER = "transfer"
PROBE = RunKind(
    name=KIND,
    files=(WEIGHTS, CONFIG, CARD, METRICS, "metrics.jsonl", "tensorboard", "logs"),
    state=TOKENIZER.state,
    results=(WEIGHTS, CONFIG, METRICS),
    keeps_state=True,
)
EVAL_BATCH = 64
CACHE_BYTES = 4 << 30
"""Memory for the cached features of a split."""
CACHE_BATCH = 16
"""Samples per forward pass of cached features."""


@float32_by_default()
def train_probe(
    run: Run,
    zoo: Zoo,
    task: str,
    inputs: Sequence[str],
    out: Path,
    config: TransferConfig,
    *,
    seed: int = 0,
    as_classes: bool = False,
    data: Path | None = None,
    overwrite: bool = False,
    on_step: Callable[[int], None] | None = None,
    device: str = AUTO,
) -> Path:
    """Train a probe on the run's stored tokens of `inputs`, write it to `out`, and return `out`.

    Labels are values in `data` (default: the run's), or a table. An input that the run reads in another form, such as
    `rgb` as `rgb_patches`, stands for that form. Resumes a killed training, to the same weights. A finished probe is
    kept, with its places updated. Errors are raised before anything is written.
    """
    training = ProbeTask(run, zoo, task, inputs, config, seed, as_classes, data, resolve_device(device))
    train(training, training.samples, config, out, seed, on_step, overwrite, training.device)
    return out


class ProbeTask(LoopTask):
    """The probe as the training loop sees it; see `Task` in tokenizers_zoo.train.loop.

    The loop's training samples are indices of `split.samples`, its held-out samples indices of `held_out`.
    """

    kind_of_run = PROBE
    codebook_size = 0

    def __init__(
        self,
        run: Run,
        zoo: Zoo,
        task: str,
        inputs: Sequence[str],
        config: TransferConfig,
        seed: int,
        as_classes: bool,
        data: Path | None,
        device: str,
    ) -> None:
        self.started = time.perf_counter()
        if not 0 <= seed < 2**63:
            raise ConfigError(f"--seed {seed}: expected 0 or more, below 2^63")
        self.run, self.zoo, self.config, self.seed = run, zoo, config, seed
        backbone = stored_config(run.folder)
        layout = layout_for(model_config(backbone), backbone.specs)
        inputs = [layout.spec(layout.readable_as(name)).name for name in inputs]
        layout.check_inputs(inputs, "--input")
        if len(set(inputs)) != len(inputs):
            raise ConfigError(f"--input {','.join(inputs)}: expected each modality once")
        self.task = parsed = Task.parse(task, zoo, as_classes)
        if parsed.handle is not None and parsed.handle.name in inputs:
            raise ConfigError(f"--task {task}: {parsed.handle.name} is also an input; leave one out")
        if config.tuning == "lora":
            require_peft()
        values = None if parsed.handle is None else ValueStore(data or run.values())
        data = data or run.data
        stores = Stores(
            tokens=run.tokens,
            values=values,
            zoo=zoo,
            owner=str(run.folder),
            specs=[layout.spec(name) for name in inputs],
            trained_on=backbone.fingerprints,
        )
        unknown_keys = stores.unknown_keys(parsed)
        labelled = stores.samples(parsed, TRAIN)
        self.split = split_labels(parsed, labelled, config, seed)
        if config.patience is not None and not self.split.validation:
            raise ConfigError(f"patience: needs validation samples; {self.split.reason or 'leave patience out'}")
        self.target = parsed.fit(self.split.samples.labels)
        self.test = stores.samples(parsed, TEST, self.target)
        self.unknown_keys, self.dropped = unknown_keys, {TRAIN: labelled.dropped, TEST: self.test.dropped}
        self.head = head_for(self.target.kind, config)
        if self.target.kind.endswith("map"):
            Grid.of(layout, inputs)  # raises before anything is written
        elif self.head == "linear" and config.batch_size < 2:
            raise ConfigError("batch_size 1: head linear normalises over the batch; expected at least 2")
        self.spec, self.validates = parsed.spec(self.target), bool(self.split.validation)
        self.held_out = self.split.samples if self.validates else self.test
        provenance = stores.digest(parsed, TRAIN, self.split.samples) | stores.digest(parsed, TEST, self.test)
        self.samples = TrainingSamples(
            train=self.split.training, test=self.split.validation or range(len(self.test)), provenance=provenance
        )
        labels = self.split.samples.labels
        train_classes = set(map(str, labels)) if self.target.kind == "classes" else ()
        self.record = ProbeRecord(
            task=StoredTask(name=parsed.title, as_classes=as_classes),
            target=self.target,
            value=parsed.value,
            inputs=tuple(inputs),
            head=self.head,
            settings=config,
            seed=seed,
            backbone=backbone,
            train_classes=tuple(sorted(train_classes)),
        )
        self.sources = ProbePlaces(
            task=parsed.text,
            run=str(run.folder.resolve()),
            tokens=str(run.tokens),
            data=None if data is None else str(data.resolve()),
            registry=registry_path(zoo.location),
        )
        self.places = as_dicts(self.sources)
        self.device = device
        self.frozen = config.tuning == "frozen"
        self.features: dict[int, FeatureCache] = {}  # by id of Samples
        self.network: Network
        self.trained_parameters = 0

    @property
    def title(self) -> str:
        return f"transfer {self.task.title}"

    def describe(self) -> Mapping[str, Any]:
        table = self.record.table()
        fingerprints = {name: self.record.backbone.fingerprints.get(name) for name in self.record.inputs}
        return {
            **{key: table[key] for key in ("class", "task", "target", "inputs", "head", "settings")},
            "backbone": {"weights_sha256": self.record.backbone.weights_sha256, "fingerprints": fingerprints},
        }

    # ------------------------------------------------------------------ the model

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> nn.Module:
        """Return the module to train: the head on a frozen encoder, else the whole network."""
        if self.split.reason:
            warning = f"{self.title}: {self.split.reason}; training on all labels, keeping the last step"
            say(console(), warning, warning=True)
        self.network = Network(initial_model(self.run.folder, self.config, self.seed), self.record, self.zoo)
        self.network.encoder.to(self.device)
        module: nn.Module = self.network.head if self.frozen else self.network
        self.trained_parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        if self.frozen:
            for samples in (self.split.samples, self.test):
                self.features[id(samples)] = FeatureCache(self.network, samples, self.config.batch_size)
            indices = self.split.validation or spread(len(self.test), self.config.eval_samples)
            self.features[id(self.held_out)].fill(indices)
        return module

    def _inputs(self, samples: Samples, indices: Sequence[int]) -> Any:
        """Return the inputs of the trained module: features, or tokens."""
        if self.frozen:
            return collate_features(self.features[id(samples)].get(indices))
        return self.network.encoder.prepare(samples.tokens(indices))

    def parameter_groups(self, module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """Return groups whose rates decay from layer to layer of the encoder; the head trains at the full rate."""
        network, decay = self.network, self.config.layer_decay
        tuned = [] if self.frozen else parameter_groups(network.encoder, 1.0, decay=decay, weight_decay=weight_decay)
        groups = [{"params": g["params"], "weight_decay": g["weight_decay"], "rate": g["lr"]} for g in tuned]
        return groups + super().parameter_groups(network.head, weight_decay)

    # ------------------------------------------------------------------ steps

    def batch(self, values: list[Any], rng: np.random.Generator) -> Any:
        labels = [self.split.samples.labels[index] for index in values]
        return self._inputs(self.split.samples, values), self.target.encode(labels)

    def losses(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
        inputs, targets = batch
        features, mask = inputs if self.frozen else self.network.features(*inputs)
        features = F.dropout(features, self.config.dropout, module.training)
        return {"loss": self.target.loss(self.network.head(features, mask), targets)}

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], None]:
        predicted = []
        for start in range(0, len(values), EVAL_BATCH):
            inputs = self._inputs(self.held_out, values[start : start + EVAL_BATCH])
            predicted += self.target.decode(module(*to_device(inputs, self.device)))
        return predicted, None

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        return self.task.score(self.target, predicted, [self.held_out.labels[index] for index in target])

    def render(self, value: Any) -> Any:
        """Return a prediction, or the label of a held-out sample (an int), as an image or text."""
        if isinstance(value, int):
            value = self.task.truth(self.target, self.held_out.labels[value])
        return self.task.render(self.target, value)

    # ------------------------------------------------------------------ the end

    def save(
        self, run: RunFolder, module: nn.Module, test: Sequence[Any], steps: int, seconds: float, best: Best | None
    ) -> None:
        """Score all held-out samples and write the probe."""
        target = self.target
        baseline = self.task.constant_baseline(target, self.split.samples.labels)
        probe = Probe(self.network, self.task, self.zoo, self.record, self.sources, baseline)
        scores = ProbeScores(
            task=PredictedLabels(name=self.task.title, kind=target.kind),
            inputs=self.record.inputs,
            head=self.head,
            tuning=self.config.tuning,
            seed=self.seed,
            labels=LabelCounts(
                requested=self.config.labels,
                train=len(self.split.training),
                validation=len(self.split.validation),
                test=len(self.test),
            ),
            metrics=probe.score(self.test),
            settings=as_dicts(self.config),
            dropped=self.dropped,
            unknown_keys=self.unknown_keys,
            unseen_classes=probe.unseen_classes(self.test.labels),
            backbone=self.record.backbone.weights_sha256,
            parameters=sum(parameter.numel() for parameter in probe.parameters()),
            trained_parameters=self.trained_parameters,
            steps=steps,
            best_step=None if best is None else best.step,
            best_score=None if best is None else best.score,
            training_seconds=round(seconds, 1),
            seconds=round(time.perf_counter() - self.started, 1),
        )
        probe.save(run.path, scores, probe_card(scores))
        run.finish(steps=steps)


# ---------------------------------------------------------------- features of a frozen encoder


class FeatureCache:
    """Features of a frozen encoder for the samples of a split, computed on first use and kept on the CPU.

    A sample's features do not depend on the batch: batches have a fixed size, and sequences are padded to the longest
    of the split (kernels round differently for other shapes). Features beyond CACHE_BYTES are computed again.
    """

    def __init__(self, network: Network, samples: Samples, batch_size: int = CACHE_BATCH) -> None:
        self.network, self.samples, self.batch_size = network, samples, min(batch_size, CACHE_BATCH)
        self.cached: dict[int, Tensor] = {}
        self.room = CACHE_BYTES
        self.lengths: dict[str, int] = {}
        """Maximum number of tokens of each input, as the encoder gets them."""
        for spec in samples.inputs.specs:
            end = int(network.encoder.layout.input_end(spec) is not None)
            self.lengths[spec.name] = min(samples.inputs.columns[spec.name].summary.longest + end, spec.layout.length)
        self.lock = threading.Lock()

    def get(self, indices: Sequence[int]) -> list[Tensor]:
        """Return the features of the samples with these indices, without padding."""
        with self.lock:
            computed: dict[int, Tensor] = {}
            missing = [index for index in dict.fromkeys(indices) if index not in self.cached]
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                computed.update(zip(batch, self._compute(batch), strict=True))
            for index, features in computed.items():
                if features.nbytes <= self.room:
                    self.room -= features.nbytes
                    self.cached[index] = features
            return [computed[index] if index in computed else self.cached[index] for index in indices]

    def fill(self, indices: Sequence[int]) -> None:
        """Compute features in advance, with a progress bar."""
        with progress_bar("features", len(indices)) as advance:
            for start in range(0, len(indices), self.batch_size):
                batch = indices[start : start + self.batch_size]
                self.get(batch)
                advance(len(batch))

    def _compute(self, indices: Sequence[int]) -> list[Tensor]:
        padded = [*indices, *[indices[-1]] * (self.batch_size - len(indices))]
        # Evaluations run in inference mode, whose tensors cannot be trained on.
        with torch.inference_mode(False), torch.no_grad():
            tokens, used = self.network.encoder.prepare(self.samples.tokens(padded))
            for name, mask in used.items():
                padding = self.lengths[name] - mask.shape[1]
                used[name] = F.pad(mask, (0, padding))
                tokens[name] = F.pad(tokens[name], (0, padding) if tokens[name].ndim == 2 else (0, 0, 0, padding))
            features, feature_mask = self.network.features(tokens, used)
            rows = list(features.cpu())
            if feature_mask is not None:
                rows = [row[row_mask] for row, row_mask in zip(rows, feature_mask.cpu(), strict=True)]
            return [row.clone() for row in rows[: len(indices)]]  # not views of the whole batch


def collate_features(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stack features of samples. Returns a mask if their lengths differ."""
    lengths = torch.tensor([len(row) for row in rows])
    if len(set(lengths.tolist())) == 1:
        return torch.stack(list(rows)), None
    batch = pad_sequence(list(rows), batch_first=True)
    return batch, torch.arange(batch.shape[1]) < lengths.unsqueeze(1)
