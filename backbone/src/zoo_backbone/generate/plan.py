"""What to generate and how: an ordered list of targets, each with its decoding scheme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.spec import ModalitySpec, SequenceLayout
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.generate.guidance import Guidance, Passes
from zoo_backbone.generate.schedules import Schedule, TemperatureSchedule

Scheme = Literal["layout", "maskgit", "roar", "autoregressive"]
DEFAULT_STEPS = 8
GRID_SCHEMES: tuple[Scheme, ...] = ("maskgit", "roar", "autoregressive")


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetPlan:
    """How one target is generated. The defaults suit every layout."""

    name: str
    """The modality."""
    scheme: Scheme = "layout"
    """Grids and vectors: "maskgit" decides the most confident tokens first (arXiv 2202.04200), "roar" a random order
    (4M, arXiv 2312.06647), "autoregressive" row by row. Sequences: "autoregressive". "layout" takes the first that
    suits."""
    steps: int = 0
    """Decoding steps of a grid or vector, at most one a token; 0 means 8, and one a token where autoregressive.
    Sequences always take one step a token."""
    schedule: Schedule = "cosine"
    """How many tokens each step decides: few first with "cosine", the same with "linear", few first and last with
    "s-curve"."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest id."""
    temperature_schedule: TemperatureSchedule = "constant"
    """How the temperature falls over the steps of a grid or vector: not, "linear", or "inverse", fast at first, as in
    4M's published settings."""
    final_temperature: float = 0.0
    """Where a temperature that falls ends."""
    top_k: int = 0
    """Draw among this many likeliest ids; 0 means all."""
    top_p: float = 1.0
    """Draw among the likeliest ids that together have this probability."""
    filter_before_temperature: bool = False
    """As 4M's published code does: top_k and top_p look at the probabilities before the temperature, and MaskGIT ranks
    cells by the probabilities that ids are drawn from, not by the model's."""
    confidence_noise: float = 0.0
    """Scale of the Gumbel noise on MaskGIT's log confidences at the first step; falls evenly, to 0 after the last."""
    max_length: int = 0
    """Stop a sequence after this many content tokens; 0 means the layout's bound."""
    guidance: Guidance | None = None
    """How strongly what is known steers this target; none: as the whole plan says, and without that not at all."""

    def __post_init__(self) -> None:
        for key in (
            "steps", "temperature", "final_temperature", "top_k", "confidence_noise", "max_length"
        ):  # fmt: skip
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: expected a number from 0 on, got {getattr(self, key)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")
        if self.temperature_schedule == "constant" and self.final_temperature:
            raise ValueError('final_temperature: only with temperature_schedule "linear" or "inverse"')

    def resolved(self, spec: ModalitySpec) -> TargetPlan:
        """The plan with everything that `spec` decides filled in. Raises ConfigError where they do not fit."""
        if spec.continuous:
            raise ConfigError(f"generate {spec.name}: a {spec.layout.kind} modality is an input only")
        sequence = isinstance(spec.layout, SequenceLayout)
        schemes = ("autoregressive",) if sequence else GRID_SCHEMES
        scheme = schemes[0] if self.scheme == "layout" else self.scheme
        if scheme not in schemes:
            raise ConfigError(
                f"generate {spec.name}: scheme {self.scheme!r} is not for a {spec.layout.kind}; "
                f"expected {' or '.join(schemes)}"
            )
        if sequence and self.temperature_schedule != "constant":
            raise ConfigError(
                f"generate {spec.name}: temperature_schedule {self.temperature_schedule!r} is not for a sequence; "
                'expected "constant"'
            )
        bound = spec.layout.length
        return replace(
            self,
            scheme=scheme,
            steps=min(self.steps or (bound if scheme == "autoregressive" else DEFAULT_STEPS), bound),
            max_length=min(self.max_length or bound, bound),
            guidance=self.guidance or Guidance(),
        )


def resolved_plan(
    tables: EmbeddingLayout, plan: Sequence[TargetPlan], given: Iterable[str], kept: Iterable[str] = ()
) -> list[TargetPlan]:
    """The targets with all that the model decides filled in; `given` are the modalities given, `kept` those of which a
    part is, targets or not.

    Raises ConfigError or UnknownNameError for what does not fit: nothing asked for, a modality twice, an input as a
    target or in part, a target as an input where the model only makes it, guidance by what is not known by then.
    """
    given, kept = list(given), list(kept)
    for target in plan:
        tables.check_made(target.name, "generate")
    resolved = [target.resolved(tables.spec(target.name)) for target in plan]
    names = [target.name for target in plan]
    if not plan:
        raise ConfigError("generate: expected at least one target")
    everything = [*given, *names]
    if twice := sorted({name for name in everything if everything.count(name) > 1}):
        raise ConfigError(
            f"generate: {', '.join(twice)}: is input and target, or twice a target; to generate a part, add --inpaint"
        )
    for name in (*given, *kept):
        tables.check_read(name, "generate")
    for name in kept:
        if (spec := tables.spec(name)).continuous:
            raise ConfigError(f"generate {name}: a {spec.layout.kind} modality cannot be inpainted; leave it out")
        if name in given:
            raise ConfigError(f"generate {name}: is an input whole and in part; expected one of the two")
    known = [*given, *kept]
    for target in resolved:
        assert target.guidance is not None
        Passes.of(target.guidance, target.name, known)  # raises where it names what is not known by then
        known += [] if target.name in known or target.name in tables.targets_only else [target.name]
    return resolved
