"""Subject: values of one modality, a tokenizer, its tokens and decoded values, and helper functions of the checks."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tokenizers_zoo.build.tokenizers import train_vocabulary
from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.pretrained import PretrainedError
from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.samples import TRAIN, TrainingSamples
from tokenizers_zoo.contract.spec import Crop, ValueSpec
from tokenizers_zoo.contract.validation import bounds, values_equal
from tokenizers_zoo.errors import DataError, InvalidValueError, PluginError, ZooError
from tokenizers_zoo.machine.device import AUTO
from tokenizers_zoo.testing.results import Skipped, expect

COUNT = 8
"""Sample values per modality."""
TINY = {"steps": 3, "batch_size": 4, "eval_every": 3, "eval_samples": 4, "warmup_steps": 1}
"""Settings of a training that only shows that a tokenizer works."""
LONGEST = 32
"""Numbers along an axis of free size of the first generated value; each next value has one less."""
WORDS = ("the", "a", "red", "small", "old", "tree", "house", "dog", "on", "under", "near", "and", "two", "stones")


@dataclass(kw_only=True)
class Subject:
    """One modality under test. Raises ZooError if its plugin does not load; the rest is made on demand."""

    zoo: Zoo
    name: str
    workdir: Path
    data_dir: Path | None = None
    samples: Sequence[Mapping[str, Any]] | None = None
    """Sample values in place of those of a source, `{modality: value}`."""
    device: str = AUTO
    """The device of networks; the check `devices` compares it with the CPU."""
    steps: int | None = None
    """Training steps of a temporary tokenizer, which takes the place of an existing one."""

    def __post_init__(self) -> None:
        self.source_error: ZooError | None = None
        """The error of the first source that failed."""
        self.handle: ModalityHandle = self.zoo[self.name]
        if self.handle.files.lacks_vocabulary:
            self.handle = self.handle.at(self.handle.checkpoint, self.workdir / "vocabulary")

    @cached_property
    def values(self) -> list[Any]:
        """Sample values at the size of the settings. Raises DataError if there are none."""
        raw = [sample[self.name] for sample in self.samples_with((self.name,))]
        if not raw and self.handle.spec.derived_from:
            with contextlib.suppress(PretrainedError):  # the check of derive reports it
                raw = [value for _, value in self.derived()]
        if not raw:
            raw = generated_values(self.handle.spec.value, COUNT)
        if len(raw) < 2:
            why = f"; {self.source_error}" if self.source_error else ""
            raise DataError(
                f"{self.name}: no installed source gives values of it{why}; give a folder of value shards that has some"
                " (--data, --zoo-data), or install a source"
            )
        return [self.handle.transform(value, Crop()) for value in raw]

    @property
    def example(self) -> Any:
        """The first value that is not empty, else the first."""
        sizes = [value.size if isinstance(value, np.ndarray) else len(value) for value in self.values]
        return self.values[next((index for index, size in enumerate(sizes) if size), 0)]

    def derived(self) -> list[tuple[dict[str, Any], Any]]:
        """Return the samples that the hook does not drop, each with its derived value.

        Raises the reason if all are dropped, PluginError if the hook fails, and PretrainedError without its network.
        """
        derived: list[tuple[dict[str, Any], Any]] = []
        dropped: ZooError | None = None
        for sample in self.samples_with(self.handle.spec.derived_from):
            try:
                derived.append((sample, self.handle.derive(copy.deepcopy(sample))))
            except (PluginError, PretrainedError):
                raise
            except ZooError as error:
                dropped = dropped or error
        if dropped and not derived:
            raise dropped
        return derived

    def samples_with(self, modalities: Sequence[str]) -> list[dict[str, Any]]:
        """Return up to 8 samples that have all `modalities`, at the size of their settings."""
        if any(name not in self.zoo for name in modalities):
            return []
        candidates: Iterable[Iterable[Mapping[str, Any]]]
        if self.samples is not None:
            candidates = [self.samples]
        elif self.data_dir is not None:
            candidates = [self._stored(self.data_dir, modalities)]
        else:
            candidates = (self._from_source(source_name, modalities) for source_name in self.zoo.source_names())
        for samples in candidates:
            complete = (sample for sample in samples if all(name in sample for name in modalities))
            transformed = [
                {name: self.zoo[name].transform(sample[name], Crop()) for name in modalities}
                for sample in islice(complete, COUNT)
            ]
            if transformed:
                return transformed
        return []

    def _stored(self, data_dir: Path, modalities: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the readable samples of value shards. Raises the first error if none is readable."""
        from tokenizers_zoo.stores.shards import ValueStore

        store = ValueStore(data_dir)
        first_error: ZooError | None = None
        read_count = 0
        for split in store.splits():
            if set(modalities) <= set(store.modalities(split)):
                for row in store.rows(split, modalities):
                    try:
                        sample = {name: store.read(self.zoo[name], split, *row) for name in modalities}
                    except (InvalidValueError, DataError) as error:
                        first_error = first_error or error
                        continue
                    read_count += 1
                    yield sample
        if first_error and not read_count:
            raise first_error

    def _from_source(self, source_name: str, modalities: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield samples of a source under the names of our instances; none if the source lacks a modality."""
        handles = {name: self.zoo[name] for name in modalities}
        try:
            source = self.zoo.source(source_name)
            offered = source.spec.modalities
            names_at_source = {name: handle.name_at_source(offered) for name, handle in handles.items()}
            if not set(names_at_source.values()) <= set(offered):
                return
            samples = source_samples(self.zoo, source_name)
        except ZooError as error:
            self.source_error = self.source_error or error  # reported if no other source works
            return
        for sample in samples:
            yield {name: sample[source_key] for name, source_key in names_at_source.items() if source_key in sample}

    @cached_property
    def trained(self) -> ModalityHandle:
        """The modality with its own tokenizer or a temporary one."""
        if self.steps is None and self.handle.has_tokenizer:
            return self.handle
        handle = self.handle.at(self.train(self.workdir / "tokenizer"))
        handle.device = self.handle.device
        return handle

    @cached_property
    def tokens(self) -> Any:
        """The values' tokens, as the tokenizer returns them. Raises DataError without values."""
        if not self.values:
            raise DataError("no value can be read")
        return self.trained.encode(self.values)

    @property
    def rows(self) -> list[np.ndarray[Any, Any]]:
        """The tokens of each value."""
        return per_sample(self.tokens)

    @cached_property
    def decoded(self) -> list[Any]:
        """The values that the tokens decode to. Raises Skipped if the modality is an input only."""
        values = self.trained.decode_if_able(self.tokens)
        if values is None:
            raise Skipped("an input only, not decoded")
        return values

    def train(self, folder: Path) -> Path:
        """Train a small tokenizer into `folder`, and its vocabulary first if that is missing."""
        if self.handle.files.lacks_vocabulary:
            train_vocabulary(self.handle, self.training_samples, self.handle.files.vocabulary)
        table = self.handle.known_settings().get("tokenizer")
        overrides = {key: value for key, value in TINY.items() if hasattr(table, key)}
        return self.handle.train_tokenizer(self.training_samples, folder, 0, device=self.handle.device, **overrides)

    @property
    def training_samples(self) -> TrainingSamples:
        """The sample values as training samples; two are held out, or one of two."""
        vocabulary = self.handle.spec.vocabulary
        sharers = [handle for handle in self.zoo.handles() if handle.spec.vocabulary == vocabulary]
        held_out = min(2, len(self.values) - 1)
        special = [token for handle in sharers for token in handle.vocabulary_tokens()]
        return TrainingSamples(
            train=self.values[:-held_out],
            test=self.values[-held_out:],
            texts=lambda: self.handle.vocabulary_texts(self.values),
            special_tokens=tuple(dict.fromkeys(special)),
            provenance={"source": "conformance checks"},
        )


@lru_cache(maxsize=8)
def source_samples(zoo: Zoo, source_name: str) -> list[Mapping[str, Any]]:
    """Return 8 samples of a source, cached for all modalities. Raises ZooError."""
    samples = zoo.source(source_name).samples(TRAIN, COUNT, 0)
    return [samples[index][1] for index in range(len(samples))]


def generated_values(spec: ValueSpec, count: int) -> list[Any]:
    """Return values generated from a spec: smooth fields or random ids for arrays, words for text, none for objects."""
    rng = np.random.default_rng(0)
    if spec.kind == "text" and spec.classes:
        return [spec.classes[i % len(spec.classes)] for i in range(count)]
    if spec.kind == "text":
        return [" ".join(rng.choice(WORDS, size=5 + i)) for i in range(count)]
    if spec.kind != "array":
        return []
    arrays = []
    low, high = bounds(spec)
    for number in range(count):
        shape = tuple(size if isinstance(size, int) else LONGEST - number for size in spec.shape)
        dtype = np.dtype(spec.dtype)
        if dtype.kind in "iub":
            last = high if high is not None else 1 if dtype.kind == "b" else 9
            value: Any = rng.integers(int(low or 0), int(last) + 1, shape)
        elif low is not None and high is not None:  # a sine wave of random direction and phase
            axes = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
            phase = rng.uniform(0, 2 * np.pi) + sum(rng.uniform(-6, 6) * axis for axis in axes)
            value = low + (high - low) * np.clip(0.5 + 0.5 * np.sin(phase), 0, 1)
        else:
            noise = np.asarray(rng.standard_normal(shape))
            value = noise if low is high is None else low + np.abs(noise) if low is not None else high - np.abs(noise)
        arrays.append(np.asarray(value, dtype))
    return arrays


Values = TypeVar("Values")


def per_sample(tokens: Any) -> list[np.ndarray[Any, Any]]:
    """Return a batch of tokens as one numpy array per sample."""
    return [item if isinstance(item, np.ndarray) else item.cpu().numpy() for item in tokens]


def equal(first: Any, second: Any, tolerance: float = 0.0) -> bool:
    """True if two values, or nested lists, tuples or dicts of values, have the same types and are equal.

    Arrays may differ by `tolerance` times their range on average, and floats by `tolerance` times their size.
    """
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key], tolerance) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second, [tolerance] * len(first)))
    if isinstance(first, float):
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance / 10)
    if not isinstance(first, np.ndarray) or not tolerance:
        return values_equal(first, second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    a, b = first.astype(np.float64), second.astype(np.float64)
    return float(np.abs(a - b).mean()) <= tolerance * (float(np.ptp(b)) or 1.0)


@contextmanager
def unchanged_copy(hook: str, values: Values) -> Iterator[Values]:
    """Yield a deep copy of `values` for a call of `hook`, and check that the call does not modify it."""
    argument = copy.deepcopy(values)
    yield argument
    expect(equal(values, argument), f"{hook} changes the values that it is given; let it work on a copy")
