"""From a token store to packed batches: aligned samples, their order, and a thread that prepares batches ahead."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.data.tokens import TokenColumn, TokenStore
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.spec import EmbeddingsLayout, ModalitySpec, SequenceLayout
from zoo_backbone.batch import PackedBatch, RawBatch

COMPARED = 16_384
"""Samples whose tokens tell one store from another."""


class TokenData:
    """The samples of one split of a token store, with what each has of the modalities of `specs`.

    Samples are in the order of their keys. By default a sample may lack modalities; `aligned` keeps those that have
    all. `names` are the modalities that are read, by default all; samples lack the others. Raises DataError where one
    has no tokens, not all of them, or tokens that do not fit its spec, and where two are of other crops.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        specs: Sequence[ModalitySpec],
        *,
        aligned: bool = False,
        names: Collection[str] | None = None,
    ) -> None:
        store = TokenStore(root)
        self.specs = tuple(specs)
        read = [column for column, spec in enumerate(specs) if names is None or spec.name in names]
        self.columns: dict[str, TokenColumn] = {specs[i].name: store.open(split, specs[i].name) for i in read}
        store.check_whole(split, self.columns, self.columns)
        for name, spec in ((specs[i].name, specs[i]) for i in read):
            _check_fits(self.columns[name], spec, root / split / name)
        _check_crops(self.columns, root / split)
        alignment = store.align(self.columns)
        order = np.argsort(np.array(alignment.keys, object), kind="stable")
        if aligned:
            order = order[alignment.complete[order]]
        if not len(order):
            wanted = "no sample has all of" if aligned else "there are no samples of"
            raise DataError(f"{root / split}: {wanted} {', '.join(self.columns)}; tokenize the same data")
        self.keys: list[str] = [alignment.keys[row] for row in order]
        self.rows: npt.NDArray[np.int64] = np.full((len(order), len(specs)), -1, np.int64)
        self.rows[:, read] = alignment.rows[order]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def fingerprints(self) -> dict[str, str]:
        """By modality, the codec that wrote its tokens."""
        return {name: column.fingerprint for name, column in self.columns.items()}

    def contents(self) -> str:
        """sha256 (hex) over all keys and the tokens of up to COMPARED samples, spread: soon read, whatever the size."""
        places = spread(len(self), COMPARED)
        digest = hashlib.sha256(json.dumps(self.keys).encode())
        for name, rows in zip((spec.name for spec in self.specs), self.rows[places].T, strict=True):
            if name in self.columns:
                self.columns[name].add_to(digest, rows)
        return digest.hexdigest()

    def batch(self, samples: npt.NDArray[np.int64]) -> RawBatch:
        """All tokens of the samples numbered `samples`."""
        rows = self.rows[samples]
        present = rows >= 0
        lengths = np.zeros(rows.shape, np.int64)
        tokens: dict[str, npt.NDArray[Any]] = {}
        for column, spec in enumerate(self.specs):
            here = np.flatnonzero(present[:, column])
            taken = self.columns[spec.name].take(rows[here, column]) if len(here) else np.zeros(0, np.int64)
            dim = getattr(spec.layout, "dim", None)
            shape = (len(samples), spec.layout.length) + (() if dim is None else (dim,))
            array = np.zeros(shape, np.int64 if dim is None else np.float32)
            if isinstance(spec.layout, SequenceLayout | EmbeddingsLayout):
                for sample, row in zip(here, taken, strict=True):
                    lengths[sample, column] = len(row)
                    array[sample, : len(row)] = row
            else:
                lengths[here, column] = spec.layout.length
                array[here] = taken.reshape(len(here), *shape[1:])
            tokens[spec.name] = array
        return RawBatch(tokens=tokens, lengths=lengths, present=present)


def _check_fits(column: TokenColumn, spec: ModalitySpec, where: Path) -> None:
    stored, layout = column.layout, spec.layout
    same = stored == layout
    if isinstance(layout, SequenceLayout | EmbeddingsLayout) and type(stored) is type(layout):
        # A longer limit, or more sentinels, do not change what is stored.
        longest = int(column.lengths.max(initial=0))
        same = longest <= layout.length and getattr(stored, "dim", 0) == getattr(layout, "dim", 0)
        if isinstance(layout, SequenceLayout) and isinstance(stored, SequenceLayout):
            same = same and (stored.end, stored.sentinel_start) == (layout.end, layout.sentinel_start)
    if not same:
        raise DataError(f"{where}: stored with the layout {stored}, expected {layout}; tokenize again with --overwrite")
    if column.vocabulary != spec.vocabulary:
        raise DataError(
            f"{where}: ids of vocabulary {column.vocabulary!r}, expected {spec.vocabulary!r}; tokenize again with "
            "--overwrite"
        )
    if column.needed_vocab_size > spec.vocab_size and not spec.continuous:
        raise DataError(
            f"{where}: holds ids up to {column.needed_vocab_size - 1}, and vocabulary {spec.vocabulary!r} has "
            f"{spec.vocab_size}; raise its size, or tokenize again with --overwrite"
        )


def _check_crops(columns: Mapping[str, TokenColumn], where: Path) -> None:
    """Raise DataError where whole pictures are beside crops, which share no key, or crops beside others' places."""
    seeds = {column.metadata.run.get("seed", 0) if column.cropped else None: name for name, column in columns.items()}
    if len(seeds) > 1:
        said = (f"{name} with {'--crops 1' if seed is None else f'--crops and --seed {seed}'}"
                for seed, name in seeds.items())  # fmt: skip
        raise DataError(
            f"{where}: tokenized are {', '.join(said)}: what they say of a sample is not of one picture; tokenize all "
            "with the same --crops and --seed"
        )


class Order:
    """The order of samples: a seeded permutation per epoch, one epoch after the other; any place can be asked for.

    Orders of one seed and of other numbers have nothing to do with one another.
    """

    def __init__(self, count: int, seed: int, number: int = 0) -> None:
        self.count = count
        self.seed = seed
        self.number = number
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    def between(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """The numbers of the samples at places `first` to `end - 1` of all epochs, `(end - first,)`."""
        places = np.arange(first, end)
        epochs = places // self.count
        return np.concatenate(
            [self._epoch(int(epoch))[places[epochs == epoch] % self.count] for epoch in np.unique(epochs)]
        )

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        order = self._epochs.get(epoch)
        if order is None:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch, self.number))))
            order = generator.permutation(self.count)
            kept = {number: others for number, others in self._epochs.items() if number >= epoch - 1}
            self._epochs = {**kept, epoch: order}  # in one go: threads may ask at once
        return order


class Loader:
    """The batches of steps `first` to `last - 1`, made by `make(step)` in a thread, at most `ahead` in advance.

    Use it in a `with` block, which ends the thread. An error in `make` is raised where the batch would have been.
    """

    def __init__(self, make: Callable[[int], PackedBatch], first: int, last: int, ahead: int = 3) -> None:
        self._make = make
        self._steps = range(first, last)
        self._ready: queue.Queue[PackedBatch | BaseException] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join()

    def _work(self) -> None:
        for step in self._steps:
            try:
                item: PackedBatch | BaseException = self._make(step)
            except BaseException as error:
                item = error
            while not self._stopped.is_set():
                try:
                    self._ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._stopped.is_set() or isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[PackedBatch]:
        for _ in self._steps:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
