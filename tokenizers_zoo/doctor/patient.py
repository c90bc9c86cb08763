"""Patient: a modality's held-out values, its tokenizer, and the reconstructions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import ZooError, count_of
from tokenizers_zoo.pipeline.tokenizers import train_tokenizer
from tokenizers_zoo.progress import progress_bar

if TYPE_CHECKING:
    from tokenizers_zoo.handle import ModalityHandle
    from tokenizers_zoo.registry import Zoo

STEPS = 100
"""Training steps of a temporary tokenizer."""
MOST = 2000
"""Maximal training samples of a temporary tokenizer, spread over the split."""


class NotApplicable(Exception):
    """The gate does not apply; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Result of one gate: its figures in words, and advice if it failed."""

    gate: str
    passed: bool
    figure: str
    advice: str = ""
    skipped: bool = False


class Failed(Exception):
    """A gate failed: its figures and advice."""

    def __init__(self, figure: str, advice: str) -> None:
        super().__init__(figure)
        self.figure, self.advice = figure, advice


@dataclass(kw_only=True)
class Patient:
    """One modality under examination: held-out values, their tokens, and the reconstructions."""

    zoo: Zoo
    handle: ModalityHandle
    store: ValueStore
    split: str
    values: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unread: str = ""
    """Why no value can be read."""
    trained: ModalityHandle | None = None
    how_trained: str = ""
    trained_fully: bool = True
    """False if the tokenizer was trained for fewer steps than its settings say."""
    problem: str = ""
    """Why there is no tokenizer, or why it cannot encode."""
    rows: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """The tokens of each value."""
    decoded: list[Any] | None = None
    token_store: Path | None = None

    def read(self, limit: int) -> None:
        """Read up to `limit` held-out values; note the reasons of refused ones.

        Raises DataError if the data lack the modality.
        """
        try:
            there = self.store.rows(self.split, [self.handle.name])
        except ZooError as error:
            if self.handle.name not in self.store.modalities(self.split):
                raise
            self.unread = str(error)
            return
        places = [there[index] for index in spread(len(there), limit)]
        if not places:
            self.unread = f"{self.store.folder(self.split, self.handle.name)}: holds no values"
        with progress_bar(f"read {self.split}/{self.handle.name}", len(places)) as advance:
            for place in places:
                key = there.key(place)
                try:
                    self.values.append(self.store.read(self.handle, self.split, *place))
                    self.keys.append(key)
                except ZooError as error:
                    self.refused[key] = str(error)
                advance(1)

    def encode(self, data: Path, steps: int | None, workdir: Path) -> None:
        """Encode and decode the values with the modality's tokenizer, or a temporary one of `steps` steps."""
        if not self.values:
            self.problem = "no value can be read"
            return
        try:
            if steps is None and self.handle.has_tokenizer:
                self.trained, self.how_trained = self.handle, f"the one in {self.handle.checkpoint}"
            else:
                self._train(data, steps or STEPS, workdir)
            assert self.trained is not None
            tokens = self.trained.encode(self.values)
            self.rows = [row if isinstance(row, np.ndarray) else row.cpu().numpy() for row in tokens]
            self.decoded = self.trained.decode_if_able(tokens)
        except ZooError as error:
            self.problem = str(error)

    def _train(self, data: Path, steps: int, workdir: Path) -> None:
        table = self.handle.known_settings().get("tokenizer")
        counted = dataclasses.is_dataclass(table) and any(item.name == "steps" for item in dataclasses.fields(table))
        overrides = {"steps": steps} if counted else {}
        folder = train_tokenizer(
            self.zoo, self.handle.name, data, out=workdir / "tokenizer", overrides=overrides, limit=MOST
        )
        self.trained = self.handle.at(folder)
        self.trained.device = self.handle.device
        self.trained_fully = not counted or steps >= table.steps  # type: ignore[union-attr]
        self.how_trained = f"trained for {count_of(steps, 'step')}" if counted else "trained"

    def need_tokens(self) -> None:
        """Raise NotApplicable if there are no discrete tokens."""
        if self.problem:
            raise NotApplicable("no tokens")
        if self.handle.spec.continuous:
            raise NotApplicable("continuous, no ids")


GATES: dict[str, Callable[[Patient], str]] = {}
"""Each returns its figures, or raises Failed or NotApplicable."""


def gate(function: Callable[[Patient], str]) -> Callable[[Patient], str]:
    """Add a function to GATES under its name."""
    GATES[function.__name__] = function
    return function
