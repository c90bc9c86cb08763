"""Samples of a transfer: stored input tokens with labels, the choice of labels that are used, the validation split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.shards import LazyValues, ValueStore
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import DataError, UnknownNameError
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.spec import ModalitySpec
from tokenizers_zoo.train.batches import permuted
from zoo_backbone.data import TokenData, stored_samples
from zoo_backbone.transfer.config import MIN_VALIDATION, TransferConfig
from zoo_backbone.transfer.targets import Target
from zoo_backbone.transfer.task import Task, is_number

DIGEST = 16
"""Characters of the digests in a probe's identity."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a split that have all inputs and a label."""

    inputs: TokenData
    numbers: npt.NDArray[np.int64]
    """Their numbers in the split of the token store, ascending."""
    labels: Sequence[Any]
    dropped: Mapping[str, int]
    """Number of samples without inputs ("no_input") or label ("no_label")."""

    def __len__(self) -> int:
        return len(self.numbers)

    def key(self, place: int) -> str:
        """Return the key of the sample at a place."""
        return self.inputs.split.key(int(self.numbers[place]))

    def find(self, key: str) -> int:
        """Return the place of a sample. Raises DataError if it lacks inputs or a label."""
        number = self.inputs.split.find(key)
        places = np.flatnonzero(self.numbers == number)
        if number is None or not len(places):
            raise DataError(f"--keys {key}: no such sample with inputs and a label; keys look like {self.key(0)!r}")
        return int(places[0])

    def tokens(self, places: Sequence[int]) -> dict[str, Any]:
        """Return the input tokens of the samples at these places, by modality."""
        rows = self.numbers[list(places)] * self.inputs.split.crops
        return {name: column.take(rows) for name, column in self.inputs.columns.items()}

    def at(self, places: npt.NDArray[np.int64]) -> Samples:
        """Return the samples at these places."""
        labels, numbers = self.labels, self.numbers[places]
        if isinstance(labels, LazyValues):
            labels = LazyValues(numbers, labels.read)
        else:
            labels = [labels[place] for place in places]
        return replace(self, numbers=numbers, labels=labels)


@dataclass(frozen=True, kw_only=True)
class Stores:
    """Where samples are read: input tokens from a token store, labels from a value store."""

    tokens: Path
    values: ValueStore | None
    """None if labels come from a table."""
    specs: Sequence[ModalitySpec]
    """Specs of the inputs."""
    trained_on: Mapping[str, str]
    """Fingerprints of the tokenizers of the backbone's training."""
    zoo: Zoo
    owner: str
    """The run or probe, for messages."""

    def samples(self, task: Task, split: str) -> Samples:
        """Return the labelled samples of a split; of cropped samples, the uncropped view.

        Values without the requested field have no label. Raises DataError if there are none, or if the values are known
        not to belong to the tokens.
        """
        if self.values is not None:
            TokenStore(self.tokens).check_same_samples(self.values, split)
        inputs = stored_samples(self.tokens, split, self.specs, self.trained_on, self.zoo, self.owner, aligned=True)
        labels: Sequence[Any]
        if task.handle is None:
            numbers, no_input = _numbers(inputs, lambda number: inputs.split.key(number) in task.table), 0
            labels = [task.table[inputs.split.key(number)] for number in numbers.tolist()]
        else:
            assert self.values is not None
            handle, values = task.handle, self.values
            there = values.rows(split, [handle.name])
            place = partial(inputs.split.place_in, values.split(split))
            numbers = _numbers(inputs, lambda number: (at := place(number)) is not None and at in there)
            no_input = len(there) - len(numbers)
            labels = LazyValues(numbers, lambda number: values.read(handle, split, *(place(int(number)) or ())))
            if task.field:
                found = _of_field(task, labels, values.root / split / handle.name)
                numbers, labels = numbers[[label is not None for label in found]], [x for x in found if x is not None]
        if not len(labels):
            raise DataError(
                f"--task {task.text}: no sample of {self.tokens / split} has a label and all inputs "
                f"({', '.join(spec.name for spec in self.specs)}); keys look like {inputs.split.key(0)!r}"
            )
        dropped = {"no_input": no_input, "no_label": len(inputs) - len(labels)}
        return Samples(inputs=inputs, numbers=numbers, labels=labels, dropped=dropped)

    def digest(self, task: Task, split: str, samples: Samples) -> dict[str, str]:
        """Return hashes of input tokens, and of labels: of small ones themselves, of arrays of their shards."""
        if task.whole is None or task.whole.spec.value.kind == "text":
            labels = json.dumps(list(samples.labels), sort_keys=True, default=str)
        else:
            assert self.values is not None
            labels = self.values.contents(split, task.whole.name)
        parts = {"inputs": samples.inputs.contents(), "labels": labels}
        return {
            f"{split} {name}": hashlib.sha256(samples.numbers.tobytes() + part.encode()).hexdigest()[:DIGEST]
            for name, part in parts.items()
        }

    def unknown_keys(self, task: Task) -> int:
        """Return how many keys of a table no split has. Raises DataError for a key of both training and test."""
        store, known = TokenStore(self.tokens), dict[str, set[str]]()
        for split in map(store.split, store.splits() if task.table else ()):
            known[split.name] = {key for shard in range(split.shards) for key in split.keys(shard)} & task.table.keys()
        if both := known.get(TRAIN, set()) & known.get(TEST, set()):
            raise DataError(
                f"--task {task.text}: the key {min(both)!r} is in both splits {TRAIN} and {TEST} of {self.tokens}; "
                "rename the samples"
            )
        return len(task.table.keys() - set().union(*known.values()))


