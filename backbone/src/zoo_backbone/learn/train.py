"""Training of the backbone: one loop, resumed to the bit after a kill, in one process or under torchrun with FSDP2."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenizers_zoo.contract.samples import TEST, TRAIN
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import CheckpointError, ConfigError, count_of, first_line
from tokenizers_zoo.files.checkpoint import fingerprint, float32_by_default, load_config
from tokenizers_zoo.files.run_folder import RunFolder, read_run
from tokenizers_zoo.machine.device import AUTO
from tokenizers_zoo.machine.process import Interrupted, deferred_signals, kept_memory
from tokenizers_zoo.records.io import as_json
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.train.log import StepLog
from tokenizers_zoo.train.optim import EMA, check_finite
from zoo_backbone.learn import distributed
from zoo_backbone.learn.checkpoint import (
    PUBLISHED,
    REPLAY_MIXTURES,
    InitialModel,
    backbone_config,
    freeze,
    initial_model,
    layout_for,
    save_model,
)
from zoo_backbone.learn.data import Mix, Source, fingerprints_of, open_sources
from zoo_backbone.learn.distributed import TrainingState
from zoo_backbone.learn.loader import training_batches
from zoo_backbone.learn.losses import GradAccumulation, LossBalance, held_out_losses
from zoo_backbone.learn.optim import Optimizer, learning_rate, peak_rate
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import Mixture, ModelConfig, TrainConfig
from zoo_backbone.model.fourm import FourM, Losses
from zoo_backbone.model.run import BACKBONE, Run

Show = Callable[[FourM, Path, int], Mapping[str, Path]]
"""Draws previews of held-out samples; returns picture files by title."""
LAST = "last"
"""Subfolder with the last weights of a run whose model is the EMA."""
DETAILS_EVERY = 10
"""Steps between two lines of metrics.jsonl with the losses of all modalities."""
GRAPHS = 64
"""Compiled graphs per block: of each kind of block, with and without a mask, with and without gradients, of one or
several samples. PyTorch's limit of 8 is reached by the first evaluation; later graphs would not be compiled."""


