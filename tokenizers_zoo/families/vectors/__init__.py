"""Global vectors: what a network thinks of a whole value, as a few product codes."""

from __future__ import annotations

from tokenizers_zoo.families.vectors.modality import VectorModality
from tokenizers_zoo.families.vectors.settings import VectorSettings, VectorTokenizerConfig, published_vector

__all__ = ["VectorModality", "VectorSettings", "VectorTokenizerConfig", "published_vector"]
