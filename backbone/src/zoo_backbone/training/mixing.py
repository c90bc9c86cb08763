"""Several token stores in one training: what each is read for, and whose samples a step takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.data.samples import TRAIN
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError
from tokenizers_zoo.spec import ModalitySpec
from zoo_backbone.batch import PackedBatch
from zoo_backbone.config import Dataset, MaskingConfig, TrainConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.masking import Masker
from zoo_backbone.training.data import Order, TokenData

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One split of one store, and how it is used."""

    data: TokenData
    dataset: Dataset
    """The store's place in the settings; the run's own is the first, with weight 1."""
    number: int
    """0 for the run's own store, then in the order of the settings."""


def datasets_of(tokens: Path, config: TrainConfig) -> tuple[Dataset, ...]:
    """All stores of a run: its own first."""
    return Dataset(tokens=tokens), *config.datasets


def names_in(datasets: Sequence[Dataset]) -> list[str]:
    """The modalities that the training splits have between them, in the order in which they are met.

    Raises DataError for a store that is not finished.
    """
    for dataset in datasets:
        TokenStore(dataset.tokens).check_whole(TRAIN, dataset.modalities or None)
    return list(dict.fromkeys(name for dataset in datasets for name in _read(dataset, TokenStore(dataset.tokens))))


def check_codecs(datasets: Sequence[Dataset], handles: Iterable[ModalityHandle]) -> None:
    """Raise DataError where a store has not been written by a handle's tokenizer, or no store has the modality."""
    for handle in handles:
        having = [dataset for dataset in datasets if handle.name in _read(dataset, TokenStore(dataset.tokens))]
        for dataset in having or datasets[:1]:
            TokenStore(dataset.tokens).open(TRAIN, handle.name).check_codec(handle)


def open_sources(
    tokens: Path,
    split: str,
    specs: Sequence[ModalitySpec],
    config: TrainConfig,
    known: Collection[str] = (),
    layout: EmbeddingLayout | None = None,
) -> list[Source]:
    """A split of all stores of a run; held-out samples of those that have some.

    `tables` say what the backbone may be given and asked for; without, it is all that has tokens. `known` are
    modalities that may be without tokens, because the backbone that training starts from knows them. Raises
    DataError where any other modality has none to train on, or a dataset none of one that it names,
    UnknownNameError for one that it names and the run has not, and ConfigError for a store that has no modality of
    the run to train on, or shares none with the others, or has nothing of what its samples are asked for, or of
    what they are then given.
    """
    sources = []
    for number, dataset in enumerate(datasets_of(tokens, config)):
        store = TokenStore(dataset.tokens)
        if split not in store.splits():
            store.check_whole(split, [spec.name for spec in specs])
        if split != TRAIN and split not in store.splits():
            continue
        if split == TRAIN and not number and not config.datasets and not known:
            names = None  # the only store has all, or says which it lacks
        else:
            names = [spec.name for spec in specs if spec.name in _read(dataset, store, split)]
            _check_named(dataset, [spec.name for spec in specs], store, split)
            if split != TRAIN and not names:
                continue
            if not names:
                raise ConfigError(
                    f"{dataset.tokens / split}: has {', '.join(store.modalities(split))}, and the run asks it for "
                    f"{', '.join(dataset.modalities or [spec.name for spec in specs])}: nothing to train on; leave "
                    "that store out, or train with a modality that it has"
                )
        data = TokenData(dataset.tokens, split, specs, names=names)
        sources.append(Source(data=data, dataset=dataset, number=number))
    if split == TRAIN:
        _check_shared(sources)
        _check_asked(sources, config, layout or EmbeddingLayout(specs))
    found = {name for source in sources for name in source.data.columns}
    if split == TRAIN and (missing := [spec.name for spec in specs if spec.name not in found | set(known)]):
        raise DataError(f"{tokens / TRAIN}: no tokens of {missing[0]}, nor in another dataset; tokenize it too")
    return sources


def _read(dataset: Dataset, store: TokenStore, split: str = TRAIN) -> list[str]:
    """The modalities that a dataset is read for."""
    found = store.modalities(split)
    return [name for name in found if not dataset.modalities or name in dataset.modalities]


def _check_named(dataset: Dataset, names: Sequence[str], store: TokenStore, split: str) -> None:
    found = store.modalities(split) if split == TRAIN else dataset.modalities
    for name in dataset.modalities:
        if name not in names:
            raise UnknownNameError.of(f"modality of this run, in datasets, {dataset.tokens}:", name, names)
        if name not in found:
            raise DataError(
                f"datasets: {dataset.tokens / split}: has no tokens of {name}, which its modalities name; it has "
                f"{', '.join(found)}; tokenize it too, or leave that name out"
            )


