"""The vectors that are compared: of a trained run's encoder, or of a global modality that it predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenizers_zoo.data.samples import TRAIN
from tokenizers_zoo.data.tokens import TokenColumn, TokenStore, samples_digest
from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError
from tokenizers_zoo.ml4m.source import known_fingerprint
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.spec import ModalitySpec, VectorLayout
from zoo_backbone.checkpoint import load_model
from zoo_backbone.codecs import check_codec, stored_samples
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.encoder import FourMEncoder
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.generate.inputs import value_of_source
from zoo_backbone.retrieval.config import EmbeddingConfig
from zoo_backbone.retrieval.spaces import Affine, Vectors, alone, fit
from zoo_backbone.run import Run, stored_config

BATCH = 32
"""Samples embedded at a time."""

Advance = Callable[[int], None]
"""Called with the number of samples that have been embedded since."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Stored samples of a split, seen whole."""

    keys: Sequence[str]
    columns: Mapping[str, TokenColumn]
    rows: npt.NDArray[np.int64]
    """`samples modalities`, -1 where a sample lacks one."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def codecs(self) -> dict[str, str]:
        """By modality, the codec that wrote its tokens."""
        return {name: column.fingerprint for name, column in self.columns.items()}

    def digest(self) -> str:
        """sha256 (hex) of keys and tokens."""
        return samples_digest(self.columns)


class Embedder:
    """Gives the vectors of a trained run, one modality of a sample each; model and tokenizers run on `device`.

    Raises CheckpointError where `folder` is no trained run, ConfigError for a `via` that has no vector, DataError where
    the tokenizer of `via` is not the one of the run's training.
    """

    def __init__(self, folder: Path, zoo: Zoo, config: EmbeddingConfig, device: str = "cpu") -> None:
        self.folder, self.zoo, self.config, self.device = Path(folder), zoo, config, device
        self.run = Run.load(self.folder)
        self.trained_on: Mapping[str, str] = stored_config(self.folder)["fingerprints"]
        self.fingerprint = known_fingerprint(self.folder)
        self.spaces: dict[str, Affine] = {}
        model = load_model(self.folder, device=device).eval()
        self.layout: EmbeddingLayout = model.layout
        if config.via:
            check_via(self.layout, config.via)
            self.codec = self._handle(config.via)
            check_codec(self.codec, self.trained_on.get(config.via), self.layout.spec(config.via))
            self.model = model
        else:
            self.encoder = FourMEncoder(model)

    def _handle(self, name: str) -> ModalityHandle:
        """A modality whose tokenizer is used. Raises UnknownNameError."""
        handle = self.zoo[name]
        handle.device = self.device
        return handle

    def names(self, wanted: Sequence[str] | None, split: str) -> list[str]:
        """The modalities to embed, each once: those wanted, or all of the run that its own token store has.

        A run over several stores has some that its own lacks, in the split or among the training samples that a space
        is fitted to. Raises UnknownNameError, ConfigError for one that the backbone cannot read, and DataError where
        the store has none.
        """
        if wanted:
            for name in wanted:
                if name != self.config.via:
                    self.layout.check_read(name, "embed")
            return list(dict.fromkeys(self.layout.spec(name).name for name in wanted))
        store = TokenStore(self.run.tokens)
        needed = [split] if self.config.space == "plain" else [split, TRAIN]
        there = [set(store.modalities(part)) for part in needed]
        made = self.layout.targets_only - {self.config.via}
        found = [name for name in self.layout.names if name not in made and all(name in names for names in there)]
        if not found:
            raise DataError(f"{self.run.tokens}: has no modality of {self.folder} in {' and '.join(needed)}")
        return found

    def stored(self, split: str, names: Sequence[str]) -> Samples:
        """The run's stored samples of a split. Raises DataError where its tokens are not those of its training."""
        specs = [self.layout.spec(name) for name in names]
        data = stored_samples(self.run.tokens, split, specs, self.trained_on, self.zoo, str(self.folder))
        rows = data.rows(np.arange(len(data)))
        table = np.where(data.present(rows), rows[:, None], -1)
        return Samples(keys=data.sample_keys(), columns=data.columns, rows=table)

    @torch.inference_mode()
    def raw(self, name: str, tokens: Any) -> Vectors:
        """float32 `samples dim` of the modality's tokens, as codecs give them, before the space."""
        if not self.config.via:
            pooled = self.encoder(*self.encoder.prepare({name: tokens}))
            return np.asarray(pooled.float().cpu().numpy(), np.float32)
        if name != self.config.via:
            plan = TargetPlan(name=self.config.via, temperature=0, steps=1)
            tokens = generate(self.model, {name: tokens}, [plan], 0, range(len(tokens)))[self.config.via]
        values = self.codec.decode(tokens)
        return np.stack([np.ravel(np.asarray(value, np.float32)) for value in values])

    def embed(self, name: str, tokens: Any) -> Vectors:
        """Unit vectors `samples dims` of the modality's tokens, in the space."""
        if name not in self.spaces:
            raise UnknownNameError.of("modality of this index", name, self.spaces)
        return self.spaces[name](self.raw(name, tokens))

    def embed_stored(
        self, data: Samples, name: str, rows: Sequence[int], advance: Advance, *, raw: bool = False
    ) -> Vectors:
        """The vectors of stored samples, `rows` of the modality's column."""
        make = self.raw if raw else self.embed
        parts = []
        for start in range(0, len(rows), BATCH):
            here = rows[start : start + BATCH]
            parts.append(make(name, data.columns[name].take(here)))
            advance(len(here))
        return np.concatenate(parts)

    def fit(self, names: Sequence[str], progress: Callable[[int], Any]) -> None:
        """Fit the space to training samples; `progress(total)` is a context that gives what counts them.

        The samples are spread evenly over the split. Raises ConfigError for a modality that none of them has, or, where
        the space is of what several share, none has beside another.
        """
        if self.config.space == "plain":
            self.spaces = {name: Affine(mean=np.zeros(1, np.float32)) for name in names}
            return
        data = self.stored(TRAIN, names)
        count = min(len(data), self.config.fit_samples)
        table = data.rows[np.linspace(0, len(data) - 1, count).astype(np.int64)]
        check_fit(self.config, names, table >= 0)
        vectors: dict[str, Vectors] = {}
        with progress(int((table >= 0).sum())) as advance:
            for column, name in enumerate(names):
                has = np.flatnonzero(table[:, column] >= 0)
                found = self.embed_stored(data, name, table[has, column].tolist(), advance, raw=True)
                vectors[name] = np.full((count, found.shape[1]), np.nan, np.float32)
                vectors[name][has] = found
        self.spaces = fit(self.config.space, vectors)

    def via_codec(self) -> dict[str, str]:
        """The tokenizer that gives predicted vectors."""
        return {self.config.via: self.codec.fingerprint} if self.config.via else {}

    def encode(self, name: str, source: str) -> Any:
        """Tokens of one sample's modality, from a file or a value written out. Raises ZooErrors."""
        spec = self.layout.spec(name)
        handle = self._handle(spec.name)
        check_codec(handle, self.trained_on.get(name), spec)
        return handle.encode([value_of_source(handle, source)])


