"""Canny edges, computed from RGB, as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.families.spatial import SpatialSettings
from zoo_images.edges import EdgeMap


@dataclass(frozen=True, kw_only=True, slots=True)
class CannySettings(SpatialSettings):
    """Settings of canny."""

    sigma: float = 1.0
    """Deviation of the Gaussian blur before edges are looked for, pixels."""

    def __post_init__(self) -> None:
        SpatialSettings.__post_init__(self)
        if not 0 <= self.sigma < 100:
            raise ValueError(f"sigma: expected pixels in [0, 100), got {self.sigma}")


class Canny(EdgeMap):
    """Edges of the rgb picture by Canny's detector (IEEE PAMI 8(6), 1986): float32 (1, height, width) of 0 and 1."""

    settings_class = CannySettings
    summary = "Canny edges of the RGB picture as a grid of tokens"
    derived_from = ("rgb",)
    aliases = ("tok_canny_edge@224", "tok_canny_edge@448", "canny_edge", "edge")
    metrics = (replace(EdgeMap.metrics[0], bound=0.85), *EdgeMap.metrics[1:])

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Edges of the sample's rgb picture, at its size."""
        from skimage.color import rgb2gray
        from skimage.feature import canny

        grey = rgb2gray(np.asarray(sample["rgb"]).transpose(1, 2, 0))
        return canny(grey, sigma=self.options(settings).sigma)[None].astype(np.float32)


plugin = Canny()
