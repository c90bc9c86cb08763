"""The task of a transfer (a modality, a field of its values, or a table of labels) and its labelled samples."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.contract.layouts import VectorLayout
from tokenizers_zoo.contract.registry import ModalityHandle, Zoo
from tokenizers_zoo.contract.samples import TEST, TRAIN, spread
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError
from tokenizers_zoo.records.io import open_regular
from tokenizers_zoo.stores.shards import LazyValues, ValueStore, value_identity
from tokenizers_zoo.stores.tokens import TokenStore
from tokenizers_zoo.train.batches import permuted
from zoo_backbone.learn.data import TokenData, stored_samples
from zoo_backbone.measure.probes import DroppedSamples
from zoo_backbone.use.transfer.config import MIN_VALIDATION, TransferConfig
from zoo_backbone.use.transfer.targets import Classes, ClassMap, Numbers, Target

COLUMNS = ("key", "label")
MISTAKES = 0.05
"""A table is numeric if at most this share of its labels are not numbers; those are errors."""
NUMBER = re.compile(r"[+-]?(([0-9]+[.]?[0-9]*|[.][0-9]+)(e[+-]?[0-9]+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
"""A decimal number, or the text that programs write for a missing number."""
LARGEST = float(np.finfo(np.float32).max)
"""Larger numbers in a table are fill values, not labels."""
STATISTICS_SAMPLES = 2000
"""Maximum number of maps whose mean and standard deviation are computed."""
BASELINE_SAMPLES = 1000
"""Maximum number of labels for the constant baseline of maps and of modalities with their own metrics."""
DIGEST = 16
"""Characters of the digests in a probe's identity."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prediction task. Its labels are values of a modality, a field of these values, or a CSV table."""

    text: str
    """The task as given on the command line; the absolute path of a table."""
    handle: ModalityHandle | None = None
    """The modality; None for a table."""
    field: str = ""
    """The field of the modality's values; empty for whole values."""
    file: Path | None = None
    """The table."""
    as_classes: bool = False
    """Treat each distinct label as a class."""

    @classmethod
    def parse(cls, text: str, zoo: Zoo, as_classes: bool = False) -> Task:
        """Parse NAME, NAME.FIELD or FILE.csv. Raises UnknownNameError or ConfigError."""
        if text.lower().endswith(".csv"):
            return cls(text=str(Path(text).resolve()), file=Path(text).resolve(), as_classes=as_classes)
        name, _, field = text.partition(".")
        handle = zoo[name]
        value = handle.spec.value
        if field and value.kind != "object":
            raise ConfigError(f"--task {text}: {name} is {value} and has no fields; use --task {name}")
        declared = [field_name for field_name, _ in value.fields]
        if field and declared and field not in declared:
            raise UnknownNameError.of(f"field of {name}", field, declared)
        return cls(text=text, handle=handle, field=field, as_classes=as_classes)

    @cached_property
    def table(self) -> dict[str, Any]:
        """Labels of a table, by key. Raises DataError."""
        return {} if self.file is None else read_csv(self.file, self.as_classes)

    @property
    def value_modality(self) -> ModalityHandle | None:
        """The modality if labels are whole values, else None."""
        return None if self.field else self.handle

    @property
    def value(self) -> dict[str, Any] | None:
        """The shape, type, bounds and classes of labels that are whole values, else None."""
        return None if self.value_modality is None else value_identity(self.value_modality)

    @property
    def title(self) -> str:
        """A short name for people and folders."""
        return self.text if self.file is None else self.file.stem

    def kind(self, labels: Sequence[Any]) -> str:
        """Return the kind of target, from the modality's declared values and the labels. Raises ConfigError."""
        if self.value_modality is not None:
            return kind_of_values(self.value_modality.spec, self.as_classes, self.text)
        if not self.as_classes and all(map(is_number, labels)):
            return "numbers"
        unsupported = next((label for label in labels if not isinstance(label, str | bool | int | float)), None)
        if unsupported is not None:
            raise ConfigError(
                f"--task {self.text}: expected texts or numbers, got {str(unsupported)[:40]!r}; use another field, a "
                "table (--task FILE.csv), or --classes, where each distinct value is a class"
            )
        return "classes"

    def fit(self, labels: Sequence[Any]) -> Target:
        """Return the target for these training labels.

        Raises ConfigError or DataError if nothing can be learned from the labels.
        """
        kind = self.kind([] if self.value_modality is not None else labels)
        spec = self.value_modality.spec if self.value_modality is not None else None
        if kind in ("classes", "numbers") and all(np.array_equal(label, labels[0]) for label in labels):
            raise DataError(f"--task {self.text}: all {len(labels)} labels are {labels[0]}; nothing to learn")
        if kind == "classes":
            declared = spec.value.classes if spec is not None else ()
            return Classes(names=declared or tuple(sorted(set(map(str, labels)))))
        if kind == "class map":
            assert spec is not None
            _ = labels[0]  # raises if values have another size, before anything is written
            height, width = map(int, spec.value.shape)
            classes, unscored = spec.value.classes, spec.value.unscored
            return ClassMap(names=classes, size=(height, width), dtype=spec.value.dtype, unscored=unscored)
        indices = spread(len(labels), STATISTICS_SAMPLES if kind == "number map" else len(labels))
        return Numbers.fit((labels[index] for index in indices), spec)

    def truth(self, target: Target, label: Any) -> Any:
        """Return a label in the form of predictions."""
        return str(label) if target.kind == "classes" else label

    def _scorer(self, target: Any) -> Any:
        """The modality if its own metrics apply, else the target."""
        modality = self.value_modality
        if modality is None or target.kind == "classes":
            return target
        return modality if modality.implements("score") else target

    def metrics(self, target: Any) -> tuple[Metric, ...]:
        """Return the metrics, the main metric first."""
        scorer = self._scorer(target)
        return target.metrics if scorer is target else scorer.spec.metrics

    def score(self, target: Any, predicted: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        return dict(self._scorer(target).score(predicted, [self.truth(target, label) for label in labels]))

    def constant_baseline(self, target: Any, labels: Sequence[Any]) -> Any:
        """Return the best constant prediction for the labels, or for BASELINE_SAMPLES of them."""
        scorer = self._scorer(target)
        use_all = scorer is target and target.kind in ("classes", "numbers")
        indices = spread(len(labels), len(labels) if use_all else BASELINE_SAMPLES)
        return scorer.constant_baseline([self.truth(target, labels[index]) for index in indices])

    def render(self, target: Target, value: Any) -> Any:
        """Return a prediction as an image or a text."""
        if self.value_modality is not None and target.kind != "classes":
            return self.value_modality.render(value)
        return f"{value:.4g}" if isinstance(value, int | float) else str(value)

    def spec(self, target: Target) -> ModalitySpec:
        """Return a spec with the task's name and metrics, for the training loop."""
        name = re.sub(r"[^a-z0-9_]+", "_", self.title.lower()).lstrip("_0123456789") or "labels"
        return ModalitySpec(
            name=name,
            summary=f"labels of {self.title}",
            value=ValueSpec(kind="object"),
            layout=VectorLayout(length=1),
            vocab_size=1,
            metrics=self.metrics(target),
        )


def is_number(label: Any) -> bool:
    """True for numbers, false for booleans."""
    return isinstance(label, int | float) and not isinstance(label, bool)


def kind_of_values(spec: ModalitySpec, as_classes: bool, text: str) -> str:
    """Return the kind of target for whole values of a modality. Raises ConfigError if no head predicts them."""
    value, axes, kind = spec.value, len(spec.value.shape), ""
    fixed = value.kind == "array" and all(isinstance(size, int) for size in value.shape)
    numbers = np.dtype(value.dtype).kind if fixed else ""
    if value.kind == "text" and (value.classes or as_classes):
        kind = "classes"
    elif numbers in ("i", "u") and axes == 2 and value.classes:
        kind = "class map"
    elif numbers == "f" and axes != 2 and axes < 4:
        kind = "number map" if axes == 3 else "numbers"
    if not kind:
        raise ConfigError(
            f"--task {text}: is {value}; expected classes, numbers or maps; the backbone itself predicts tokens of "
            f"{spec.name}: zoo backbone grow"
        )
    if as_classes and kind != "classes":
        raise ConfigError(f"--classes: {text} is {value} and is predicted as {kind}; leave --classes out")
    return kind


def read_csv(path: Path, as_classes: bool = False) -> dict[str, Any]:
    """Read a table with the columns key and label. Labels are numbers if nearly all look like numbers, else texts.

    Empty labels are skipped. Raises DataError for a bad table, and for a bad label in a numeric table.
    """
    try:
        with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            header = list(reader.fieldnames or ())
            if any(header.count(column) != 1 for column in COLUMNS):
                raise DataError.expected(path, f"the header {','.join(COLUMNS)}", repr(",".join(header)))
            rows = [(row["key"], (row["label"] or "").strip(), reader.line_num) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {getattr(error, 'strerror', None) or error}") from None
    labels: dict[str, str] = {}
    for key, label, line in rows:
        if labels.get(key, label) != label:
            raise DataError(f"{path}:{line}: the key {key!r} has a second label, {label!r} after {labels[key]!r}")
        if label:
            labels[key] = label
    numbers = {key: float(label) for key, label in labels.items() if NUMBER.fullmatch(label)}
    finite = {key: number for key, number in numbers.items() if abs(number) < LARGEST}
    if as_classes or not finite or len(numbers) < (1 - MISTAKES) * len(labels):
        return dict(labels)
    if key := next((key for key in labels if key not in finite), ""):
        raise DataError(
            f"{path}: the key {key!r} has the label {labels[key]!r}, expected a finite number; remove it, or train "
            "with --classes"
        )
    return dict(finite)


# ---------------------------------------------------------------- labelled samples


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a split that have all inputs and a label."""

    inputs: TokenData
    numbers: npt.NDArray[np.int64]
    """Their numbers in the split of the token store, ascending."""
    read: Callable[[int], Any]
    """Return the label of the sample with this number."""
    dropped: DroppedSamples

    @cached_property
    def labels(self) -> LazyValues:
        """Their labels, read on first use."""
        return LazyValues(self.numbers, self.read)

    def __len__(self) -> int:
        return len(self.numbers)

    def key(self, index: int) -> str:
        """Return the key of a sample by its index."""
        return self.inputs.split.key(int(self.numbers[index]))

    def find(self, key: str) -> int:
        """Return the index of a sample by its key. Raises DataError if it lacks inputs or a label."""
        number = self.inputs.split.find(key)
        indices = np.flatnonzero(self.numbers == number)
        if number is None or not len(indices):
            raise DataError(f"--keys {key}: no such sample with inputs and a label; keys look like {self.key(0)!r}")
        return int(indices[0])

    def tokens(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the input tokens of the samples with these indices, by modality."""
        rows = self.numbers[list(indices)] * self.inputs.split.crops
        return {name: column.take(rows) for name, column in self.inputs.columns.items()}


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

    def samples(self, task: Task, split: str, target: Target | None = None) -> Samples:
        """Return the labelled samples of a split; of cropped samples, the uncropped view.

        Values without the requested field have no label. Raises DataError if there are none, if the values are known
        not to belong to the tokens, or if a label is not a number although `target` is one number.
        """
        if self.values is not None:
            TokenStore(self.tokens).check_same_samples(self.values, split)
        inputs = stored_samples(self.tokens, split, self.specs, self.trained_on, self.zoo, self.owner, aligned=True)
        numbers = (inputs.rows(np.arange(len(inputs))) // inputs.split.crops).tolist()
        if task.handle is None:
            key, no_input = inputs.split.key, 0
            labels = {number: task.table[key(number)] for number in numbers if key(number) in task.table}
        else:
            assert self.values is not None
            handle, values = task.handle, self.values
            value_rows = values.rows(split, [handle.name])
            locate = partial(inputs.split.locate_in, values.split(split))
            numbers = [number for number in numbers if (row := locate(number)) is not None and row in value_rows]
            no_input = len(value_rows) - len(numbers)

            def read(number: int) -> Any:
                return values.read(handle, split, *(locate(int(number)) or ()))

            labels = _field_labels(task, handle.name, numbers, read) if task.field else {}  # whole values: read later
        if task.value_modality is None:
            numbers = list(labels)
        if not numbers:
            raise DataError(
                f"--task {task.text}: no sample of {self.tokens / split} has a label and all inputs "
                f"({', '.join(spec.name for spec in self.specs)}); keys look like {inputs.split.key(0)!r}"
            )
        for number, label in labels.items() if target is not None and target.kind == "numbers" else ():
            if not is_number(label):
                raise DataError(
                    f"--task {task.text}: sample {inputs.split.key(number)!r} has the label {str(label)[:40]!r}, "
                    "expected a number as in the training split; remove it, or train with --classes"
                )
        dropped = DroppedSamples(no_input=no_input, no_label=len(inputs) - len(numbers))
        read_label = read if task.value_modality is not None else labels.__getitem__
        return Samples(inputs=inputs, numbers=np.array(numbers, np.int64), read=read_label, dropped=dropped)

    def digest(self, task: Task, split: str, samples: Samples) -> dict[str, str]:
        """Return hashes of input tokens, and of labels: of small ones themselves, of arrays of their shards."""
        if task.value_modality is None or task.value_modality.spec.value.kind == "text":
            labels = json.dumps(list(samples.labels), sort_keys=True, default=str)
        else:
            assert self.values is not None
            labels = self.values.contents(split, task.value_modality.name)
        parts = {"inputs": samples.inputs.contents(), "labels": labels}
        return {
            f"{split} {name}": hashlib.sha256(samples.numbers.tobytes() + part.encode()).hexdigest()[:DIGEST]
            for name, part in parts.items()
        }

    def unknown_keys(self, task: Task) -> int:
        """Return how many keys of a table no split has. Raises DataError for a key of both training and test."""
        store, keys_by_split = TokenStore(self.tokens), dict[str, set[str]]()
        for split in map(store.split, store.splits() if task.table else ()):
            keys = {key for shard in range(split.shards) for key in split.keys(shard)}
            keys_by_split[split.name] = keys & task.table.keys()
        if shared_keys := keys_by_split.get(TRAIN, set()) & keys_by_split.get(TEST, set()):
            raise DataError(
                f"--task {task.text}: the key {min(shared_keys)!r} is in both splits {TRAIN} and {TEST} of "
                f"{self.tokens}; rename the samples"
            )
        return len(task.table.keys() - set().union(*keys_by_split.values()))


def _field_labels(task: Task, name: str, numbers: Sequence[int], read: Callable[[int], Any]) -> dict[int, Any]:
    """Return the field of the values of `name` that have it, by sample number. Raises DataError if none has it."""
    labels, fields = dict[int, Any](), set[str]()
    for number in numbers:
        value = read(number)  # not kept: only the field stays in memory
        fields |= value.keys()
        if (label := value.get(task.field)) is not None:
            labels[number] = str(label) if task.as_classes else label
    if numbers and not labels:
        raise UnknownNameError.of(f"field of {name}", task.field, sorted(fields - {task.field}))
    return labels


# ---------------------------------------------------------------- the choice of labels


def select_labels(
    ranks: npt.NDArray[np.int64], amount: int | float, classes: Sequence[str] | None = None
) -> npt.NDArray[np.int64]:
    """Return the indices of a share (float) or a number (int) of samples in the order of their random `ranks`.

    Fewer labels are always a subset of more. With `classes`, each class keeps its share and at least one sample.
    """
    order = np.argsort(ranks, kind="stable")
    count = max(1, round(amount * len(order))) if isinstance(amount, float) else min(amount, len(order))
    if classes is not None:
        names, class_ids, sizes = np.unique(np.array(classes), return_inverse=True, return_counts=True)
        order = order[np.argsort(_count_earlier(class_ids[order]) / sizes[class_ids[order]], kind="stable")]
        count = max(count, len(names))
    return order[:count]


def select_validation(
    count: int, share: float, limit: int, seed: int, classes: Sequence[str] | None = None
) -> npt.NDArray[np.bool_]:
    """Return a mask of `count` samples, in the order of `select_labels`: about `share`, at most `limit`, validate.

    Each class keeps its share, and its first sample stays in training. The choice depends on the order only, so that
    the training (validation) samples of fewer labels are a subset of those of more labels.
    """
    names, class_ids = np.unique(np.array([""] * count if classes is None else classes), return_inverse=True)
    # Systematic sampling: every (1 / share)-th sample of a class, from a random start.
    digests = [hashlib.sha256(f"validation:{seed}:{name}".encode()).digest() for name in names]
    starts = np.array([int.from_bytes(digest[:4]) / 2**32 * (1 - share) for digest in digests])
    nth, start = _count_earlier(class_ids), starts[class_ids] if count else np.zeros(0)
    selected = np.floor(share * (nth + 1) + start) > np.floor(share * nth + start)
    return np.asarray(selected & (np.cumsum(selected) <= limit))


def _count_earlier(classes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each sample how many earlier samples have the same class."""
    order = np.argsort(classes, kind="stable")
    counts = np.empty(len(classes), np.int64)
    counts[order] = np.arange(len(classes)) - np.searchsorted(classes[order], classes[order])
    return counts


@dataclass(frozen=True, kw_only=True)
class LabelSplit:
    """The samples whose labels are used, split into training and validation (indices of `samples`)."""

    samples: Samples
    training: Sequence[int]
    validation: Sequence[int]
    reason: str = ""
    """Why there is no validation although it was requested."""


def split_labels(task: Task, labelled: Samples, config: TransferConfig, seed: int) -> LabelSplit:
    """Select the labels that are used and split them."""
    classes: list[str] | None = None
    if task.value_modality is None or task.value_modality.spec.value.kind == "text":
        labels = list(labelled.labels)
        classes = list(map(str, labels)) if task.kind(labels) == "classes" else None
    ranks = permuted(labelled.numbers, labelled.inputs.split.samples, seed)  # the same for all inputs and labels
    order = select_labels(ranks, config.labels, classes)
    selected_classes = None if classes is None else [classes[index] for index in order]
    validation_mask = select_validation(len(order), config.validation, config.eval_samples, seed, selected_classes)
    reason = ""
    if config.validation and validation_mask.sum() < MIN_VALIDATION:
        count = validation_mask.sum()
        reason = f"{count} validation samples of {len(order)} labels are too few, {MIN_VALIDATION} are needed"
        validation_mask[:] = False
    ascending = np.argsort(order)
    selected = replace(labelled, numbers=labelled.numbers[order[ascending]])
    training, validation = (np.flatnonzero(mask[ascending]).tolist() for mask in (~validation_mask, validation_mask))
    return LabelSplit(samples=selected, training=training, validation=validation, reason=reason)
