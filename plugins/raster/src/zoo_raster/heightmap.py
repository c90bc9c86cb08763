"""Height maps as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import image_of, read_array, read_numbers
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.families.images import angle_degrees
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings
from tokenizers_zoo.records.typed import PositiveFloat
from zoo_raster.tiff import Raster, read_tiff, tiff_bytes

if TYPE_CHECKING:
    import torch

KNEE = 100.0
"""Metres. The tokenizer's input is linear in height below this, and logarithmic above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeightmapSettings(SpatialSettings):
    """Settings of height maps."""

    pixel_metres: PositiveFloat = 60.0
    """Metres between pixels at the size of the settings; for slopes, in the score and in the shading of pictures. It
    does not follow `image_size`: half as many pixels of the same land are twice as far apart."""
    png_scale: PositiveFloat = 1.0
    """Metres per unit of 16-bit PNG files."""
    png_offset: float = 0.0
    """Metres that are added to them."""
    nodata: float = -9999.0
    """Number in the file that marks a missing height, in addition to the one a .tif declares. nan: no such number."""


class Heightmap(SpatialModality):
    """float32 (1, height, width): metres above the sea."""

    settings_class = HeightmapSettings
    summary = "heights above the sea as a grid of tokens"
    channels = 1
    unit = "metres"
    low, high = -12000.0, 9000.0
    description = "metres above the sea; below 0 is sea floor"
    token_space = "asinh(metres / 100): linear at the shore, logarithmic in the mountains"
    loss = "smooth_l1"
    metrics = (
        Metric(name="mae", unit="m", higher_is_better=False, meaning="mean over pixels of |predicted - true|"),
        Metric(
            name="slope_error",
            unit="degrees",
            higher_is_better=False,
            meaning="mean over pixels of the angle between the predicted and the true surface",
        ),
    )

    def to_network(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        return (values / KNEE).asinh()

    def from_network(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        return (outputs.clamp(-6, 6).sinh() * KNEE).clamp(self.low, self.high)

    def read(self, data: bytes, extension: str, options: HeightmapSettings) -> NDArray[np.float32]:
        """Metres in a .npy, in a .tif with the scale and offset that it names, or a 16-bit PNG with `png_scale`.

        Raises ValueError, also for missing heights.
        """
        if extension == "npy":
            raster = Raster(numbers=read_array(data, extension))
        elif extension in ("tif", "tiff"):
            raster = read_tiff(data)
        else:
            numbers = read_numbers(data, extension, "16 bits", advice="; save metres as .tif or .npy")
            raster = Raster(numbers=numbers, scale=options.png_scale, offset=options.png_offset)
        value = raster.numbers
        value = value[None] if value.ndim == 2 else value
        if value.dtype.kind not in "iuf":
            raise ValueError(f"expected metres as floats or integers, got {value.dtype}")
        if (holes := raster.missing(options.nodata)).any():
            why = raster.why(options.nodata)
            raise ValueError(f"{int(holes.sum())} of {holes.size} pixels have no height, which {why} stands for")
        if (raster.scale, raster.offset) != (1.0, 0.0):
            value = value * np.float64(raster.scale)
            value += raster.offset
        return value.astype(np.float32, copy=False)

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """Rasters as elevation models come."""
        metres = np.full((8, 8), 1200, np.int16)
        holed = metres.copy()
        holed[0, 0] = -32768
        named = metres.astype(np.float32)
        named[0, 0] = 0
        return {
            "16-bit integers": (tiff_bytes(metres), "tif"),
            "decimetres, by the scale that the file names": (tiff_bytes(metres, scale=0.1), "tif"),
            "a pixel without data, -32768": (tiff_bytes(holed), "tif"),
            "a pixel of the number that the file names for no data": (tiff_bytes(named, nodata=0), "tif"),
        }

    def picture(self, value: NDArray[np.float32], options: HeightmapSettings) -> Any:
        """Colours of an atlas, shaded by a sun in the north-west."""
        import matplotlib

        metres = value[0].astype(np.float64)
        land = 0.25 + 0.75 * np.clip(metres / 3000, 0, 1) ** 0.6
        colours = matplotlib.colormaps["terrain"](np.where(metres < 0, 0.2 * np.exp(metres / 500), land))[..., :3]
        normals = surface_normals(metres, options.pixel_metres)
        sun = np.array([-0.5, 0.5, 0.7071])
        shade = 0.35 + 0.65 * np.clip(np.tensordot(sun, normals, 1), 0, 1) / sun[2]
        return image_of((np.clip(colours * shade[..., None], 0, 1) * 255).astype(np.uint8))

    def measure(self, predicted: list[Any], target: list[Any], options: HeightmapSettings) -> Mapping[str, float]:
        metres, slopes = [], []
        for guess, truth in zip(predicted, target, strict=True):
            metres.append(np.abs(guess.astype(np.float64) - truth).mean())
            first, second = (surface_normals(side[0], options.pixel_metres) for side in (guess, truth))
            slopes.append(angle_degrees(first, second).mean())
        return {"mae": float(np.mean(metres)), "slope_error": float(np.mean(slopes))}


def surface_normals(metres: NDArray[Any], pixel_metres: float) -> NDArray[np.float64]:
    """Unit vectors (3, height, width) that stand on the surface: east, north, up."""
    south, east = np.gradient(metres.astype(np.float64), pixel_metres)
    vectors = np.stack([-east, south, np.ones_like(east)])
    return vectors / np.linalg.norm(vectors, axis=0)


plugin = Heightmap()
