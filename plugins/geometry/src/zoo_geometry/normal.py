"""Surface normals as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import Array, bands_of, crop_and_resize, open_image, read_array, rgb_image
from tokenizers_zoo.contract.spec import Crop, Metric, ModalitySpec
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.families.images import angle_degrees
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings
from tokenizers_zoo.records.config import Settings
from zoo_geometry.body import FieldOfView, half_sizes

if TYPE_CHECKING:
    import torch


UNIT_TOLERANCE = 0.02
"""How far a stored vector's length may be from 1; rounding to 8 bits moves it by up to 0.007."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalSettings(SpatialSettings):
    """Settings of normal."""

    camera_fov: FieldOfView | Literal["metadata"] = None
    """The camera's field of view in degrees; if set, normals are derived from depth. One number is the vertical field
    of view of square pixels. Use [vertical, horizontal] for pictures that were squeezed into a square, and "metadata"
    for each sample's field `camera_fov`."""


class Normal(SpatialModality):
    """Unit vectors float32 (3, height, width) in camera axes: x right, y up, z towards the viewer.

    Derived from depth they are exact on planes, and wrong on things of one or two pixels: on zoo-scenes the mean angle
    to the exact normals is 4.3 degrees at 64 x 64 pixels and 1.0 at 256 x 256; 86 and 92 % of pixels are within 1
    degree.
    """

    settings_class = NormalSettings
    summary = "surface normals as a grid of tokens"
    channels = 3
    unit = "unit vector"
    written_as = "png"
    low, high = -1.0, 1.0
    description = "unit vectors in camera axes: x right, y up, z towards the viewer"
    aliases = ("tok_normal@224", "tok_normal@448")
    standardise = "none"
    loss = "l1"
    metrics = (
        Metric(
            name="mean_angle",
            unit="degrees",
            higher_is_better=False,
            meaning="mean over pixels of the angle between predicted and true normal",
            bound=15.0,
        ),
        Metric(
            name="within_11_25",
            higher_is_better=True,
            meaning="share of pixels whose normal is less than 11.25 degrees off",
        ),
    )

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        fov = self.options(settings).camera_fov
        inputs = () if fov is None else ("depth", "metadata")[: 1 + (fov == "metadata")]
        return replace(super().modality_spec(settings), derived_from=inputs, derive_setting="camera_fov")

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Normals of the sample's depth, at its size. Raises DataError where its camera is not known."""
        fov = self.options(settings).camera_fov
        if fov == "metadata":
            fov = sample["metadata"].get("camera_fov")
            if fov is None:
                raise DataError(f"{settings.name}: the sample's metadata lack camera_fov")
        return normals_of_depth(sample["depth"][0], fov)

    def to_network(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        return values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def from_network(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        import torch

        length = outputs.norm(dim=1, keepdim=True)
        towards_viewer = torch.tensor([0.0, 0.0, 1.0], device=outputs.device)[:, None, None]
        return torch.where(length > 1e-6, outputs / length.clamp_min(1e-6), towards_viewer)

    def resized(self, value: np.ndarray, crop: Crop, size: tuple[int, int]) -> np.ndarray:
        """Mirroring turns x around; what blending shortened is made unit length again."""
        result = crop_and_resize(value, crop, size)
        if crop.flip:
            result[0] = -result[0]
        return normalise(result)

    def read(self, data: bytes, extension: str, options: Any) -> np.ndarray:
        if extension == "npy":
            value = read_array(data, extension)
        else:
            image = open_image(data, extension)
            if image.mode != "RGB":
                raise ValueError(f"expected 8-bit RGB that codes x, y, z as (n + 1) / 2, got mode {image.mode}")
            value = bands_of(image, "RGB")
            value /= 127.5
            value -= 1
        if value.ndim != 3 or len(value) != 3:
            raise ValueError(f"expected (3, height, width), got {value.shape}")
        with np.errstate(over="ignore"):
            parts = np.array_split(value, 16, axis=1)  # squares of all at once would need as much memory again
            count = sum(int((np.abs(np.linalg.norm(part, axis=0) - 1) <= UNIT_TOLERANCE).sum()) for part in parts)
        if wrong := value[0].size - count:
            raise ValueError(f"expected unit vectors, got {wrong} of {value[0].size} pixels with another length")
        # Lengths stay as rounding left them: made exact, they would round to other bytes when written again.
        return value.astype(np.float32, copy=False)

    def picture(self, value: np.ndarray, options: Any) -> Any:
        return rgb_image((value + 1) / 2)

    def measure(self, predicted: list[np.ndarray], target: list[np.ndarray], options: Any) -> Mapping[str, float]:
        angles = np.concatenate([angle_degrees(p, t).ravel() for p, t in zip(predicted, target, strict=True)])
        return {"mean_angle": float(angles.mean()), "within_11_25": float((angles < 11.25).mean())}


def normalise(value: np.ndarray) -> np.ndarray:
    """Vectors along the first axis at length 1; one of length 0 points to the viewer."""
    length = np.linalg.norm(value, axis=0, keepdims=True)
    towards_viewer = np.array([0, 0, 1], dtype=value.dtype)[:, None, None]
    return np.where(length > 1e-6, value / np.maximum(length, 1e-6), towards_viewer)


plugin = Normal()


def normals_of_depth(depth: Array, fov: FieldOfView) -> Array:
    """Unit normals float32 (3, height, width), x right, y up, z towards the viewer, of planar depth (height, width).

    `fov` is the camera's field of view, as `half_sizes` takes it. A pixel looks along the ray (x, y, 1). On a plane
    n . (x, y, 1) z = c inverse depth q = 1 / z is linear in x and y, so that n ~ (-q_x, -q_y, q - x q_x - y q_y) holds
    exactly there ("Three-Filters-to-Normal", arXiv 2005.08165).
    Raises DataError for maps of fewer than 3 pixels along a side.
    """
    height, width = depth.shape
    if min(height, width) < 3:
        raise DataError(f"normals need depth of at least 3 x 3 pixels, got {height} x {width}")
    side, top = half_sizes(fov, height, width)
    x = ((np.arange(width) + 0.5) / width * 2 - 1) * side
    y = (1 - (np.arange(height) + 0.5) / height * 2)[:, None] * top
    inverse = 1 / depth.astype(np.float64)
    along_x = slopes(inverse, axis=1) * width / (2 * side)
    along_y = slopes(inverse, axis=0) * -height / (2 * top)  # rows count downwards
    normals = np.stack([-along_x, -along_y, inverse - x * along_x - y * along_y])
    return (normals / np.linalg.norm(normals, axis=0)).astype(np.float32)


def slopes(values: Array, axis: int) -> Array:
    """Change per pixel along `axis`, measured on the side where three pixels are closest to a line.

    Takes the central, forward, or backward difference, whichever bends least over its three pixels, so that pixels next
    to an edge do not see across it. Needs at least 3 pixels.
    """
    moved = np.moveaxis(values, axis, -1)
    step = np.diff(moved, axis=-1)
    bend = np.abs(np.diff(step, axis=-1))
    bends = np.full((3, *moved.shape), np.inf)
    differences = np.zeros((3, *moved.shape))
    bends[0, ..., 1:-1], differences[0, ..., 1:-1] = bend, (step[..., 1:] + step[..., :-1]) / 2
    bends[1, ..., :-2], differences[1, ..., :-1] = bend, step
    bends[2, ..., 2:], differences[2, ..., 1:] = bend, step
    best = np.take_along_axis(differences, bends.argmin(axis=0)[None], axis=0)[0]
    return np.moveaxis(best, -1, axis)
