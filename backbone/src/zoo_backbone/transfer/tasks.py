"""What is asked: a modality, a field of its values, or a table of keys and labels; and the labels that there are."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.data.made_of import contents, made_of
from tokenizers_zoo.data.shards import LazyValues, ValueStore
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from tokenizers_zoo.pipeline.tokenizers import readable
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.spec import Metric, ModalitySpec, ValueSpec, VectorLayout
from zoo_backbone.transfer.config import As, Scale
from zoo_backbone.transfer.kinds import Classes, ClassMap, Kind, NumberMap, Numbers, Tokens

COLUMNS = ("key", "label")
STRAY = 0.05
"""Share of the labels of a table up to which those that are no numbers are taken for mistakes among numbers."""
NUMBER = re.compile(r"[+-]?(([0-9]+[.]?[0-9]*|[.][0-9]+)(e[+-]?[0-9]+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
"""A label of a table that is a number: a decimal one, as 1.5e-05 is, too, or what programs write where one is none."""
LARGEST = float(np.finfo(np.float32).max)
"""Labels of a table from this size on are none that can be learned: programs write them where there is no number."""
STATISTICS = 2000
"""Labels, at most, that a map is standardised by."""
BATCH = 64
"""Labels encoded at a time."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a split, by key; values without the field that is asked for, or that cannot be read, have none."""

    keys: Sequence[str]
    read: Callable[[str], Any]
    unreadable: int = 0
    """How many values cannot be read."""

    def of(self, keys: Sequence[str]) -> LazyValues:
        """The labels of these keys, read when asked for."""
        return LazyValues(keys, self.read)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question about samples; `wanted` is the kind of answer that was asked for, where one was."""

    text: str
    """The name, with the field; of a table its path."""
    handle: ModalityHandle | None = None
    """The modality, or that which has the field; None for a table of the user's own."""
    part: str = ""
    """The field of the modality's values that is asked for; empty: the whole value."""
    file: Path | None = None
    """A table of the user's own, read when labels are asked for."""
    wanted: As | None = None

    @classmethod
    def parse(cls, text: str, zoo: Zoo, wanted: As | None = None) -> Task:
        """NAME, NAME.FIELD or FILE.csv. Raises UnknownNameError or ConfigError."""
        if text.lower().endswith(".csv"):
            return cls(text=str(Path(text).resolve()), file=Path(text).resolve(), wanted=wanted)
        name, _, part = text.partition(".")
        handle = zoo[name]
        if part and handle.spec.value.kind != "object":
            raise ConfigError(f"--task {text}: {name} is {handle.spec.value}, which has no fields; ask for {name}")
        declared = [known for known, _ in handle.spec.value.fields]
        if part and declared and part not in declared:
            raise UnknownNameError.of(f"field of {name}", part, declared)
        return cls(text=text, handle=handle, part=part, wanted=wanted)

    @cached_property
    def table(self) -> dict[str, Any]:
        """Labels by key, of a table of the user's own; empty for others. Raises DataError."""
        return read_csv(self.file, self.wanted) if self.file is not None else {}

    @property
    def whole(self) -> ModalityHandle | None:
        """The modality whose whole values are the labels, where they are."""
        return None if self.part else self.handle

    @property
    def title(self) -> str:
        """The task's name, for people and folders."""
        return self.text if self.file is None else self.file.stem

    def refuse_given(self, given: Sequence[str]) -> None:
        """Raise ConfigError where the answer is among what is given."""
        if self.handle is not None and self.handle.name in given:
            raise ConfigError(f"--task {self.text}: {self.handle.name} is given, and with it the answer; leave one out")

    # ------------------------------------------------------------------ labels

    def labels(self, store: ValueStore | None, split: str) -> Labels:
        """What a split has. Raises DataError where it has none, ReadError where the disk does not give them."""
        if self.handle is None:
            return Labels(keys=list(self.table), read=self.table.__getitem__)
        assert store is not None
        name = self.handle.name
        store.index(split, name)  # which says what is not there
        listed, dropped = readable(self.handle, store, split)
        if not self.reads_all:
            number = {key: place for place, key in enumerate(listed.keys)}
            return Labels(keys=listed.keys, read=lambda key: listed[number[key]], unreadable=len(dropped))
        if not self.part:
            values = dict(zip(listed.keys, listed, strict=True))
            return Labels(keys=listed.keys, read=values.__getitem__, unreadable=len(dropped))
        keys = listed.keys
        del listed  # which keeps the values that it reads
        found = self.fields(store, split, keys)
        return Labels(keys=list(found), read=found.__getitem__, unreadable=len(dropped))

    def fields(self, store: ValueStore, split: str, keys: Sequence[str]) -> dict[str, Any]:
        """The field that is asked for, by key, of the values that have it; nothing else of them stays in memory."""
        assert self.handle is not None
        found: dict[str, Any] = {}
        there = set[str]()
        for key in keys:
            value = store.read(self.handle, split, key)
            if isinstance(value, dict):
                there |= value.keys()
                if (label := value.get(self.part)) is not None:
                    found[key] = str(label) if self.wanted == "classes" else label
        if found:
            return found
        name = self.handle.name
        if self.part in there:
            raise DataError(f"--task {self.text}: no value of {store.root / split / name} has that field")
        raise UnknownNameError.of(f"field of {name}", self.part, sorted(there))

    @property
    def reads_all(self) -> bool:
        """Whether all labels are in memory at once: those of a table, texts, and fields."""
        return self.handle is None or bool(self.part) or self.handle.spec.value.kind == "text"

    def digest(self, store: ValueStore | None, split: str, labels: LazyValues) -> str:
        """sha256 (hex) of labels: of keys and values that are in memory, else of the shards that the values are in."""
        keys = labels.keys
        if self.reads_all:
            pairs = json.dumps([keys, list(labels)], sort_keys=True, default=str)
            return hashlib.sha256(pairs.encode()).hexdigest()
        assert store is not None and self.handle is not None
        name = self.handle.name
        shards = made_of(contents(store, split, name), (store.member(split, name, key) for key in keys))
        return hashlib.sha256(json.dumps([keys, shards]).encode()).hexdigest()

    # ------------------------------------------------------------------ kinds

    def kind_name(self, labels: Sequence[Any]) -> str:
        """The kind of answer, by the modality's declared values and the labels. Raises ConfigError."""
        if self.whole is not None:
            return whole_kind(self.whole.spec, self.wanted, self.text)
        if self.wanted == "tokens":
            raise ConfigError(f"--as tokens: {self.text} is no whole modality, so it has no tokens")
        if all(map(is_number, labels)) and self.wanted != "classes":
            return "numbers"
        odd = next((label for label in labels if not isinstance(label, str | bool | int | float)), None)
        if odd is not None:
            raise ConfigError(
                f"--task {self.text}: expected texts or numbers, got {str(odd)[:40]!r}; ask for another field, write "
                "what is to be learned into a table (--task FILE.csv), or take each different value as a class "
                "(--as classes)"
            )
        if self.wanted == "numbers":
            word = next(label for label in labels if isinstance(label, str | bool))
            raise ConfigError(f"--as numbers: {self.text} has the label {word!r}; leave --as out")
        return "classes"

    def fitted(self, labels: Sequence[Any], scale: Scale) -> tuple[Kind, Sequence[Any]]:
        """The kind of answer for these training labels, and what `Kind.encode` takes in place of the labels.

        Raises ConfigError or DataError where nothing can be learned from them.
        """
        name = self.kind_name(labels if self.whole is None else labels[:1])
        if scale != "auto" and name != "number map":
            raise ConfigError(f"scale {scale}: is for maps of numbers, and {self.text} asks for {name}")
        if name == "tokens":
            assert self.handle is not None
            tokens = self.tokens(labels)
            return Tokens.of(tokens, self.handle.spec, self.handle.fingerprint), tokens
        if name == "classes":
            found = [str(label) for label in labels]
            declared = self.whole.spec.value.classes if self.whole is not None else ()
            if strange := set(found) - set(declared) if declared else set():
                raise DataError(f"--task {self.text}: the label {min(strange)!r} is none of the declared classes")
            if len(set(found)) < 2:
                raise DataError(f"--task {self.text}: all {len(found)} labels are {found[0]!r}: nothing to tell apart")
            return Classes(names=declared or tuple(sorted(set(found)))), found
        if name == "numbers":
            kind = Numbers.of(labels, self.whole.spec if self.whole is not None else None)
            if all(np.array_equal(label, labels[0]) for label in labels):
                raise DataError(f"--task {self.text}: all {len(labels)} labels are alike: nothing to tell apart")
            return kind, labels
        assert self.handle is not None
        spec = self.handle.spec
        if name == "class map":
            height, width = spec.value.shape
            size = int(height), int(width)
            unscored = spec.value.unscored
            return ClassMap(names=spec.value.classes, size=size, dtype=spec.value.dtype, unscored=unscored), labels
        chosen = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), STATISTICS)).astype(int))
        try:
            return NumberMap.of((labels[int(index)] for index in chosen), spec, scale), labels
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def check_labels(self, kind: Kind, labels: LazyValues) -> None:
        """Raise DataError for a label that is no number, where those of the training samples are."""
        if kind.kind != "numbers" or self.whole is not None:
            return
        for key, label in zip(labels.keys, labels, strict=True):
            if not is_number(label):
                raise DataError(
                    f"--task {self.text}: sample {key!r} has the label {str(label)[:40]!r}, and those of the training "
                    "samples are numbers; take it out, or train with --as classes"
                )

    def tokens(self, labels: Sequence[Any]) -> list[Any]:
        """The tokens of whole values. Raises CheckpointError where the modality's tokenizer is not trained."""
        assert self.handle is not None
        name = self.handle.name
        try:
            _ = self.handle.tokenizer
        except CheckpointError as error:
            raise CheckpointError(
                f"--task {self.text}: its answers are predicted as tokens, which needs a trained tokenizer "
                f"(zoo tokenizer train {name}): {error}"
            ) from None
        starts = range(0, len(labels), BATCH)
        return [np.asarray(row) for start in starts for row in self.handle.encode(labels[start : start + BATCH])]

    # ------------------------------------------------------------------ answers

    def answers(self, kind: Kind, decoded: Sequence[Any]) -> list[Any]:
        """What `Kind.decode` gives as answers."""
        if isinstance(kind, Numbers) and self.whole is not None:
            return [np.asarray(answer, self.whole.spec.value.dtype) for answer in decoded]  # also one without an axis
        if not isinstance(kind, Tokens):
            return list(decoded)
        assert self.handle is not None
        return self.handle.decode(np.stack(decoded) if kind.end is None else list(decoded))

    def truth(self, kind: Kind, label: Any) -> Any:
        """A label as answers are written."""
        return str(label) if kind.kind == "classes" else label

    def judges(self, kind: Kind) -> ModalityHandle | None:
        """The modality, where its own metrics judge the answers."""
        whole = self.whole
        judged = whole is not None and (whole.implements("score") or kind.kind == "tokens") and kind.kind != "classes"
        return whole if judged else None

    def metrics(self, kind: Any) -> tuple[Metric, ...]:
        """How answers are judged, the main metric first."""
        judge = self.judges(kind)
        return judge.spec.metrics if judge is not None else kind.metrics

    def score(self, kind: Any, predicted: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        """The metrics of answers, beside labels."""
        truth = [self.truth(kind, label) for label in labels]
        judge = self.judges(kind)
        return judge.score(predicted, truth) if judge is not None else kind.score(predicted, truth)

    def constant(self, kind: Any, labels: Sequence[Any]) -> Any:
        """The best single answer to all of the labels."""
        truth = [self.truth(kind, label) for label in labels]
        judge = self.judges(kind)
        return judge.constant_baseline(truth) if judge is not None else kind.constant(truth)

    def render(self, kind: Kind, answer: Any) -> Any:
        """An answer as a person wants to see it: a picture or text."""
        if self.whole is not None and kind.kind != "classes":
            return self.whole.render(answer)
        return f"{answer:.4g}" if isinstance(answer, int | float) else str(answer)

    def spec(self, kind: Kind) -> ModalitySpec:
        """What the training loop reads of a task: its name and its metrics."""
        name = re.sub(r"[^a-z0-9_]+", "_", self.title.lower()).lstrip("_0123456789") or "labels"
        return ModalitySpec(
            name=name, summary=f"labels of {self.title}", value=ValueSpec(kind="object"),
            layout=VectorLayout(length=1), vocab_size=1, metrics=self.metrics(kind),
        )  # fmt: skip


def is_number(label: Any) -> bool:
    """True for a number, which truth values are not."""
    return isinstance(label, int | float) and not isinstance(label, bool)


def whole_kind(spec: ModalitySpec, wanted: As | None, text: str) -> str:
    """The kind of answer for whole values of a modality. Raises ConfigError where they cannot be `wanted`."""
    value, shape = spec.value, spec.value.shape
    fixed = value.kind == "array" and all(isinstance(size, int) for size in shape)
    real = fixed and np.dtype(value.dtype).kind == "f"
    found = "tokens"
    if value.kind == "text" and (value.classes or wanted == "classes"):
        found = "classes"
    elif fixed and len(shape) == 2 and value.classes and np.dtype(value.dtype).kind in "iu":
        found = "class map"
    elif real and len(shape) == 3:
        found = "number map"
    elif real and len(shape) < 2:
        found = "numbers"
    if wanted == "tokens":
        found = "tokens"
    if wanted not in (None, found):
        raise ConfigError(f"--as {wanted}: {text} is {value}, whose answers are {found}; leave --as out")
    if found == "tokens" and spec.continuous:
        raise ConfigError(f"--task {text}: is an input only, so that it has no tokens that could be predicted")
    return found


def read_csv(path: Path, wanted: As | None) -> dict[str, Any]:
    """The labels of a table with the columns key and label: numbers where nearly all are as NUMBER says, else texts.

    An empty label is none. Raises DataError, also for a label that is no finite number among numbers, see STRAY.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if twice := [column for column in COLUMNS if (reader.fieldnames or []).count(column) > 1]:
                raise DataError(f"{path}: has several columns {twice[0]}; keep the one that is meant")
            if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
                raise DataError(
                    f"{path}: has no column {missing[0]}; expected a first line {','.join(COLUMNS)}, got "
                    f"{','.join(reader.fieldnames or ())!r}"
                )
            rows = [(row["key"], (row["label"] or "").strip(), reader.line_num) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {getattr(error, 'strerror', None) or error}") from None
    labels: dict[str, str] = {}
    for key, label, line in rows:
        if labels.get(key, label) != label:
            raise DataError(f"{path}:{line}: the key {key!r} has a second label, {label!r} after {labels[key]!r}")
        if label:
            labels[key] = label
    if not labels:
        raise DataError(f"{path}: has no labels")
    if wanted == "classes":
        return dict(labels)
    numbers = {key: float(label) for key, label in labels.items() if NUMBER.fullmatch(label)}
    finite = {key: number for key, number in numbers.items() if abs(number) < LARGEST}
    some_are_words = len(numbers) < (1 - STRAY) * len(labels)
    if not finite or some_are_words:
        return dict(labels)
    if key := next((key for key in labels if key not in finite), ""):
        raise DataError(
            f"{path}: the key {key!r} has the label {labels[key]!r}, and those of others are finite numbers; take it "
            "out, or train with --as classes"
        )
    return dict(finite)
