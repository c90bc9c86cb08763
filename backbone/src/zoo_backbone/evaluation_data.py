"""Data of an evaluation: held-out tokens and values, the constant baseline, and pairs of inputs and target."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.shards import Place, Rows, ValueStore
from tokenizers_zoo.data.tokens import TokenColumn, TokenStore
from tokenizers_zoo.errors import ConfigError, DataError, ReadError, ZooError
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.spec import ModalitySpec
from tokenizers_zoo.train.batches import permuted
from zoo_backbone.checkpoint import layout_for
from zoo_backbone.config import ModelConfig
from zoo_backbone.model import FourM
from zoo_backbone.run import check_handle

HELD = 4
"""Sets of true values that are kept in memory."""
LOOKED_AT = 256
"""Samples whose presence is looked up at a time."""
Pair = tuple[tuple[str, ...], str]
"""Input modalities and a target."""
Scores = dict[str, float | None]


class Reference(NamedTuple):
    """True values of some samples, with the scores of the constant baseline and of the tokenizer's reconstruction."""

    truth: list[Any]
    baseline: Scores
    reconstruction: Scores


class EvaluationData:
    """Test tokens and test values of the modalities `specs` of a backbone. Samples are numbers in the token store.

    `handles` and `columns` hold the usable modalities, in the backbone's order; `problems` says why others are not.
    `tokens_of` are those with test tokens of the training's tokenizer, with or without values. `unreadable` holds the
    reasons of unreadable values by `test/NAME` and key.
    """

    def __init__(
        self, zoo: Zoo, specs: Iterable[ModalitySpec], fingerprints: Mapping[str, str], tokens: Path, values: Path,
        seed: int,
    ) -> None:  # fmt: skip
        self.values = ValueStore(values)
        self.seed = seed
        self.handles: dict[str, ModalityHandle] = {}
        self.columns: dict[str, TokenColumn] = {}
        self.problems: dict[str, str] = {}
        self.tokens_of: list[str] = []
        self.unreadable: dict[str, dict[str, str]] = {}
        store = TokenStore(tokens)
        store.check_same_samples(self.values, TEST)
        self._split = store.split(TEST)
        for spec in specs:
            name, trained_on = spec.name, fingerprints.get(spec.name)
            try:
                column = store.open(TEST, name)
                if _of_training(zoo, column, trained_on):
                    self.tokens_of.append(name)
                handle = zoo[name]
                check_handle(handle, trained_on, spec)
                column.check_tokenizer(handle)
                self.values.folder(TEST, name)
            except ReadError:
                raise  # an error of the disk, not of the modality
            except ZooError as error:
                self.problems[name] = str(error)
            else:
                self.handles[name], self.columns[name] = handle, column
        self._sound: dict[tuple[str, ...], tuple[int, list[int]]] = {}
        """By modalities: how many samples were looked for, and the samples found."""
        self._there: dict[str, Rows] = {}
        self._readable: dict[tuple[str, int], bool] = {}
        self._truths: dict[tuple[str, tuple[int, ...]], list[Any]] = {}
        """The latest true values, by target and samples."""
        self._bounds: dict[tuple[str, tuple[int, ...]], tuple[Scores, Scores]] = {}
        self._constants: dict[str, Any] = {}

    def samples(self, names: Sequence[str], count: int) -> list[int]:
        """Return up to `count` test samples with readable tokens and values of all `names`.

        All pairs take them from one random order, so that they use the same samples where possible. Raises DataError if
        there are none.
        """
        looked_for, sound = self._sound.get(tuple(names), (0, []))
        if count > looked_for:
            sound = list(islice(self._candidates(names), count))
            self._sound[tuple(names)] = count, sound
        if not sound:
            raise DataError(f"{self.values.root / TEST}: no sample has values and tokens of {', '.join(names)}")
        return sound[:count]

    def _candidates(self, names: Sequence[str]) -> Iterator[int]:
        total = self._split.samples
        for start in range(0, total, LOOKED_AT):
            numbers = permuted(np.arange(start, min(start + LOOKED_AT, total)), total, self.seed)
            for name in names:
                numbers = numbers[self.columns[name].present(numbers * self._split.crops)]
            yield from (number for number in numbers.tolist() if all(self._reads(name, number) for name in names))

    def _reads(self, name: str, sample: int) -> bool:
        """Return whether a test sample has a readable value."""
        if name not in self._there:
            self._there[name] = self.values.rows(TEST, [name])
        place = self._place(sample)
        if place is None or place not in self._there[name]:
            return False
        if (name, sample) not in self._readable:
            self._readable[name, sample] = any(True for _ in self._read(name, TEST, [place]))
        return self._readable[name, sample]

    def _place(self, sample: int) -> Place | None:
        """Return the place of a token store's test sample among the values, or None."""
        place = self._split.place_in(self.values.split(TEST), sample)
        return None if place is None else Place(*place)

    def _read(self, name: str, split: str, places: Iterable[Place | None]) -> Iterator[Any]:
        """Yield the readable values; the reasons of the others go to `unreadable`.

        Raises ReadError or MachineError for errors of the disk or the machine.
        """
        for place in places:
            assert place is not None
            try:
                value = self.values.read(self.handles[name], split, *place)
            except ReadError:
                raise
            except ZooError as error:
                key = self.values.split(split).keys(place.shard)[place.row]
                self.unreadable.setdefault(f"{split}/{name}", {})[key] = str(error)
            else:
                yield value

    def key(self, sample: int) -> str:
        """Return a test sample's key."""
        return self._split.key(sample)

    def tokens(self, name: str, samples: Sequence[int]) -> Any:
        """Return test tokens."""
        return self.columns[name].take(np.array(samples, np.int64) * self._split.crops)

    def truth(self, name: str, samples: Sequence[int]) -> list[Any]:
        """Return test values; the latest are kept in memory."""
        wanted = name, tuple(samples)
        truth = self._truths.pop(wanted, None) or list(self._read(name, TEST, map(self._place, samples)))
        self._truths[wanted] = truth
        if len(self._truths) > HELD:
            del self._truths[next(iter(self._truths))]  # the least recently used
        return truth

    def constant(self, name: str, count: int) -> Any:
        """Return the best constant prediction for up to `count` training values. Raises DataError for none."""
        if name not in self._constants:
            rows = self.values.rows(TRAIN, [name])
            order = permuted(np.arange(len(rows)), len(rows), self.seed)
            values = list(islice(self._read(name, TRAIN, (rows[number] for number in order.tolist())), count))
            if not values:
                key, reason = next(iter(self.unreadable.get(f"{TRAIN}/{name}", {}).items()), ("no key", "it is empty"))
                where = self.values.folder(TRAIN, name)
                raise DataError(f"{where}: none of {len(rows)} values can be read; {key}: {reason}")
            self._constants[name] = self.handles[name].constant_baseline(values)
        return self._constants[name]

    def reference(self, name: str, samples: Sequence[int], baseline_samples: int, batch_size: int) -> Reference:
        """Return the truth of samples, with the scores of baseline and reconstruction."""
        wanted, truth = (name, tuple(samples)), self.truth(name, samples)
        if wanted not in self._bounds:
            constant = self.constant(name, baseline_samples)
            rebuilt = list(self.decoded(name, self.tokens(name, samples), batch_size))
            baseline = self.score(name, [constant] * len(truth), truth)
            self._bounds[wanted] = baseline, self.score(name, rebuilt, truth)
        return Reference(truth, *self._bounds[wanted])

    def decoded(self, name: str, tokens: Any, batch_size: int) -> Iterator[Any]:
        """Yield the values of tokens; `batch_size` samples are decoded at a time."""
        for start in range(0, len(tokens), batch_size):
            yield from self.handles[name].decode(tokens[start : start + batch_size], trusted=True)

    def score(self, name: str, predicted: Sequence[Any], truth: Sequence[Any]) -> Scores:
        """Return the modality's metrics; None for a number that is not finite."""
        scores = self.handles[name].score(predicted, truth)
        return {metric: number if math.isfinite(number) else None for metric, number in scores.items()}


