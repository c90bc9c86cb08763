"""What the conformance checks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenizers_zoo.defaults import same
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.modality import EmbeddingsLayout
from tokenizers_zoo.testing.subject import Subject


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


def decoded_or_skip(subject: Subject, tokens: Any) -> list[Any]:
    """The values of tokens; vectors that are an input only need not be decodable."""
    if not isinstance(subject.handle.spec.layout, EmbeddingsLayout):
        return subject.trained.decode(tokens)
    try:
        return subject.trained.decode(tokens)
    except ZooError as error:
        raise Skipped(f"input only: {error}") from None
