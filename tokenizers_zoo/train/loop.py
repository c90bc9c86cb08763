"""The only tokenizer training loop: seeded, resumed to the bit, shown live, ending in metrics, pictures and a card."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.checkpoint import check_weights, load_config
from tokenizers_zoo.data.samples import TrainingSamples, spread
from tokenizers_zoo.errors import DataError, ZooError
from tokenizers_zoo.run_folder import TOKENIZER, RunFolder
from tokenizers_zoo.train.batches import BatchReader, seeded, to_device
from tokenizers_zoo.train.config import TrainConfig
from tokenizers_zoo.train.report import Evaluation, TrainingReport, finish_run
from tokenizers_zoo.train.state import load_state, save_state
from tokenizers_zoo.train.task import AdversarialTask, Kept, SupervisedTask, TokenizerTask

if TYPE_CHECKING:
    import torch

__all__ = ["TrainingError", "train"]

FINAL_SAMPLES = 2000
"""Held-out samples of the final evaluation at most."""
WATCH_EVERY = 50
"""Steps between two looks at whether a codebook collapses."""


class TrainingError(ZooError):
    """Training cannot go on; the message names the step."""


def train(
    task: TokenizerTask,
    samples: TrainingSamples,
    config: TrainConfig,
    out_dir: Path,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Train `task` and write its checkpoint, metrics, pictures and card into `out_dir`, which is returned.

    Killed at any moment and called again with the same arguments it goes on from the last evaluation, and ends in the
    same weights (on a CPU to the bit; a GPU's kernels may add up in another order); a finished `out_dir` is returned at
    once. `on_step` is called with the number of finished steps. Raises FolderError if `out_dir` holds another run,
    DataError without samples, and TrainingError if the loss is not finite.
    """
    name = task.spec.name
    for split, values in (("training", samples.train), ("held-out", samples.test)):
        if not len(values):
            raise DataError(f"{name}: there are no {split} samples to train its tokenizer with")
    other = task if isinstance(task, SupervisedTask) else None
    title = other.title if other else f"tokenizer {name}"
    judged = "validation" if other and other.validates else "held_out"
    kind = other.kind_of_run if other else TOKENIZER
    with RunFolder(out_dir, kind, identity(task, samples, config, seed)).open(overwrite) as run:
        if run.finished is not None:
            check_weights(out_dir, load_config(out_dir))
            return out_dir
        loop = _Loop(task, samples, config, run, seed)
        with TrainingReport(task, config, out_dir, loop.done, title, judged) as report, loop.batches:
            loop.run_steps(report, on_step)
        loop.take_best()
        if other:
            other.save(run, loop.average, loop.done, loop.seconds, loop.best.kept)
        else:
            loop.finish()
    return out_dir


def identity(task: TokenizerTask, samples: TrainingSamples, config: TrainConfig, seed: int) -> dict[str, Any]:
    """All that decides the outcome of a run, as JSON types."""
    table = training_table(config)
    return {"model": dict(task.describe()), "training": table, "seed": seed, "data": samples.record()}


