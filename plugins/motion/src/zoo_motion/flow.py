"""Optical flow as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import crop_and_resize, image_of, read_array
from tokenizers_zoo.contract.spec import Crop, Metric
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings

MAGIC = b"PIEH"
"""How .flo files begin: 202021.25 as float32."""
LARGEST = 1000.0
"""Pixels per frame; Middlebury marks unknown flow by numbers above 1e9."""
SHOWN = 6.0
"""Pixels per frame that are shown in full colour."""
OUTLIER = 3.0
"""Pixels of error beyond which a vector counts as wrong, as in the KITTI benchmark."""


class Flow(SpatialModality):
    """float32 (2, height, width): how far each pixel of the first frame moves to the right and down, in pixels."""

    summary = "optical flow as a grid of tokens"
    channels = 2
    unit = "pixels per frame"
    low, high = -LARGEST, LARGEST
    description = "where each pixel of the first frame is in the second, minus where it was: right, down"
    loss = "smooth_l1"
    derived_from = ("video",)
    metrics = (
        Metric(
            name="epe",
            unit="pixels",
            higher_is_better=False,
            meaning="end-point error: mean over pixels of the distance between predicted and true vector",
        ),
        Metric(
            name="outliers", higher_is_better=False, meaning="share of pixels whose vector is more than 3 pixels off"
        ),
    )

    def resized(self, value: NDArray[Any], crop: Crop, size: tuple[int, int]) -> NDArray[Any]:
        """Vectors count pixels of the result: resizing scales them, mirroring turns those to the right around."""
        result = crop_and_resize(value, crop, size)
        height, width = value.shape[-2:]
        result[0] *= size[1] / (crop.width * width) * (-1 if crop.flip else 1)
        result[1] *= size[0] / (crop.height * height)
        return np.clip(result, self.low, self.high)

    @hookimpl
    def derive(self, sample: Mapping[str, Any]) -> NDArray[np.float32]:
        """From the first frame of the video to its second, by TV-L1 (Zach, Pock and Bischof, DAGM 2007)."""
        from skimage.color import rgb2gray
        from skimage.registration import optical_flow_tvl1

        first, second = (rgb2gray(frame.transpose(1, 2, 0)) for frame in sample["video"][:2])
        down, right = optical_flow_tvl1(first, second, attachment=30)
        return np.stack([right, down]).astype(np.float32).clip(self.low, self.high)

    def read(self, data: bytes, extension: str, options: SpatialSettings) -> NDArray[np.float32]:
        """A Middlebury .flo file, or an .npy (2, height, width). Raises ValueError."""
        if extension == "npy":
            value = read_array(data, extension)
        elif extension == "flo":
            value = read_flo(data)
        else:
            raise ValueError("expected .flo or .npy")
        if value.dtype.kind != "f":
            raise ValueError(f"expected floats in pixels per frame, got {value.dtype}, which has no unit")
        return value.astype(np.float32, copy=False)

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        still = np.zeros((2, 4, 4), np.float32)
        unknown = still.copy()
        unknown[:, 0, 0] = 1e10
        return {
            "some of the flow unknown": (flo_bytes(unknown), "flo"),
            "cut off": (flo_bytes(still)[:-8], "flo"),
            "no `.flo` file": (b"no flow", "flo"),
        }

    def write(self, value: NDArray[np.float32], options: SpatialSettings) -> tuple[bytes, str]:
        return flo_bytes(value), "flo"

    def picture(self, value: NDArray[np.float32], options: SpatialSettings) -> Any:
        """The direction as hue (red to the right, then yellow down), the length as saturation."""
        from matplotlib.colors import hsv_to_rgb

        hue = np.arctan2(value[1], value[0]) / (2 * np.pi) % 1
        length = np.minimum(np.hypot(*value) / SHOWN, 1)
        colours = hsv_to_rgb(np.stack([hue, length, np.ones_like(hue)], axis=-1))
        return image_of((colours * 255).round().astype(np.uint8))

    def measure(self, predicted: list[Any], target: list[Any], options: Any) -> Mapping[str, float]:
        errors = [np.hypot(*(guess - truth).astype(np.float64)) for guess, truth in zip(predicted, target, strict=True)]
        every = np.concatenate([error.ravel() for error in errors])
        return {"epe": float(every.mean()), "outliers": float((every > OUTLIER).mean())}


def read_flo(data: bytes) -> NDArray[np.float32]:
    """float32 (2, height, width) of a Middlebury .flo file. Raises ValueError."""
    if data[:4] != MAGIC or len(data) < 12:
        raise ValueError("this is not a .flo file")
    width, height = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
    if len(data) != 12 + 8 * width * height or not width * height:
        raise ValueError(f"{len(data)} bytes do not hold {height} x {width} vectors")
    pairs = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2)
    return np.ascontiguousarray(pairs.transpose(2, 0, 1), np.float32)


def flo_bytes(value: NDArray[np.float32]) -> bytes:
    """(2, height, width) as a Middlebury .flo file."""
    height, width = value.shape[1:]
    header = MAGIC + width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return header + np.ascontiguousarray(value.transpose(1, 2, 0), "<f4").tobytes()


plugin = Flow()
