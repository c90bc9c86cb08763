"""Edge maps as tokens: Canny edges of pictures, and edges of instance masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import crop_and_resize, image_of, png_bytes, read_grey
from tokenizers_zoo.contract.spec import Crop, Metric
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.typed import Interval

ONE = 1 / 255, 1 / 65535
"""How bright the number 1 is in pictures of 8 and of 16 bits."""


class EdgeMap(SpatialModality):
    """float32 (1, height, width): 1 on an edge, else 0. A subclass gives `summary` and `derive`."""

    kind = "binary"
    channels = 1
    unit = "edge"
    low, high = 0.0, 1.0
    description = "1 on an edge, else 0"
    loss = "bce"
    class_balance = 0.5
    published_scale = (0.5, 0.5)  # published tokenizers see -1 and 1
    published_channels = (1, 3)  # edges as grey or RGB pictures
    metrics = (
        Metric(
            name="f1",
            higher_is_better=True,
            meaning="harmonic mean of precision and recall of edges thinned to lines, over all pictures; 1 pixel off is"
            " right",
        ),
    )

    def resized(self, value: np.ndarray, crop: Crop, size: tuple[int, int]) -> np.ndarray:
        """A pixel is an edge where a line one source pixel wide would cover at least half of its width in it."""
        scale = min(1.0, size[0] / (crop.height * value.shape[-2]), size[1] / (crop.width * value.shape[-1]))
        return (crop_and_resize(value, crop, size) >= 0.5 * scale).astype(np.float32)

    def read(self, data: bytes, extension: str, options: Any) -> np.ndarray:
        if extension == "npy":
            value: np.ndarray = super().read(data, extension, options)
            if value.dtype.kind not in "biuf":
                return value  # the check of its type refuses it
            if (strange := ~np.isin(value, (0, 1))).any():
                raise ValueError(f"expected 1 on an edge, else 0, got {value[strange][0]:g}; compare with a threshold")
            return value
        value = read_grey(data, extension)
        if np.isclose(value.max(), ONE, atol=0).any():
            raise ValueError(
                "expected white on an edge, else black, got numbers 0 and 1, all of them black; save 1 as 255"
            )
        return (value >= 0.5).astype(np.float32)

    def write(self, value: np.ndarray, options: Any) -> tuple[bytes, str]:
        return png_bytes(self.picture(value, options).convert("1")), "png"

    def picture(self, value: np.ndarray, options: Any) -> Any:
        return image_of(((value[0] > 0.5) * 255).astype(np.uint8))

    def constant_maps(self, stack: np.ndarray, options: Any) -> list[np.ndarray]:
        """The usual ones, and lines three pixels apart where they are on: any edge there is within a pixel of one."""
        constants = super().constant_maps(stack, options)
        comb = (np.arange(stack.shape[-1]) % 3 == 1).astype(stack.dtype)
        return [*constants, *(constant * comb for constant in constants)]

    def measure(self, predicted: list[np.ndarray], target: list[np.ndarray], options: Any) -> Mapping[str, float]:
        from scipy.ndimage import binary_dilation
        from skimage.morphology import skeletonize

        # Both maps are thinned to lines one pixel wide (Zhang and Suen, CACM 27(3), 1984). Otherwise broad lines would
        # score higher, since pixels next to a line are within one pixel.
        lines = [(skeletonize(p[0] > 0.5), skeletonize(t[0] > 0.5)) for p, t in zip(predicted, target, strict=True)]
        near = np.ones((3, 3))
        guessed, true = (sum(int(side.sum()) for side in sides) for sides in zip(*lines, strict=True))
        if not guessed and not true:
            return {"f1": 1.0}
        precision = sum(int((p & binary_dilation(t, near)).sum()) for p, t in lines) / max(guessed, 1)
        recall = sum(int((t & binary_dilation(p, near)).sum()) for p, t in lines) / max(true, 1)
        return {"f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class CannySettings(SpatialSettings):
    """Settings of `canny`."""

    sigma: Annotated[float, Interval("[0, 100)")] = 1.0
    """Standard deviation in pixels of the Gaussian blur before edge detection, in [0, 100)."""


class Canny(EdgeMap):
    """Edges of the rgb picture by Canny's detector (IEEE PAMI 8(6), 1986): float32 (1, height, width) of 0 and 1."""

    settings_class = CannySettings
    summary = "Canny edges of the RGB picture as a grid of tokens"
    derived_from = ("rgb",)
    aliases = ("tok_canny_edge@224", "tok_canny_edge@448", "canny_edge", "edge")
    metrics = (replace(EdgeMap.metrics[0], bound=0.85),)

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Edges of the sample's rgb picture, at its size, after a blur by the setting `sigma`."""
        from skimage import feature
        from skimage.color import rgb2gray

        grey = rgb2gray(np.asarray(sample["rgb"]).transpose(1, 2, 0))
        return feature.canny(grey, sigma=self.options(settings).sigma)[None].astype(np.float32)


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


canny = Canny()
sam_edge = SamEdge()
