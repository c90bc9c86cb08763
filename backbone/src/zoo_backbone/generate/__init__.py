"""Any-to-any generation: predict tokens of target modalities from the tokens of input modalities."""

from __future__ import annotations

from zoo_backbone.generate.plans import TargetPlan
from zoo_backbone.generate.sampler import generate
from zoo_backbone.generate.sampling import Guidance

__all__ = ["Guidance", "TargetPlan", "generate"]
