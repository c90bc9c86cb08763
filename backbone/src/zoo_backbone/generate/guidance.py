"""Classifier-free guidance: which forward passes a step takes, what each sees, and how their logits are added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenizers_zoo.errors import ConfigError

STRONGEST = 1e6
"""Weight of a condition: logits times as much leave the digits of float32, and in the end its range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """How strongly what is known steers a target: one scale for all of it, or a weight for each condition."""

    scale: float = 1.0
    """Of all that is known (arXiv 2207.12598): 1 is no guidance, 0 ignores it, above 1 follows it more closely, below
    0 turns away from it."""
    always: tuple[str, ...] = ()
    """With `scale`: modalities that the unconditional pass sees, too."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of single modalities, each a condition by itself (arXiv 2206.01714; 4M's multimodal guidance); below 0 turns
    away from it. All other modalities that are known are seen by every pass. Not together with `scale`."""

    def __post_init__(self) -> None:
        for key, number in [("scale", self.scale), *(("weights", weight) for weight in self.weights.values())]:
            if not abs(number) <= STRONGEST:
                raise ValueError(f"{key}: expected numbers from {-STRONGEST:g} to {STRONGEST:g}, got {number}")
        if self.weights and self.scale != 1:
            raise ValueError("weights: expected either scale or weights, got both")
        if self.weights and self.always:
            raise ValueError("always: only with scale; all modalities without a weight are seen by every pass")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """The forward passes of one step: what is hidden from each, and the weight of its logits; these sum to 1."""

    hidden: tuple[frozenset[str], ...] = (frozenset(),)
    weights: tuple[float, ...] = (1.0,)
    marked: bool = False
    """Whether a hidden sequence is marked as open, where the model marks them, see `ModelConfig.marked_inputs`."""

    def __len__(self) -> int:
        return len(self.hidden)

    def combined(self, logits: Tensor) -> Tensor:
        """`(passes batch) ... ids`, pass by pass, to `batch ... ids`."""
        if len(self) == 1:
            return logits
        weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)
        return torch.einsum("p,p...->...", weights, logits.unflatten(0, (len(self), -1)))

    @classmethod
    def of(cls, guidance: Guidance, target: str, known: Sequence[str]) -> Passes:
        """The passes for `target` where tokens of the modalities `known` are inputs.

        The target's own tokens, as far as they are known, are never hidden. With u the logits of the pass that sees no
        condition and c_i those of the pass that sees condition i alone, the result is u + sum_i w_i (c_i - u), which is
        (1 - sum_i w_i) u + sum_i w_i c_i; a pass of weight 0 is not made. With `scale` all of `known` is one condition.
        4M marks hidden sequences as open in the pass without condition of `scale`, and in none of `weights`.
        Raises ConfigError for a name that is not known yet.
        """
        others = [name for name in known if name != target]
        for key, names in (("weights", guidance.weights), ("always", guidance.always)):
            for name in names:
                if name not in others:
                    raise ConfigError(
                        f"generate {target}: guidance {key}: {name} is neither given nor made before {target}; "
                        f"known then: {', '.join(others) or 'nothing'}"
                    )
        if guidance.weights:
            conditions = [frozenset([name]) for name in guidance.weights]
            weights = list(guidance.weights.values())
        else:
            conditions = [frozenset(others) - frozenset(guidance.always)]
            weights = [guidance.scale]
            if not conditions[0]:  # nothing is known, so nothing can guide
                return cls()
        everything = frozenset[str]().union(*conditions)
        made = [(everything, 1 - sum(weights))]
        made += [(everything - condition, weight) for condition, weight in zip(conditions, weights, strict=True)]
        used = [(hidden, weight) for hidden, weight in made if weight]
        return cls(
            hidden=tuple(hidden for hidden, _ in used), weights=tuple(weight for _, weight in used),
            marked=not guidance.weights,
        )  # fmt: skip
