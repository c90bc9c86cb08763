"""Data of an evaluation: held-out tokens and values, the constant baseline, and pairs of inputs and target."""

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
from tokenizers_zoo.errors import ConfigError, DataError, ReadError, ZooError
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.spec import ModalitySpec
from tokenizers_zoo.train.batches import permuted
from zoo_backbone.checkpoint import architecture_for
from zoo_backbone.codecs import check_codec
from zoo_backbone.config import ModelConfig
from zoo_backbone.model import FourM

HELD = 4
"""Sets of true values that are kept in memory."""
Pair = tuple[tuple[str, ...], str]
"""Input modalities and a target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """True values of some samples, with the scores of the constant baseline and of the tokenizer's reconstruction."""

    truth: list[Any]
    baseline: dict[str, float | None]
    reconstruction: dict[str, float | None]


class EvaluationData:
    """Test tokens and test values of the modalities of a backbone.

    `handles` and `columns` hold the usable modalities, in the backbone's order; `problems` says why others are not.
    `tokens_of` are those with test tokens of the training's tokenizer, with or without values. `unreadable` holds the
    reasons of unreadable values by `test/NAME` and key. `specs` are the modalities as the backbone knows them.
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
                raise  # an error of the disk, not of the modality
            except ZooError as error:
                self.problems[name] = str(error)
            else:
                self.handles[name], self.columns[name] = handle, column
        self._keys: dict[tuple[str, ...], tuple[int, list[str]]] = {}
        """By modalities: how many keys were looked for, and the keys found."""
        self._truths: dict[tuple[str, ...], list[Any]] = {}
        """The latest true values, by target and keys."""
        self._bounds: dict[tuple[str, ...], tuple[dict[str, float | None], dict[str, float | None]]] = {}
        """Scores of baseline and reconstruction by target and keys."""
        self._constants: dict[str, Any] = {}
        self._row_of: dict[str, dict[str, int]] = {}
        self._read: dict[tuple[str, str], bool] = {}

    def contents(self, split: str, name: str) -> str:
        """Return a digest of the stored values; empty without any."""
        if split not in self.values.splits() or name not in self.values.modalities(split):
            return ""
        return self.values.contents(split, name)

    def require(self, names: Sequence[str]) -> None:
        """Raise DataError for the first of `names` that cannot be evaluated."""
        for name in names:
            if name not in self.handles:
                raise DataError(f"evaluate {name}: {self.problems[name].removeprefix(f'{name}: ')}")

    def keys(self, names: Sequence[str], count: int) -> list[str]:
        """Return the keys of up to `count` test samples with readable tokens and values of all `names`.

        They are ordered by a hash of seed and key, so that different pairs use the same samples where possible. Raises
        DataError if there are none.
        """
        looked_for, sound = self._keys.get(tuple(names), (0, []))
        if count > looked_for:
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
        """Return whether a test value is readable."""
        if (name, key) not in self._read:
            self._read[name, key] = any(True for _ in self._readable(name, TEST, [self.values.find(TEST, key)]))
        return self._read[name, key]

    def _readable(self, name: str, split: str, places: Iterable[Place]) -> Iterator[Any]:
        """Yield the readable values; the reasons of the others go to `unreadable`.

        Raises ReadError or MachineError for errors of the disk or the machine.
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
        """Return test tokens."""
        rows = self._rows(name)
        return self.columns[name].take([rows[key] for key in keys])

    def _rows(self, name: str) -> dict[str, int]:
        """Map the key of each test sample that has tokens of a modality to its row."""
        if name not in self._row_of:
            self._row_of[name] = dict(whole_samples([self.columns[name]]))
        return self._row_of[name]

    def truth(self, name: str, keys: Sequence[str]) -> list[Any]:
        """Return test values."""
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
        """Return the truth of the samples `keys`, with the scores of baseline and reconstruction."""
        wanted, truth = (name, *keys), self._held_truth(name, keys)
        if wanted not in self._bounds:
            constant = self.constant(name, baseline_samples)
            rebuilt = list(self.decoded(name, self.tokens(name, keys), batch_size))
            baseline = self.score(name, [constant] * len(truth), truth)
            self._bounds[wanted] = baseline, self.score(name, rebuilt, truth)
        baseline, reconstruction = self._bounds[wanted]
        return Reference(truth=truth, baseline=baseline, reconstruction=reconstruction)

    def _held_truth(self, name: str, keys: Sequence[str]) -> list[Any]:
        """Return test values, which are kept for a while."""
        wanted = (name, *keys)
        truth = self._truths.pop(wanted, None) or self.truth(name, keys)
        self._truths[wanted] = truth
        if len(self._truths) > HELD:
            del self._truths[next(iter(self._truths))]  # the least recently used
        return truth

    def decoded(self, name: str, tokens: Any, batch_size: int) -> Iterator[Any]:
        """Yield the values of tokens; `batch_size` samples are decoded at a time."""
        for start in range(0, len(tokens), batch_size):
            yield from self.handles[name].decode(tokens[start : start + batch_size], trusted=True)

    def combined(self, name: str, draws: Iterable[Any], count: int) -> list[Any]:
        """Return the best single value for each sample's `count` draws, which are consecutive in `draws`."""
        if count == 1:
            return list(draws)
        best, following = self.handles[name].constant_baseline, iter(draws)
        return [best(list(of_sample)) for of_sample in zip(*count * [following], strict=True)]

    def score(self, name: str, predicted: Sequence[Any], truth: Sequence[Any]) -> dict[str, float | None]:
        """Return the modality's metrics; None for a number that is not finite."""
        scores = self.handles[name].score(predicted, truth)
        return {metric: number if math.isfinite(number) else None for metric, number in scores.items()}