def _check_shared(sources: Sequence[Source]) -> None:
    """Raise ConfigError for a store whose modalities no other one has: nothing would lead from one to the other."""
    for source in (*sources[1:], sources[0]) if len(sources) > 1 else ():
        others = {name for other in sources if other is not source for name in other.data.columns}
        if not others & set(source.data.columns):
            raise ConfigError(
                f"datasets: {source.dataset.tokens} has {', '.join(source.data.columns)}, and the others have "
                f"{', '.join(sorted(others))}: no modality is shared; train two backbones, or tokenize one modality in "
                "both"
            )


def _check_asked(sources: Sequence[Source], config: TrainConfig, layout: EmbeddingLayout) -> None:
    """Raise ConfigError for one of several stores that has nothing to predict, so that its samples teach nothing, or
    nothing to predict it from.
    """
    for source in sources if len(sources) > 1 else ():
        names = [spec.name for spec in source.data.specs]
        may_ask = [name for name in names if name in layout.discrete]
        may_give = [name for name in names if name in layout.readable]
        parts, has = masking_of(source, config).mixtures, set(source.data.columns)
        asked = [name for part in parts for name in part.target_names(may_ask)]
        given = [part.input_names(may_give) for part in parts if has & set(part.target_names(may_ask))]
        if set(asked) <= set(may_ask) and not set(asked) & has:  # the masker refuses other names
            raise ConfigError(
                f"datasets: {source.dataset.tokens} has {', '.join(source.data.columns)}, and its mixtures ask for "
                f"{', '.join(dict.fromkeys(asked))} alone: its samples would teach nothing; give it mixtures of "
                "its own that ask for what it has, or leave it out"
            )
        if given and set().union(*given) <= set(may_give) and not any(has & set(inputs) for inputs in given):
            raise ConfigError(
                f"datasets: {source.dataset.tokens} has {', '.join(source.data.columns)}, and for these its mixtures "
                f"give {', '.join(dict.fromkeys(name for inputs in given for name in inputs))} alone: its samples "
                "would be asked with nothing given; give it mixtures of its own that give what it has, or leave it out"
            )


def fingerprints_of(sources: Sequence[Source]) -> dict[str, str]:
    """By modality, the codec that wrote its tokens. Raises DataError where two stores are of different ones."""
    found: dict[str, str] = {}
    for source in sources:
        for name, codec in source.data.fingerprints.items():
            if found.setdefault(name, codec) != codec:
                raise DataError(
                    f"{source.dataset.tokens}: {name} was written by codec {codec[:12]}, and in another store of this "
                    f"run by {found[name][:12]}; tokenize both with one tokenizer"
                )
    return found


class Mix:
    """The batches of a training: a step's samples are those of the first store, then of the second, and so on.

    How many a step takes of each follows from the weights alone, so any step can be made without those before it.
    """

    def __init__(self, sources: Sequence[Source], layout: EmbeddingLayout, config: TrainConfig) -> None:
        self.sources = tuple(sources)
        self.seed = config.seed
        weights = [source.dataset.weight for source in sources]
        self._shares = [weight / sum(weights[i:]) for i, weight in enumerate(weights)]
        self.orders = [Order(len(source.data), config.seed, source.number) for source in sources]
        self.maskers = [Masker(layout, masking_of(source, config)) for source in sources]

    def taken(self, samples: int) -> list[int]:
        """How many of the first `samples` samples are of each store; none ever goes down as `samples` goes up."""
        counts = []
        for share in self._shares[:-1]:
            counts.append(math.floor(samples * share))
            samples -= counts[-1]
        return [*counts, samples]

    def batch(self, step: int, size: int, first: int, count: int) -> PackedBatch:
        """The slots `first` to `first + count - 1` of the batch of `size` samples of a step."""
        packed, start = [], 0
        counts = zip(self.taken(step * size), self.taken((step + 1) * size), strict=True)
        for source, order, masker, (before, after) in zip(self.sources, self.orders, self.maskers, counts, strict=True):
            low, high = max(first, start), min(first + count, start + after - before)
            if low < high:
                samples = order.between(before + low - start, before + high - start)
                packed.append(masker(source.data.batch(samples), self.seed, step, low))
            start += after - before
        return PackedBatch.join(packed)


def masking_of(source: Source, config: TrainConfig) -> MaskingConfig:
    """How a store's samples are masked."""
    if not source.dataset.mixtures:
        return config.masking
    return dataclasses.replace(config.masking, mixtures=source.dataset.mixtures)
