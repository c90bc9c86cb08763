"""The only tokenizer training loop: seeded, resumed to the bit, shown live, ending in metrics, pictures and a card."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from tokenizers_zoo.checkpoint import save_checkpoint, write_json
from tokenizers_zoo.errors import DataError, ZooError
from tokenizers_zoo.modality import ModalitySpec
from tokenizers_zoo.training_report import Evaluation, TrainingReport, model_card, write_pictures
from tokenizers_zoo.training_state import EVALUATION, TrainingRun

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from tokenizers_zoo.data.samples import TrainingSamples

COLLAPSED = 0.2
"""Codebook usage, as a fraction of what the evaluated tokens could reach, below which a run says that it collapses."""
FINAL_SAMPLES = 2000
"""Held-out samples of the final evaluation at most."""
CACHED_BYTES = 1 << 30
"""Training values are kept in memory up to this many bytes; beyond it they are read again."""


class TrainingError(ZooError):
    """Training cannot go on; the message names the step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a tokenizer is trained."""

    steps: int = 400
    """Optimizer steps."""
    batch_size: int = 32
    """Samples in one forward pass."""
    accumulate: int = 1
    """Forward passes whose gradients are averaged for one step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; rises linearly over `warmup_steps`, then falls to 0 as a half cosine."""
    warmup_steps: int = 30
    """Steps of the linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices and kernels only."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    ema_decay: float = 0.99
    """Decay per step of the averaged weights, which are those that are evaluated and saved; 0 turns averaging off."""
    eval_every: int = 100
    """Steps between evaluations, each of which also saves the training state."""
    eval_samples: int = 64
    """Held-out samples used during training; the final evaluation uses up to FINAL_SAMPLES."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward pass; weights, quantizer and saved model are float32."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_every", "eval_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "gradient_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step `step` (0 is the first): linear warm-up, then a half cosine that ends at 0."""
        warm = min(self.warmup_steps, self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm + 1) / (self.steps - warm + 1)))

    def ema_decay_at(self, step: int) -> float:
        """The decay of step `step`, lower at first so that the average forgets the start: min(decay, (1+s)/(10+s))."""
        return min(self.ema_decay, (1 + step) / (10 + step))


