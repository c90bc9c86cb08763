"""The only training loop of the backbone: resumable at any step, to the same weights as if it had not been stopped."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbone import distributed
from backbone.batch import PackedBatch
from backbone.config import ModelConfig, TrainConfig
from backbone.data import Loader, Order, TokenData
from backbone.masking import Masker
from backbone.model import FourM, Losses
from backbone.optim import Optimizer, learning_rate
from backbone.parts import Parts
from backbone.run import Run
from backbone.saving import CLASS, load_model, save_state
from backbone.training_log import NoLog, TrainingLog
from tokenizers_zoo.checkpoint import CONFIG, check_weights, load_config, read_table, remove_folder, write_json
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import ConfigError, ZooError
from tokenizers_zoo.modality import ModalitySpec, layout_to_json

IDENTITY = "training_state.json"
TRAIN, HELD_OUT = "train", "test"
HELD_OUT_SEED = 1 << 63
"""Set in the seed of held-out masks, so that they are not those of training."""


class DivergedError(ZooError):
    """The loss or its gradient is not finite any more."""


def train(
    folder: Path,
    tokens: Path,
    specs: Sequence[ModalitySpec],
    model_config: ModelConfig,
    train_config: TrainConfig,
    *,
    run: Run | None = None,
    fingerprints: Mapping[str, str] | None = None,
    start: Path | None = None,
) -> Path:
    """Train a FourM over `specs` on the token store `tokens`, or go on with it; gives `folder`.

    Every `save_every` steps the state is written; after a kill the same call goes on from there, and weights and
    metrics.jsonl end up as without the kill. A finished run is left alone. `fingerprints` (default: those in the store)
    and `run` (default: the store alone) are kept beside the model. `start` is a trained backbone to begin with, of the
    same or other modalities (see `load_model`). Under torchrun the processes share the batch and the model. Raises
    ConfigError where the folder holds a run with other settings, DataError for tokens that do not fit, CheckpointError
    for a start that does not and for a finished model that was altered since, and DivergedError, with the last state
    kept, where the loss stops being finite.
    """
    keep_freed_memory()
    with distributed.ranks() as ranks:
        data = TokenData(tokens, TRAIN, specs)
        fingerprints = dict(fingerprints or data.fingerprints)
        model = first_model(specs, model_config, train_config.seed, start)
        identity = run_identity(specs, model_config, train_config, fingerprints, len(data))
        identity["start"] = None if start is None else load_config(start)["weights_sha256"]
        if ranks.first:
            open_run(folder, identity)
            (run or Run(tokens=tokens)).save(folder)
        ranks.wait()
        if (folder / CONFIG).is_file():
            check_weights(folder, load_config(folder, CLASS))
            if ranks.first:
                remove_folder(folder / distributed.STATE)  # a kill after the model was written may have left it
            return folder
        held_out = TokenData(tokens, HELD_OUT, specs) if HELD_OUT in TokenStore(tokens).splits() else None
        training = Training(folder, data, held_out, model, train_config, ranks)
        seconds = training.run()
        extra = {"train": identity["train"], "fingerprints": fingerprints, "training_seconds": seconds}
        state = ranks.whole_state(training.model)
        if ranks.first:
            save_state(training.model, state, folder, extra)
        ranks.wait()
        training.state.forget()
    return folder


def first_model(specs: Sequence[ModalitySpec], config: ModelConfig, seed: int, start: Path | None) -> FourM:
    """The model at step 0: new, or with the rows of a trained one. Raises CheckpointError, ConfigError."""
    if start is None:
        return FourM.seeded(config, specs, seed)
    model = load_model(start, specs, seed=seed)
    if problem := difference(dataclasses.asdict(model.config), dataclasses.asdict(config)):
        raise ConfigError(f"{start}: cannot be the start of a model of another shape: {problem}")
    return model


def run_identity(
    specs: Sequence[ModalitySpec],
    model_config: ModelConfig,
    train_config: TrainConfig,
    fingerprints: Mapping[str, str],
    samples: int,
) -> dict[str, Any]:
    """All that a run's result depends on, as JSON types."""
    modalities = {
        spec.name: {
            "layout": layout_to_json(spec.layout), "vocabulary": spec.vocabulary, "vocab_size": spec.vocab_size,
            "fingerprint": fingerprints.get(spec.name, ""),
        }
        for spec in specs
    }  # fmt: skip
    identity = {
        "model": dataclasses.asdict(model_config), "train": dataclasses.asdict(train_config),
        "modalities": modalities, "samples": samples,
    }  # fmt: skip
    result: dict[str, Any] = json.loads(json.dumps(identity))
    return result