def training_table(config: TrainConfig) -> dict[str, Any]:
    """The fields of TrainConfig alone, also where `config` is a subclass with more."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}


@dataclass(kw_only=True)
class _Best:
    """The best evaluation of a run that keeps its weights: its main metric and weights, and evaluations since."""

    value: float = math.nan
    step: int = 0
    waited: int = 0
    weights: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def note(self, value: float, higher_is_better: bool, step: int, average: torch.nn.Module) -> None:
        """Take an evaluation in; a value that is not finite is never better."""
        gain = value - self.value if higher_is_better else self.value - value
        if math.isfinite(value) and (gain > 0 or not math.isfinite(self.value)):
            weights = {name: tensor.clone() for name, tensor in average.state_dict().items()}
            self.value, self.step, self.waited, self.weights = value, step, 0, weights
        else:
            self.waited += 1

    @property
    def kept(self) -> Kept | None:
        """Where it was; None where there was none."""
        return Kept(step=self.step, score=self.value) if self.step else None


class _Loop:
    """One run: its model, averaged model, critic and optimizer, at the step that the saved state says."""

    def __init__(
        self, task: TokenizerTask, samples: TrainingSamples, config: TrainConfig, run: RunFolder, seed: int
    ) -> None:
        import torch

        self.task, self.config, self.run, self.seed = task, config, run, seed
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with seeded(seed):
            module = task.build(samples.train, np.random.default_rng([seed, 2]))
        self.module = module.to(self.device)
        self.average = copy.deepcopy(self.module).eval().requires_grad_(False)
        self.critic: torch.nn.Module | None = None
        if isinstance(task, AdversarialTask):
            with seeded(seed, 4):
                critic = task.build_critic()
            self.critic = critic.to(self.device) if critic is not None else None
        self.optimizer = self._new_optimizer()
        self.best = _Best()
        self.chooses = config.patience is not None or (isinstance(task, SupervisedTask) and task.validates)
        self.done, self.seconds = 0, 0.0
        self._restore()
        self.held_out = [samples.test[index] for index in spread(len(samples.test), config.eval_samples)]
        self.samples = samples
        self.batches = BatchReader(task, samples.train, config.batch_size, seed)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW for model and critic; `rate` of a group is its learning rate as a multiple of the schedule's."""
        import torch

        task = self.task
        groups = task.parameter_groups(self.module) if isinstance(task, SupervisedTask) else self._groups()
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.99), fused=True)

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters of a tokenizer and its critic: matrices decay, all else does not."""
        groups: list[dict[str, Any]] = []
        for module, rate in ((self.module, 1.0), (self.critic, getattr(self.task, "critic_rate", 1.0))):
            trained = [p for p in module.parameters() if p.requires_grad] if module is not None else []
            matrices, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
            groups.append({"params": matrices, "weight_decay": self.config.weight_decay, "rate": rate})
            groups.append({"params": others, "weight_decay": 0.0, "rate": rate})
        return [group for group in groups if group["params"]]

    def _save(self) -> None:
        """Write the state, from which a killed run goes on."""
        parts = {"module": self.module.state_dict(), "average": self.average.state_dict(), "best": self.best.weights}
        if self.critic is not None:
            parts["critic"] = self.critic.state_dict()
        best = {"best": self.best.value, "best_step": self.best.step, "waited": self.best.waited}
        counters = {"step": self.done, "seconds": self.seconds, **(best if self.chooses else {})}
        save_state(self.run.path / self.run.kind.state, parts, self.optimizer, counters)

    def _restore(self) -> None:
        """Go on from the saved state, where there is one."""
        if not self.run.resuming:
            return
        state = load_state(self.run.path / self.run.kind.state, self.optimizer)
        self.module.load_state_dict(state.part("module"))
        self.average.load_state_dict(state.part("average"))
        if self.critic is not None:
            self.critic.load_state_dict(state.part("critic"))
        counters = state.counters
        self.done, self.seconds = int(counters["step"]), counters["seconds"]
        if self.chooses:
            self.best = _Best(
                value=counters["best"],
                step=int(counters["best_step"]),
                waited=int(counters["waited"]),
                weights={name: tensor.to(self.device) for name, tensor in state.part("best").items()},
            )

    @property
    def stopped(self) -> bool:
        """True where patience is at its end."""
        return self.config.patience is not None and self.best.waited >= self.config.patience

    @property
    def _critic_comes(self) -> bool:
        """True before a critic's first step: weights from there it had no part in, however they score."""
        if self.critic is None or not isinstance(self.task, AdversarialTask):
            return False
        return self.done <= self.task.critic_start

    def run_steps(self, report: TrainingReport, on_step: Callable[[int], None] | None) -> None:
        """Do what is left of the steps, with an evaluation and a saved state every `eval_every`."""
        from tokenizers_zoo.quantizers import collapse_warning

        while self.done < self.config.steps and not self.stopped:
            step, started = self.done, time.perf_counter()
            losses = self.step(step)
            self.done = step + 1
            self.seconds += time.perf_counter() - started
            report.step(self.done, losses, self.config.learning_rate_at(step))
            if self.done % WATCH_EVERY == 0:
                report.watch(self.done, collapse_warning(self.module))
            if self.done % self.config.eval_every == 0 or self.done == self.config.steps:
                self._evaluate_and_save(report)
            if on_step is not None:
                on_step(self.done)
        if self.stopped:
            main = self.task.spec.metrics[0].name
            kept = self.best.step or self.done
            report.stopped(self.done, f"no better {main} in {self.best.waited} evaluations", kept)

    def _evaluate_and_save(self, report: TrainingReport) -> None:
        evaluation = self.evaluate(self.held_out)
        if self.chooses and not self._critic_comes:
            main = self.task.spec.metrics[0]
            self.best.note(evaluation.metrics[main.name], main.higher_is_better, self.done, self.average)
        report.evaluation(self.done, evaluation, self.best.kept)
        self._save()
        report.window.clear()  # as it is where a killed run goes on, so that the logged means are the same

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; what it does depends on the weights and (seed, step) only."""
        import torch

        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        low = torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bfloat16")
        for number in range(step * self.config.grad_accum_steps, (step + 1) * self.config.grad_accum_steps):
            batch = to_device(self.batches.read(number), self.device)
            with seeded(self.seed, 3, number), low:
                losses = self._losses(batch, step)
            total = losses["loss"] + losses["critic_loss"] if "critic_loss" in losses else losses["loss"]
            (total / self.config.grad_accum_steps).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) / self.config.grad_accum_steps
        norms = self._clip_gradients()
        if not all(map(math.isfinite, (totals["loss"], *norms.values()))):
            table, config = "" if isinstance(self.task, SupervisedTask) else "tokenizer.", self.config
            longer = f"warmup_steps ({config.warmup_steps})"
            if config.warmup_steps >= config.steps // 2:  # more of them would change nothing
                longer = f"steps ({config.steps}), half of which are the warm-up"
            raise TrainingError(
                f"{self.task.spec.name}: step {step + 1} of {config.steps}: the loss is {totals['loss']:g} and its"
                f" gradient's norm {norms['gradient_norm']:g}, not finite; lower {table}learning_rate"
                f" ({config.learning_rate:g}) or raise {table}{longer}, and look at the values"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step) * group["rate"]
        self.optimizer.step()
        self._update_average(step)
        return totals | norms

    def _losses(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
        if self.critic is not None and isinstance(self.task, AdversarialTask):
            return self.task.losses_against(self.module, self.critic, batch, step)
        return self.task.losses(self.module, batch)

    def _clip_gradients(self) -> dict[str, float]:
        """Bound the gradients of model and critic, each by itself; gives the norms that they had."""
        import torch

        limit = self.config.gradient_clip or math.inf
        norms = {"gradient_norm": float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit))}
        if self.critic is not None:
            norms["critic_gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(self.critic.parameters(), limit))
        return norms

    def _update_average(self, step: int) -> None:
        """Move the averaged weights; buffers are copied, as a codebook kept by EMA is an average already."""
        import torch

        weight = 1 - self.config.ema_decay_at(step)
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.module.parameters(), strict=True)
            averaged, new = map(list, zip(*pairs, strict=True))
            torch._foreach_lerp_(averaged, new, weight)
            for old, buffer in zip(self.average.buffers(), self.module.buffers(), strict=True):
                old.copy_(buffer)

    def evaluate(self, values: list[Any]) -> Evaluation:
        """Metrics and codebook usage of the averaged weights on held-out values."""
        import torch

        with torch.inference_mode():
            predicted, tokens = self.task.reconstruct(self.average, values)
        return Evaluation(
            metrics={name: float(value) for name, value in self.task.score(predicted, values).items()},
            shown=[(self.task.render(v), self.task.render(p)) for v, p in zip(values[:8], predicted[:8], strict=True)],
            samples=len(values),
            codebook={} if tokens is None else self._codebook(tokens),
        )

    def _codebook(self, tokens: torch.Tensor) -> dict[str, float]:
        """How much of the codebook is used; of several the mean, and of the least used one its usage and number.

        Those of objects are counted as one.
        """
        from tokenizers_zoo.quantizers import CodebookUsage, reachable_usage

        size, count = self.task.codebook_size, self.task.spec.num_codebooks
        usage = CodebookUsage(size, count)
        usage.update(tokens)
        return {
            "size": size,
            "usage": usage.usage,
            "perplexity": usage.perplexity,
            "entropy_bits": usage.entropy_bits,
            "reachable": reachable_usage(tokens.numel() // count, size),
            **usage.of_several(),
        }

    def take_best(self) -> None:
        """Go back to the weights of the best evaluation, where the run keeps them."""
        if self.best.weights:
            self.average.load_state_dict(self.best.weights)

    def finish(self) -> None:
        """Evaluate on the held-out samples and write what a finished run leaves."""
        test = self.samples.test
        evaluation = self.evaluate([test[index] for index in spread(len(test), FINAL_SAMPLES)])
        config = {**self.run.identity["model"], "training": self.run.identity["training"], "seed": self.seed}
        finish_run(
            self.run,
            self.task.spec,
            self.average.state_dict(),
            config,
            evaluation,
            steps=self.done,
            seconds=self.seconds,
            kept_step=self.best.step or None,
        )
