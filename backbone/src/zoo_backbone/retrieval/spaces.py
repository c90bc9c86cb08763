"""One space for the vectors of all modalities: what is taken off and turned so that those of one sample are close.

An encoder that was trained to fill in tokens puts each modality in a place of its own: vectors of one modality are far
closer to each other than to those of the same sample in another. What a space does about it is fitted in closed form to
training samples, one affine map a modality:

    plain     nothing
    centred   the modality's mean is taken off
    whitened  and its directions are stretched until all vary alike, so that the few that vary most do not decide all
    shared    and turned towards what it has in common with the other modalities: canonical correlations of several
              sets (MAXVAR, Kettenring 1971, doi 10.1093/biomet/58.3.433), each direction as strong as it correlates;
              one modality alone is whitened
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_backbone.retrieval.config import SpaceKind

Vectors = npt.NDArray[np.float32]
RIDGE = 0.1
"""Of a modality's mean variance, added to all directions before they are made to vary alike."""
DIRECTIONS = 128
"""Directions per modality, those of the largest variance, that a shared space is sought in."""


@dataclass(frozen=True, kw_only=True)
class Affine:
    """One modality's way into the space: `(vector - mean) @ projection`; None projects nothing."""

    mean: Vectors
    projection: Vectors | None = None

    def __call__(self, vectors: Vectors) -> Vectors:
        """`samples dim` to unit vectors `samples dims`; zero where nothing is left."""
        moved = vectors - self.mean
        return unit(moved if self.projection is None else moved @ self.projection)


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """The vectors `... dim` at length 1; zero ones stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def fit(kind: SpaceKind, vectors: Mapping[str, Vectors]) -> dict[str, Affine]:
    """The space of some training samples: `vectors` has for each modality `samples dim`, NaN where a sample lacks it.

    Rows of one number are one sample. A modality that no sample has is left as it is; in a `shared` space of several,
    nothing is left of one that is `alone`.
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
    turned: dict[str, npt.NDArray[np.float64]] = {}
    if kind == "whitened":
        for name, rows in centred.items():
            axes, stretch = _axes(rows, present[name])
            turned[name] = (axes * stretch) @ axes.T  # back to the old axes, which the modalities share
    elif kind == "shared":
        turned = _shared(centred, present)
    return {
        name: Affine(mean=mean.astype(np.float32), projection=turned[name].astype(np.float32) if turned else None)
        for name, mean in means.items()
    }


def alone(names: Sequence[str], present: npt.NDArray[np.bool_]) -> list[str]:
    """Of the modalities in the columns of `present`, `samples names`, those that no sample has beside another."""
    several = present[present.sum(1) > 1].any(0)
    return [name for name, beside in zip(names, several, strict=True) if not beside]


def _axes(
    rows: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Directions of centred vectors, `dim dim` in columns, of the largest variance first, and how to stretch each."""
    variances, axes = np.linalg.eigh(rows.T @ rows / max(1, present.sum()))
    variances, axes = np.clip(variances[::-1], 0, None), axes[:, ::-1]
    floor = RIDGE * variances.mean()
    return axes, 1 / np.sqrt(variances + (floor if floor > 0 else 1.0))


def _shared(
    centred: Mapping[str, npt.NDArray[np.float64]], present: Mapping[str, npt.NDArray[np.bool_]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Projections to the directions that the modalities have in common."""
    maps, white = {}, {}
    for name, rows in centred.items():
        axes, stretch = _axes(rows, present[name])
        maps[name] = (axes * stretch)[:, :DIRECTIONS]
        white[name] = rows @ maps[name]
    names = list(centred)
    ends = np.cumsum([0, *(maps[name].shape[1] for name in names)])
    common = np.eye(ends[-1])
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            pairs = max(1, (present[one] & present[other]).sum())
            block = white[one].T @ white[other] / pairs  # rows of samples that lack one of them are zero
            common[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = block
            common[ends[j] : ends[j + 1], ends[i] : ends[i + 1]] = block.T
    strengths, directions = np.linalg.eigh(common)
    kept = min(DIRECTIONS, *(turned.shape[1] for turned in maps.values()))
    # An eigenvalue is 1 where nothing is shared, and the number of modalities where all say the same.
    weights = np.clip(strengths[::-1][:kept] - 1, 0, None) / max(1, len(names) - 1)
    directions = _signed(directions[:, ::-1][:, :kept]) * weights
    found = {name: maps[name] @ directions[ends[i] : ends[i + 1]] for i, name in enumerate(names)}
    nothing = alone(names, np.stack([present[name] for name in names], 1))  # zero but for rounding
    return {name: np.zeros_like(turned) if name in nothing else turned for name, turned in found.items()}


def _signed(directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The columns with the sign that makes their largest number positive: eigenvectors have none of their own."""
    largest = directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])]
    return directions * np.where(largest < 0, -1, 1)
