"""Surface normals as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.families.spatial import SpatialModality
from tokenizers_zoo.families.spatial.values import (
    crop_and_resize,
    open_image,
    png_bytes,
    read_array,
    rgb_image,
)
from tokenizers_zoo.modality import Crop, Metric

if TYPE_CHECKING:
    import torch

UNIT_TOLERANCE = 0.02
"""How far a stored vector's length may be from 1; rounding to 8 bits moves it by up to 0.007."""


class Normal(SpatialModality):
    """Unit vectors float32 (3, height, width) in camera axes: x right, y up, z towards the viewer."""

    summary = "surface normals as a grid of tokens"
    channels = 3
    unit = "unit vector"
    low, high = -1.0, 1.0
    description = "unit vectors in camera axes: x right, y up, z towards the viewer"
    standardised = False
    loss = "l1"
    metrics = (
        Metric(
            name="mean_angle",
            unit="degrees",
            higher_is_better=False,
            meaning="mean over pixels of the angle between predicted and true normal",
        ),
        Metric(
            name="within_11_25",
            unit="",
            higher_is_better=True,
            meaning="share of pixels whose normal is less than 11.25 degrees off",
        ),
    )

    def to_model(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.nn.functional.normalize(values, dim=1)

    def from_model(self, outputs: torch.Tensor) -> torch.Tensor:
        import torch

        length = outputs.norm(dim=1, keepdim=True)
        towards_viewer = torch.tensor([0.0, 0.0, 1.0], device=outputs.device)[:, None, None]
        return torch.where(length > 1e-6, outputs / length.clamp_min(1e-6), towards_viewer)

    def resized(self, value: np.ndarray, crop: Crop, size: tuple[int, int]) -> np.ndarray:
        """Mirroring turns x around; what blending shortened is made unit length again."""
        result = crop_and_resize(value, crop, size)
        if crop.flip:
            result[0] = -result[0]
        return unit(result)

    def read(self, data: bytes, extension: str, options: Any) -> np.ndarray:
        if extension == "npy":
            value = read_array(data, extension)
        else:
            image = open_image(data, extension)
            if image.mode != "RGB":
                raise ValueError(f"expected 8-bit RGB that codes x, y, z as (n + 1) / 2, got mode {image.mode}")
            value = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
        if value.ndim != 3 or len(value) != 3:
            raise ValueError(f"expected (3, height, width), got {value.shape}")
        off = np.abs(np.linalg.norm(value, axis=0) - 1)
        if not off.max() <= UNIT_TOLERANCE:  # also where it is no number
            count = int((~(off <= UNIT_TOLERANCE)).sum())
            raise ValueError(f"expected unit vectors, got {count} of {off.size} pixels with another length")
        # Lengths stay as rounding left them: made exact, they would round to other bytes when written again.
        return value.astype(np.float32)

    def write(self, value: np.ndarray, options: Any) -> tuple[bytes, str]:
        return png_bytes(self.picture(value, options)), "png"

    def picture(self, value: np.ndarray, options: Any) -> Any:
        return rgb_image((value + 1) / 2)

    def measure(self, predicted: list[np.ndarray], target: list[np.ndarray], options: Any) -> Mapping[str, float]:
        angles = np.concatenate([angle_degrees(p, t).ravel() for p, t in zip(predicted, target, strict=True)])
        return {"mean_angle": float(angles.mean()), "within_11_25": float((angles < 11.25).mean())}


def unit(value: np.ndarray) -> np.ndarray:
    """Vectors along the first axis at length 1; one of length 0 points to the viewer."""
    length = np.linalg.norm(value, axis=0, keepdims=True)
    towards_viewer = np.array([0, 0, 1], dtype=value.dtype)[:, None, None]
    return np.where(length > 1e-6, value / np.maximum(length, 1e-6), towards_viewer)


def angle_degrees(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Angle between vectors along the first axis, degrees in [0, 180]; exact also near 0, where arccos is not."""
    a, b = predicted.astype(np.float64), target.astype(np.float64)
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b, axis=0), axis=0), (a * b).sum(axis=0)))


plugin = Normal()
