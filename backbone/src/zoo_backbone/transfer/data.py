"""Samples of a transfer: stored input tokens with labels, the choice of labels that are used, the validation split."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers_zoo.data.provenance import samples_identity
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.shards import LazyValues, ValueStore
from tokenizers_zoo.data.tokens import TokenStore, samples_digest, whole_samples
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.spec import ModalitySpec
from zoo_backbone.codecs import stored_samples
from zoo_backbone.data import TokenData
from zoo_backbone.transfer.config import MIN_VALIDATION, TransferConfig
from zoo_backbone.transfer.task import Task


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a split that have all inputs and a label."""

    labels: LazyValues
    rows: Mapping[str, int]
    """The number of each key's sample in `inputs`."""
    inputs: TokenData
    dropped: Mapping[str, int]
    """Number of samples without inputs ("no_input") or label ("no_label")."""

    @property
    def keys(self) -> Sequence[str]:
        return self.labels.keys

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Return the sha256 of keys and input tokens."""
        return samples_digest(self.inputs.columns, self.keys)

    def tokens(self, places: Sequence[int]) -> dict[str, Any]:
        """Return the input tokens of the samples at these places, by modality."""
        rows = self.inputs.rows([self.rows[self.keys[place]] for place in places])
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

    def samples(self, task: Task, split: str) -> Samples:
        """Return the labelled samples of a split; of cropped samples, the uncropped view.

        Raises DataError if there are none, or if the values are known not to belong to the tokens.
        """
        if self.values is not None:
            source = samples_identity(self.values.root, split)
            TokenStore(self.tokens).check_same_samples(self.values.root, split, source)
        inputs = stored_samples(
            self.tokens, split, self.specs, self.trained_on, self.zoo, self.owner, aligned=True
        )  # fmt: skip
        rows = {key: place for place, key in enumerate(inputs.sample_keys())}
        known = task.labels(self.values, split)
        labels = known.without(set(known.keys) - rows.keys())
        if not len(labels):
            raise DataError(
                f"--task {task.text}: no sample of {self.tokens / split} has a label and all inputs "
                f"({', '.join(spec.name for spec in self.specs)})"
            )
        # A table holds the labels of all splits: its other keys are not missing inputs.
        no_input = len(known) - len(labels) if task.handle is not None else 0
        dropped = {"no_input": no_input, "no_label": len(rows) - len(labels)}
        return Samples(labels=labels, rows=rows, inputs=inputs, dropped=dropped)

    def unknown_keys(self, task: Task) -> int:
        """Return the number of keys of a table that no split has.

        Raises DataError if no key is known, and for a key of both the training and the test split.
        """
        if not task.table:
            return 0
        store = TokenStore(self.tokens)
        stored: dict[str, set[str]] = {}
        for split in store.splits():
            names = {spec.name for spec in self.specs} & set(store.modalities(split))
            columns = [store.open(split, name) for name in names]
            stored[split] = {key for column in columns for key, _ in whole_samples([column])}
        both = stored.get(TRAIN, set()) & stored.get(TEST, set())
        if twice := next((key for key in task.table if key in both), None):
            raise DataError(
                f"--task {task.text}: the key {twice!r} is in both splits {TRAIN} and {TEST} of {self.tokens}; rename "
                "the samples"
            )
        known = set().union(*stored.values())
        missing = [key for key in task.table if key not in known]
        if len(missing) == len(task.table):
            raise DataError(
                f"--task {task.text}: none of its {len(missing)} keys (such as {missing[0]!r}) is in {self.tokens}, "
                f"whose keys look like {min(known, default='')!r}"
            )
        return len(missing)


def select_labels(
    keys: Sequence[str], amount: int | float, seed: int, classes: Iterable[str] | None = None
) -> list[str]:
    """Return a share (float) or a number (int) of the keys; fewer labels are always a subset of more.

    Keys are ordered by a hash of seed and key. With `classes`, each class keeps its share and at least one sample.
    """
    order = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    count = max(1, round(amount * len(keys))) if isinstance(amount, float) else min(amount, len(keys))
    if classes is not None:
        of = dict(zip(keys, classes, strict=True))
        sizes, seen = Counter(of.values()), defaultdict[str, int](int)
        rank = {}
        for key in order:
            rank[key] = seen[of[key]] / sizes[of[key]]
            seen[of[key]] += 1
        order = sorted(order, key=rank.__getitem__)
        count = max(count, len(sizes))
    return order[:count]


def select_validation(
    order: Sequence[str], share: float, most: int, seed: int, classes: Mapping[str, str] | None = None
) -> list[str]:
    """Return about `share` of the keys that `select_labels` returned, at most `most`.

    Each class keeps its share, and its first sample stays in training. The choice depends on the order only, so that
    the training (validation) samples of fewer labels are a subset of those of more labels.
    """
    seen = Counter[str]()
    chosen = []
    for key in order:
        name = classes[key] if classes is not None else ""
        # Systematic sampling: every (1 / share)-th sample of a class, from a random start.
        digest = hashlib.sha256(f"validation:{seed}:{name}".encode()).digest()
        start = int.from_bytes(digest[:4]) / 2**32 * (1 - share)
        if math.floor(share * (seen[name] + 1) + start) > math.floor(share * seen[name] + start):
            chosen.append(key)
        seen[name] += 1
    return chosen[:most]


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples whose labels are used, split into training and validation (places in `samples`)."""

    samples: Samples
    training: Sequence[int]
    validation: Sequence[int]
    problem: str = ""
    """Why there is no validation although it was requested."""


def split_labels(task: Task, known: Samples, config: TransferConfig, seed: int) -> Split:
    """Select the labels that are used and split them. knn has no validation samples."""
    classes = None
    if task.whole is None or task.whole.spec.value.kind == "text":
        labels = list(known.labels)
        if task.kind(labels) == "classes":
            classes = dict(zip(known.keys, map(str, labels), strict=True))
    order = select_labels(known.keys, config.labels, seed, None if classes is None else classes.values())
    samples = replace(known, labels=known.labels.without(set(known.keys) - set(order)))
    share = 0.0 if config.head == "knn" else config.validation
    held = set(select_validation(order, share, config.eval_samples, seed, classes)) if share else set[str]()
    problem = ""
    if share and len(held) < MIN_VALIDATION:
        problem = (
            f"{len(samples)} labels are too few for validation {share:g}: {len(held)} validation samples, at least "
            f"{MIN_VALIDATION} are needed"
        )
        held = set()
    training = [place for place, key in enumerate(samples.keys) if key not in held]
    validation = [place for place, key in enumerate(samples.keys) if key in held]
    return Split(samples=samples, training=training, validation=validation, problem=problem)
