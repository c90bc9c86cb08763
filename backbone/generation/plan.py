"""What to generate and how: an ordered list of targets, each with its decoding scheme."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from backbone.generation.schedules import Schedule
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.modality import ModalitySpec, SequenceLayout

Scheme = Literal["layout", "maskgit", "roar", "autoregressive"]
DEFAULT_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetPlan:
    """How one target is generated. The defaults suit every layout."""

    name: str
    """The modality."""
    scheme: Scheme = "layout"
    """Grids and vectors: "maskgit" decides the most confident tokens first (arXiv 2202.04200), "roar" a random order
    (4M, arXiv 2312.06647). Sequences: "autoregressive". "layout" takes the first that suits."""
    steps: int = 0
    """Decoding steps of a grid or vector, at most one a token; 0 means 8. Sequences always take one step a token."""
    schedule: Schedule = "cosine"
    """How many tokens each step decides: few first with "cosine", the same with "linear"."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest id."""
    top_k: int = 0
    """Draw among this many likeliest ids; 0 means all."""
    top_p: float = 1.0
    """Draw among the likeliest ids that together have this probability."""
    confidence_noise: float = 0.0
    """Scale of the Gumbel noise on MaskGIT's log confidences at the first step; falls to 0 at the last."""
    max_length: int = 0
    """Stop a sequence after this many content tokens; 0 means the layout's bound."""

    def __post_init__(self) -> None:
        for problem, key in (
            (self.steps < 0, "steps"), (self.temperature < 0, "temperature"), (self.top_k < 0, "top_k"),
            (self.confidence_noise < 0, "confidence_noise"), (self.max_length < 0, "max_length"),
        ):  # fmt: skip
            if problem:
                raise ValueError(f"{key}: expected a number from 0 on, got {getattr(self, key)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")

    def resolved(self, spec: ModalitySpec) -> TargetPlan:
        """The plan with everything that `spec` decides filled in. Raises ConfigError where they do not fit."""
        if spec.continuous:
            raise ConfigError(f"generate {spec.name}: a {spec.layout.kind} modality is an input only")
        sequence = isinstance(spec.layout, SequenceLayout)
        schemes: tuple[Scheme, ...] = ("autoregressive",) if sequence else ("maskgit", "roar")
        scheme = schemes[0] if self.scheme == "layout" else self.scheme
        if scheme not in schemes:
            raise ConfigError(
                f"generate {spec.name}: scheme {self.scheme!r} is not for a {spec.layout.kind}; "
                f"expected {' or '.join(schemes)}"
            )
        bound = spec.layout.length
        return replace(
            self,
            scheme=scheme,
            steps=min(self.steps or DEFAULT_STEPS, bound),
            max_length=min(self.max_length or bound, bound),
        )