def check_fit(config: EmbeddingConfig, names: Sequence[str], present: npt.NDArray[np.bool_]) -> None:
    """Raise ConfigError where the training samples, `samples names`, say nothing about the place of a modality."""
    for name, has in zip(names, present.T, strict=True):
        if not has.any():
            raise ConfigError(f"{name}: no training sample has it, so that no space can be fitted; leave it out")
    if config.space == "shared" and len(names) > 1 and (nothing := alone(names, present)):
        raise ConfigError(
            f"{', '.join(nothing)}: --space shared expected training samples that have it beside another of "
            f"{', '.join(names)}, and none of the {len(present)} has; use --space whitened, or leave it out"
        )


def check_via(layout: EmbeddingLayout, via: str) -> None:
    """Raise ConfigError where the modality `via` is not one vector of numbers that the backbone can predict."""
    spec = layout.spec(via)
    vectors = [other.name for other in layout.specs if other.name in layout.discrete and _is_vector(other)]
    if spec.name not in vectors:
        problem = f"is a {spec.layout.kind}" if spec.name in layout.discrete else "is an input only"
        if isinstance(spec.layout, VectorLayout) and spec.name in layout.discrete:
            problem = f"has values of kind {spec.value.kind}"
        raise ConfigError(
            f"--via {via}: expected a modality with one vector of numbers a sample, which the backbone can predict, "
            f"and {via} {problem}; this run has {', '.join(vectors) or 'none: use --embedding encoder'}"
        )


def _is_vector(spec: ModalitySpec) -> bool:
    """True where the tokens, all of which are predicted, decode to numbers."""
    return isinstance(spec.layout, VectorLayout) and spec.value.kind == "array"