@kept_memory()
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
    ids: Mapping[str, int] | None = None,
    show: Show | None = None,
    replay_mixtures: Sequence[Mixture] = (),
    overwrite: bool = False,
    device: str = AUTO,
) -> Path:
    """Train a FourM over `specs` on the token store `tokens` into `folder`, which is returned.

    After a kill, the same call resumes from the last state (saved every `save_every` steps), and weights and
    metrics.jsonl are the same as without the kill. A finished run is left as it is. Under torchrun, the processes share
    the batch and the model.

    Args:
        run: Places of the inputs, stored in run.json. Default: the token store only.
        fingerprints: Fingerprints of the tokenizers by modality. Default: those in the store.
        start: A trained backbone to start from, of the same or other modalities.
        ids: Ids of its vocabularies that the start backbone was trained on; see `checkpoint.initial_model`.
        show: Draws the previews, if `preview_every` is set.
        replay_mixtures: Mixtures that a later growth uses instead of the training's.
        overwrite: Replace the run in the folder.
        device: A torch device or "auto"; under torchrun each process takes its own GPU.

    Raises FolderError if the folder holds another run, DataError for tokens that do not fit, CheckpointError for a
    start that does not fit or a finished model that was altered, and DivergedError if the loss is not finite.
    """
    folder, tokens = Path(folder), Path(tokens)
    with (
        float32_by_default(),
        distributed.ranks(device) as ranks,
        contextlib.ExitStack() as stack,
    ):
        if start is not None and start.resolve() == folder.resolve():
            raise ConfigError(f"{folder}: is the backbone to start from; give another folder for the new run")
        before = backbone_config(start) if start is not None else None
        start_names = [spec.name for spec in before.specs] if before else []
        sources = open_sources(tokens, TRAIN, specs, train_config, start_names, layout_for(model_config, specs))
        held_out = open_sources(tokens, TEST, specs, train_config, start_names)
        fingerprints = dict(fingerprints or fingerprints_of(sources))

        # Token stores count by their contents, not by their paths.
        settings = dataclasses.asdict(train_config)
        for name in ("loggers", "loader_workers", "loader_seconds"):
            del settings[name]
        modalities = {
            spec.name: {
                "layout": as_dicts(spec.layout),
                "vocabulary": spec.vocabulary,
                "vocab_size": spec.vocab_size,
                "fingerprint": fingerprints.get(spec.name, ""),
            }
            for spec in specs
        }
        identity = as_json(
            {
                "model": dataclasses.asdict(model_config),
                "modalities": modalities,
                "order": list(modalities),
                "train": settings | {"datasets": [{**dataset, "tokens": None} for dataset in settings["datasets"]]},
                "start": before.weights_sha256 if before else None,
                "samples": [len(source.data) for source in sources],
                "contents": [source.data.contents() for source in sources],
            }
        )
        run_record = dataclasses.replace(run or Run(tokens=tokens), start=start)
        run_folder = RunFolder(folder, BACKBONE, identity, run_record.paths())
        if ranks.first:
            stack.enter_context(run_folder.open(overwrite))
        ranks.wait()
        record = read_run(folder)
        if record is not None and record.finished is not None:
            fingerprint(folder)  # raises CheckpointError for damaged weights
            if ranks.first and (folder / LAST).is_dir():
                run_record.save(folder / LAST)
            return folder

        initial = initial_model(specs, model_config, train_config.seed, start, ids)
        trainer = Trainer(folder, sources, held_out, initial, train_config, ranks, show)
        seconds = trainer.train()
        datasets = [{**dataset, "tokens": dataset["tokens"].resolve()} for dataset in settings["datasets"]]
        extra = {
            "train": as_json(settings | {"datasets": datasets}),
            "fingerprints": fingerprints,
            "training_seconds": seconds,
        }
        extra |= {"start": as_dicts(initial.record)} if initial.record else {}
        extra |= {"lengthened": record.lengthened} if record and record.lengthened else {}
        if start and before and before.ml4m:
            extra[PUBLISHED] = load_config(start)[PUBLISHED]
        extra |= as_json({REPLAY_MIXTURES: list(map(dataclasses.asdict, replay_mixtures))}) if replay_mixtures else {}
        for model_folder in ([folder / LAST] if trainer.ema is not None else []) + [folder]:
            with trainer.ema_applied() if model_folder == folder else contextlib.nullcontext():
                state = ranks.full_state(trainer.model)
                if ranks.first:
                    if model_folder != folder:
                        run_record.save(model_folder)
                    save_model(trainer.model, model_folder, extra, state, initial.extra_tensors)
        ranks.wait()
        if ranks.first:
            run_folder.finish(steps=train_config.steps)
    return folder


