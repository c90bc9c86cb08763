"""Several draws of a sample, the best first: by any scorer, or by how well a draw agrees with its condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from backbone.generation.plan import TargetPlan
from backbone.generation.sampler import generate
from backbone.model import FourM
from tokenizers_zoo.errors import ConfigError

Scorer = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[float]]
"""From the tokens given and those made, a row per draw, to a number per draw; more is better."""


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
        self.plan = [TargetPlan(name=name, temperature=0, steps=1).resolved(model.tables.spec(name))]
        kind = model.tables.spec(name).value.kind
        if kind != "array":
            raise ConfigError(f"rank {name}: draws are compared as vectors, and its values are {kind}; expected "
                              "a modality of arrays, such as a global vector")  # fmt: skip

    def check(self, given: Sequence[str], targets: Sequence[str]) -> None:
        """Raise ConfigError where there is nothing to compare."""
        if self.name in targets:
            raise ConfigError(f"rank {self.name}: it is made itself; rank by a modality that is not")
        if not given:
            raise ConfigError(f"rank {self.name}: nothing is given whole that draws could agree with")

    def __call__(self, given: Mapping[str, Any], made: Mapping[str, Any]) -> list[float]:
        """The score of each row."""
        self.check(list(given), list(made))
        seen = self._vectors(generate(self.model, made, self.plan, seed=0)[self.name])
        wanted = given.get(self.name)
        if wanted is None:
            wanted = generate(self.model, given, self.plan, seed=0)[self.name]
        return [cosine(one, other) for one, other in zip(seen, self._vectors(wanted), strict=True)]

    def _vectors(self, tokens: Any) -> list[np.ndarray[Any, Any]]:
        return [np.asarray(value, np.float64).ravel() for value in self.decode(tokens)]


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
