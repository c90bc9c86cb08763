"""Protocols between the training loop and the models that it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from tokenizers_zoo.run_folder import RunFolder, RunKind
from tokenizers_zoo.spec import ModalitySpec

if TYPE_CHECKING:
    import PIL.Image
    import torch


class TokenizerTask(Protocol):
    """A tokenizer that the loop can train."""

    spec: ModalitySpec
    codebook_size: int

    def describe(self) -> Mapping[str, Any]:
        """Return the model's settings as JSON types, with the "class" key of its checkpoint. Must be fast."""

    def build(self, train: Sequence[Any], rng: np.random.Generator) -> torch.nn.Module:
        """Return the untrained model, fitted to statistics of `train` if necessary; torch's generator is seeded."""

    def batch(self, values: list[Any], rng: np.random.Generator) -> Any:
        """Return the tensors of a training batch, with augmentation drawn from `rng`."""

    def losses(self, module: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Return scalars by name; "loss" is minimised."""

    def reconstruct(self, module: torch.nn.Module, values: list[Any]) -> tuple[list[Any], Any]:
        """Return values after encode and decode, and their tokens (int64, any shape; None if continuous)."""

    def score(self, predicted: list[Any], target: list[Any]) -> Mapping[str, float]:
        """Return the metrics of the spec."""

    def render(self, value: Any) -> PIL.Image.Image | str:
        """Return a value as a picture or text."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The best evaluation of a run, whose weights are kept."""

    step: int
    """Finished steps."""
    score: float
    """The main metric."""


@runtime_checkable
class SupervisedTask(Protocol):
    """A TokenizerTask whose model is not a tokenizer and that writes its own result, such as a probe."""

    kind_of_run: RunKind
    """The files of the run's folder."""
    title: str
    """Title of the progress bar."""
    validates: bool
    """Whether the loop's held-out samples are a validation set: the weights of the best evaluation are kept, even
    without `patience`, and logs call the samples validation. `save` must score other samples."""

    def parameter_groups(self, module: torch.nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups with "params", "weight_decay" and "rate", a multiple of the learning rate."""

    def save(self, run: RunFolder, module: torch.nn.Module, steps: int, seconds: float, kept: Kept | None) -> None:
        """Score the EMA model, write its folder and finish the run; `kept` is the evaluation of its weights."""


@runtime_checkable
class AdversarialTask(Protocol):
    """A TokenizerTask that can train its model against a critic."""

    critic_rate: float
    """Learning rate of the critic as a multiple of the model's."""
    critic_start: int
    """The first step (from 0) with the critic's loss."""

    def build_critic(self) -> torch.nn.Module | None:
        """Return the untrained critic; None if the settings have none. torch's generator is seeded."""

    def losses_against(
        self, module: torch.nn.Module, critic: torch.nn.Module, batch: Any, step: int
    ) -> dict[str, torch.Tensor]:
        """As `losses`, for step `step`. The critic minimises "critic_loss", which reaches its parameters only."""
