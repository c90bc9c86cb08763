"""Any-to-any generation: given tokens of some modalities, decode those of others."""

from __future__ import annotations

from backbone.generation.guidance import Guidance
from backbone.generation.plan import TargetPlan
from backbone.generation.sampler import generate

__all__ = ["Guidance", "TargetPlan", "generate"]