class Trainer:
    """Model, optimizer, data and state of one run."""

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        held_out: Sequence[Source],
        initial: InitialModel,
        config: TrainConfig,
        ranks: distributed.Ranks,
        show: Show | None = None,
    ) -> None:
        if ranks.size > min(config.batch_size, config.lanes):
            sizes = f"batch_size {config.batch_size}, lanes {config.lanes}"
            raise ConfigError(f"{sizes}: expected at least {ranks.size} of each, the number of processes")
        if config.preview_every and (show is None or ranks.size > 1):
            raise ConfigError("preview_every: pictures are drawn by zoo backbone in one process; set it to 0 here")
        if config.pretrained_lr_scale != 1 and initial.record is None:
            scale = config.pretrained_lr_scale
            raise ConfigError(f"pretrained_lr_scale {scale}: expected a backbone to start from; leave it out here")
        self.folder, self.config, self.ranks, self.show = folder, config, ranks, show
        self.peak = peak_rate(config, initial.model.config.dim)
        frozen = freeze(initial) if config.freeze else {}
        self.model = initial.model.to(ranks.device)
        for block in (*self.model.encoder, *self.model.decoder):
            block.activation_checkpointing = config.activation_checkpointing
        ranks.shard(self.model)
        self.optimizer = Optimizer(
            self.model, config, sparse=ranks.size == 1, frozen=frozen, pretrained_rows=initial.pretrained_rows
        )
        layout = self.model.layout
        self.mix = Mix(sources, layout, dataclasses.replace(config, seed=initial.seed(config.seed)))
        self.held_out = Mix(held_out, layout, config)
        parallel = ranks.size == 1 and ranks.device.type == "cpu"
        self.accumulation = GradAccumulation(self.model, config.grad_accum_steps, parallel=parallel)
        self.balance = LossBalance(layout, config, ranks.device)
        self.ema = EMA(self.model, config.ema_decay) if config.ema_decay else None
        self.signals, self.interrupted = list[int](), 0.0
        """Signals of this process, and how many processes had one at the last step."""
        parts = {"optimizer": self.optimizer.state, "balance": self.balance.state}
        parts |= {"ema": self.ema.state} if self.ema is not None else {}
        self.state = TrainingState(folder, self.model, parts, ranks)

    def train(self) -> float:
        """Run the remaining steps and return the seconds that all steps took."""
        config = self.config
        first, seconds = self.state.load()
        if first > config.steps:
            reason = f"holds a state of step {first}, the run has {config.steps}; remove it to start again"
            raise CheckpointError(f"{self.folder}: {reason}")
        started = time.perf_counter()
        log = TrainingLog(self.folder, config, first, self.model) if self.ranks.first else None
        with (
            log or contextlib.nullcontext(),
            self.accumulation,
            training_batches(self.mix, config, self.ranks, first) as batches,
            deferred_signals() as self.signals,
        ):
            if config.compile:
                batch = self.mix.batch(first, config.batch_size, self.ranks.rank, self.ranks.size).trimmed()
                compile_error = compile_blocks(self.model, lambda: self.gradients(batch))
                self.model.zero_grad(set_to_none=True)
                if compile_error and log:
                    log.say(f"backbone: torch.compile fails here ({compile_error}); training goes on without it")
            for done, batch in enumerate(batches, first + 1):
                rate = learning_rate(config, done - 1, self.peak)
                loss, norm, by_modality = self.train_step(batch, rate)
                check_finite("backbone", done, config, loss, norm, rate)
                if self.ema is not None:
                    self.ema.update(done)
                if log:
                    log.step(done, loss, norm, rate, by_modality | self.balance.log_scalars())
                last = done == config.steps
                if self.held_out.sources and (done % config.eval_every == 0 or last):
                    held_out = {"held_out": self.evaluate()}
                    if self.ema is not None:
                        with self.ema.applied():
                            held_out["held_out_average"] = self.evaluate()
                    if log:
                        for title, losses in held_out.items():
                            log.held_out(done, *losses, title)
                if log and self.show and config.preview_every and (done % config.preview_every == 0 or last):
                    with self.ema_applied():
                        log.previews(done, self.show(self.model, self.folder, done))
                if done % config.save_every == 0 or last or self.interrupted:
                    if log:
                        log.flush()
                    self.state.save(done, seconds + time.perf_counter() - started)
                if self.interrupted:
                    raise Interrupted([*self.signals, signal.SIGTERM][0], f"step {done} of {config.steps}")
        return seconds + time.perf_counter() - started

    def train_step(self, batch: PackedBatch, rate: float) -> tuple[float, float, dict[str, float]]:
        """Do one optimizer step; return the loss, the gradient norm, and the loss of each modality.

        Loss weights affect the gradient, but not the returned losses of modalities.
        """
        losses, targets = self.gradients(batch)
        self.ranks.drop_unused(self.model)
        norm = self.optimizer.step(rate)
        shared = torch.stack([losses.loss, losses.loss.new_tensor(len(self.signals))])
        loss, self.interrupted = self.ranks.total(shared).tolist()
        losses = dataclasses.replace(losses, sums=self.ranks.total(losses.sums))
        weighted = self.balance.weights(targets) is not None
        self.balance.update(losses.sums, targets, rate)
        unweighted, by_modality = self.means(dataclasses.replace(losses, counts=targets))
        # Without a target the mean is NaN, which would stop the training, and the loss is 0.
        return unweighted if weighted and by_modality else loss, norm, by_modality

    def gradients(self, batch: PackedBatch) -> tuple[Losses, Tensor]:
        """Compute the gradients of a batch; return its losses, and the number of targets over all processes."""
        targets = self.ranks.total(self.model.target_counts(batch.targets).to(self.ranks.device))
        weights = self.balance.weights(targets)
        # FSDP averages gradients over the processes; losses add up, hence the factor.
        losses = self.accumulation.backward(batch, lambda part: self.forward(part, targets, weights), self.ranks.size)
        return losses, targets

    def forward(self, batch: PackedBatch, targets: Tensor | None = None, weights: Tensor | None = None) -> Losses:
        """Return the losses of a batch, or of a part of a batch with `targets` targets, in the settings' precision."""
        device = self.ranks.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            use_all = self.ranks.size > 1 and torch.is_grad_enabled()
            losses: Losses = self.model(batch.to(device), self.config.loss, targets, use_all, weights)
        return losses

    @torch.no_grad()
    def evaluate(self) -> tuple[float, dict[str, float]]:
        """Return the held-out loss, and the loss of each modality; see `means`."""
        pieces = self.config.grad_accum_steps * self.ranks.size
        return self.means(held_out_losses(self.forward, self.held_out, self.config, pieces))

    def means(self, losses: Losses) -> tuple[float, dict[str, float]]:
        """Return the unweighted mean cross-entropy and its values by modality; NaN and {} without a target."""
        means = losses.per_modality(self.model.layout.names)
        if not means:
            return math.nan, means
        mean = losses.sums.sum() / losses.counts.sum()
        return float(mean) if self.config.loss == "token" else float(np.mean(list(means.values()))), means

    def ema_applied(self) -> contextlib.AbstractContextManager[None]:
        """Give the model its EMA weights within the block, if the run has an EMA."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied()


class TrainingLog(StepLog):
    """Log of a backbone's training.

    Lines of metrics.jsonl: `{"step", "train/loss", "train/gradient_norm", "train/learning_rate", "train/<modality>"}`
    and `{"step", "held_out/loss", "held_out/<modality>"}`. Losses are in nats per token, without loss weights. With an
    EMA, `"held_out_average/..."` are its losses; `"train/weight/<modality>"` are learned loss weights.
    """

    def __init__(self, folder: Path, config: TrainConfig, done: int, model: FourM) -> None:
        title = f"backbone, {count_of(len(model.layout), 'modality', 'modalities')}"
        super().__init__(
            folder,
            title,
            steps=config.steps,
            done=done,
            samples_per_step=config.batch_size,
            loggers=config.loggers,
            config={"model": dataclasses.asdict(model.config), "train": dataclasses.asdict(config)},
        )
        self.by_modality: Mapping[str, float] = {}
        """The last held-out losses."""

    def step(self, done: int, loss: float, norm: float, rate: float, by_modality: Mapping[str, float]) -> None:
        self.advance(done, loss)
        scalars = {"train/loss": loss, "train/gradient_norm": norm, "train/learning_rate": rate}
        if done % DETAILS_EVERY == 0 or done == self.steps:
            scalars |= {f"train/{name}": value for name, value in by_modality.items()}
            self.write_speed()
        self.write(done, scalars)

    def held_out(self, done: int, loss: float, by_modality: Mapping[str, float], title: str = "held_out") -> None:
        if not by_modality:
            self.note = "no held-out sample has a target"
            return
        self.write(done, {f"{title}/loss": loss} | {f"{title}/{name}": value for name, value in by_modality.items()})
        self.note = f"held-out loss {loss:.4g}"
        self.by_modality = by_modality

    def previews(self, done: int, pictures: Mapping[str, Path]) -> None:
        """Log previews, and print their files and the held-out losses."""
        for title, path in pictures.items():
            with Image.open(path) as picture:
                self.write_image(done, title, picture)
            self.say(f"step {done}: {title}: {path}")
        losses = ", ".join(f"{name} {loss:.3g}" for name, loss in self.by_modality.items())
        if losses:
            self.say(f"step {done}: held-out losses: {losses}")


def compile_blocks(model: FourM, attempt: Callable[[], object]) -> str:
    """Compile each block and call `attempt`; if it fails, undo the compilation and return the reason.

    Only the blocks are compiled: they are the cost, and all other operations have changing shapes.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    blocks = [*model.encoder, *model.decoder]
    for block in blocks:
        block.forward = torch.compile(block.forward)
    try:
        attempt()
    except Exception as error:  # of any kind: from the compiler, from the C++ compiler, or from the machine
        for block in blocks:
            del block.forward
        return first_line(error)
    return ""
