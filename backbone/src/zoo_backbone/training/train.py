"""The only training loop of the backbone: resumable at any step, to the same weights as if it had not been stopped."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenizers_zoo.checkpoint import check_weights, float32_by_default, load_config
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.errors import CheckpointError, ConfigError, ZooError, count_of
from tokenizers_zoo.io import as_json
from tokenizers_zoo.run_folder import RunFolder, read_run
from tokenizers_zoo.spec import ModalitySpec
from zoo_backbone.batch import PackedBatch
from zoo_backbone.checkpoint import ASKED, CLASS, save_state
from zoo_backbone.config import Mixture, ModelConfig, TrainConfig
from zoo_backbone.data import Loader, Mix, Source, fingerprints_of, open_sources
from zoo_backbone.model import FourM, Losses
from zoo_backbone.run import BACKBONE, Run
from zoo_backbone.training import distributed
from zoo_backbone.training.average import Average
from zoo_backbone.training.balance import Balance
from zoo_backbone.training.compiling import compile_blocks
from zoo_backbone.training.held_out import held_out_losses
from zoo_backbone.training.identity import lasting, run_identity
from zoo_backbone.training.log import NoLog, TrainingLog
from zoo_backbone.training.optim import Optimizer, learning_rate, peak_rate
from zoo_backbone.training.parts import Parts
from zoo_backbone.training.starting import Beginning, begin, freeze
from zoo_backbone.training.state import StatePart, TrainingState

Show = Callable[[FourM, Path, int], Mapping[str, Path | str]]
"""Draws what a model makes of held-out samples: gives by title a picture's file, or a text."""
LAST = "last"
"""In a run's folder, that of the last weights, where the run gives their average."""


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
    ids: Mapping[str, int] | None = None,
    show: Show | None = None,
    asked: Sequence[Mixture] = (),
    overwrite: bool = False,
) -> Path:
    """Train a FourM over `specs` on the token store `tokens`, or go on with it; gives `folder`.

    Every `save_every` steps the state is written; after a kill the same call goes on from there, and weights and
    metrics.jsonl end up as without the kill. A finished run is left alone. `fingerprints` (default: those in the store)
    and `run` (default: the store alone) are kept beside the model. `start` is a trained backbone to begin with, of the
    same or other modalities, and `ids` are those of its vocabularies that it knows (see `begin`). `show` draws what
    settings with `preview_every` ask for. `asked` is how the model is asked when it grows, where that is not as it is
    trained here. Under torchrun the processes share the batch and the model. Raises
    FolderError if the folder holds a run with other settings or samples and not `overwrite`, DataError for tokens that
    do not fit, CheckpointError for a start that does not and for a finished model that was altered since, and
    DivergedError, with the last state kept, where the loss stops being finite.
    """
    folder, tokens = Path(folder), Path(tokens)
    with (
        float32_by_default(),
        keeping_freed_memory(),
        distributed.ranks() as ranks,
        contextlib.ExitStack() as until_done,
    ):
        beginning = begin(specs, model_config, train_config.seed, start, ids)
        layout = beginning.model.layout
        sources = open_sources(tokens, TRAIN, specs, train_config, beginning.names, layout)
        fingerprints = dict(fingerprints or fingerprints_of(sources))
        record = beginning.record
        held_out = open_sources(tokens, TEST, specs, train_config, beginning.names)
        training = Training(folder, sources, held_out, beginning, train_config, ranks, show)
        begun_from = record["weights_sha256"] if record else None
        data = [source.data for source in sources]
        places = dataclasses.replace(run or Run(tokens=tokens), start=start)
        identity = run_identity(specs, model_config, train_config, fingerprints, data, begun_from)
        run_folder = RunFolder(folder, BACKBONE, identity, places.places())
        if ranks.first:
            until_done.enter_context(run_folder.open(overwrite))
        ranks.wait()
        stored = read_run(folder)
        if stored is not None and stored["finished"] is not None:
            check_weights(folder, load_config(folder, CLASS))
            if ranks.first and (folder / LAST).is_dir():
                places.save(folder / LAST)
            return folder
        seconds = training.run()
        extra = {"train": lasting(train_config), "fingerprints": fingerprints, "training_seconds": seconds}
        extra |= {"start": record, **beginning.published} if record else {}
        extra |= as_json({ASKED: list(map(dataclasses.asdict, asked))}) if asked else {}
        if training.average is not None:
            state = ranks.whole_state(training.model)
            if ranks.first:
                places.save(folder / LAST)
                save_state(training.model, state, folder / LAST, extra, beside=beginning.beside)
        with training.averaged():
            state = ranks.whole_state(training.model)
            if ranks.first:
                save_state(training.model, state, folder, extra, beside=beginning.beside)
        ranks.wait()
        if ranks.first:
            run_folder.finish(steps=train_config.steps)
    return folder


