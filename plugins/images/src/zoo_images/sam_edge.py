"""Edges of instance masks as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenizers_zoo import hookimpl
from zoo_images.edges import EdgeMap


class SamEdge(EdgeMap):
    """The outermost pixels of every instance: float32 (1, height, width) of 0 and 1.

    The line between two instances is two pixels wide, one pixel in each.
    """

    summary = "edges of the instance masks as a grid of tokens"
    derived_from = ("sam_instance",)
    aliases = ("tok_sam_edge@224", "tok_sam_edge@448")

    @hookimpl
    def derive(self, sample: Mapping[str, Any]) -> np.ndarray:
        """Edges of the sample's instance map, at its size."""
        from skimage.segmentation import find_boundaries

        return find_boundaries(sample["sam_instance"], mode="inner")[None].astype(np.float32)


plugin = SamEdge()