def open_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Take a new folder, or one of the same run. Raises ConfigError where it holds another."""
    path = folder / IDENTITY
    if path.is_file():
        stored = read_table(path)
        if problem := difference(stored, identity):
            raise ConfigError(
                f"{folder}: holds a run with other settings ({problem}); give those again, or another folder"
            )
    elif (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: holds a model that was not trained here; give another folder")
    else:
        write_json(path, identity)


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first place where two JSON values differ, as `train.steps was 400, is 800`; empty where they agree."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            if inner := difference(old.get(key), new.get(key), f"{where}.{key}" if where else key):
                return inner
        return ""
    return "" if old == new else f"{where} was {json.dumps(old)}, is {json.dumps(new)}"


class Training:
    """Model, optimizer and data of one run."""

    def __init__(
        self,
        folder: Path,
        data: TokenData,
        held_out: TokenData | None,
        model: FourM,
        config: TrainConfig,
        ranks: distributed.Ranks,
    ) -> None:
        if config.batch_size % ranks.size:
            raise ConfigError(f"batch_size {config.batch_size}: expected a multiple of {ranks.size}, the processes")
        self.folder, self.config, self.ranks = folder, config, ranks
        self.data, self.held_out = data, held_out
        self.model = model.to(ranks.device)
        ranks.shard(self.model)
        self.optimizer = Optimizer(self.model, config, sparse=ranks.size == 1)
        self.masker = Masker(self.model.tables, config.masking)
        self.order = Order(len(data), config.seed)
        together = ranks.size == 1 and ranks.device.type == "cpu"
        self.parts = Parts(self.model, config.parts, together=together)
        self.state = distributed.TrainingState(folder, self.model, self.optimizer, ranks)

    def run(self) -> float:
        """Take the steps that are left; gives the seconds that all steps took."""
        config = self.config
        start, seconds = self.state.load()
        title = f"backbone, {len(self.data.specs)} modalities"
        log = TrainingLog(self.folder, config, start, title) if self.ranks.first else NoLog()
        with log, self.parts, Loader(self.batch, start, config.steps) as loader:
            for done, batch in enumerate(loader, start + 1):
                rate = learning_rate(config, done - 1)
                loss, norm, by_modality = self.step(batch, rate)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise DivergedError(self._diverged(done, rate))
                log.step(done, loss, norm, rate, by_modality)
                if self.held_out is not None and (done % config.eval_every == 0 or done == config.steps):
                    log.held_out(done, *self.evaluate(self.held_out))
                if done % config.save_every == 0 or done == config.steps:
                    log.flush()
                    self.state.save(done, seconds + log.seconds)
            return seconds + log.seconds

    def batch(self, step: int) -> PackedBatch:
        """This process's part of the batch of a step."""
        size = self.config.batch_size // self.ranks.size
        first = self.ranks.rank * size
        samples = self.order.samples(step, self.config.batch_size)[first : first + size]
        return self.masker(self.data.batch(samples), self.config.seed, step, first)

    def forward(self, batch: PackedBatch, whole: Tensor | None = None) -> Losses:
        """The losses of a batch, or of a part of one with `whole` targets, in the precision that the settings say."""
        device = self.ranks.device
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            use_all = self.ranks.size > 1 and torch.is_grad_enabled()
            losses: Losses = self.model(batch.to(device), self.config.loss, whole, use_all)
        return losses

    def step(self, batch: PackedBatch, rate: float) -> tuple[float, float, dict[str, float]]:
        """One update: the loss of the whole batch, the norm of its gradient, the loss by modality."""
        whole = self.ranks.total(self.model.target_counts(batch.targets).to(self.ranks.device))
        # Sharded gradients are means over the processes, whose losses add up.
        losses = self.parts.backward(batch, lambda part: self.forward(part, whole), self.ranks.size)
        self.ranks.drop_unused(self.model)
        norm = self.optimizer.step(rate)
        names = self.model.tables.names
        of_all = dataclasses.replace(losses, sums=self.ranks.total(losses.sums), counts=whole)
        return float(self.ranks.total(losses.loss)), norm, of_all.per_modality(names)

    @torch.no_grad()
    def evaluate(self, data: TokenData) -> tuple[float, dict[str, float]]:
        """The loss, whole and by modality, on the first held-out samples, always with the same masks."""
        size = self.config.batch_size
        sums = counts = torch.zeros(len(self.model.tables), device=self.ranks.device)
        for step, first in enumerate(range(0, min(len(data), self.config.eval_samples), size)):
            samples = np.arange(first, min(first + size, len(data), self.config.eval_samples))
            batch = self.masker(data.batch(samples), self.config.seed ^ HELD_OUT_SEED, step)
            losses = self.forward(batch)
            sums, counts = sums + losses.sums, counts + losses.counts
        means = Losses(loss=sums.sum(), sums=sums, counts=counts).per_modality(self.model.tables.names)
        mean = float(sums.sum() / counts.sum()) if self.config.loss == "token" else float(np.mean(list(means.values())))
        return mean, means

    def _diverged(self, done: int, rate: float) -> str:
        kept = self.state.saved
        state = f"the state after step {kept} is kept in {self.folder}" if kept else "no state was written yet"
        return (
            f"backbone: the loss or its gradient is not finite at step {done}, with learning rate {rate:.3g}; {state}; "
            "train anew with a lower learning_rate, more warmup_steps, or precision float32"
        )


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next step instead of giving it back; True where that is possible.

    Activations and gradients are freed and asked for again at every step. By default the large ones come from the
    system anew, page by page.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mmap_max, trim_threshold = -4, -1
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1))
