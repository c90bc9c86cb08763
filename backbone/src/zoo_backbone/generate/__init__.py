"""Any-to-any generation: given tokens of some modalities, decode those of others."""

from __future__ import annotations

from zoo_backbone.generate.guidance import Guidance
from zoo_backbone.generate.plan import TargetPlan
from zoo_backbone.generate.sampler import generate

__all__ = ["Guidance", "TargetPlan", "generate"]