def _of_training(zoo: Zoo, name: str, column: TokenColumn, trained_on: str | None) -> bool:
    """Return whether the tokens are of the tokenizer of the training, or of a vocabulary that grew from it."""
    if trained_on in (None, column.fingerprint):
        return True
    try:
        column.check_tokenizer(zoo[name])
        check_codec(zoo[name], trained_on)
    except ZooError:
        return False
    return True


def left_out_text(problems: Mapping[str, str]) -> str:
    """Return a line with all modalities that were left out, and the reason of the first."""
    name, reason = next(iter(problems.items()))
    return f"not evaluated: {', '.join(problems)}; first: {name}: {reason.removeprefix(f'{name}: ')}"


# --- pairs of inputs and target


def pair_of(entry: dict[str, Any]) -> Pair:
    """Return the pair of an entry of evaluation.json."""
    return tuple(entry["inputs"]), entry["target"]


def title_of(pair: Pair) -> str:
    """ "a + b to c"."""
    return f"{' + '.join(pair[0])} to {pair[1]}"


def chosen_pairs(
    model: FourM, data: EvaluationData, inputs: Sequence[Sequence[str]] | None, targets: Sequence[str] | None
) -> list[Pair]:
    """Return the pairs to evaluate. Raises UnknownNameError, DataError or ConfigError for names that do not fit."""
    layout, named = model.layout, [name for names in inputs or () for name in names]
    for name in named:
        layout.check_read(name, "evaluate")
    for name in targets or ():
        layout.check_made(name, "evaluate")
    data.require([*named, *(targets or ())])
    specs = [handle.spec for handle in data.handles.values()]
    if inputs is None and targets is None:
        return default_pairs(specs, model.config)
    ranked = ranked_names(specs)
    read = [(name,) for name in ranked if name in layout.readable]
    sources = read if inputs is None else [tuple(dict.fromkeys(names)) for names in inputs]
    wanted = targets if targets is not None else [name for name in ranked if name in layout.discrete]
    pairs = [(names, target) for names in sources for target in wanted if target not in names]
    if not pairs:
        raise ConfigError("evaluate: every target is one of its inputs; expected another target")
    return list(dict.fromkeys(pairs))


def ranked_names(specs: Sequence[ModalitySpec]) -> list[str]:
    """Sort names by how well they show a sample: pictures first, then modalities with derived ones."""

    def rank(spec: ModalitySpec) -> tuple[bool, bool, int, str]:
        children = sum(spec.name in other.derived_from for other in specs)
        return len(spec.places) != 2, bool(spec.derived_from), -children, spec.name

    return [spec.name for spec in sorted(specs, key=rank)]


def default_pairs(specs: Sequence[ModalitySpec], config: ModelConfig | None = None) -> list[Pair]:
    """Return all pairs of single modalities: from the first-ranked, then to the first-ranked, then the rest.

    Modalities that a model with this configuration cannot read, or cannot predict, are left out.
    """
    config = config or ModelConfig()
    layout, names = architecture_for(config).layout_class(specs, config), ranked_names(specs)
    inputs = [name for name in names if name in layout.readable]
    targets = [name for name in names if name in layout.discrete]
    pairs: list[Pair] = [((a,), b) for a in inputs for b in targets if a != b]
    return sorted(pairs, key=lambda pair: (pair[0] != (inputs[0],), pair[1] != targets[0]))
