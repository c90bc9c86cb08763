"""Global vectors: what a network thinks of a whole value, or the numbers of a state, as a few product codes."""

from __future__ import annotations

from tokenizers_zoo.families.features import FEATURE_METRICS
from tokenizers_zoo.families.vectors.modality import NUMBER_METRICS, VectorModality
from tokenizers_zoo.families.vectors.settings import VectorSettings, VectorTokenizerConfig, published_vector

__all__ = [
    "FEATURE_METRICS",
    "NUMBER_METRICS",
    "VectorModality",
    "VectorSettings",
    "VectorTokenizerConfig",
    "published_vector",
]