class TokenizerTask(Protocol):
    """What the loop asks of the tokenizer that it trains."""

    spec: ModalitySpec
    codebook_size: int

    def describe(self) -> Mapping[str, Any]:
        """JSON types that say which model this is, with the "class" key of its checkpoint; cheap."""

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> torch.nn.Module:
        """The untrained model, with what it needs to know of the training values; torch's generator is seeded."""

    def batch(self, values: list[Any], rng: np.random.Generator) -> Any:
        """Tensors of a training batch, with augmentation drawn from `rng`."""

    def losses(self, module: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Scalars by name; "loss" is the one that is minimised."""

    def reconstruct(self, module: torch.nn.Module, values: list[Any]) -> tuple[list[Any], Any]:
        """Values after encode and decode, and their tokens (int64, any shape; None for continuous modalities)."""

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        """The metrics of the spec."""

    def render(self, value: Any) -> PIL.Image.Image | str:
        """A value as a person wants to see it."""


def train(
    task: TokenizerTask,
    samples: TrainingSamples,
    config: TrainConfig,
    out_dir: Path,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train `task` and write its checkpoint, metrics, pictures and card into `out_dir`, which is returned.

    Killed at any moment and called again with the same arguments it goes on from the last evaluation, and ends in the
    same weights (on a CPU to the bit; a GPU's kernels may add up in another order); a finished `out_dir` is returned at
    once. `on_step` is called with the number of finished steps. Raises CheckpointError where `out_dir` holds another
    run, DataError without samples, and TrainingError where the loss is not finite.
    """
    run = TrainingRun.open(out_dir, identity(task, samples, config, seed))
    if run.finished:
        run.forget_state()  # a kill may have left it
        return out_dir
    name = task.spec.name
    for split, values in (("training", samples.train), ("held-out", samples.test)):
        if not len(values):
            raise DataError(f"{name}: there are no {split} samples to train its tokenizer with")
    loop = _Loop(task, samples, config, run, seed)
    with TrainingReport(task, config, out_dir, loop.done) as report, loop.batches:
        loop.run_steps(report, on_step)
    loop.finish()
    return out_dir


def identity(task: TokenizerTask, samples: TrainingSamples, config: TrainConfig, seed: int) -> dict[str, Any]:
    """All that decides the outcome of a run, as JSON types."""
    data = {"train": len(samples.train), "test": len(samples.test), "provenance": dict(samples.provenance)}
    return {"model": dict(task.describe()), "training": training_table(config), "seed": seed, "data": data}


def training_table(config: TrainConfig) -> dict[str, Any]:
    """The fields of TrainConfig alone, also where `config` is a subclass with more."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}


@contextlib.contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed torch's generators inside the block, and leave the caller's as they were."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(_mixed(*seed))
        yield


def _mixed(*seed: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def batch_indices(seed: int, batch: int, size: int, count: int) -> list[int]:
    """Which of `count` samples batch number `batch` holds: `size` positions of an endless row of shuffled epochs."""
    positions = range(batch * size, (batch + 1) * size)
    return [int(_shuffled(seed, position // count, count)[position % count]) for position in positions]


class BatchReader:
    """Batches by number, read one ahead in a thread, with values kept in memory while they fit."""

    def __init__(self, task: TokenizerTask, train: Sequence[Any], size: int, seed: int) -> None:
        self.task, self.train, self.size, self.seed = task, train, size, seed
        self.cache: dict[int, Any] = {}
        self.cached_bytes = 0
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer-batches")
        self.ahead: dict[int, Any] = {}

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def read(self, number: int) -> Any:
        """Batch `number`, and start on the next."""
        future = self.ahead.pop(number, None) or self.pool.submit(self._make, number)
        self.ahead = {number + 1: self.pool.submit(self._make, number + 1)}
        return future.result()

    def _make(self, number: int) -> Any:
        values = [self._value(index) for index in batch_indices(self.seed, number, self.size, len(self.train))]
        return self.task.batch(values, np.random.default_rng([self.seed, 1, number]))

    def _value(self, index: int) -> Any:
        if index in self.cache:
            return self.cache[index]
        value = self.train[index]
        size = int(getattr(value, "nbytes", 1024))
        if self.cached_bytes + size <= CACHED_BYTES:
            self.cache[index] = value
            self.cached_bytes += size
        return value


class _Loop:
    """One run: its model, averaged model and optimizer, at the step that the saved state says."""

    def __init__(
        self, task: TokenizerTask, samples: TrainingSamples, config: TrainConfig, run: TrainingRun, seed: int
    ) -> None:
        import torch

        self.task, self.config, self.run, self.seed = task, config, run, seed
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with seeded(seed):
            module = task.build(samples.train, np.random.default_rng([seed, 2]))
        self.module = module.to(self.device)
        self.average = copy.deepcopy(self.module).eval().requires_grad_(False)
        decayed = [p for p in self.module.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.module.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.parameters = [*decayed, *others]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
        self.done, self.seconds = run.restore(self.module, self.average, self.optimizer)
        self.held_out = [samples.test[index] for index in range(min(len(samples.test), config.eval_samples))]
        self.samples = samples
        self.batches = BatchReader(task, samples.train, config.batch_size, seed)

    def run_steps(self, report: TrainingReport, on_step: Callable[[int], None] | None) -> None:
        """Do what is left of the steps, with an evaluation and a saved state every `eval_every`."""
        for step in range(self.done, self.config.steps):
            started = time.perf_counter()
            losses = self.step(step)
            self.done = step + 1
            self.seconds += time.perf_counter() - started
            report.step(self.done, losses, self.config.learning_rate_at(step))
            if self.done % self.config.eval_every == 0 or self.done == self.config.steps:
                report.evaluation(self.done, self.evaluate(self.held_out))
                self.run.save(self.module, self.average, self.optimizer, self.done, self.seconds)
                report.window.clear()  # as it is where a killed run goes on, so that the logged means are the same
            if on_step is not None:
                on_step(self.done)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; what it does depends on the weights and (seed, step) only."""
        import torch

        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        low = torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bfloat16")
        for number in range(step * self.config.accumulate, (step + 1) * self.config.accumulate):
            batch = _to_device(self.batches.read(number), self.device)
            with seeded(self.seed, 3, number), low:
                losses = self.task.losses(self.module, batch)
            (losses["loss"] / self.config.accumulate).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) / self.config.accumulate
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip or math.inf))
        if not math.isfinite(totals["loss"]) or not math.isfinite(norm):
            raise TrainingError(
                f"{self.task.spec.name}: step {step + 1} of {self.config.steps}: the loss is {totals['loss']:g} and its"
                f" gradient's norm {norm:g}, not finite; lower tokenizer.learning_rate ({self.config.learning_rate:g})"
                f" or raise tokenizer.warmup_steps ({self.config.warmup_steps}), and look at the values"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step)
        self.optimizer.step()
        self._update_average(step)
        return {**totals, "gradient_norm": norm}

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
        evaluation = Evaluation(
            metrics={name: float(value) for name, value in self.task.score(predicted, values).items()},
            shown=[(self.task.render(v), self.task.render(p)) for v, p in zip(values[:8], predicted[:8], strict=True)],
            samples=len(values),
        )
        if tokens is None:
            return evaluation
        from tokenizers_zoo.quantizers.usage import CodebookUsage

        usage = CodebookUsage(self.task.codebook_size)
        usage.update(tokens)
        reachable = 1 - math.exp(-tokens.numel() / self.task.codebook_size)
        return dataclasses.replace(
            evaluation,
            codebook={
                "size": self.task.codebook_size,
                "usage": float(usage.usage),
                "perplexity": float(usage.perplexity),
                "entropy_bits": float(usage.entropy_bits),
            },
            collapsed=float(usage.usage) < COLLAPSED * reachable,
        )

    def finish(self) -> None:
        """Evaluate on the held-out samples and write what a finished run leaves."""
        count = min(len(self.samples.test), FINAL_SAMPLES)
        evaluation = self.evaluate([self.samples.test[index] for index in range(count)])
        config = {**self.run.identity["model"], "training": self.run.identity["training"], "seed": self.seed}
        tensors = self.average.state_dict()
        finish_run(self.run, self.task.spec, tensors, config, evaluation, steps=self.done, seconds=self.seconds)


def finish_run(
    run: TrainingRun,
    spec: ModalitySpec,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    evaluation: Evaluation,
    *,
    steps: int,
    seconds: float,
) -> None:
    """Write pictures, checkpoint and card, and last the evaluation, which says that the run is finished.

    Also for tokenizers that are fitted without the loop.
    """
    write_pictures(run.folder, evaluation.shown)
    scores = {metric.name: evaluation.metrics.get(metric.name) for metric in spec.metrics}
    result = {
        "steps": steps,
        "training_seconds": round(seconds, 1),
        "samples": evaluation.samples,
        "metrics": {
            name: value if value is not None and math.isfinite(value) else None for name, value in scores.items()
        },
        "units": {metric.name: metric.unit for metric in spec.metrics},
        "codebook": dict(evaluation.codebook),
    }
    save_checkpoint(run.folder, tensors, config, model_card(spec, run.identity, result))
    write_json(run.folder / EVALUATION, result)
    run.forget_state()


def _to_device(batch: Any, device: str) -> Any:
    """A batch's tensors on `device`, through lists, tuples and dicts."""
    if isinstance(batch, Mapping):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch
