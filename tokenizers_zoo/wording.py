"""Numbers and names in words, for messages, pages and cards."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""The control characters of Unicode (category Cc), which a terminal obeys where they are shown on it."""


def close_names(name: str, known: Iterable[str], alike: float = 0.5) -> list[str]:
    """Up to three of the known names that are like `name`, in capitals or not, the likest first."""
    lower = {one.lower(): one for one in sorted(known, reverse=True)}
    return [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=alike)]


def count_of(number: int, one: str, many: str = "") -> str:
    """A number of things in words: "1 sample", "2 samples"; `many` where it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def by(sizes: Iterable[int | str]) -> str:
    """Sizes in words: "64 x 60"; "1" for that of a plain number."""
    return " x ".join(map(str, sizes)) or "1"


def and_others(number: int) -> str:
    """What follows the first of several names: " and 1 other", " and 2 others"; nothing where there are no more."""
    return f" and {count_of(number, 'other')}" if number else ""
