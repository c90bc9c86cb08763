"""RGB pictures as patches of numbers: an input that loses nothing to a codebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers_zoo import hookimpl
from tokenizers_zoo.families.continuous import PatchesModality

from zoo_images.rgb import RgbValues


class RgbPatches(RgbValues, PatchesModality):
    """The same values as rgb, seen by the backbone as they are."""

    summary = "RGB picture as patches of pixels, an input only"
    derived_from = ("rgb",)

    @hookimpl
    def derive(self, sample: Mapping[str, Any]) -> np.ndarray:
        """The picture itself."""
        return sample["rgb"]


plugin = RgbPatches()
