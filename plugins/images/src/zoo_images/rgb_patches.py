"""RGB pictures as continuous patches, an input only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.families.continuous import PatchesModality
from zoo_images.rgb import RgbValues


class RgbPatches(RgbValues, PatchesModality):
    """The rgb picture's pixels, normalised, in patches."""

    summary = "RGB picture as patches of normalised pixels (input only)"
    aliases = ("rgb@224", "rgb@448")
    derived_from = ("rgb",)
    input_form_of = "rgb"
    metrics = (replace(RgbValues.metrics[0], bound=60.0), *RgbValues.metrics[1:])  # float16 is all that is lost
    published_statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # those of ImageNet

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """The sample's rgb picture itself."""
        return np.asarray(sample["rgb"])


plugin = RgbPatches()
