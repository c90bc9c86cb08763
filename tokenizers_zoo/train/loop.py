"""Training loop of tokenizers and probes: seeded, and resumed to the bit after a kill."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenizers_zoo.contract.samples import TrainingSamples, spread
from tokenizers_zoo.contract.spec import Metric, ModalitySpec
from tokenizers_zoo.errors import CheckpointError, DataError, first_line
from tokenizers_zoo.files.checkpoint import fingerprint
from tokenizers_zoo.files.run_folder import TOKENIZER, RunFolder, RunKind
from tokenizers_zoo.machine.device import AUTO, resolve_device
from tokenizers_zoo.machine.process import Interrupted, deferred_signals, kept_memory
from tokenizers_zoo.records.io import read_numbers, write_state
from tokenizers_zoo.train.batches import prefetched, sample_order, seeded, to_device
from tokenizers_zoo.train.config import TrainConfig
from tokenizers_zoo.train.optim import EMA, check_finite
from tokenizers_zoo.train.report import Evaluation, TrainingReport, finish_run
from tokenizers_zoo.train.usage import CodebookUsage

if TYPE_CHECKING:
    import PIL.Image

FINAL_SAMPLES = 2000
"""Largest number of held-out samples of the final evaluation."""


@dataclass(kw_only=True)
class Best:
    """The best evaluation of a run that keeps its weights, and the number of evaluations since."""

    score: float = math.nan
    """The main metric."""
    step: int = 0
    """Finished steps; 0 before the first evaluation."""
    waited: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def update(self, scores: Mapping[str, float], metric: Metric, step: int, module: nn.Module) -> None:
        """Compare an evaluation with the best one; a score that is not finite is never better."""
        score = scores[metric.name]
        gain = score - self.score if metric.higher_is_better else self.score - score
        if math.isfinite(score) and (gain > 0 or not math.isfinite(self.score)):
            weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            self.score, self.step, self.waited, self.weights = score, step, 0, weights
        else:
            self.waited += 1


class Task(Protocol):
    """A model that the loop trains: a tokenizer, or another one with results of its own, such as a probe.

    It may be trained with a discriminator. Subclass it; only `save` and the discriminator have defaults.
    """

    spec: ModalitySpec
    codebook_size: int = 0
    kind_of_run: RunKind = TOKENIZER
    """The files of the run's folder."""
    places: Mapping[str, Any] | None = None
    """Paths for its run.json; see `RunFolder`."""
    validates: bool = False
    """Whether the loop's held-out samples are a validation set: the weights of the best evaluation are kept, even
    without `patience`, and logs call the samples validation. `save` must score other samples."""
    discriminator_rate: float = 1.0
    """Learning rate of the discriminator as a multiple of the model's."""
    discriminator_start: int = 0
    """The first step (from 0) with the discriminator's loss."""

    @property
    def title(self) -> str:
        """Title of the progress bar."""
        return f"tokenizer {self.spec.name}"

    def describe(self) -> Mapping[str, Any]:
        """Return the model's settings as JSON types, with the "class" key of its checkpoint. Must be fast."""

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> nn.Module:
        """Return the untrained model, fitted to statistics of `train` if necessary; torch's generator is seeded."""

    def batch(self, values: list[Any], rng: np.random.Generator) -> Any:
        """Return the tensors of a training batch, with augmentation drawn from `rng`."""

    def losses(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return scalars by name; "loss" is minimised."""

    def reconstruct(self, module: nn.Module, values: list[Any]) -> tuple[list[Any], Any]:
        """Return values after encode and decode, and their tokens (int64, any shape; None if continuous)."""

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        """Return the metrics of the spec."""

    def render(self, value: Any) -> PIL.Image.Image | str:
        """Return a value as a picture or text."""

    def discriminator(self) -> nn.Module | None:
        """Return the untrained discriminator, or None; torch's generator is seeded."""
        return None

    def losses_against(self, module: nn.Module, discriminator: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        """As `losses`, for step `step`.

        The discriminator minimises "discriminator_loss", which reaches its parameters only.
        """
        return self.losses(module, batch)

    def parameter_groups(self, module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """Return groups of trained parameters; only matrices and kernels have weight decay.

        `rate` is the group's learning rate as a multiple of the schedule's.
        """
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups = ((matrices, weight_decay), (vectors, 0.0))
        return [{"params": params, "weight_decay": decay, "rate": 1.0} for params, decay in groups if params]

    def evaluate(self, module: nn.Module, values: list[Any]) -> Evaluation:
        """Return metrics and codebook usage of a model on held-out values."""
        module.eval()
        with torch.inference_mode():
            predicted, tokens = self.reconstruct(module, values)
        usage = CodebookUsage(self.codebook_size, self.spec.num_codebooks)
        if tokens is not None:
            usage.update(tokens)
        return Evaluation(
            metrics={name: float(value) for name, value in self.score(predicted, values).items()},
            pairs=[(self.render(v), self.render(p)) for v, p in zip(values[:8], predicted[:8], strict=True)],
            samples=len(values),
            codebook={} if tokens is None else usage.figures(),
        )

    def save(
        self, run: RunFolder, module: nn.Module, test: Sequence[Any], steps: int, seconds: float, best: Best | None
    ) -> None:
        """Score the final model, write its folder and finish the run; `best` is the evaluation of its weights."""
        evaluation = self.evaluate(module, [test[index] for index in spread(len(test), FINAL_SAMPLES)])
        table = {**run.identity["model"], "training": run.identity["training"], "seed": run.identity["seed"]}
        table |= {"lengthened": run.lengthened} if run.lengthened else {}
        step, weights = best.step if best else None, module.state_dict()
        finish_run(run, self.spec, weights, table, evaluation, steps=steps, seconds=seconds, kept_step=step)


@kept_memory()
def train(
    task: Task,
    samples: TrainingSamples,
    config: TrainConfig,
    out_dir: Path,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    overwrite: bool = False,
    device: str = AUTO,
) -> Path:
    """Train `task` on `device`, write its checkpoint, metrics, pictures and card into `out_dir`, and return `out_dir`.

    Called again with the same arguments after a kill, it resumes from the last evaluation and ends in the same weights:
    bit-identical on a CPU, while GPU kernels may round differently. A finished run is returned at once. `on_step` is
    called with the number of finished steps. Raises FolderError if `out_dir` holds another run, DataError without
    samples, and DivergedError if the loss is not finite.
    """
    for split, values in (("training", samples.train), ("held-out", samples.test)):
        if not len(values):
            raise DataError(f"{task.spec.name}: there are no {split} samples to train its tokenizer with")
    run_identity = identity(task, samples, config, seed)
    with RunFolder(out_dir, task.kind_of_run, run_identity, task.places).open(overwrite) as run:
        if run.finished is not None:
            fingerprint(out_dir)  # raises CheckpointError for damaged weights
            return out_dir
        trainer = Trainer(task, samples, config, run, seed, resolve_device(device))
        trainer.train(on_step)
        module, best = trainer.final_module(), trainer.best if trainer.best.step else None
        task.save(run, module, samples.test, trainer.done, trainer.seconds, best)
    return out_dir


def identity(task: Task, samples: TrainingSamples, config: TrainConfig, seed: int) -> dict[str, Any]:
    """Return everything that the result of a run depends on, as JSON types."""
    # A subclass of TrainConfig may have settings of its own, which `describe` covers.
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name != "loggers"]
    training = {name: getattr(config, name) for name in names}
    return {"model": dict(task.describe()), "training": training, "seed": seed, "data": samples.record()}


class Trainer:
    """Model, discriminator, optimizer and EMA of one run, restored from its saved state."""

    def __init__(
        self, task: Task, samples: TrainingSamples, config: TrainConfig, run: RunFolder, seed: int, device: str
    ) -> None:
        self.task = task
        self.samples = samples
        self.config = config
        self.run = run
        self.seed = seed
        self.state = run.path / run.kind.state
        self.device, self.device_type = device, torch.device(device).type
        with seeded(seed):
            self.module = task.build(samples.train, np.random.default_rng([seed, 2])).to(self.device)
        with seeded(seed, 4):
            discriminator = task.discriminator()
        groups = task.parameter_groups(self.module, config.weight_decay)
        self.discriminator: nn.Module | None = None
        if discriminator is not None:
            self.discriminator = discriminator.to(self.device)
            discriminator_groups = Task.parameter_groups(task, self.discriminator, config.weight_decay)
            groups += [group | {"rate": task.discriminator_rate} for group in discriminator_groups]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
        self.ema = EMA(self.module, config.ema_decay)
        self.best = Best()
        self.keeps_best = config.patience is not None or task.validates
        self.held_out = [samples.test[index] for index in spread(len(samples.test), config.eval_samples)]
        self.done, self.seconds = 0, 0.0
        self.window: list[dict[str, float]] = []
        if run.resuming:
            self._load()
            if self.done in run.lengthened[-1:]:
                self.best.waited = 0

    def train(self, on_step: Callable[[int], None] | None) -> None:
        """Run the remaining steps, with an evaluation and a saved state every `eval_every`."""
        config = self.config
        spec = self.task.spec
        first, last = (steps * config.grad_accum_steps for steps in (self.done, config.steps))
        report = TrainingReport(
            spec, self.task.title, self.task.validates, config, self.run.path, self.done, self.window
        )
        with report, prefetched(self.batch, first, last) as batches, deferred_signals() as received_signals:
            while self.done < config.steps and not self.out_of_patience:
                started = time.perf_counter()
                losses = self.train_step(batches)
                self.seconds += time.perf_counter() - started
                report.step(self.done, losses, config.learning_rate_at(self.done - 1))
                if self.done % config.eval_every == 0 or self.done == config.steps:
                    evaluation = self.evaluate()
                    best = f"best {self.best.score:.4g} at step {self.best.step}" if self.best.step else ""
                    report.evaluation(self.done, evaluation, best)
                    self._save()
                if on_step is not None:
                    on_step(self.done)
                if received_signals:
                    report.flush()
                    self._save()
                    raise Interrupted(received_signals[0], f"step {self.done} of {config.steps} ({spec.name})")
            if self.out_of_patience:
                reason = f"no better {spec.metrics[0].name} in {self.best.waited} evaluations"
                kept_step = f"keeps step {self.best.step or self.done}"
                report.say(f"{spec.name}: stops after step {self.done} of {config.steps}: {reason}; {kept_step}")

    def batch(self, number: int) -> Any:
        """Return batch `number`; its samples and augmentation depend on (seed, number) only."""
        size, train = self.config.batch_size, self.samples.train
        indices = sample_order(number * size, (number + 1) * size, len(train), self.seed)
        return self.task.batch([train[int(index)] for index in indices], np.random.default_rng([self.seed, 1, number]))

    def train_step(self, batches: Iterator[Any]) -> dict[str, float]:
        """Do one optimizer step and return its losses and gradient norms."""
        step = self.done
        config = self.config
        task = self.task
        learning_rate = config.learning_rate_at(step)
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, float] = {}
        for number in range(step * config.grad_accum_steps, (step + 1) * config.grad_accum_steps):
            batch = to_device(next(batches), self.device)
            autocast = torch.autocast(self.device_type, torch.bfloat16, enabled=config.precision == "bfloat16")
            with seeded(self.seed, 3, number), autocast:
                if self.discriminator is not None:
                    batch_losses = task.losses_against(self.module, self.discriminator, batch, step)
                else:
                    batch_losses = task.losses(self.module, batch)
            total = batch_losses["loss"] + batch_losses.get("discriminator_loss", 0.0)
            (total / config.grad_accum_steps).backward()
            for name, value in batch_losses.items():
                losses[name] = losses.get(name, 0.0) + float(value.detach()) / config.grad_accum_steps
        norms = {}
        for name, module in (("gradient_norm", self.module), ("discriminator_gradient_norm", self.discriminator)):
            if module is not None:
                limit = config.gradient_clip or math.inf
                norms[name] = float(torch.nn.utils.clip_grad_norm_(module.parameters(), limit))
        table = "tokenizer." if task.kind_of_run is TOKENIZER else ""
        check_finite(task.spec.name, step + 1, config, losses["loss"], sum(norms.values()), learning_rate, table)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.optimizer.step()
        self.ema.update(step)
        self.done = step + 1
        return losses | norms

    def evaluate(self) -> Evaluation:
        """Score the EMA weights on held-out samples, and keep them if the run keeps its best evaluation's weights."""
        with self.ema.applied():
            evaluation = self.task.evaluate(self.module, self.held_out)
            # Weights from before the discriminator's first step are not kept, however they score.
            if self.keeps_best and (self.discriminator is None or self.done > self.task.discriminator_start):
                self.best.update(evaluation.metrics, self.task.spec.metrics[0], self.done, self.module)
        return evaluation

    def final_module(self) -> nn.Module:
        """Return the model with its EMA weights, or the best evaluation's weights if the run keeps them."""
        self.ema.copy_to_model()
        if self.best.weights:
            self.module.load_state_dict(self.best.weights)
        return self.module.eval().requires_grad_(False)

    @property
    def out_of_patience(self) -> bool:
        """True after `patience` evaluations in a row that were not better."""
        return self.config.patience is not None and self.best.waited >= self.config.patience

    def _save(self) -> None:
        """Write tensors, optimizer and counters atomically into one file; the counters go into its header."""
        parts = {"module": self.module.state_dict(), "ema": self.ema.state(), "best": self.best.weights}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator.state_dict()
        for index, entry in self.optimizer.state_dict()["state"].items():
            parts[f"optimizer/{index}"] = entry
        counters: dict[str, float] = {"step": self.done, "seconds": self.seconds}
        if self.keeps_best:
            counters |= {"best": self.best.score, "best_step": self.best.step, "waited": self.best.waited}
        for number, losses in enumerate(self.window):  # sorted keys give their order back
            counters |= {f"window/{number}/{i:02}/{name}": x for i, (name, x) in enumerate(losses.items())}
        tensors = {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        write_state(self.state, tensors, counters)

    def _load(self) -> None:
        """Continue from the saved state. Raises CheckpointError if it is damaged."""
        advice = "remove it to start again"
        counters = read_numbers(self.state, advice)
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        try:
            for key, tensor in load_file(self.state).items():
                part, _, name = key.rpartition("/")
                parts[part][name] = tensor
            self._restore(parts, counters)
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = first_line(error)
            raise CheckpointError(f"{self.state}: is not a state of this training: {reason}; {advice}") from None

    def _restore(self, parts: Mapping[str, Mapping[str, Tensor]], counters: Mapping[str, float]) -> None:
        self.module.load_state_dict(parts["module"])
        self.ema.load_state(parts["ema"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(parts["discriminator"])
        state = {int(part.partition("/")[2]): entry for part, entry in parts.items() if part.startswith("optimizer/")}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.done, self.seconds = int(counters["step"]), counters["seconds"]
        window: dict[str, dict[str, float]] = defaultdict(dict)
        for key in sorted(key for key in counters if key.startswith("window/")):
            _, number, _, name = key.split("/", 3)
            window[number][name] = counters[key]
        self.window = list(window.values())
        if self.keeps_best:
            weights = {name: tensor.to(self.device) for name, tensor in parts["best"].items()}
            step, waited = int(counters["best_step"]), int(counters["waited"])
            self.best = Best(score=counters["best"], step=step, waited=waited, weights=weights)