def check_labels(task: Task, target: Target, samples: Samples) -> None:
    """Raise DataError for a label that is not a number, if the target is one number."""
    if target.kind == "numbers" and task.whole is None:
        for place, label in enumerate(samples.labels):
            if not is_number(label):
                raise DataError(
                    f"--task {task.text}: sample {samples.key(place)!r} has the label {str(label)[:40]!r}, expected a "
                    "number as in the training split; remove it, or train with --as classes"
                )


def _numbers(inputs: TokenData, labelled: Callable[[int], bool]) -> npt.NDArray[np.int64]:
    """Return the numbers of the samples that have all inputs and a label."""
    every = inputs.rows(np.arange(len(inputs))) // inputs.split.crops
    return every[[labelled(number) for number in every.tolist()]]


def _of_field(task: Task, values: LazyValues, folder: Path) -> list[Any]:
    """Return the field of each value, or None. Raises DataError if no value has it."""
    labels, fields = [], set[str]()
    for key in values.keys:
        value = values.read(key)  # not cached: only the field stays in memory
        label = value.get(task.field)
        fields |= value.keys()
        labels.append(str(label) if label is not None and task.wanted == "classes" else label)
    if labels and all(label is None for label in labels):
        raise UnknownNameError.of(f"field of {folder.name}", task.field, sorted(fields - {task.field}))
    return labels


# ---------------------------------------------------------------- the choice of labels


def select_labels(
    ranks: npt.NDArray[np.int64], amount: int | float, classes: Sequence[str] | None = None
) -> npt.NDArray[np.int64]:
    """Return the places of a share (float) or a number (int) of samples in the order of their random `ranks`.

    Fewer labels are always a subset of more. With `classes`, each class keeps its share and at least one sample.
    """
    order = np.argsort(ranks, kind="stable")
    count = max(1, round(amount * len(order))) if isinstance(amount, float) else min(amount, len(order))
    if classes is not None:
        names, of, sizes = np.unique(np.array(classes), return_inverse=True, return_counts=True)
        order = order[np.argsort(_earlier(of[order]) / sizes[of[order]], kind="stable")]
        count = max(count, len(names))
    return order[:count]


def select_validation(
    count: int, share: float, most: int, seed: int, classes: Sequence[str] | None = None
) -> npt.NDArray[np.bool_]:
    """Return which of `count` samples, in the order of `select_labels`, are for validation: about `share`, at most
    `most`.

    Each class keeps its share, and its first sample stays in training. The choice depends on the order only, so that
    the training (validation) samples of fewer labels are a subset of those of more labels.
    """
    names, of = np.unique(np.array([""] * count if classes is None else classes), return_inverse=True)
    # Systematic sampling: every (1 / share)-th sample of a class, from a random start.
    digests = [hashlib.sha256(f"validation:{seed}:{name}".encode()).digest() for name in names]
    starts = np.array([int.from_bytes(digest[:4]) / 2**32 * (1 - share) for digest in digests])
    nth, start = _earlier(of), starts[of] if count else np.zeros(0)
    chosen = np.floor(share * (nth + 1) + start) > np.floor(share * nth + start)
    return np.asarray(chosen & (np.cumsum(chosen) <= most))


def _earlier(classes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each place how many earlier places have the same class."""
    order = np.argsort(classes, kind="stable")
    found = np.empty(len(classes), np.int64)
    found[order] = np.arange(len(classes)) - np.searchsorted(classes[order], classes[order])
    return found


@dataclass(frozen=True, kw_only=True)
class LabelSplit:
    """The samples whose labels are used, split into training and validation (places in `samples`)."""

    samples: Samples
    training: Sequence[int]
    validation: Sequence[int]
    problem: str = ""
    """Why there is no validation although it was requested."""


def split_labels(task: Task, known: Samples, config: TransferConfig, seed: int) -> LabelSplit:
    """Select the labels that are used and split them. knn has no validation samples."""
    classes: list[str] | None = None
    if task.whole is None or task.whole.spec.value.kind == "text":
        labels = list(known.labels)
        classes = list(map(str, labels)) if task.kind(labels) == "classes" else None
    ranks = permuted(known.numbers, known.inputs.split.samples, seed)  # the same for all inputs and labels
    order = select_labels(ranks, config.labels, classes)
    share = 0.0 if config.head == "knn" else config.validation
    of = None if classes is None else [classes[place] for place in order]
    apart = select_validation(len(order), share, config.eval_samples, seed, of)
    problem = ""
    if share and apart.sum() < MIN_VALIDATION:
        problem = f"{apart.sum()} validation samples of {len(order)} labels are too few, {MIN_VALIDATION} are needed"
        apart[:] = False
    places = np.argsort(order)
    training, validation = (np.flatnonzero(mask[places]).tolist() for mask in (~apart, apart))
    return LabelSplit(samples=known.at(order[places]), training=training, validation=validation, problem=problem)
