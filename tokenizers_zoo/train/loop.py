"""Training loop of tokenizers and probes: seeded, and resumed to the bit after a kill."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.checkpoint import check_weights, load_config
from tokenizers_zoo.data.samples import TrainingSamples, spread
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.quantizers import CodebookUsage, collapse_warning, reachable_usage
from tokenizers_zoo.run_folder import TOKENIZER, RunFolder
from tokenizers_zoo.train.batches import Prefetch, sample_order, seeded, to_device
from tokenizers_zoo.train.config import TrainConfig
from tokenizers_zoo.train.optim import EMA, check_finite
from tokenizers_zoo.train.report import Evaluation, TrainingReport, finish_run
from tokenizers_zoo.train.state import load_state, save_state
from tokenizers_zoo.train.task import AdversarialTask, Kept, SupervisedTask, TokenizerTask

FINAL_SAMPLES = 2000
"""Largest number of held-out samples of the final evaluation."""
WATCH_EVERY = 50
"""Steps between two checks for a collapsing codebook."""


def train(
    task: TokenizerTask,
    samples: TrainingSamples,
    config: TrainConfig,
    out_dir: Path,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Train `task`, write its checkpoint, metrics, pictures and card into `out_dir`, and return `out_dir`.

    Called again with the same arguments after a kill, it resumes from the last evaluation and ends in the same weights:
    bit-identical on a CPU, while GPU kernels may round differently. A finished run is returned at once. `on_step` is
    called with the number of finished steps. Raises FolderError if `out_dir` holds another run, DataError without
    samples, and DivergedError if the loss is not finite.
    """
    name = task.spec.name
    for split, values in (("training", samples.train), ("held-out", samples.test)):
        if not len(values):
            raise DataError(f"{name}: there are no {split} samples to train its tokenizer with")
    supervised = task if isinstance(task, SupervisedTask) else None
    kind = supervised.kind_of_run if supervised else TOKENIZER
    with RunFolder(out_dir, kind, identity(task, samples, config, seed)).open(overwrite) as run:
        if run.finished is not None:
            check_weights(out_dir, load_config(out_dir))
            return out_dir
        trainer = Trainer(task, samples, config, run, seed)
        with TrainingReport(task, config, out_dir, trainer.done) as report:
            trainer.train(report, on_step)
        module = trainer.final_module()
        if supervised:
            supervised.save(run, module, trainer.done, trainer.seconds, trainer.best.kept)
        else:
            test = [samples.test[index] for index in spread(len(samples.test), FINAL_SAMPLES)]
            table = {**run.identity["model"], "training": run.identity["training"], "seed": seed}
            finish_run(
                run, task.spec, module.state_dict(), table, evaluate(task, module, test), steps=trainer.done,
                seconds=trainer.seconds, kept_step=trainer.best.step or None,
            )  # fmt: skip
    return out_dir


def identity(task: TokenizerTask, samples: TrainingSamples, config: TrainConfig, seed: int) -> dict[str, Any]:
    """Return everything that the result of a run depends on, as JSON types."""
    # A subclass of TrainConfig may have settings of its own, which `describe` covers.
    training = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    return {"model": dict(task.describe()), "training": training, "seed": seed, "data": samples.record()}


@dataclass(kw_only=True)
class BestEvaluation:
    """The best evaluation of a run that keeps its weights, and the number of evaluations since."""

    value: float = math.nan
    step: int = 0
    waited: int = 0
    weights: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def update(self, value: float, higher_is_better: bool, step: int, module: torch.nn.Module) -> None:
        """Compare an evaluation with the best one; a value that is not finite is never better."""
        gain = value - self.value if higher_is_better else self.value - value
        if math.isfinite(value) and (gain > 0 or not math.isfinite(self.value)):
            weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            self.value, self.step, self.waited, self.weights = value, step, 0, weights
        else:
            self.waited += 1

    @property
    def kept(self) -> Kept | None:
        """The step and metric of the best evaluation; None before the first."""
        return Kept(step=self.step, score=self.value) if self.step else None


