"""Held-out tokens and values, the constant baseline, and the tokenizer's reconstruction."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.data.provenance import samples_identity
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.shards import Place, ValueStore
from tokenizers_zoo.data.tokens import TokenColumn, TokenStore, whole_samples
from tokenizers_zoo.errors import DataError, ReadError, ZooError
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.spec import ModalitySpec
from tokenizers_zoo.train.permutation import permuted
from zoo_backbone.codecs import check_codec

HELD = 4
"""Questions whose true values are held at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """True values of some samples, with the scores of the constant baseline and of the tokenizer's reconstruction."""

    truth: list[Any]
    baseline: dict[str, float | None]
    reconstruction: dict[str, float | None]


class EvaluationData:
    """The modalities of a backbone that can be evaluated: their handles, test tokens and test values.

    `handles` holds the usable ones in the backbone's order, `problems` why the others are not. `tokens_of` are those
    whose test tokens are of the codec of the training, with or without values. `unreadable` says by split and modality,
    as `test/NAME`, which values were asked for and cannot be read, each with the reason. `specs` are the modalities as
    the backbone knows them: one whose tokens have another shape by now is not usable.
    """

    def __init__(
        self,
        zoo: Zoo,
        names: Sequence[str],
        fingerprints: Mapping[str, str],
        tokens: Path,
        values: Path,
        seed: int,
        specs: Iterable[ModalitySpec] = (),
    ) -> None:
        self.values = ValueStore(values)
        self.seed = seed
        self.handles: dict[str, ModalityHandle] = {}
        self.columns: dict[str, TokenColumn] = {}
        self.problems: dict[str, str] = {}
        self.tokens_of: list[str] = []
        self.unreadable: dict[str, dict[str, str]] = {}
        known = {spec.name: spec for spec in specs}
        store = TokenStore(tokens)
        store.check_same_samples(self.values.root, TEST, samples_identity(self.values.root, TEST))
        for name in names:
            try:
                column = store.open(TEST, name)
                if _of_training(zoo, name, column, fingerprints.get(name)):
                    self.tokens_of.append(name)
                handle = zoo[name]
                check_codec(handle, fingerprints.get(name), known.get(name))
                column.check_tokenizer(handle)
                self.values.folder(TEST, name)
            except ReadError:
                raise  # the disk or the system is to blame, not the modality
            except ZooError as error:
                self.problems[name] = str(error)
            else:
                self.handles[name], self.columns[name] = handle, column
        self._keys: dict[tuple[str, ...], tuple[int, list[str]]] = {}
        """By modalities: up to how many keys were asked for, and those found."""
        self._truths: dict[tuple[str, ...], list[Any]] = {}
        """By target and keys, those of the latest questions."""
        self._bounds: dict[tuple[str, ...], tuple[dict[str, float | None], dict[str, float | None]]] = {}
        """Scores of baseline and reconstruction by target and keys."""
        self._constants: dict[str, Any] = {}
        self._row_of: dict[str, dict[str, int]] = {}
        self._read: dict[tuple[str, str], bool] = {}

    def require(self, names: Sequence[str]) -> None:
        """Raise DataError for the first of `names` that cannot be evaluated."""
        for name in names:
            if name not in self.handles:
                raise DataError(f"evaluate {name}: {self.problems[name].removeprefix(f'{name}: ')}")

    def keys(self, names: Sequence[str], count: int) -> list[str]:
        """Up to `count` test samples that have tokens and values of all `names`; one that cannot be read is none.

        The order is that of a hash of seed and key, so that questions about different modalities are asked about the
        same samples wherever they have them. Raises DataError where there are none.
        """
        asked, sound = self._keys.get(tuple(names), (0, []))
        if count > asked:
            sound = self._first_keys(names, count)
            self._keys[tuple(names)] = count, sound
        if not sound:
            raise DataError(f"{self.values.root / TEST}: no sample has values and tokens of {', '.join(names)}")
        return sound[:count]

    def _first_keys(self, names: Sequence[str], count: int) -> list[str]:
        known = self.values.keys(TEST, *names)
        found = [key for key in known if all(key in self._rows(name) for name in names)]
        ordered = sorted(found, key=self._order)
        return list(islice((key for key in ordered if all(self._reads(name, key) for name in names)), count))

    def _order(self, key: str) -> bytes:
        return hashlib.sha256(f"{self.seed}:{key}".encode()).digest()

    def _reads(self, name: str, key: str) -> bool:
        """Whether a test value can be read."""
        if (name, key) not in self._read:
            self._read[name, key] = any(True for _ in self._readable(name, TEST, [self.values.find(TEST, key)]))
        return self._read[name, key]

    def _readable(self, name: str, split: str, places: Iterable[Place]) -> Iterator[Any]:
        """The values of these keys, one after the other, but for those that cannot be read: `unreadable` has these.

        Raises ReadError or MachineError where the disk or the machine is to blame, not the value.
        """
        for place in places:
            try:
                value = self.values.read(self.handles[name], split, *place)
            except ReadError:
                raise
            except ZooError as error:
                key = self.values.split(split).keys(place.shard)[place.row]
                self.unreadable.setdefault(f"{split}/{name}", {})[key] = str(error)
            else:
                yield value

    def tokens(self, name: str, keys: Sequence[str]) -> Any:
        """Test tokens, as the codec gives them."""
        rows = self._rows(name)
        return self.columns[name].take([rows[key] for key in keys])

    def _rows(self, name: str) -> dict[str, int]:
        """Map the key of each test sample that has tokens of a modality to its row."""
        if name not in self._row_of:
            self._row_of[name] = dict(whole_samples([self.columns[name]]))
        return self._row_of[name]

    def truth(self, name: str, keys: Sequence[str]) -> list[Any]:
        """Test values."""
        return [self.values.read_key(self.handles[name], TEST, key) for key in keys]

    def constant(self, name: str, count: int) -> Any:
        """Return the best constant prediction for up to `count` training values. Raises DataError for none."""
        if name not in self._constants:
            rows = self.values.rows(TRAIN, [name])
            order = permuted(np.arange(len(rows)), len(rows), self.seed)
            values = list(islice(self._readable(name, TRAIN, (rows[number] for number in order.tolist())), count))
            if not values:
                key, reason = next(iter(self.unreadable.get(f"{TRAIN}/{name}", {}).items()), ("no key", "it is empty"))
                where = self.values.folder(TRAIN, name)
                raise DataError(f"{where}: none of {len(rows)} values can be read; {key}: {reason}")
            self._constants[name] = self.handles[name].constant_baseline(values)
        return self._constants[name]

    def reference(self, name: str, keys: Sequence[str], baseline_samples: int, batch_size: int) -> Reference:
        """What predictions of `name` for the samples `keys` are compared to."""
        question, truth = (name, *keys), self._held_truth(name, keys)
        if question not in self._bounds:
            constant = self.constant(name, baseline_samples)
            rebuilt = list(self.decoded(name, self.tokens(name, keys), batch_size))
            baseline = self.score(name, [constant] * len(truth), truth)
            self._bounds[question] = baseline, self.score(name, rebuilt, truth)
        baseline, reconstruction = self._bounds[question]
        return Reference(truth=truth, baseline=baseline, reconstruction=reconstruction)

    def _held_truth(self, name: str, keys: Sequence[str]) -> list[Any]:
        """Test values; those of the latest questions are not read again."""
        question = (name, *keys)
        truth = self._truths.pop(question, None) or self.truth(name, keys)
        self._truths[question] = truth
        if len(self._truths) > HELD:
            del self._truths[next(iter(self._truths))]  # the one that was asked for least lately
        return truth

    def decoded(self, name: str, tokens: Any, batch_size: int) -> Iterator[Any]:
        """Values of any number of tokens, one after the other; `batch_size` samples are decoded at a time."""
        for start in range(0, len(tokens), batch_size):
            yield from self.handles[name].decode(tokens[start : start + batch_size])

    def combined(self, name: str, draws: Iterable[Any], count: int) -> list[Any]:
        """Return the best single value for each sample's `count` draws, which are consecutive in `draws`."""
        if count == 1:
            return list(draws)
        best, following = self.handles[name].constant_baseline, iter(draws)
        return [best(list(of_sample)) for of_sample in zip(*count * [following], strict=True)]

    def score(self, name: str, predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float | None]:
        """The modality's metrics; None where one is not a finite number."""
        scores = self.handles[name].score(predicted, truth)
        return {metric: number if math.isfinite(number) else None for metric, number in scores.items()}


