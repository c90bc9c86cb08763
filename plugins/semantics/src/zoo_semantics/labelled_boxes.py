"""What lists of labelled boxes have in common, flat and in space: files, checks, labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.text import TextModality, control_character, printable, read_json
from zoo_semantics.matching import Box

LONGEST_LABEL = 100
S = TypeVar("S")


class LabelledBoxes(TextModality[S]):
    """A list of tables with a label each; a subclass says what is wrong with one in `problem`."""

    def problem(self, box: Any) -> str | None:
        """What is wrong with one box, or None."""
        raise NotImplementedError

    def checked(self, value: Any) -> list[Box]:
        """The list itself. Raises InvalidValueError, naming the box, where it is no list of such boxes."""
        if not isinstance(value, list):
            raise InvalidValueError(f"expected a list of boxes, got {type(value).__name__}")
        for index, box in enumerate(value):
            if problem := self.problem(box):
                raise InvalidValueError(f"box {index}: {problem}")
        return value

    @hookimpl
    def read_value(self, data: bytes, extension: str) -> list[Box]:
        """A `.json` file with the list."""
        return self.checked(read_json(data, extension))

    @hookimpl
    def write_value(self, value: Any) -> tuple[bytes, str]:
        """The list as JSON."""
        return json.dumps(self.checked(value), ensure_ascii=False, allow_nan=False).encode(), "json"

    @hookimpl
    def vocabulary_texts(self, values: Sequence[list[Box]], settings: Settings) -> Sequence[str]:
        """The labels, as they stand in the tokens."""
        return [label_text(box) for value in values for box in value]


def label_problem(label: Any) -> str | None:
    """What is wrong with the label of a box, or None."""
    if not isinstance(label, str) or not label or label != " ".join(label.split()):
        return f"label: expected words with single spaces between them, got {label!r:.80}"
    if len(label) > LONGEST_LABEL or control_character(label):
        return f"label: expected up to {LONGEST_LABEL} printable characters, got {label[:40]!r}"
    return None


def label_of(piece: str) -> str:
    """The label that a piece of text says; empty where it says none."""
    return printable(" ".join(piece.split()))[:LONGEST_LABEL].strip()


def label_text(box: Box) -> str:
    """The label with a space before it, so that it is the same piece as the same word inside a sentence."""
    return f" {box['label']}"
