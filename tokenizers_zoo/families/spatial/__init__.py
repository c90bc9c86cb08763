"""Image-like modalities: a grid of tokens by a VQ autoencoder, and everything around the values."""

from __future__ import annotations

from tokenizers_zoo.families.spatial.modality import SpatialModality
from tokenizers_zoo.families.spatial.settings import ImageSettings, SpatialSettings, TokenizerConfig, published
from tokenizers_zoo.families.spatial.values import ImageValues

__all__ = ["ImageSettings", "ImageValues", "SpatialModality", "SpatialSettings", "TokenizerConfig", "published"]
