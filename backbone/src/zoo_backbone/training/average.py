"""A moving average of the weights, which is often better than the last ones (arXiv 1803.05407 and 2411.18704)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.train.config import warmed_decay
from zoo_backbone.model import FourM


class Average:
    """The exponential moving average of a model's parameters, which starts as the parameters themselves."""

    def __init__(self, model: FourM, decay: float) -> None:
        self.model, self.decay = model, decay
        self.parameters = dict(model.named_parameters())
        self.weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after `steps` steps; the first ones count less, whatever the decay."""
        decay = warmed_decay(self.decay, steps)
        torch._foreach_lerp_(list(self.weights.values()), list(self.parameters.values()), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the average for as long as the block lasts."""
        last = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._set(self.weights)
        try:
            yield
        finally:
            self._set(last)

    @torch.no_grad()
    def _set(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
        if isinstance(self.model, FSDPModule):
            self.model.reshard()  # what it gathered for the last forward pass are the weights from before

    def state(self) -> dict[str, Tensor]:
        """The average, by parameter."""
        return dict(self.weights)

    def empty_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors like those of `state`. Raises CheckpointError where the names are those of another model."""
        if set(names) != set(self.weights):
            raise CheckpointError("the average is of another model")
        return {name: torch.zeros_like(tensor) for name, tensor in self.weights.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.weights = dict(tensors)
