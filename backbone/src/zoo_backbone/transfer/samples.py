"""The samples of a transfer: stored tokens of what is given beside labels, and the choice of those that are used."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from tokenizers_zoo.data.provenance import samples_identity
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.shards import LazyValues, ValueStore
from tokenizers_zoo.data.tokens import TokenStore, samples_digest, whole_samples
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.spec import ModalitySpec
from zoo_backbone.codecs import stored_samples
from zoo_backbone.data import TokenData
from zoo_backbone.transfer.config import VALIDATION_LEAST, TransferConfig
from zoo_backbone.transfer.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Part:
    """The samples of a split that have all that is given and a label."""

    keys: Sequence[str]
    rows: Mapping[str, int]
    """By key, the sample's number in `inputs`."""
    inputs: TokenData
    labels: LazyValues
    left_out: Mapping[str, int]
    """How many samples have a label and lack an input, or the other way round; where there are labels that cannot be
    read, their number is "unreadable"."""

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, labels: LazyValues) -> Part:
        """The samples of these labels alone."""
        return Part(keys=labels.keys, rows=self.rows, inputs=self.inputs, labels=labels, left_out=self.left_out)

    def digest(self) -> str:
        """sha256 (hex) of keys and tokens of its samples."""
        return samples_digest(self.inputs.columns, self.keys)

    def tokens(self, places: Sequence[int]) -> dict[str, Any]:
        """By modality the tokens of the samples at these places, as codecs give them."""
        rows = self.inputs.rows([self.rows[self.keys[place]] for place in places])
        return {name: column.take(rows) for name, column in self.inputs.columns.items()}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where samples are: the stored tokens of a run, and the values that labels are of."""

    tokens: Path
    store: ValueStore | None
    specs: Sequence[ModalitySpec]
    trained_on: Mapping[str, str]
    zoo: Zoo
    owner: str
    """Whose training decided on the codecs, for messages."""

    def part(self, task: Task, split: str) -> Part:
        """The labelled samples of a split, of crops the whole ones.

        Raises DataError where there are none, and for labels of samples that are known to be others than the tokens'.
        """
        if self.store is not None:
            source = samples_identity(self.store.root, split)
            TokenStore(self.tokens).check_same_samples(self.store.root, split, source)
        inputs = stored_samples(
            self.tokens, split, self.specs, self.trained_on, self.zoo, self.owner, aligned=True
        )  # fmt: skip
        rows = {key: place for place, key in enumerate(inputs.sample_keys())}
        labels = task.labels(self.store, split)
        known = set(labels.keys)
        keys = [key for key in rows if key in known]
        given = ", ".join(spec.name for spec in self.specs)
        if not keys:
            raise DataError(
                f"--task {task.text}: no sample of the split {split} in {self.tokens} has {given} and a label"
            )
        left_out = {"no_input": len(known) - len(keys), "no_label": len(rows) - len(keys)}
        if task.handle is None:  # a table has the labels of all splits
            left_out["no_input"] = 0
        if labels.unreadable:
            left_out["unreadable"] = labels.unreadable
        return Part(keys=keys, rows=rows, inputs=inputs, labels=labels.of(keys), left_out=left_out)

    def unknown(self, task: Task) -> int:
        """How many keys of a table no split of the tokens has.

        Raises DataError where that is all of them, and for one that the training and the test split have: its label
        would be that of two samples.
        """
        if not task.table:
            return 0
        store = TokenStore(self.tokens)
        names = [spec.name for spec in self.specs]
        stored: dict[str, set[str]] = {}
        for split in store.splits():
            columns = [store.open(split, name) for name in names if name in store.modalities(split)]
            stored[split] = {key for column in columns for key, _ in whole_samples([column])}
        both = stored.get(TRAIN, set()) & stored.get(TEST, set())
        if twice := next((key for key in task.table if key in both), None):
            raise DataError(f"--task {task.text}: the key {twice!r} is one of {TRAIN} and one of {TEST} in "
                            f"{self.tokens}: its label would be that of both; give them other names")  # fmt: skip
        known = set().union(*stored.values())
        missing = [key for key in task.table if key not in known]
        if len(missing) == len(task.table):
            raise DataError(f"--task {task.text}: none of its {len(missing)} keys, such as {missing[0]!r}, is in "
                            f"{self.tokens}; keys there are like {min(known, default='')!r}")  # fmt: skip
        return len(missing)


def chosen(keys: Sequence[str], amount: int | float, seed: int, classes: Iterable[str] | None = None) -> list[str]:
    """The samples whose labels are used: a share, or a number of them; fewer are among more.

    They are the first in an order by a hash of seed and key. With the samples' `classes`, all of these take turns as
    often as they occur, each at least once, so that none that has a sample is lost.
    """
    place = {key: hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys}
    order = sorted(keys, key=place.__getitem__)
    count = max(1, round(amount * len(keys))) if isinstance(amount, float) else min(amount, len(keys))
    if classes is not None:
        of = dict(zip(keys, classes, strict=True))
        sizes, seen = Counter(of.values()), defaultdict[str, int](int)
        turn = {}
        for key in order:
            turn[key] = seen[of[key]] / sizes[of[key]]
            seen[of[key]] += 1
        order = sorted(order, key=turn.__getitem__)
        count = max(count, len(sizes))
    return order[:count]


def set_apart(
    order: Sequence[str], share: float, most: int, seed: int, classes: Mapping[str, str] | None = None
) -> list[str]:
    """The samples that judge and are not learned from: about `share` of those that `chosen` gave, up to `most`.

    Each class keeps its share, and its first sample is always learned from. As it is the order that decides, those of
    fewer labels are among those of more, and what fewer labels learn from is, too.
    """
    seen = Counter[str]()
    found = []
    for key in order:
        name = classes[key] if classes is not None else ""
        # Every (1 / share)-th of a class, beginning at a place of its own: systematic sampling from a random start.
        digest = hashlib.sha256(f"validation:{seed}:{name}".encode()).digest()
        start = int.from_bytes(digest[:4]) / 2**32 * (1 - share)
        if math.floor(share * (seen[name] + 1) + start) > math.floor(share * seen[name] + start):
            found.append(key)
        seen[name] += 1
    return found[:most]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The training samples whose labels are used, and by their places which are learned from and which judge."""

    part: Part
    training: Sequence[int]
    validation: Sequence[int]
    few: int | None = None
    """How many samples validation would have had, where these were too few."""

    def few_text(self, config: TransferConfig) -> str:
        """Why no samples are set apart, in words."""
        return (
            f"{len(self.part)} labels are too few: validation {config.validation:g} sets {self.few} of them apart to "
            f"judge by, never the first of a class, and at least {VALIDATION_LEAST} are needed"
        )