def _of_training(zoo: Zoo, name: str, column: TokenColumn, trained_on: str | None) -> bool:
    """Whether tokens mean to the model what they meant in its training, be there a tokenizer that decodes them or not.

    A vocabulary that has grown since speaks of the same ids.
    """
    if trained_on in (None, column.fingerprint):
        return True
    try:
        column.check_tokenizer(zoo[name])
        check_codec(zoo[name], trained_on)
    except ZooError:
        return False
    return True


def left_out_text(problems: Mapping[str, str]) -> str:
    """What could not be evaluated, in a line: all of it, and the reason of the first."""
    name, reason = next(iter(problems.items()))
    return f"not evaluated: {', '.join(problems)}; first: {name}: {reason.removeprefix(f'{name}: ')}"


def skill_score(
    score: float | None, baseline: float | None, reconstruction: float | None, higher_is_better: bool
) -> float | None:
    """Return (score - baseline) / (reconstruction - baseline): 0 is the constant baseline, 1 the reconstruction.

    None if a score is missing, or the reconstruction is not better than the baseline.
    """
    if score is None or baseline is None or reconstruction is None:
        return None
    gain = reconstruction - baseline if higher_is_better else baseline - reconstruction
    if gain <= 1e-9 * max(abs(reconstruction), abs(baseline), 1e-300):
        return None
    return (score - baseline) / (reconstruction - baseline)