class Training:
    """Model, optimizer and data of one run."""

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        held_out: Sequence[Source],
        beginning: Beginning,
        config: TrainConfig,
        ranks: distributed.Ranks,
        show: Show | None = None,
    ) -> None:
        if config.batch_size % ranks.size:
            raise ConfigError(f"batch_size {config.batch_size}: expected a multiple of {ranks.size}, the processes")
        if config.preview_every and (show is None or ranks.size > 1):
            raise ConfigError("preview_every: pictures are drawn by zoo backbone in one process; set it to 0 here")
        if config.pretrained_lr_scale != 1 and beginning.record is None:
            scale = config.pretrained_lr_scale
            raise ConfigError(f"pretrained_lr_scale {scale}: expected a backbone to start from; leave it out here")
        self.folder, self.config, self.ranks, self.show = folder, config, ranks, show
        self.peak = peak_rate(config, beginning.model.config.dim)
        frozen = freeze(beginning) if config.freeze else {}
        self.model = beginning.model.to(ranks.device)
        for block in (*self.model.encoder, *self.model.decoder):
            block.activation_checkpointing = config.activation_checkpointing
        ranks.shard(self.model)
        known = beginning.known
        self.optimizer = Optimizer(self.model, config, sparse=ranks.size == 1, frozen=frozen, known=known)
        self.mix = Mix(sources, self.model.layout, dataclasses.replace(config, seed=beginning.seed(config.seed)))
        self.held_out = Mix(held_out, self.model.layout, config)
        together = ranks.size == 1 and ranks.device.type == "cpu"
        self.parts = Parts(self.model, config.grad_accum_steps, together=together)
        self.balance = Balance(self.model.layout, config, ranks.device)
        self.average = Average(self.model, config.ema_decay) if config.ema_decay else None
        kept: dict[str, StatePart] = {"optimizer": self.optimizer, "balance": self.balance}
        kept |= {"average": self.average} if self.average is not None else {}
        self.state = TrainingState(folder, self.model, kept, ranks)

    def run(self) -> float:
        """Take the steps that are left; gives the seconds that all steps took."""
        config = self.config
        start, seconds = self.state.load()
        if start > config.steps:
            raise CheckpointError(
                f"{self.folder}: holds a state of step {start}, and the run has {config.steps}; remove it to start anew"
            )
        title = f"backbone, {count_of(len(self.model.layout), 'modality', 'modalities')}"
        log = TrainingLog(self.folder, config, start, title) if self.ranks.first else NoLog()
        with log, self.parts, Loader(self.batch, start, config.steps) as loader:
            if config.compile:
                self.compile(start, log)
            for done, batch in enumerate(loader, start + 1):
                rate = learning_rate(config, done - 1, self.peak)
                loss, norm, by_modality = self.step(batch, rate)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise DivergedError(self._diverged(done, rate))
                if self.average is not None:
                    self.average.update(done)
                log.step(done, loss, norm, rate, by_modality | self.balance.shown())
                if self.held_out.sources and (done % config.eval_every == 0 or done == config.steps):
                    log.held_out(done, *self.evaluate())
                    if self.average is not None:
                        with self.averaged():
                            log.held_out(done, *self.evaluate(), "held_out_average")
                if self.show and config.preview_every and (done % config.preview_every == 0 or done == config.steps):
                    with self.averaged():
                        log.previews(done, self.show(self.model, self.folder, done))
                if done % config.save_every == 0 or done == config.steps:
                    log.flush()
                    self.state.save(done, seconds + log.seconds)
            return seconds + log.seconds

    def batch(self, step: int) -> PackedBatch:
        """This process's part of the batch of a step."""
        size = self.config.batch_size // self.ranks.size
        return self.mix.batch(step, self.config.batch_size, self.ranks.rank * size, size).trimmed()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The model with the average of its weights, where there is one, for as long as the block lasts."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def compile(self, step: int, log: TrainingLog | NoLog) -> None:
        """Compile the model's blocks on the batch of a step, or say why that fails."""

        def attempt() -> None:
            self.gradients(self.batch(step))
            self.model.zero_grad(set_to_none=True)

        if problem := compile_blocks(self.model, attempt):
            self.model.zero_grad(set_to_none=True)
            log.say(f"backbone: torch.compile fails here ({problem}); training goes on without it")

    def forward(self, batch: PackedBatch, whole: Tensor | None = None, weights: Tensor | None = None) -> Losses:
        """The losses of a batch, or of a part of one with `whole` targets, in the precision that the settings say."""
        device = self.ranks.device
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            use_all = self.ranks.size > 1 and torch.is_grad_enabled()
            losses: Losses = self.model(batch.to(device), self.config.loss, whole, use_all, weights)
        return losses

    def gradients(self, batch: PackedBatch) -> tuple[Losses, Tensor]:
        """Leave the batch's gradients in the parameters; gives its losses, and the targets of all processes."""
        whole = self.ranks.total(self.model.target_counts(batch.targets).to(self.ranks.device))
        weights = self.balance.weights(whole)
        # Sharded gradients are means over the processes, whose losses add up.
        losses = self.parts.backward(batch, lambda part: self.forward(part, whole, weights), self.ranks.size)
        return losses, whole

    def step(self, batch: PackedBatch, rate: float) -> tuple[float, float, dict[str, float]]:
        """One update: the loss of the whole batch, the norm of its gradient, the loss by modality.

        Factors of the modalities' losses count in the gradient, not in the losses.
        """
        losses, whole = self.gradients(batch)
        self.ranks.drop_unused(self.model)
        norm = self.optimizer.step(rate)
        of_all = dataclasses.replace(losses, sums=self.ranks.total(losses.sums), counts=whole)
        weighted = self.balance.weights(whole) is not None
        self.balance.update(of_all.sums, whole, rate)
        unweighted, by_modality = self.means(of_all)
        # Without a target the mean is NaN, which would end the training, and the loss is 0.
        loss = unweighted if weighted and by_modality else float(self.ranks.total(losses.loss))
        return loss, norm, by_modality

    @torch.no_grad()
    def evaluate(self) -> tuple[float, dict[str, float]]:
        """The loss, whole and by modality, on held-out samples of each store, always with the same masks.

        NaN and nothing where the masks leave these samples without a target.
        """
        pieces = self.config.grad_accum_steps * self.ranks.size
        return self.means(held_out_losses(self.forward, self.held_out, self.config, pieces))

    def means(self, losses: Losses) -> tuple[float, dict[str, float]]:
        """The cross-entropy without factors, whole, as the settings' `loss` takes the mean, and by modality.

        NaN and nothing where there is no target.
        """
        means = losses.per_modality(self.model.layout.names)
        if not means:
            return math.nan, means
        whole = losses.sums.sum() / losses.counts.sum()
        return float(whole) if self.config.loss == "token" else float(np.mean(list(means.values()))), means

    def _diverged(self, done: int, rate: float) -> str:
        kept = self.state.saved
        state = f"the state after step {kept} is kept in {self.folder}" if kept else "no state was written yet"
        longer = "more warmup_steps"
        if self.config.warmup_steps >= self.config.steps // 2:
            longer = "more steps, half of which are the warm-up"
        exact = "" if self.config.precision == "float32" else " or precision float32"
        return (
            f"backbone: the loss or its gradient is not finite at step {done}, with learning rate {rate:.3g}; {state}; "
            f"train anew, in another folder, with a lower learning_rate or {longer}{exact}"
        )


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[bool]:
    """Have glibc keep freed memory for the next step, and give it back at the end; True where that is possible.

    Activations and gradients are freed and asked for again at every step. By default the large ones come from the
    system anew, page by page.
    """
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    kept = bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1))
    try:
        yield kept
    finally:
        libc.mallopt(mmap_max, 65536)  # its default; the thresholds are where they come to by themselves in time
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)
        libc.malloc_trim(0)
