"""Settings of the training loop of tokenizers and probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Batches = Annotated[int, Interval("[1, 1000000]")]
"""A batch size, or the number of batches per step: larger numbers are mistakes that would never end."""
Seed = Annotated[int, Interval(f"[0, {2**63})")]
Decay = Annotated[float, Interval("[0, 1)")]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Checked):
    """Settings of the training loop of tokenizers and probes."""

    steps: PositiveInt = 400
    """Optimizer steps."""
    batch_size: Batches = 32
    """Samples in one forward pass."""
    grad_accum_steps: Batches = 1
    """Forward passes per optimizer step, whose gradients are averaged."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW, with linear warm-up and cosine decay to 0."""
    warmup_steps: NonNegativeInt = 30
    """Steps of linear warm-up, at most half of `steps`."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of matrices and kernels."""
    gradient_clip: NonNegativeFloat = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    ema_decay: Decay = 0.99
    """Decay per step of the exponential moving average (EMA) of the weights, which is evaluated and saved; 0 turns it
    off."""
    eval_every: PositiveInt = 100
    """Steps between two evaluations; each also saves the training state."""
    eval_samples: PositiveInt = 64
    """Held-out samples used during training; the final evaluation uses up to 2,000."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better main metric; absent: never.

    The run keeps the weights of its best evaluation. They are chosen on held-out samples, so their scores are slightly
    too good.
    """
    loggers: tuple[str, ...] = ("tensorboard",)
    """Where curves and pictures go besides metrics.jsonl: tensorboard, wandb, or installed loggers
    (docs/training.md#loggers). They may change when a run resumes."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Autocast precision of the forward pass; weights, quantizer and saved model are float32."""

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        from tokenizers_zoo.train.optim import learning_rate_at

        return learning_rate_at(step, steps=self.steps, peak=self.learning_rate, warmup_steps=self.warmup_steps)
