"""The task of a transfer: a modality, a field of its values, or a table of labels; scores predictions."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.spec import Metric, ModalitySpec, ValueSpec, VectorLayout
from zoo_backbone.transfer.config import As
from zoo_backbone.transfer.targets import Classes, ClassMap, Numbers, Target, Tokens

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
BATCH = 64


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
    wanted: As | None = None
    """The kind of target requested with --as."""

    @classmethod
    def parse(cls, text: str, zoo: Zoo, wanted: As | None = None) -> Task:
        """Parse NAME, NAME.FIELD or FILE.csv. Raises UnknownNameError or ConfigError."""
        if text.lower().endswith(".csv"):
            return cls(text=str(Path(text).resolve()), file=Path(text).resolve(), wanted=wanted)
        name, _, field = text.partition(".")
        handle = zoo[name]
        value = handle.spec.value
        if field and value.kind != "object":
            raise ConfigError(f"--task {text}: {name} is {value} and has no fields; use --task {name}")
        declared = [known for known, _ in value.fields]
        if field and declared and field not in declared:
            raise UnknownNameError.of(f"field of {name}", field, declared)
        return cls(text=text, handle=handle, field=field, wanted=wanted)

    @cached_property
    def table(self) -> dict[str, Any]:
        """Labels of a table, by key. Raises DataError."""
        return {} if self.file is None else read_csv(self.file, self.wanted)

    @property
    def whole(self) -> ModalityHandle | None:
        """The modality if labels are whole values, else None."""
        return None if self.field else self.handle

    @property
    def title(self) -> str:
        """A short name for people and folders."""
        return self.text if self.file is None else self.file.stem

    def kind(self, labels: Sequence[Any]) -> str:
        """Return the kind of target, from the modality's declared values and the labels. Raises ConfigError."""
        if self.whole is not None:
            return kind_of_values(self.whole.spec, self.wanted, self.text)
        if self.wanted == "tokens":
            raise ConfigError(f"--as tokens: {self.text} is not a modality and has no tokens")
        if all(map(is_number, labels)) and self.wanted != "classes":
            return "numbers"
        odd = next((label for label in labels if not isinstance(label, str | bool | int | float)), None)
        if odd is not None:
            raise ConfigError(
                f"--task {self.text}: expected texts or numbers, got {str(odd)[:40]!r}; use another field, a table "
                "(--task FILE.csv), or --as classes, where each distinct value is a class"
            )
        return "classes"

    def fit(self, labels: Sequence[Any]) -> tuple[Target, Sequence[Any]]:
        """Return the target for these training labels, and the labels as `Target.encode` expects them.

        Raises ConfigError or DataError if nothing can be learned from the labels.
        """
        kind = self.kind([] if self.whole is not None else labels)
        spec = self.whole.spec if self.whole is not None else None
        if kind in ("classes", "numbers") and all(np.array_equal(label, labels[0]) for label in labels):
            raise DataError(f"--task {self.text}: all {len(labels)} labels are {labels[0]}; nothing to learn")
        if kind == "tokens":
            assert self.handle is not None
            starts = range(0, len(labels), BATCH)
            batches = (self.handle.encode(labels[start : start + BATCH]) for start in starts)
            tokens = [np.asarray(row) for batch in batches for row in batch]
            return Tokens.fit(tokens, self.handle.spec, self.handle.fingerprint), tokens
        if kind == "classes":
            names = list(map(str, labels))
            declared = spec.value.classes if spec is not None else ()
            return Classes(names=declared or tuple(sorted(set(names)))), names
        if kind == "class map":
            assert spec is not None
            _ = labels[0]  # raises if values have another size, before anything is written
            height, width = map(int, spec.value.shape)
            classes, unscored = spec.value.classes, spec.value.unscored
            return ClassMap(names=classes, size=(height, width), dtype=spec.value.dtype, unscored=unscored), labels
        chosen = spread(len(labels), STATISTICS_SAMPLES if kind == "number map" else len(labels))
        return Numbers.fit((labels[index] for index in chosen), spec), labels

    def predictions(self, target: Target, outputs: Any) -> list[Any]:
        """Return a head's outputs as values of the task."""
        decoded = target.decode(outputs)
        if not isinstance(target, Tokens):
            return decoded
        assert self.handle is not None
        return self.handle.decode(np.stack(decoded) if target.end is None else decoded)

    def truth(self, target: Target, label: Any) -> Any:
        """Return a label in the form of predictions."""
        return str(label) if target.kind == "classes" else label

    def _judge(self, target: Any) -> Any:
        """The modality if its own metrics apply, else the target."""
        whole = self.whole
        if whole is not None and (target.kind == "tokens" or (target.kind != "classes" and whole.implements("score"))):
            return whole
        return target

    def metrics(self, target: Any) -> tuple[Metric, ...]:
        """Return the metrics, the main metric first."""
        judge = self._judge(target)
        return target.metrics if judge is target else judge.spec.metrics

    def score(self, target: Any, predicted: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of predictions."""
        return dict(self._judge(target).score(predicted, [self.truth(target, label) for label in labels]))

    def constant_baseline(self, target: Any, labels: Sequence[Any]) -> Any:
        """Return the best constant prediction for the labels, or for BASELINE_SAMPLES of them."""
        judge = self._judge(target)
        few = judge is target and target.kind in ("classes", "numbers")
        places = spread(len(labels), len(labels) if few else BASELINE_SAMPLES)
        return judge.constant_baseline([self.truth(target, labels[place]) for place in places])

    def render(self, target: Target, value: Any) -> Any:
        """Return a prediction as an image or a text."""
        if self.whole is not None and target.kind != "classes":
            return self.whole.render(value)
        return f"{value:.4g}" if isinstance(value, int | float) else str(value)

    def spec(self, target: Target) -> ModalitySpec:
        """Return a spec with the task's name and metrics, for the training loop."""
        name = re.sub(r"[^a-z0-9_]+", "_", self.title.lower()).lstrip("_0123456789") or "labels"
        return ModalitySpec(
            name=name, summary=f"labels of {self.title}", value=ValueSpec(kind="object"),
            layout=VectorLayout(length=1), vocab_size=1, metrics=self.metrics(target),
        )  # fmt: skip


def is_number(label: Any) -> bool:
    """True for numbers, false for booleans."""
    return isinstance(label, int | float) and not isinstance(label, bool)


def kind_of_values(spec: ModalitySpec, wanted: As | None, text: str) -> str:
    """Return the kind of target for whole values of a modality. Raises ConfigError if it contradicts `wanted`."""
    value, axes, kind = spec.value, len(spec.value.shape), "tokens"
    fixed = value.kind == "array" and all(isinstance(size, int) for size in value.shape)
    numbers = np.dtype(value.dtype).kind if fixed else ""
    if wanted != "tokens" and value.kind == "text" and (value.classes or wanted == "classes"):
        kind = "classes"
    elif wanted != "tokens" and numbers in ("i", "u") and axes == 2 and value.classes:
        kind = "class map"
    elif wanted != "tokens" and numbers == "f" and axes != 2 and axes < 4:
        kind = "number map" if axes == 3 else "numbers"
    if wanted not in (None, kind):
        raise ConfigError(f"--as {wanted}: {text} is {value} and is predicted as {kind}; leave --as out")
    if kind == "tokens" and spec.continuous:
        raise ConfigError(f"--task {text}: is continuous and has no token ids to predict; use another task")
    return kind


def read_csv(path: Path, wanted: As | None) -> dict[str, Any]:
    """Read a table with the columns key and label. Labels are numbers if nearly all look like numbers, else texts.

    Empty labels are skipped. Raises DataError for a bad table, and for a bad label in a numeric table.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
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
    if wanted == "classes" or not finite or len(numbers) < (1 - MISTAKES) * len(labels):
        return dict(labels)
    if key := next((key for key in labels if key not in finite), ""):
        raise DataError(
            f"{path}: the key {key!r} has the label {labels[key]!r}, expected a finite number; remove it, or train "
            "with --as classes"
        )
    return dict(finite)
