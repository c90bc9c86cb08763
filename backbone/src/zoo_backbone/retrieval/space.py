"""Spaces: affine maps, one per modality, that bring the vectors of one sample close to each other.

An encoder trained to predict tokens embeds each modality in its own region: vectors of one modality are closer to each
other than to vectors of the same sample in another modality. Spaces correct that in closed form, from training samples:

    plain     no change.
    centred   Subtract the modality's mean.
    whitened  Also scale all directions to equal variance.
    shared    Also rotate to directions that the modalities have in common: generalised canonical correlations (MAXVAR,
              Kettenring 1971, doi 10.1093/biomet/58.3.433), weighted by correlation. Whitened for a single modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_backbone.retrieval import SpaceKind

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
RIDGE = 0.1
"""Added to all variances before whitening, as a multiple of the modality's mean variance."""
DIRECTIONS = 128
"""Principal directions per modality that a shared space uses."""


@dataclass(frozen=True, kw_only=True)
class Affine:
    """The map of one modality: `(vector - mean) @ projection`."""

    mean: Vectors
    projection: Vectors | None = None

    def __call__(self, vectors: Vectors) -> Vectors:
        """Map `(samples, dim)` to unit vectors `(samples, dims)`; zero vectors stay zero."""
        moved = vectors - self.mean
        return unit(moved if self.projection is None else moved @ self.projection)


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Normalise vectors `(..., dim)` to length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def fit(kind: SpaceKind, vectors: Mapping[str, Vectors]) -> dict[str, Affine]:
    """Fit a space to training samples, `(samples, dim)` per modality, NaN where a sample lacks the modality.

    A modality without samples is not changed. In a shared space, the map of an `unpaired` modality is zero.
    """
    if kind == "shared" and len(vectors) == 1:
        kind = "whitened"
    exact = {name: np.asarray(rows, np.float64) for name, rows in vectors.items()}
    present: dict[str, npt.NDArray[np.bool_]] = {
        name: np.asarray(np.isfinite(rows[:, 0])) for name, rows in exact.items()
    }
    means = {
        name: rows[present[name]].mean(0) if kind != "plain" and present[name].any() else np.zeros(rows.shape[1])
        for name, rows in exact.items()
    }
    centred = {name: np.where(present[name][:, None], rows - means[name], 0.0) for name, rows in exact.items()}
    projections: dict[str, Floats] = {}
    if kind == "whitened":
        for name, rows in centred.items():
            axes, scale = _principal_axes(rows, present[name])
            projections[name] = (axes * scale) @ axes.T  # rotated back, as modalities share the original axes
    elif kind == "shared":
        projections = _shared(centred, present)
    return {
        name: Affine(
            mean=mean.astype(np.float32), projection=projections[name].astype(np.float32) if projections else None
        )
        for name, mean in means.items()
    }


def unpaired(names: Sequence[str], present: npt.NDArray[np.bool_]) -> list[str]:
    """Return the modalities (columns of `present`) that no sample has together with another one."""
    paired = present[present.sum(1) > 1].any(0)
    return [name for name, has in zip(names, paired, strict=True) if not has]


def _principal_axes(rows: Floats, present: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the principal axes of centred vectors, the largest variance first, in columns, and their scales."""
    variances, axes = np.linalg.eigh(rows.T @ rows / max(1, present.sum()))
    variances, axes = np.clip(variances[::-1], 0, None), axes[:, ::-1]
    ridge = RIDGE * variances.mean()
    return axes, 1 / np.sqrt(variances + (ridge if ridge > 0 else 1.0))


def _shared(centred: Mapping[str, Floats], present: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, Floats]:
    """Return projections to the directions that the modalities have in common."""
    maps, white = {}, {}
    for name, rows in centred.items():
        axes, scale = _principal_axes(rows, present[name])
        maps[name] = (axes * scale)[:, :DIRECTIONS]
        white[name] = rows @ maps[name]
    names = list(centred)
    ends = np.cumsum([0, *(maps[name].shape[1] for name in names)])
    correlations = np.eye(ends[-1])
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            pairs = max(1, (present[one] & present[other]).sum())
            block = white[one].T @ white[other] / pairs  # absent rows are zero
            correlations[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = block
            correlations[ends[j] : ends[j + 1], ends[i] : ends[i + 1]] = block.T
    strengths, directions = np.linalg.eigh(correlations)
    count = min(DIRECTIONS, *(projection.shape[1] for projection in maps.values()))
    # Eigenvalues range from 1 (nothing is shared) to the number of modalities (identical up to rotation).
    weights = np.clip(strengths[::-1][:count] - 1, 0, None) / max(1, len(names) - 1)
    directions = directions[:, ::-1][:, :count]
    largest = directions[np.abs(directions).argmax(0), np.arange(count)]
    directions = directions * np.where(largest < 0, -1, 1) * weights  # eigenvectors have no sign of their own
    projections = {name: maps[name] @ directions[ends[i] : ends[i + 1]] for i, name in enumerate(names)}
    for name in unpaired(names, np.stack([present[name] for name in names], 1)):
        projections[name][:] = 0  # not only up to rounding
    return projections
