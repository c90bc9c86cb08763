"""Vectors of samples: mean features of a run's encoder, or values of a global modality that it predicts.

An encoder trained to predict tokens embeds each modality in its own region: vectors of one modality are closer to each
other than to vectors of the same sample in another modality. Spaces correct that in closed form, from training samples,
by an affine map per modality:

    plain     no change.
    centred   Subtract the modality's mean.
    whitened  Also scale all directions to equal variance.
    shared    Also rotate to directions that the modalities have in common: generalised canonical correlations (MAXVAR,
              Kettenring 1971, doi 10.1093/biomet/58.3.433), weighted by correlation. Whitened for a single modality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenizers_zoo.contract.layouts import VectorLayout
from tokenizers_zoo.contract.samples import TRAIN, spread
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.files.published import known_fingerprint
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.stores.tokens import TokenStore
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.generate.sources import InputSource, item_of_source
from zoo_backbone.learn.data import TokenData, stored_samples
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.retrieval import EmbeddingConfig, SpaceKind

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Advance = Callable[[int], None]
"""Called with the number of samples embedded since the last call."""
BATCH = 32
FIT_SAMPLES = 4096
"""Maximum number of training samples that a space is fitted to."""
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
    for i, row_name in enumerate(names):
        for j, column_name in enumerate(names[:i]):
            pairs = max(1, (present[row_name] & present[column_name]).sum())
            block = white[row_name].T @ white[column_name] / pairs  # absent rows are zero
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


class Embedder:
    """Embeds modalities of samples with a trained run.

    Raises CheckpointError if `folder` is not a trained run, ConfigError if `via` has no vectors, DataError if the
    tokenizer of `via` is not the backbone's.
    """

    def __init__(self, model: AnyToAny, config: EmbeddingConfig) -> None:
        self.model, self.run, self.config = model, model.run, config
        self.fingerprint = known_fingerprint(model.run.folder)
        self.spaces: dict[str, Affine] = {}
        self.layout: EmbeddingLayout = model.model.layout
        if config.via:
            check_via(self.layout, config.via)
            self.via = model.handle(config.via)

    def tokenizers(self, data: TokenData) -> dict[str, str]:
        """Return the fingerprints of all tokenizers that vectors depend on."""
        return data.fingerprints | ({self.config.via: self.via.fingerprint} if self.config.via else {})

    def names(self) -> list[str]:
        """Return the modalities to embed, in the backbone's order: those of the settings, or all of its token store.

        Raises UnknownNameError, ConfigError for a modality that is no input, and DataError if the store has none.
        """
        if modalities := self.config.modalities:
            self.layout.check_inputs([name for name in modalities if name != self.config.via], "embed")
            selected = {self.layout.spec(name).name for name in modalities}
            return [name for name in self.layout.names if name in selected]
        store = TokenStore(self.run.tokens)
        splits = [self.config.split] if self.config.space == "plain" else [self.config.split, TRAIN]
        available = [set(store.modalities(part)) for part in splits]
        excluded = self.layout.targets_only - {self.config.via}
        names = [name for name in self.layout.names if name not in excluded and all(name in part for part in available)]
        if not names:
            raise DataError(f"{self.run.tokens}: has no modality of {self.run.folder} in {' and '.join(splits)}")
        return names

    def load_split(self, split: str, names: Sequence[str]) -> TokenData:
        """Return the stored samples of a split. Raises DataError if the tokens are of other tokenizers."""
        specs = [self.layout.spec(name) for name in names]
        trained_on, folder = self.model.model.trained_on, str(self.run.folder)
        return stored_samples(self.run.tokens, split, specs, trained_on, self.model.zoo, folder)

    @torch.inference_mode()
    def embed_raw(self, name: str, tokens: Any) -> Vectors:
        """Return vectors `(samples, dim)` of a modality's tokens, before the space."""
        if not self.config.via:
            encoder = self.model.encoder
            pooled = encoder(*encoder.prepare({name: tokens}))
            return np.asarray(pooled.float().cpu().numpy(), np.float32)
        if name != self.config.via:
            plan = TargetPlan(name=self.config.via, temperature=0, steps=1)
            tokens = generate(self.model.model, {name: tokens}, [plan], 0, range(len(tokens)))[self.config.via]
        return np.stack([np.ravel(np.asarray(value, np.float32)) for value in self.via.decode(tokens)])

    def embed(self, name: str, tokens: Any) -> Vectors:
        """Return unit vectors `(samples, dims)` of a modality's tokens, in the space."""
        return self.spaces[name](self.embed_raw(name, tokens))

    def embed_stored(
        self, samples: TokenData, name: str, indices: npt.NDArray[np.int64], advance: Advance, *, raw: bool = False
    ) -> Vectors:
        """Return the vectors of the samples with these indices."""
        embed = self.embed_raw if raw else self.embed
        parts = []
        for start in range(0, len(indices), BATCH):
            rows = samples.rows(indices[start : start + BATCH])
            parts.append(embed(name, samples.columns[name].take(rows)))
            advance(len(rows))
        return np.concatenate(parts)

    def embed_value(self, name: str, source: InputSource) -> Vectors:
        """Return the vector of one value: a file, or a value as text. Raises ZooErrors."""
        handle = self.model.handle(name)
        return self.embed(name, handle.encode([handle.fitted(item_of_source(handle, source))], trusted=True))

    def fit(self, names: Sequence[str]) -> None:
        """Fit the space to evenly spread training samples.

        Raises ConfigError for a modality that no training sample has, or, for a shared space, none has together with
        another modality.
        """
        if self.config.space == "plain":
            self.spaces = {name: Affine(mean=np.zeros(1, np.float32)) for name in names}
            return
        samples = self.load_split(TRAIN, names)
        indices = np.array(spread(len(samples), FIT_SAMPLES), np.int64)
        present = samples.present(samples.rows(indices))
        for name, has in zip(names, present.T, strict=True):
            if not has.any():
                raise ConfigError(f"{name}: no training sample has it, and no space can be fitted; leave it out")
        if self.config.space == "shared" and len(names) > 1 and (alone := unpaired(names, present)):
            raise ConfigError(
                f"{', '.join(alone)}: --space shared needs training samples with another of {', '.join(names)}, and "
                f"none of {len(present)} has one; use --space whitened, or leave the modality out"
            )
        vectors: dict[str, Vectors] = {}
        with progress_bar("fit the space", int(present.sum())) as advance:
            for name, has in zip(names, present.T, strict=True):
                rows = self.embed_stored(samples, name, indices[has], advance, raw=True)
                vectors[name] = np.full((len(indices), rows.shape[1]), np.nan, np.float32)
                vectors[name][has] = rows
        self.spaces = fit(self.config.space, vectors)


def check_via(layout: EmbeddingLayout, via: str) -> None:
    """Raise ConfigError if `via` is not a modality of vectors of numbers that the backbone can predict."""
    spec = layout.spec(via)
    if not (spec.name in layout.discrete and isinstance(spec.layout, VectorLayout) and spec.value.kind == "array"):
        actual = f"{spec.value} as {spec.layout}"
        raise ConfigError.expected(f"--via {via}", "a vector modality that the backbone predicts", actual)
