"""Image metadata as in 4M-21 (arXiv 2406.09406): how a picture looks, measured on its pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_metadata.base import DerivedMetadata, DerivedSettings
from zoo_metadata.fields import MetadataField

LUMA = np.array((0.2126, 0.7152, 0.0722))
"""Weights of R', G', B' in the luma (ITU-R BT.709-6, item 3.2)."""

FIELDS = MappingProxyType(
    {
        "brightness": MetadataField(meaning="mean luma"),
        "contrast": MetadataField(high=0.5, meaning="standard deviation of the luma"),
        "saturation": MetadataField(meaning="mean HSV saturation"),
        "colourfulness": MetadataField(high=1.5, meaning="Hasler and Suesstrunk's, of sRGB in [0, 1]"),
        "entropy": MetadataField(high=8, unit="bits", meaning="of the luma in 256 levels"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMetadataSettings(DerivedSettings):
    """Settings of `image_metadata`."""

    inputs: tuple[str, ...] = ("rgb",)
    """The modalities to compute from: rgb."""


def look(rgb: npt.NDArray[Any], options: ImageMetadataSettings) -> Mapping[str, float]:
    """Numbers about a picture (3, height, width) in [0, 1].

    `contrast` is the RMS contrast (Peli, Contrast in complex images, 1990); `saturation` that of HSV (Smith, Color
    gamut transform pairs, 1978), 0 for black; `colourfulness` is sigma_rgyb + 0.3 mu_rgyb (Hasler and Suesstrunk,
    Measuring colourfulness in natural images, 2003), which for sRGB in [0, 255] is 255 times as large; `entropy` is
    Shannon's (1948) of the histogram of the luma.
    """
    pixels = np.asarray(rgb, dtype=np.float64).reshape(3, -1)
    luma = LUMA @ pixels
    most, least = pixels.max(axis=0), pixels.min(axis=0)
    saturation = np.divide(most - least, most, out=np.zeros_like(most), where=most > 0)
    red, green, blue = pixels
    opponent = np.stack([red - green, 0.5 * (red + green) - blue])
    spread, strength = math.hypot(*opponent.std(axis=1)), math.hypot(*opponent.mean(axis=1))
    shares = np.bincount(np.clip(luma * 256, 0, 255).astype(np.int64), minlength=256) / luma.size
    seen = shares[shares > 0]
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float(saturation.mean()),
        "colourfulness": spread + 0.3 * strength,
        "entropy": float((seen * -np.log2(seen)).sum()) + 0.0,  # a plain picture has 0, not -0
    }


class ImageMetadata(DerivedMetadata[ImageMetadataSettings]):
    """Numbers about the look of a picture."""

    summary = "How the picture looks: brightness, contrast, saturation, colourfulness, entropy"
    settings_class = ImageMetadataSettings
    default_fields = FIELDS
    derived_from = ("rgb",)
    measures = MappingProxyType({"rgb": look})


plugin = ImageMetadata()
