"""Multi-spectral reflectance as tokens: the twelve bands of a Sentinel-2 surface product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import read_array, rgb_image
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.families.images import PSNR, angle_degrees, psnr
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings, TokenizerConfig
from tokenizers_zoo.records.typed import Interval, PositiveFloat
from zoo_raster.tiff import Raster, bands_first, read_tiff, tiff_bytes

BANDS: dict[str, int] = {
    "B01": 443,
    "B02": 490,
    "B03": 560,
    "B04": 665,
    "B05": 705,
    "B06": 740,
    "B07": 783,
    "B08": 842,
    "B8A": 865,
    "B09": 945,
    "B11": 1610,
    "B12": 2190,
}
"""Names and central wavelengths, nm, in the order of the channels. Surface products have no B10."""
TRUE_COLOUR = ("B04", "B03", "B02")
GAIN = 3.0
"""By how much reflectance is brightened in pictures."""
LARGEST = 2.0
"""Reflectance; bright clouds and snow exceed 1."""
GLINTS = 0.01
"""Share of a raster's numbers that may lie above LARGEST, as where the sun glints or a fire burns."""
NOISE = 0.1
"""How far below 0 reflectance may be, by noise and the correction for the air."""
SINGLE = 1e-6
"""Relative: scales that are nearer to each other may be one, rounded to single precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MultispectralTokenizer(TokenizerConfig):
    """Defaults of its tokenizer: bands are so alike that without a spread most tokens are a handful of codes."""

    default_spread: ClassVar[float | None] = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class MultispectralSettings(SpatialSettings):
    """Settings of multi-spectral rasters."""

    tokenizer: MultispectralTokenizer = MultispectralTokenizer()
    scale: PositiveFloat = 0.0001
    """Reflectance per unit of files of integers."""
    offset: Annotated[float, Interval("[-1, 1]")] = 0.0
    """Reflectance that is added to it: -0.1 for Sentinel-2 products since baseline 04.00."""
    nodata: float = 0.0
    """Number that marks a pixel without data in integer files if all bands have it, in addition to the one a .tif
    declares: 0 in Sentinel-2 products; nan: none is."""


class Multispectral(SpatialModality):
    """float32 (12, height, width): surface reflectance in the bands of BANDS."""

    settings_class = MultispectralSettings
    summary = "twelve spectral bands as a grid of tokens"
    channels = len(BANDS)
    unit = "reflectance"
    low, high = 0.0, LARGEST
    description = f"Sentinel-2 surface bands {', '.join(BANDS)}"
    loss = "l2"
    metrics = (
        replace(PSNR, bound=27.0),
        Metric(
            name="spectral_angle",
            unit="degrees",
            higher_is_better=False,
            meaning="mean over pixels of the angle between predicted and true spectrum, which brightness leaves alone",
        ),
    )

    def read(self, data: bytes, extension: str, options: MultispectralSettings) -> NDArray[np.float32]:
        """A .tif or .npy with bands first or last: reflectance as floats, or integers with `scale` and `offset`.

        Noise below 0 is cut off. Raises ValueError.
        """
        if extension not in ("npy", "tif", "tiff"):
            raise ValueError("expected .tif or .npy")
        raster = Raster(numbers=read_array(data, extension)) if extension == "npy" else read_tiff(data)
        value = bands_first(raster.numbers, self.channels)
        integers = value.dtype.kind in "iu"
        if value.dtype.kind not in "iuf" or value.dtype.itemsize == 1:
            raise ValueError(
                f"expected reflectance as floats, or as integers of 16 bits, got {value.dtype}; save the product's own"
                " numbers, not a picture for the eye, and leave phases out"
            )
        missing = (options.nodata,) if integers else ()
        if (holes := bands_first(raster.missing(*missing), self.channels).all(axis=0)).any():
            why = raster.why(*missing)
            raise ValueError(
                f"{int(holes.sum())} of {holes.size} pixels have no data, which {why} in all bands stands for"
            )
        scale, offset = (options.scale, options.offset) if integers else (1.0, 0.0)
        named = raster.scale, raster.offset
        if named != (1.0, 0.0) and not np.allclose(named, (scale, offset), rtol=SINGLE, atol=1e-12):
            raise ValueError(
                f"the file names scale {named[0]:.9g} and offset {named[1]:.9g}, expected {scale:.9g} and {offset:.9g};"
                " set scale and offset to those of the file, or save reflectance as floats without a scale"
            )
        return reflectance(value, scale, offset)

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """Rasters as products come."""
        numbers = np.full((8, 8, self.channels), 3000, np.uint16)
        edge = numbers.copy()
        edge[:4] = 0
        return {
            "16-bit integers, bands last": (tiff_bytes(numbers), "tif"),
            "half of it beyond the edge of the swath, 0 in all bands": (tiff_bytes(edge), "tif"),
            "reflectance as floats": (tiff_bytes((numbers / 10000).astype(np.float32)), "tiff"),
            "three bands": (tiff_bytes(numbers[..., :3]), "tif"),
            "reflectance times 10000 as floats": (array_bytes(numbers.astype(np.float32)), "npy"),
        }

    def write(self, value: NDArray[np.float32], options: MultispectralSettings) -> tuple[bytes, str]:
        return array_bytes(value), "npy"

    def picture(self, value: NDArray[np.float32], options: MultispectralSettings) -> Any:
        """True colour: red, green and blue, brightened, with the curve of sRGB."""
        channels = value[[list(BANDS).index(name) for name in TRUE_COLOUR]]
        return rgb_image(np.clip(channels * GAIN, 0, 1) ** (1 / 2.2))

    def measure(self, predicted: list[Any], target: list[Any], options: Any) -> Mapping[str, float]:
        angles = [angle_degrees(guess, truth).mean() for guess, truth in zip(predicted, target, strict=True)]
        return {"psnr": psnr(predicted, target), "spectral_angle": float(np.mean(angles))}


def reflectance(numbers: NDArray[Any], scale: float, offset: float) -> NDArray[np.float32]:
    """Reflectance in [0, LARGEST] of a product's numbers.

    Noise below 0 is cut off, and so are glints above LARGEST in integers. Raises ValueError where more than these can
    explain lies outside.
    """
    value = numbers.astype(np.float32)  # and from here on in place: a whole scene is large
    value *= scale
    value += offset
    low, high, share = float(np.min(value)), float(np.max(value)), float(np.mean(value > LARGEST))
    if low < min(offset, -NOISE) - 1e-6 or share > (GLINTS if numbers.dtype.kind in "iu" else 0):
        raise ValueError(
            f"expected reflectance from 0 to {LARGEST:g}, got {low:g} to {high:g}, and {share:.0%} above; set scale and"
            f" offset of integers (now {scale:g} and {offset:g}), divide floats by 10000, or leave out what has no data"
        )
    return np.clip(value, 0, LARGEST, out=value)


plugin = Multispectral()
