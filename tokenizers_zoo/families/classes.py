"""Modalities whose value is a class name from a fixed list: one token, no training.

A plugin lists the classes; this module implements the hooks. Classes may be appended without changing existing ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.layouts import VectorLayout
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.contract.validation import text_of
from tokenizers_zoo.errors import CheckpointError, InvalidValueError, count_of
from tokenizers_zoo.families.base import PluginBase
from tokenizers_zoo.files.checkpoint import (
    CONFIG,
    Ancestor,
    CheckpointRecord,
    fingerprint,
    load_record,
    save_checkpoint,
)
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.typed import as_dicts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClassesRecord(CheckpointRecord):
    """config.json."""

    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSettings:
    """Settings of classes; a plugin's subclass lists them. Raises ValueError for invalid names."""

    classes: tuple[str, ...]
    """Names of the ids 0, 1, ...; more may be added at the end."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: expected two or more different names, got {len(self.classes)}")
        for name in self.classes:
            if not name.isprintable() or not name or name != " ".join(name.split()):
                raise ValueError(f"classes: expected printable words with single spaces between them, got {name!r}")


S = TypeVar("S", bound=ClassSettings)


@dataclass(frozen=True, slots=True)
class ClassTokenizer:
    """The classes in the order of their ids, and the device that tokens are on."""

    classes: tuple[str, ...]
    device: str


class ClassModality(PluginBase, Generic[S]):
    """The hooks of one modality of classes; `S` is its settings. A subclass gives `summary` and `settings_class`."""

    family = "classes"
    _checkpoint_kind = "ClassTokenizer"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="accuracy", higher_is_better=True, meaning="share of the samples with the right class"),
        Metric(
            name="balanced_accuracy",
            higher_is_better=True,
            meaning="the same per class, averaged over the classes that occur in the truth",
        ),
    )

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        classes = self.options(settings).classes
        value = ValueSpec(kind="text", classes=classes, description="the name of a class")
        return self.spec_of(settings, value, VectorLayout(length=1), len(classes))

    @hookimpl
    def train_tokenizer(self, config: Settings, out_dir: Path) -> Path:
        """Save the list of classes, or append new classes to an existing checkpoint. Existing tokens stay valid.

        Raises CheckpointError if the stored classes are not a prefix of the classes in the settings.
        """
        classes = self.options(config).classes
        lineage: list[dict[str, Any]] = []
        if (out_dir / CONFIG).is_file():
            _, saved = load_record(out_dir, self.checkpoint_class, ClassesRecord)
            check_grown(out_dir, saved.classes, classes)
            if len(saved.classes) == len(classes):
                return out_dir
            ancestor = Ancestor(fingerprint=fingerprint(out_dir), length=len(saved.classes))
            lineage = as_dicts([*saved.lineage, ancestor])
        table = {"class": self.checkpoint_class, "classes": list(classes), "lineage": lineage}
        listed = f"{count_of(len(classes), 'class', 'classes')}: {', '.join(classes)}"
        card = f"# {config.name}\n\n{self.summary}. {listed}.\n"
        save_checkpoint(out_dir, {}, table, card)
        return out_dir

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings) -> ClassTokenizer:
        """Load the classes. Raises CheckpointError if they differ from the settings."""
        classes = self.options(settings).classes
        _, saved = load_record(checkpoint, self.checkpoint_class, ClassesRecord)
        check_grown(checkpoint, saved.classes, classes)
        if len(saved.classes) < len(classes):
            raise CheckpointError(
                f"{checkpoint}: has {count_of(len(saved.classes), 'class', 'classes')}, the settings "
                f"{len(classes)}; `zoo tokenizer train {settings.name} --data DATA` adds them and keeps all ids"
            )
        return ClassTokenizer(classes, device)

    @hookimpl
    def encode(self, tokenizer: ClassTokenizer, values: Sequence[str]) -> Tensor:
        """Return the id of each class, int64 `(batch, 1)`."""
        import torch

        return torch.tensor([[tokenizer.classes.index(value)] for value in values], device=tokenizer.device)

    @hookimpl
    def decode(self, tokenizer: ClassTokenizer, tokens: Tensor) -> list[str]:
        return [tokenizer.classes[index] for index in tokens[:, 0].tolist()]

    @hookimpl
    def read_value(self, data: bytes, extension: str) -> str:
        """Read a `.txt` file with the name of a class; surrounding space is ignored. Raises InvalidValueError."""
        if extension != "txt":
            raise InvalidValueError(f"expected a .txt file, got .{extension}")
        return text_of(data).strip()

    @hookimpl
    def score(self, predicted: Sequence[str], target: Sequence[str]) -> dict[str, float]:
        correct = Counter(truth for guess, truth in zip(predicted, target, strict=True) if guess == truth)
        occurring = Counter(target)
        shares = [correct[name] / count for name, count in occurring.items()]
        return {"accuracy": correct.total() / occurring.total(), "balanced_accuracy": sum(shares) / len(shares)}

    @hookimpl
    def constant_baseline(self, values: Sequence[str], settings: Settings) -> str:
        """Return the most frequent class; the lower id wins ties."""
        counts = Counter(values)
        return max(self.options(settings).classes, key=lambda name: counts[name])


def check_grown(folder: Path, checkpoint_classes: Sequence[str], classes: Sequence[str]) -> None:
    """Raise CheckpointError if the `checkpoint_classes` classes of a checkpoint are not the first ones of `classes`."""
    for index, name in enumerate(checkpoint_classes):
        configured = classes[index] if index < len(classes) else None
        if name != configured:
            difference = f"say {configured!r}" if configured else f"have {count_of(len(classes), 'class', 'classes')}"
            raise CheckpointError(
                f"{folder}: class {index} is {name!r}, and the settings {difference}; add classes at the end only, "
                "or write it anew (--overwrite) and tokenize again"
            )
