"""Classifier-free guidance: the forward passes of a step, their inputs, and the weights of their logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenizers_zoo.errors import ConfigError

STRONGEST = 1e6
"""Largest weight of a condition; float32 logits lose their digits beyond it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """How strongly the inputs steer a target: one scale for all, or a weight for each condition."""

    scale: float = 1.0
    """For all inputs together (arXiv 2207.12598): 1 is no guidance, 0 ignores them, above 1 follows them more closely,
    below 0 moves away."""
    always: tuple[str, ...] = ()
    """With `scale`: modalities that the unconditional pass sees, too."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of single modalities, each a condition of its own (arXiv 2206.01714; 4M's multimodal guidance). Every
    pass sees the other inputs. Excludes `scale`."""

    def __post_init__(self) -> None:
        for key, number in [("scale", self.scale), *(("weights", weight) for weight in self.weights.values())]:
            if not abs(number) <= STRONGEST:
                raise ValueError(f"{key}: expected numbers from {-STRONGEST:g} to {STRONGEST:g}, got {number}")
        if self.weights and self.scale != 1:
            raise ValueError("weights: expected either scale or weights, got both")
        if self.weights and self.always:
            raise ValueError("always: only with scale; every pass sees the modalities without a weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """The forward passes of a step: the modalities hidden from each, and the weights of their logits (sum 1)."""

    hidden: tuple[frozenset[str], ...] = (frozenset(),)
    weights: tuple[float, ...] = (1.0,)
    marked: bool = False
    """Whether a hidden sequence is marked as open, in models that mark them (see `EmbeddingLayout.marked_inputs`)."""

    def __len__(self) -> int:
        return len(self.hidden)

    def combined(self, logits: Tensor) -> Tensor:
        """Add up logits `(passes batch) ... ids`, pass by pass, to `batch ... ids`."""
        if len(self) == 1:
            return logits
        weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)
        return torch.einsum("p,p...->...", weights, logits.unflatten(0, (len(self), -1)))

    @classmethod
    def of(cls, guidance: Guidance, target: str, known: Sequence[str]) -> Passes:
        """Return the passes for `target`, given the modalities `known` so far. Raises ConfigError for unknown names.

        Known tokens of the target are never hidden. With u the logits without any condition and c_i the logits with
        condition i alone, the result is u + sum_i w_i (c_i - u) = (1 - sum_i w_i) u + sum_i w_i c_i. Passes of weight 0
        are skipped. With `scale`, all of `known` is one condition. 4M marks hidden sequences as open in the
        unconditional pass of `scale`, but not with `weights`.
        """
        others = [name for name in known if name != target]
        for key, names in (("weights", guidance.weights), ("always", guidance.always)):
            for name in names:
                if name not in others:
                    raise ConfigError(
                        f"generate {target}: guidance {key}: {name} is neither an input nor an earlier target; "
                        f"expected {', '.join(others) or 'nothing'}"
                    )
        if guidance.weights:
            conditions = [frozenset([name]) for name in guidance.weights]
            weights = list(guidance.weights.values())
        else:
            conditions = [frozenset(others) - frozenset(guidance.always)]
            weights = [guidance.scale]
            if not conditions[0]:
                return cls()
        everything = frozenset[str]().union(*conditions)
        passes = [(everything, 1 - sum(weights))]
        passes += [(everything - condition, weight) for condition, weight in zip(conditions, weights, strict=True)]
        used = [(hidden, weight) for hidden, weight in passes if weight]
        hidden, weighed = tuple(name for name, _ in used), tuple(weight for _, weight in used)
        return cls(hidden=hidden, weights=weighed, marked=not guidance.weights)
