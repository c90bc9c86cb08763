"""Geometric metadata as in 4M-21 (arXiv 2406.09406): how complex a scene is, how much is hidden, how far it reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_metadata.base import DerivedMetadata, DerivedSettings
from zoo_metadata.fields import MetadataField

FIELDS = MappingProxyType(
    {
        "geometric_complexity": MetadataField(meaning="spherical variance of the normals, 0 for one plane"),
        "occlusion_score": MetadataField(meaning="share of pixels at an edge where one thing hides another"),
        "nearest_depth": MetadataField(kind="log", low=0.1, high=100, unit="m", meaning="5th percentile over pixels"),
        "median_depth": MetadataField(kind="log", low=0.1, high=100, unit="m", meaning="median over pixels"),
        "farthest_depth": MetadataField(kind="log", low=0.1, high=100, unit="m", meaning="95th percentile over pixels"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometricMetadataSettings(DerivedSettings):
    """Settings of `geometric_metadata`. Raises ValueError, naming the field, for a value out of range."""

    inputs: tuple[str, ...] = ("normal", "depth")
    """The modalities to compute from: normal, depth, or both."""
    occlusion_threshold: float = 0.1
    """Least deviation from the plane through the neighbours, as a fraction of the inverse depth, of a pixel at an
    edge."""

    def __post_init__(self) -> None:
        DerivedSettings.__post_init__(self)
        if not 0 < self.occlusion_threshold < 1:
            raise ValueError(f"occlusion_threshold: expected a number between 0 and 1, got {self.occlusion_threshold}")


def of_normals(normal: npt.NDArray[Any], options: GeometricMetadataSettings) -> Mapping[str, float]:
    """Spherical variance: 1 minus the length of the mean of unit vectors (3, height, width).

    Mardia and Jupp, Directional Statistics (2000), sec. 9.2.1.
    """
    mean = np.asarray(normal, dtype=np.float64).reshape(3, -1).mean(axis=1)
    return {"geometric_complexity": float(1 - np.linalg.norm(mean))}


def of_depth(depth: npt.NDArray[Any], options: GeometricMetadataSettings) -> Mapping[str, float]:
    """How far planar depth (1, height, width), metres, reaches, and how much of it are occlusion edges."""
    near, middle, far = np.percentile(depth, (5, 50, 95)).tolist()
    score = float(occlusion_edges(depth[0], options.occlusion_threshold).mean())
    return {"occlusion_score": score, "nearest_depth": near, "median_depth": middle, "farthest_depth": far}


def occlusion_edges(depth: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.bool_]:
    """bool (height, width): True on the far side of every jump of depth.

    The inverse depth of a plane is affine in the picture (n . x = d with x = z (u, v, 1) gives 1/z = n . (u, v, 1) / d)
    so its second differences along rows and columns are 0 for any slant. On smooth surfaces they are small. A pixel is
    at an edge if they exceed `threshold` times its own inverse depth: there the hidden surface begins. It is below 0 on
    the near side, which is not counted.
    """
    inverse = 1 / np.asarray(depth, dtype=np.float64)
    edges = np.zeros(inverse.shape, dtype=bool)
    edges[1:-1] |= np.diff(inverse, 2, axis=0) > threshold * inverse[1:-1]
    edges[:, 1:-1] |= np.diff(inverse, 2, axis=1) > threshold * inverse[:, 1:-1]
    return edges


class GeometricMetadata(DerivedMetadata[GeometricMetadataSettings]):
    """Numbers about the shape of a scene."""

    summary = "The shape of the scene: complexity, occlusion, how far it reaches"
    settings_class = GeometricMetadataSettings
    default_fields = FIELDS
    derived_from = ("normal", "depth")
    measures = MappingProxyType({"normal": of_normals, "depth": of_depth})


plugin = GeometricMetadata()
