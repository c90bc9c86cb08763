"""Data of an evaluation: held-out tokens and values, the constant baseline, and pairs of inputs and target."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.contract.intervals import bootstrap
from tokenizers_zoo.contract.registry import ModalityHandle, Zoo
from tokenizers_zoo.contract.samples import TEST, TRAIN
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError, DataError, ReadError, ZooError
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenColumn, TokenStore, samples_digest
from tokenizers_zoo.train.batches import permuted
from zoo_backbone.measure.evaluation import EvaluationIdentity, Measured, Pair
from zoo_backbone.model.config import EvaluationConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import check_stored

CACHED = 4
"""Sets of samples, and of their true values, that are kept in memory."""


class EvaluationData:
    """Test tokens and test values of a backbone's modalities. Samples are numbers in the token store.

    `handles` and `columns` hold the usable modalities, in the backbone's order; `skipped` says why others are not.
    `tokens_of` are those with test tokens of the training's tokenizer, with or without values. `unreadable` holds the
    reasons of unreadable values by `test/NAME` and key. Raises DataError without training values.
    """

    def __init__(
        self, model: FourM, zoo: Zoo, tokens: Path, values: Path, config: EvaluationConfig, device: str = "cpu"
    ) -> None:
        self.model, self.zoo, self.tokens_root, self.config = model, zoo, tokens, config
        self.values = ValueStore(values)
        self.handles: dict[str, ModalityHandle] = {}
        self.columns: dict[str, TokenColumn] = {}
        self.skipped: dict[str, str] = {}
        self.tokens_of: list[str] = []
        self.unreadable: dict[str, dict[str, str]] = {}
        store = TokenStore(tokens)
        store.check_same_samples(self.values, TEST)
        self.split = store.split(TEST)
        for name in model.layout.names:
            try:
                column = store.open(TEST, name)
                check_stored(column, model.trained_on.get(name), zoo, "the model")
                self.tokens_of.append(name)
                handle = zoo[name]
                model.check_tokenizer(handle)
                column.check_tokenizer(handle)
                self.values.folder(TEST, name)
            except ReadError:
                raise  # an error of the disk, not of the modality
            except ZooError as error:
                self.skipped[name] = str(error)
            else:
                self.handles[name], self.columns[name] = handle, column
                handle.device = device
        if TRAIN not in self.values.splits():
            raise DataError(f"{values}: no split {TRAIN!r}, which the constant baseline is fitted to")
        self.samples = lru_cache(CACHED)(self._samples)
        self.truth = lru_cache(CACHED)(lambda name, samples: list(self._read(name, TEST, map(self._position, samples))))
        self.constant = cache(self._constant)
        self.bounds = cache(self._bounds)
        self._rows = cache(lambda name: self.values.rows(TEST, [name]))
        self._readable = cache(lambda name, position: any(True for _ in self._read(name, TEST, [position])))

    def identity(self) -> EvaluationIdentity:
        """Return everything that the scores depend on."""
        available = {split: self.values.modalities(split) for split in (TEST, TRAIN)}
        # Pairs can be added, and scored again over another number of samples.
        settings = {**dataclasses.asdict(self.config), "inputs": None, "targets": None, "samples": None}
        return EvaluationIdentity(
            weights=self.model.weights_sha256,
            settings=settings,
            tokenizers={name: column.fingerprint for name, column in self.columns.items()},
            samples=samples_digest(self.columns),
            values={
                f"{split}/{name}": self.values.contents(split, name) if name in names else ""
                for split, names in available.items()
                for name in self.handles
            },
            decoders={name: _decoder_of(handle) for name, handle in self.handles.items()},
        )

    def pairs(self) -> list[Pair]:
        """Return the pairs to evaluate.

        Raises UnknownNameError, DataError or ConfigError for names that do not fit, and DataError without any pair.
        """
        layout, inputs, targets = self.model.layout, self.config.inputs, self.config.targets
        if inputs is not None:
            inputs = tuple(tuple(dict.fromkeys(map(layout.readable_as, names))) for names in inputs)
        named = [name for names in inputs or () for name in names]
        layout.check_inputs(named, "evaluate")
        layout.check_targets(targets or (), "evaluate")
        for name in (*named, *(targets or ())):
            if name not in self.handles:
                raise DataError(f"evaluate {name}: {self.skipped[name].removeprefix(f'{name}: ')}")
        specs = [handle.spec for handle in self.handles.values()]
        pairs = pairs_of(specs, layout, inputs, targets)
        if not pairs and not (inputs or targets) and self.skipped:
            raise DataError(f"no modality can be predicted from another one; {left_out_text(self.skipped)}")
        if not pairs and (inputs or targets):
            raise ConfigError("evaluate: every target is one of its inputs; expected another target")
        return pairs

    def _samples(self, names: tuple[str, ...], count: int) -> tuple[int, ...]:
        """Return up to `count` test samples with readable tokens and values of all `names`.

        All pairs take them from one random order, so that they use the same samples where possible. Raises DataError if
        there are none.
        """
        samples = tuple(islice(self._candidates(names), count))
        if not samples:
            raise DataError(f"{self.values.root / TEST}: no sample has values and tokens of {', '.join(names)}")
        return samples

    def _candidates(self, names: Sequence[str]) -> Iterator[int]:
        numbers = permuted(np.arange(self.split.samples), self.split.samples, self.config.seed)
        for name in names:
            numbers = numbers[self.columns[name].present(numbers * self.split.crops)]
        for number in numbers.tolist():
            position = self._position(number)
            if position and all(position in self._rows(name) and self._readable(name, position) for name in names):
                yield number

    def _position(self, sample: int) -> tuple[int, int] | None:
        """Return shard and row of a token store's test sample among the values, or None."""
        return self.split.locate_in(self.values.split(TEST), sample)

    def _read(self, name: str, split: str, positions: Iterable[tuple[int, int] | None]) -> Iterator[Any]:
        """Yield the readable values; the reasons of the others go to `unreadable`.

        Raises ReadError or MachineError for errors of the disk or the machine.
        """
        for position in positions:
            assert position is not None
            try:
                value = self.values.read(self.handles[name], split, *position)
            except ReadError:
                raise
            except ZooError as error:
                shard, row = position
                key = self.values.split(split).keys(shard)[row]
                self.unreadable.setdefault(f"{split}/{name}", {})[key] = str(error)
            else:
                yield value

    def tokens(self, name: str, samples: Sequence[int]) -> Any:
        return self.columns[name].take(np.array(samples, np.int64) * self.split.crops)

    def _constant(self, name: str) -> Any:
        """Return the best constant prediction for training values. Raises DataError for none."""
        rows = self.values.rows(TRAIN, [name])
        order = permuted(np.arange(len(rows)), len(rows), self.config.seed).tolist()
        values = list(islice(self._read(name, TRAIN, map(rows.__getitem__, order)), self.config.baseline_samples))
        if not values:
            key, reason = next(iter(self.unreadable.get(f"{TRAIN}/{name}", {}).items()), ("no key", "it is empty"))
            folder = self.values.folder(TRAIN, name)
            raise DataError(f"{folder}: none of {len(rows)} values can be read; {key}: {reason}")
        return self.handles[name].constant_baseline(values)

    def _bounds(self, name: str, samples: tuple[int, ...]) -> tuple[Measured, Measured]:
        """Return the scores of the constant baseline and of the tokenizer's reconstruction."""
        baseline = self.score(name, [self.constant(name)] * len(samples), samples)
        return baseline, self.score(name, list(self.decoded(name, self.tokens(name, samples))), samples)

    def decoded(self, name: str, tokens: Any) -> Iterator[Any]:
        """Yield the values of tokens; a batch of samples is decoded at a time."""
        size = self.config.batch_size
        for start in range(0, len(tokens), size):
            yield from self.handles[name].decode(tokens[start : start + size], trusted=True)

    def score(self, name: str, predicted: Sequence[Any], samples: tuple[int, ...]) -> Measured:
        """Return the modality's metrics of predictions for test samples."""
        handle, truth = self.handles[name], self.truth(name, samples)
        main = handle.spec.metrics[0].name

        def main_score(indices: Sequence[int]) -> float:
            return handle.score([predicted[index] for index in indices], [truth[index] for index in indices])[main]

        def finite(number: float) -> float | None:
            return number if math.isfinite(number) else None

        scores = {metric: finite(number) for metric, number in handle.score(predicted, truth).items()}
        return Measured(scores, list(map(finite, bootstrap(main_score, len(samples), self.config.seed))))


