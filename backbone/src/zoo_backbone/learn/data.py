"""Token stores to training batches: one split of a store, the order of samples, several stores mixed by weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenizers_zoo.contract.registry import ModalityHandle, Zoo
from tokenizers_zoo.contract.samples import TRAIN
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError, DataError, OtherLayoutError, OtherTokenizerError, UnknownNameError
from tokenizers_zoo.stores.token_shard import BLOCK_SAMPLES
from tokenizers_zoo.stores.tokens import OPEN_SHARDS, TokenColumn, TokenStore, check_same_keys, samples_digest
from zoo_backbone.learn.masking import Masker
from zoo_backbone.learn.order import SampleOrder
from zoo_backbone.model.batch import PackedBatch, RawBatch
from zoo_backbone.model.config import MaskingConfig, TrainConfig, TrainingStore
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.run import check_stored


class TokenData:
    """The samples of one split of a token store, numbered from 0, in stored order.

    By default a sample may lack modalities, but not every one; with `aligned` it has each modality. Every view (crop)
    is a sample, unless `uncropped` keeps only the views of whole values. `names` are the modalities to read, by default
    all of `specs`; samples lack the others. A number per block of samples is kept in memory.

    Raises DataError where a modality has no tokens, is unfinished, or does not fit its spec.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        specs: Sequence[ModalitySpec],
        *,
        aligned: bool = False,
        uncropped: bool = False,
        names: Collection[str] | None = None,
    ) -> None:
        store = TokenStore(root)
        self._arguments = root, split, specs, aligned, uncropped, names
        self.specs = tuple(specs)
        read = [spec for spec in specs if names is None or spec.name in names]
        self.columns: dict[str, TokenColumn] = {spec.name: store.open(split, spec.name) for spec in read}
        for spec in read:
            _check_fits(self.columns[spec.name], spec)
        check_same_keys(self.columns.values())
        self.split = store.split(split)
        self._combine = np.logical_and if aligned else np.logical_or
        self._views = 1 if uncropped else self.split.crops
        complete = [column.is_complete for column in self.columns.values()]
        self._is_complete = all(complete) if aligned else any(complete)
        self._usable_in = lru_cache(OPEN_SHARDS)(self._usable_samples)
        self.starts = np.concatenate([[0], np.cumsum(self._block_counts() * self._views)])
        """The first sample of each block, and the number of all samples."""
        if not len(self):
            reason = "no sample has all of" if aligned else "there are no samples of"
            raise DataError(f"{root / split}: {reason} {', '.join(self.columns)}; tokenize the same data")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes open the store again."""
        return _opened, self._arguments

    def _usable_samples(self, shard: int) -> npt.NDArray[np.bool_]:
        """Return whether each sample of a shard counts."""
        return self._combine.reduce([column.present_in(shard) for column in self.columns.values()])

    def _block_counts(self) -> npt.NDArray[np.int64]:
        """Return how many samples of each block of BLOCK_SAMPLES count."""
        if not self.columns:
            return np.zeros(0, np.int64)
        shard_size, firsts = self.split.shard_size, np.arange(0, self.split.shard_size, BLOCK_SAMPLES)
        if self._is_complete:
            sizes = np.minimum(BLOCK_SAMPLES, shard_size - firsts)
            samples = np.arange(self.split.shards)[:, None] * shard_size + firsts
            return np.clip(self.split.samples - samples, 0, sizes).ravel()
        counts = np.zeros((self.split.shards, len(firsts)), np.int64)
        for shard in range(self.split.shards):
            usable = self._usable_in(shard)
            shard_firsts = firsts[firsts < len(usable)]
            counts[shard, : len(shard_firsts)] = np.add.reduceat(usable, shard_firsts, dtype=np.int64)
        return counts.ravel()

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of the tokenizer that wrote the tokens, by modality."""
        return {name: column.fingerprint for name, column in self.columns.items()}

    def contents(self) -> str:
        """Return the sha256 (hex) of all keys and tokens, from the manifests."""
        return samples_digest(self.columns)

    def rows(self, samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the stored rows of the samples numbered `samples`; the same in every column."""
        numbers = np.asarray(samples, np.int64)
        blocks = np.searchsorted(self.starts, numbers, side="right") - 1
        samples_in_block, views = np.divmod(numbers - self.starts[blocks], self._views)
        shards, blocks = np.divmod(blocks, -(-self.split.shard_size // BLOCK_SAMPLES))
        if self._is_complete:
            samples_in_shard = blocks * BLOCK_SAMPLES + samples_in_block
        else:
            samples_in_shard = np.empty_like(numbers)
            for shard, block in np.unique(np.stack([shards, blocks]), axis=1).T.tolist():
                in_block, first = (shards == shard) & (blocks == block), block * BLOCK_SAMPLES
                usable = np.flatnonzero(self._usable_in(shard)[first : first + BLOCK_SAMPLES])
                samples_in_shard[in_block] = first + usable[samples_in_block[in_block]]
        return (shards * self.split.shard_size + samples_in_shard) * self.split.crops + views

    def present(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return whether each row has tokens of each modality of `specs`, bool `(rows, modalities)`."""
        present = np.zeros((len(rows), len(self.specs)), bool)
        for number, spec in enumerate(self.specs):
            if spec.name in self.columns:
                present[:, number] = self.columns[spec.name].present(rows)
        return present

    def sample_keys(self) -> list[str]:
        """Return the key of every sample; views of one sample have the same key."""
        column = next(iter(self.columns.values()))
        return [
            keys[number]
            for shard in range(self.split.shards)
            for keys in [column.keys(shard)]
            for number in np.flatnonzero(self._usable_in(shard)).tolist()
            for _ in range(self._views)
        ]

    def batch(self, samples: npt.NDArray[np.int64]) -> RawBatch:
        """Return all tokens of the samples numbered `samples`."""
        rows = self.rows(samples)
        present = self.present(rows)
        lengths = np.zeros(present.shape, np.int64)
        tokens: dict[str, npt.NDArray[Any]] = {}
        for number, spec in enumerate(self.specs):
            indices = np.flatnonzero(present[:, number])
            values = self.columns[spec.name].take(rows[indices]) if len(indices) else np.zeros(0, np.int64)
            tokens[spec.name], lengths[:, number] = spec.layout.padded(values, indices, len(rows))
        return RawBatch(tokens=tokens, lengths=lengths, present=present)

    def batches(self, samples: npt.NDArray[np.int64], size: int, masker: Masker, seed: int) -> Iterator[PackedBatch]:
        """Yield the samples numbered `samples` in masked batches of `size` samples."""
        for step, first in enumerate(range(0, len(samples), size)):
            yield masker(self.batch(samples[first : first + size]), seed, step).trimmed()


def _opened(
    root: Path, split: str, specs: Sequence[ModalitySpec], aligned: bool, uncropped: bool, names: Collection[str] | None
) -> TokenData:
    return TokenData(root, split, specs, aligned=aligned, uncropped=uncropped, names=names)


def stored_samples(
    tokens: Path,
    split: str,
    specs: Sequence[ModalitySpec],
    trained_on: Mapping[str, str],
    zoo: Zoo,
    owner: str,
    *,
    aligned: bool = False,
) -> TokenData:
    """Return the stored samples of a split, seen whole, for a model that was trained with the tokenizers `trained_on`.

    `aligned` keeps samples that have every modality; `owner` is the model's name in messages. Raises DataError where
    another tokenizer wrote the tokens.
    """
    data = TokenData(tokens, split, specs, aligned=aligned, uncropped=True)
    for name, column in data.columns.items():
        check_stored(column, trained_on.get(name), zoo, owner)
    return data


def _check_fits(column: TokenColumn, spec: ModalitySpec) -> None:
    """Raise DataError where stored tokens do not fit `spec`."""
    stored_layout, layout = column.metadata.layout, spec.layout
    if not stored_layout.same_tokens(layout) or column.summary.longest > layout.length:
        raise OtherLayoutError.of(column.folder, spec.name, stored_layout, layout, "tokenize again")
    if (vocabulary := column.metadata.vocabulary) != spec.vocabulary:
        reason = f"ids of vocabulary {vocabulary!r}, expected {spec.vocabulary!r}"
        raise DataError(f"{column.folder}: {reason}; tokenize again")
    if (id_count := column.summary.needed_vocab_size) > spec.vocab_size and not spec.continuous:
        has = f"vocabulary {spec.vocabulary!r} has {spec.vocab_size}"
        raise DataError(f"{column.folder}: holds ids up to {id_count - 1}, and {has}; tokenize again")


# ---------------------------------------------------------------------- several stores


Slots = npt.NDArray[np.int64]
"""Numbers of samples in a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One split of one store, and its settings."""

    data: TokenData
    dataset: TrainingStore


def datasets_of(tokens: Path, config: TrainConfig) -> tuple[TrainingStore, ...]:
    """Return all stores of a run, its own first."""
    return TrainingStore(tokens=tokens), *config.datasets


def names_in(datasets: Sequence[TrainingStore]) -> list[str]:
    """Return the modalities of all training splits, each once."""
    return list(dict.fromkeys(name for dataset in datasets for name in _names_read(dataset)))


def check_tokenizers(datasets: Sequence[TrainingStore], handles: Iterable[ModalityHandle]) -> None:
    """Raise DataError where another tokenizer than a handle's wrote a store, or no store has the modality."""
    for handle in handles:
        stores = [dataset for dataset in datasets if handle.name in _names_read(dataset)]
        for dataset in stores or datasets[:1]:
            TokenStore(dataset.tokens).open(TRAIN, handle.name).check_tokenizer(handle)


def open_sources(
    tokens: Path,
    split: str,
    specs: Sequence[ModalitySpec],
    config: TrainConfig,
    optional_names: Collection[str] = (),
    layout: EmbeddingLayout | None = None,
) -> list[Source]:
    """Open a split of all stores of a run; stores without held-out samples are left out of the test split.

    `layout` says which modalities may be inputs and targets, by default all of `specs`. The modalities `optional_names`
    may lack tokens, because the backbone that training starts from knows them. Raises DataError where another modality
    has no tokens, or a dataset lacks a modality that it names; UnknownNameError where it names a modality that the run
    lacks; ConfigError for a store without inputs or targets for the run, or without a modality that the others have.
    """
    sources: list[Source] = []
    run_names = [spec.name for spec in specs]
    for dataset in datasets_of(tokens, config):
        store, folder = TokenStore(dataset.tokens), dataset.tokens / split
        if split != TRAIN and split not in store.splits():
            continue
        available = ", ".join(store.modalities(split))
        # A single store has all modalities, or reports the missing ones.
        is_only_store = split == TRAIN and not config.datasets and not optional_names
        names_read = run_names if is_only_store else _names_read(dataset, split)
        names = [name for name in run_names if name in names_read]
        for name in dataset.modalities:
            if name not in run_names:
                raise UnknownNameError.of(f"modality of this run, in datasets, {dataset.tokens}:", name, run_names)
            if split == TRAIN and name not in names:
                raise DataError(f"datasets: {folder}: has no tokens of {name}; it has {available}; tokenize it too")
        if names:
            sources.append(Source(data=TokenData(dataset.tokens, split, specs, names=names), dataset=dataset))
        elif split == TRAIN:
            raise ConfigError(f"{folder}: has {available}, and the run {', '.join(run_names)}: nothing to train on")
    if split == TRAIN:
        if len(sources) > 1:
            _check_connected(sources, config, layout or EmbeddingLayout(specs))
        names_with_tokens = {name for source in sources for name in source.data.columns}
        if missing := [name for name in run_names if name not in names_with_tokens | set(optional_names)]:
            raise DataError(f"{tokens / TRAIN}: no tokens of {missing[0]}, nor in another dataset; tokenize it too")
    return sources


def _names_read(dataset: TrainingStore, split: str = TRAIN) -> list[str]:
    """Return the modalities of a split that a dataset is read for."""
    names = TokenStore(dataset.tokens).modalities(split)
    return [name for name in names if not dataset.modalities or name in dataset.modalities]


def _check_connected(sources: Sequence[Source], config: TrainConfig, layout: EmbeddingLayout) -> None:
    """Raise ConfigError for a store that shares no modality with the others, or has no targets or inputs in its
    mixtures."""
    for source in (*sources[1:], sources[0]):
        columns = source.data.columns
        prefix = f"datasets: {source.dataset.tokens} has {', '.join(columns)}"
        other_names = {name for peer in sources if peer is not source for name in peer.data.columns}
        if not other_names & columns.keys():
            raise ConfigError(f"{prefix}, and the others have {', '.join(sorted(other_names))}: no modality is shared")
        if side := Masker(layout, masking_of(source, config)).missing_side(columns):
            advice = "give it mixtures of its own, or leave it out"
            raise ConfigError(f"{prefix}, and none of them are {side} in its mixtures: {advice}")


def fingerprints_of(sources: Sequence[Source]) -> dict[str, str]:
    """Return the tokenizer's fingerprint by modality. Raises DataError where two stores have different ones."""
    fingerprints: dict[str, str] = {}
    for source in sources:
        for name, fingerprint in source.data.fingerprints.items():
            if (first := fingerprints.setdefault(name, fingerprint)) != fingerprint:
                owner, remedy = "another store of this run", "tokenize both with one tokenizer"
                raise OtherTokenizerError.of(source.dataset.tokens, name, fingerprint, first, owner, remedy)
    return fingerprints


class Mix:
    """Training batches: each contains samples of the first store, then of the second, and so on.

    The numbers of samples depend only on the weights, so any step can be computed without the previous steps.
    """

    def __init__(self, sources: Sequence[Source], layout: EmbeddingLayout, config: TrainConfig) -> None:
        self.sources = tuple(sources)
        self.seed, self.lanes = config.seed, config.lanes
        weights = [source.dataset.weight for source in sources]
        self._shares = [weight / sum(weights[i:]) for i, weight in enumerate(weights)]
        self.maskers = [Masker(layout, masking_of(source, config)) for source in sources]
        window = config.window_blocks * BLOCK_SAMPLES
        self.orders = [
            SampleOrder(source.data.starts, config.lanes, window, config.seed, number)
            for number, source in enumerate(sources)
        ]

    def sample_counts(self, samples: int) -> list[int]:
        """Return how many of the first `samples` samples come from each store; the numbers never decrease as `samples`
        grows."""
        counts = []
        for share in self._shares[:-1]:
            counts.append(math.floor(samples * share))
            samples -= counts[-1]
        return [*counts, samples]

    def parts(self, step: int, size: int, reader: int = 0, readers: int = 1) -> list[tuple[Slots, PackedBatch]]:
        """Return the share of one of `readers` readers in the batch of `size` samples of a step: every `readers`-th
        lane of each store. Raises DataError for a damaged block."""
        parts, start = [], 0
        counts = zip(self.sample_counts(step * size), self.sample_counts((step + 1) * size), strict=True)
        for source, masker, order, (before, after) in zip(self.sources, self.maskers, self.orders, counts, strict=True):
            positions = np.arange(before, after)
            positions = positions[positions % self.lanes % readers == reader]
            if len(positions):
                slots = start + positions - before
                parts.append((slots, masker(source.data.batch(order.samples(positions)), self.seed, step, slots)))
            start += after - before
        return parts

    def joined(self, parts: Sequence[tuple[Slots, PackedBatch]], step: int, size: int) -> PackedBatch:
        """Return the samples of some readers, in the order of their slots."""
        if not parts:  # every process needs a sample: of this one, nothing is predicted
            sample, *_ = self.joined(self.parts(step, size), step, size).split(size)
            targets = dataclasses.replace(sample.targets, mask=torch.zeros_like(sample.targets.mask))
            return dataclasses.replace(sample, targets=targets)
        slots, packed = zip(*parts, strict=True)
        order, batch = np.argsort(np.concatenate(slots)), PackedBatch.join(packed)
        return batch if (np.diff(order) == 1).all() else batch.take(torch.from_numpy(order))

    def batch(self, step: int, size: int, rank: int = 0, ranks: int = 1) -> PackedBatch:
        """Return the part of process `rank` of the batch of `size` samples of a step."""
        return self.joined(self.parts(step, size, rank, ranks), step, size)


def masking_of(source: Source, config: TrainConfig) -> MaskingConfig:
    """Return the masking settings of a store's samples."""
    if not source.dataset.mixtures:
        return config.masking
    return dataclasses.replace(config.masking, mixtures=source.dataset.mixtures)
