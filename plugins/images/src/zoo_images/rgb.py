"""RGB pictures as tokens, and as continuous patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import IMAGE_EXTENSIONS, read_array, read_rgb, rgb_image
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.families.continuous import PatchesModality
from tokenizers_zoo.families.images import PSNR, psnr
from tokenizers_zoo.families.spatial import ImageValues, SpatialModality, SpatialSettings, TokenizerConfig, published
from tokenizers_zoo.records.config import Settings

SIGMA, RADIUS = 1.5, 5
"""Deviation of the window in which pictures are compared, and how far scikit-image has it reach, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RgbTokenizer(TokenizerConfig):
    """Defaults of the rgb tokenizer: colours and textures need more codes than shapes, and more to spread on them."""

    default_levels: ClassVar[tuple[int, ...]] = (8, 5, 5, 5)
    default_spread: ClassVar[float | None] = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class RgbSettings(SpatialSettings):
    """Settings of rgb."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": published(codebook_size=16384, diffusion=True)}
    tokenizer: RgbTokenizer = RgbTokenizer()


class RgbValues(ImageValues):
    """Pictures: float32 (3, height, width) in [0, 1], sRGB."""

    channels = 3
    low, high = 0.0, 1.0
    unit = "sRGB"
    written_as = "png"
    metrics: ClassVar[tuple[Metric, ...]] = (
        replace(PSNR, bound=17.0),
        Metric(
            name="ssim",
            higher_is_better=True,
            meaning="structural similarity per picture (Gaussian window, 11 pixels, sigma 1.5), averaged; 1 is equal",
        ),
    )

    def read(self, data: bytes, extension: str, options: Any) -> np.ndarray:
        return read_array(data, extension) if extension == "npy" else read_rgb(data, extension)

    def picture(self, value: np.ndarray, options: Any) -> Any:
        return rgb_image(value)

    def measure(self, predicted: list[np.ndarray], target: list[np.ndarray], options: Any) -> Mapping[str, float]:
        similarities = [ssim(guess, truth) for guess, truth in zip(predicted, target, strict=True)]
        return {"psnr": self.measure_main(predicted, target, options), "ssim": float(np.mean(similarities))}

    def measure_main(self, predicted: list[np.ndarray], target: list[np.ndarray], options: Any) -> float:
        return psnr(predicted, target)


class Rgb(RgbValues, SpatialModality):
    """RGB pictures as a grid of tokens."""

    settings_class = RgbSettings
    summary = "RGB picture as a grid of tokens"
    aliases = ("tok_rgb@224", "tok_rgb@448", "images", "image", "pictures", "photos", "photographs")
    extensions = IMAGE_EXTENSIONS
    published_scale = (0.5, 0.5)  # published tokenizers see [-1, 1]
    loss = "l2"


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM, mean over the pixels of two pictures (channels, height, width) in [0, 1], mirrored at their borders.

    Wang et al., IEEE TIP 13(4), 2004, equation 13.
    """
    from skimage.metrics import structural_similarity

    reach = (0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS)
    wide = (np.pad(picture.astype(np.float64), reach, mode="reflect") for picture in (first, second))
    _, everywhere = structural_similarity(
        *wide,
        data_range=1.0,
        channel_axis=0,
        gaussian_weights=True,
        sigma=SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return float(everywhere[:, RADIUS:-RADIUS, RADIUS:-RADIUS].mean())


class RgbPatches(RgbValues, PatchesModality):
    """The rgb picture's pixels, normalised, in patches."""

    summary = "RGB picture as patches of normalised pixels (input only)"
    aliases = ("rgb@224", "rgb@448")
    derived_from = ("rgb",)
    input_form_of = "rgb"
    metrics = (replace(RgbValues.metrics[0], bound=60.0), *RgbValues.metrics[1:])  # the only loss is float16
    published_statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's mean and deviation

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """The sample's rgb picture itself."""
        return np.asarray(sample["rgb"])


plugin = Rgb()
patches = RgbPatches()
