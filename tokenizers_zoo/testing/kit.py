"""What the conformance checks have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.spec import EmbeddingsLayout
from tokenizers_zoo.testing.subject import Subject
from tokenizers_zoo.validation import same

Given = TypeVar("Given")


class Skipped(Exception):
    """The check does not apply to this modality; the text says why."""


def expect(condition: bool, message: str) -> None:
    """Raise AssertionError with `message` unless `condition` (assert, also where Python runs with -O)."""
    if not condition:
        raise AssertionError(message)


def per_sample(tokens: Any) -> list[np.ndarray[Any, Any]]:
    """A batch of tokens as one numpy array per sample."""
    return [item if isinstance(item, np.ndarray) else item.cpu().numpy() for item in tokens]


def all_same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """True where two lists hold equal values."""
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


@contextmanager
def lent(hook: str, given: Given) -> Iterator[Given]:
    """A deep copy of `given`, to call `hook` with, which has to leave it as it is: values are kept and given again."""
    mine = copy.deepcopy(given)
    yield mine
    expect(unchanged(given, mine), f"{hook} changes the values that it is given; let it work on a copy")


def unchanged(before: Any, after: Any) -> bool:
    """True where two values, or lists, tuples or dicts of such, are of the same types and equal."""
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(unchanged(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(unchanged(a, b) for a, b in zip(before, after, strict=True))
    return same(before, after)


def decoded_or_skip(subject: Subject, tokens: Any) -> list[Any]:
    """The values of tokens; vectors that are an input only need not be decodable."""
    if not isinstance(subject.handle.spec.layout, EmbeddingsLayout):
        return subject.trained.decode(tokens)
    try:
        return subject.trained.decode(tokens)
    except ZooError as error:
        raise Skipped(f"input only: {error}") from None