def _decoder_of(handle: ModalityHandle) -> str:
    """Return the sha256 (hex) of a tokenizer and its settings; of a shared vocabulary, which may grow, its settings."""
    tokenizer = "" if handle.spec.shares_checkpoint else handle.fingerprint
    return hashlib.sha256(repr((tokenizer, handle.known_settings())).encode()).hexdigest()


def left_out_text(reasons: Mapping[str, str]) -> str:
    """Return a line with all modalities that were left out, and the reason of the first."""
    name, reason = next(iter(reasons.items()))
    return f"not evaluated: {', '.join(reasons)}; first: {name}: {reason.removeprefix(f'{name}: ')}"


# --- pairs of inputs and target


def title_of(pair: Pair) -> str:
    """ "a + b to c"."""
    return f"{' + '.join(pair[0])} to {pair[1]}"


def ranked_names(specs: Sequence[ModalitySpec]) -> list[str]:
    """Sort names by how well they show a sample: pictures first, then modalities with derived ones."""

    def rank(spec: ModalitySpec) -> tuple[bool, bool, int, str]:
        children = sum(spec.name in candidate.derived_from for candidate in specs)
        return len(spec.grid_shape) != 2, bool(spec.derived_from), -children, spec.name

    return [spec.name for spec in sorted(specs, key=rank)]


def pairs_of(
    specs: Sequence[ModalitySpec],
    layout: EmbeddingLayout,
    inputs: Sequence[Sequence[str]] | None = None,
    targets: Sequence[str] | None = None,
) -> list[Pair]:
    """Return all pairs of `inputs` and `targets`.

    Defaults: each modality that the model can read, and all modalities that it can predict. Without either,
    pairs from the first-ranked modality come first, then pairs to the first-ranked target.
    """
    names = ranked_names(specs)
    sources = [(name,) for name in names if name in layout.readable] if inputs is None else inputs
    target_names = [name for name in names if name in layout.discrete] if targets is None else targets
    pairs = dict.fromkeys((tuple(names), target) for names in sources for target in target_names if target not in names)
    if inputs is not None or targets is not None:
        return list(pairs)
    return sorted(pairs, key=lambda pair: (pair[0] != sources[0], pair[1] != target_names[0]))
