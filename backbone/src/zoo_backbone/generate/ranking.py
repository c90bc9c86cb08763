"""Several draws of a sample, the best first: by any scorer, or by how well a draw agrees with its condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.generate.inputs import rows_of
from zoo_backbone.generate.plan import TargetPlan
from zoo_backbone.generate.sampler import generate
from zoo_backbone.model import FourM

Scorer = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[float]]
"""From the tokens given and those made, a row per draw, to a number per draw; more is better."""
BATCH = 32
"""Samples generated, or rows scored, at a time; nothing that is made depends on it."""


class Agreement:
    """Self-consistency: what the model says of a draw, against what is given or the model says of the condition.

    The modality `name` is predicted from the targets of a draw alone, the likeliest tokens in one step, and again from
    the condition, unless it is given. Both are decoded; the score is the cosine of the two values as vectors, in
    [-1, 1]. It judges by the model's own eyes: what the model does not see in a draw is not scored.
    """

    def __init__(self, model: FourM, name: str, decode: Callable[[Any], Sequence[Any]]) -> None:
        self.model = model
        self.name = name
        self.decode = decode
        self.plan = [TargetPlan(name=name, temperature=0, steps=1).resolved(model.layout.spec(name))]
        value = model.layout.spec(name).value
        if value.kind != "array" or value.classes or value.dtype.startswith("int"):
            kind = "ids or other whole numbers" if value.kind == "array" else value.kind
            raise ConfigError(f"rank {name}: draws are compared as vectors, and its values are {kind}; expected "
                              "a modality of arrays of measures, such as a global vector")  # fmt: skip

    def check(self, given: Sequence[str], targets: Sequence[str]) -> None:
        """Raise ConfigError where there is nothing to compare."""
        if self.name in targets:
            raise ConfigError(f"rank {self.name}: it is made itself; rank by a modality that is not")
        if not given:
            raise ConfigError(f"rank {self.name}: nothing is given whole that draws could agree with")

    def __call__(self, given: Mapping[str, Any], made: Mapping[str, Any]) -> list[float]:
        """The score of each row; of rows that follow one another the same condition is looked at once."""
        self.check(list(given), list(made))
        condition = {self.name: given[self.name]} if self.name in given else given
        firsts, numbers = equal_neighbours(condition)
        wanted = list(self._vectors(condition, firsts))
        seen = self._vectors(made, range(len(next(iter(made.values())))))
        return [cosine(one, wanted[number]) for one, number in zip(seen, numbers, strict=True)]

    def _vectors(self, tokens: Mapping[str, Any], rows: Sequence[int]) -> Iterator[np.ndarray[Any, Any]]:
        """The modality's values as these rows of tokens have them, or as the model predicts them from the row."""
        for start in range(0, len(rows), BATCH):
            block = {name: rows_of(values, rows[start : start + BATCH]) for name, values in tokens.items()}
            found = block.get(self.name)
            if found is None:
                found = generate(self.model, block, self.plan, seed=0)[self.name]
            for value in self.decode(found):
                yield np.asarray(value, np.float64).ravel()


def equal_neighbours(tokens: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Of rows that are equal and follow one another, the first ones; and for each row the number of its group."""
    firsts: list[int] = []
    numbers = []
    for row in range(len(next(iter(tokens.values())))):
        if not row or not all(np.array_equal(values[row], values[row - 1]) for values in tokens.values()):
            firsts.append(row)
        numbers.append(len(firsts) - 1)
    return firsts, numbers


def cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """The cosine of two vectors; 0 where one of them is 0."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else 0.0


def best_first(scores: Sequence[float], draws: int) -> list[list[int]]:
    """For each sample, of which `draws` scores follow one another, the numbers of its draws, the best first.

    Draws of one score keep their order.
    """
    rows = [scores[first : first + draws] for first in range(0, len(scores), draws)]
    return [sorted(range(draws), key=lambda draw: -row[draw]) for row in rows]