class Trainer:
    """Model, critic, optimizer and EMA of one run, restored from its saved state."""

    def __init__(
        self, task: TokenizerTask, samples: TrainingSamples, config: TrainConfig, run: RunFolder, seed: int
    ) -> None:
        self.task, self.samples, self.config, self.run, self.seed = task, samples, config, run, seed
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with seeded(seed):
            self.module = task.build(samples.train, np.random.default_rng([seed, 2])).to(self.device)
        self.critic: torch.nn.Module | None = None
        if isinstance(task, AdversarialTask):
            with seeded(seed, 4):
                critic = task.build_critic()
            self.critic = critic.to(self.device) if critic is not None else None
        groups = task.parameter_groups(self.module) if isinstance(task, SupervisedTask) else self._parameter_groups()
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
        self.ema = EMA(self.module, config.ema_decay)
        self.best = BestEvaluation()
        self.chooses = config.patience is not None or (isinstance(task, SupervisedTask) and task.validates)
        self.held_out = [samples.test[index] for index in spread(len(samples.test), config.eval_samples)]
        self.done, self.seconds = 0, 0.0
        if run.resuming:
            self._load()

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of a tokenizer and its critic; only matrices and kernels have weight decay.

        `rate` is the group's learning rate as a multiple of the schedule's.
        """
        groups: list[dict[str, Any]] = []
        for module, rate in ((self.module, 1.0), (self.critic, getattr(self.task, "critic_rate", 1.0))):
            trained = [p for p in module.parameters() if p.requires_grad] if module is not None else []
            matrices, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
            groups.append({"params": matrices, "weight_decay": self.config.weight_decay, "rate": rate})
            groups.append({"params": others, "weight_decay": 0.0, "rate": rate})
        return [group for group in groups if group["params"]]

    def train(self, report: TrainingReport, on_step: Callable[[int], None] | None) -> None:
        """Run the remaining steps, with an evaluation and a saved state every `eval_every`."""
        config, task = self.config, self.task
        first, last = (steps * config.grad_accum_steps for steps in (self.done, config.steps))
        with Prefetch(self.batch, first, last) as prefetch:
            batches = iter(prefetch)
            while self.done < config.steps and not self.out_of_patience:
                started = time.perf_counter()
                losses = self.train_step(batches)
                self.seconds += time.perf_counter() - started
                report.step(self.done, losses, config.learning_rate_at(self.done - 1))
                if self.done % WATCH_EVERY == 0:
                    report.watch(self.done, collapse_warning(self.module))
                if self.done % config.eval_every == 0 or self.done == config.steps:
                    with self.ema.applied():
                        evaluation = evaluate(task, self.module, self.held_out)
                        if self.chooses and not self._before_critic:
                            main = task.spec.metrics[0]
                            value = evaluation.metrics[main.name]
                            self.best.update(value, main.higher_is_better, self.done, self.module)
                    report.evaluation(self.done, evaluation, self.best.kept)
                    self._save()
                    report.window.clear()  # a resumed run starts with an empty one
                if on_step is not None:
                    on_step(self.done)
        if self.out_of_patience:
            reason = f"no better {task.spec.metrics[0].name} in {self.best.waited} evaluations"
            report.stopped(self.done, reason, self.best.step or self.done)

    def batch(self, number: int) -> Any:
        """Return batch `number`; its samples and augmentation depend on (seed, number) only."""
        size, train = self.config.batch_size, self.samples.train
        indices = sample_order(number * size, (number + 1) * size, len(train), self.seed)
        return self.task.batch([train[int(index)] for index in indices], np.random.default_rng([self.seed, 1, number]))

    def train_step(self, batches: Iterator[Any]) -> dict[str, float]:
        """Do one optimizer step and return its losses and gradient norms."""
        step, config = self.done, self.config
        learning_rate = config.learning_rate_at(step)
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, float] = {}
        for number in range(step * config.grad_accum_steps, (step + 1) * config.grad_accum_steps):
            batch = to_device(next(batches), self.device)
            autocast = torch.autocast(self.device, torch.bfloat16, enabled=config.precision == "bfloat16")
            with seeded(self.seed, 3, number), autocast:
                if self.critic is not None and isinstance(self.task, AdversarialTask):
                    found = self.task.losses_against(self.module, self.critic, batch, step)
                else:
                    found = self.task.losses(self.module, batch)
            total = found["loss"] + found["critic_loss"] if "critic_loss" in found else found["loss"]
            (total / config.grad_accum_steps).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, 0.0) + float(value.detach()) / config.grad_accum_steps
        norms = self._clip_gradients()
        table = "" if isinstance(self.task, SupervisedTask) else "tokenizer."
        check_finite(self.task.spec.name, step + 1, config, losses["loss"], sum(norms.values()), learning_rate, table)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.optimizer.step()
        self.ema.update(step)
        self.done = step + 1
        return losses | norms

    def _clip_gradients(self) -> dict[str, float]:
        """Clip the gradients of model and critic separately, and return their norms before clipping."""
        limit = self.config.gradient_clip or math.inf
        norms = {"gradient_norm": float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit))}
        if self.critic is not None:
            norms["critic_gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(self.critic.parameters(), limit))
        return norms

    def final_module(self) -> torch.nn.Module:
        """Return the model with its EMA weights, or the best evaluation's weights if the run keeps them."""
        self.ema.copy_to_model()
        if self.best.weights:
            self.module.load_state_dict(self.best.weights)
        return self.module.eval().requires_grad_(False)

    @property
    def out_of_patience(self) -> bool:
        """True after `patience` evaluations in a row that were not better."""
        return self.config.patience is not None and self.best.waited >= self.config.patience

    @property
    def _before_critic(self) -> bool:
        """True before the critic's first step: weights without its influence are not kept, however they score."""
        if self.critic is None or not isinstance(self.task, AdversarialTask):
            return False
        return self.done <= self.task.critic_start

    def _save(self) -> None:
        parts = {"module": self.module.state_dict(), "ema": self.ema.state(), "best": self.best.weights}
        if self.critic is not None:
            parts["critic"] = self.critic.state_dict()
        counters = {"step": self.done, "seconds": self.seconds}
        if self.chooses:
            counters |= {"best": self.best.value, "best_step": self.best.step, "waited": self.best.waited}
        save_state(self.run.path / self.run.kind.state, parts, self.optimizer, counters)

    def _load(self) -> None:
        state = load_state(self.run.path / self.run.kind.state, self.optimizer)
        self.module.load_state_dict(state.part("module"))
        self.ema.load_state(state.part("ema"))
        if self.critic is not None:
            self.critic.load_state_dict(state.part("critic"))
        counters = state.counters
        self.done, self.seconds = int(counters["step"]), counters["seconds"]
        if self.chooses:
            weights = {name: tensor.to(self.device) for name, tensor in state.part("best").items()}
            self.best = BestEvaluation(
                value=counters["best"], step=int(counters["best_step"]), waited=int(counters["waited"]), weights=weights
            )


def evaluate(task: TokenizerTask, module: torch.nn.Module, values: list[Any]) -> Evaluation:
    """Return metrics and codebook usage of a model on held-out values."""
    module.eval()
    with torch.inference_mode():
        predicted, tokens = task.reconstruct(module, values)
    codebook: dict[str, float] = {}
    if tokens is not None:
        size, count = task.codebook_size, task.spec.num_codebooks
        usage = CodebookUsage(size, count)
        usage.update(tokens)
        codebook = {
            "size": size,
            "usage": usage.usage,
            "perplexity": usage.perplexity,
            "entropy_bits": usage.entropy_bits,
            "reachable": reachable_usage(tokens.numel() // count, size),
            **usage.of_several(),
        }
    return Evaluation(
        metrics={name: float(value) for name, value in task.score(predicted, values).items()},
        shown=[(task.render(v), task.render(p)) for v, p in zip(values[:8], predicted[:8], strict=True)],
        samples=len(values),
        codebook=codebook,
    )