def labelled(task: Task, known: Part, config: TransferConfig, seed: int) -> Labelled:
    """The training samples whose labels are used. knn learns from all of them."""
    classes = None
    if task.whole is None or task.whole.spec.value.kind == "text":
        labels = list(known.labels)
        if task.kind_name(labels) == "classes":
            classes = dict(zip(known.keys, map(str, labels), strict=True))
    order = chosen(known.keys, config.labels, seed, None if classes is None else classes.values())
    part = known.only(known.labels.without(set(known.keys) - set(order)))
    share = 0.0 if config.head == "knn" else config.validation
    apart = set(set_apart(order, share, config.eval_samples, seed, classes))
    few = len(apart) if share and len(apart) < VALIDATION_LEAST else None
    apart = apart if few is None else set()
    places = {judges: [place for place, key in enumerate(part.keys) if (key in apart) == judges]
              for judges in (False, True)}  # fmt: skip
    return Labelled(part=part, training=places[False], validation=places[True], few=few)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A sample by its place in a part."""

    part: Part
    place: int


class Examples(Sequence[Example]):
    """The samples of a part, or those at some of its places, as the training loop counts them."""

    def __init__(self, part: Part, places: Sequence[int] | None = None) -> None:
        self.part = part
        self.places = range(len(part)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return Example(part=self.part, place=self.places[index])