def _of_training(zoo: Zoo, column: TokenColumn, trained_on: str | None) -> bool:
    """Return whether the tokens are of the tokenizer of the training, or of a vocabulary that grew from it."""
    if trained_on in (None, column.fingerprint):
        return True
    try:
        handle = zoo[column.modality]
        column.check_tokenizer(handle)
        check_handle(handle, trained_on)
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


def input_forms(zoo: Zoo, names: Collection[str]) -> dict[str, str]:
    """Map modalities that are not among `names` to their input forms that are, such as `rgb` to `rgb_patches`."""
    forms = {zoo[name].spec.input_form_of: name for name in names if name in zoo}
    return {name: form for name, form in forms.items() if name and name not in names}


def chosen_pairs(
    model: FourM, data: EvaluationData, zoo: Zoo, inputs: Sequence[Sequence[str]] | None, targets: Sequence[str] | None
) -> list[Pair]:
    """Return the pairs to evaluate. Raises UnknownNameError, DataError or ConfigError for names that do not fit."""
    layout, forms = model.layout, input_forms(zoo, model.layout.readable)
    if inputs is not None:
        inputs = [tuple(dict.fromkeys(forms.get(name, name) for name in names)) for names in inputs]
    named = [name for names in inputs or () for name in names]
    for name in named:
        layout.check_read(name, "evaluate")
    for name in targets or ():
        layout.check_made(name, "evaluate")
    for name in (*named, *(targets or ())):
        if name not in data.handles:
            raise DataError(f"evaluate {name}: {data.problems[name].removeprefix(f'{name}: ')}")
    specs = [handle.spec for handle in data.handles.values()]
    if inputs is None and targets is None:
        return default_pairs(specs, model.config)
    ranked = ranked_names(specs)
    sources = [(name,) for name in ranked if name in layout.readable] if inputs is None else inputs
    wanted = targets if targets is not None else [name for name in ranked if name in layout.discrete]
    pairs = [(tuple(names), target) for names in sources for target in wanted if target not in names]
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
    layout, names = layout_for(config, specs), ranked_names(specs)
    inputs = [name for name in names if name in layout.readable]
    targets = [name for name in names if name in layout.discrete]
    pairs: list[Pair] = [((a,), b) for a in inputs for b in targets if a != b]
    return sorted(pairs, key=lambda pair: (pair[0] != (inputs[0],), pair[1] != targets[0]))
