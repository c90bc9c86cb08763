"""A declared field of metadata: meaning, unit, range, and the levels of its tokens."""

from __future__ import annotations

import json
import math
import re
import sys
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.tokenizers.text_vocab import coordinate_fraction, coordinate_level

Number = float | int | str
SLACK = 1e-6
"""Tolerance outside the range, as a fraction of the range, for rounding in computed numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetadataField:
    """One field. Raises ValueError, naming the key, for a declaration that is not sound."""

    kind: Literal["float", "log", "int", "choice"] = "float"
    """A number of the range, one with levels that are even in its logarithm, a whole number, or one of `choices`."""
    low: float = 0.0
    """Least value, in the unit."""
    high: float = 1.0
    """Greatest value, in the unit."""
    unit: str = ""
    """Such as "m" or "deg"; empty for a plain number."""
    bins: int | None = None
    """Levels of a float or log field, 2 or more; absent, as many as the vocabulary has per coordinate axis."""
    rounding: Literal["nearest", "down"] = "nearest"
    """nearest: a number of a float or log field becomes the level nearest to it. down: the level at or below it, as in
    4M; Reading then returns the middle of the level's numbers, so that writing gives the same level again."""
    clip: bool = False
    """Whether a number outside the range becomes its end, as in 4M; otherwise it is refused."""
    choices: tuple[str, ...] = ()
    """The words of a choice field, at least two."""
    thresholds: tuple[float, ...] = ()
    """Rising thresholds between the choices. A number becomes the choice of its interval, which includes its lower end.
    Absent, a number is no choice."""
    meaning: str = ""
    """Meaning of the field in a few words; shown by `zoo info`."""
    number: int | None = None
    """Level of axis v1 that names the field, as in 4M, instead of a special token that holds its declaration."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", float(self.low))  # 0 and 0.0 are one declaration, and one special token
        object.__setattr__(self, "high", float(self.high))
        choice, number, steps = self.kind == "choice", self.kind in ("float", "log"), self.thresholds
        rising = all(map(math.isfinite, steps)) and all(before < after for before, after in pairwise(steps))
        words = len(self.choices) > 1 and len(set(self.choices)) == len(self.choices)
        fitting, whole_bounds = len(steps) in (0, len(self.choices) - 1), self.low % 1 == self.high % 1 == 0
        sound = {
            "choices: expected different words for kind 'choice', else none": words if choice else not self.choices,
            "high: expected a number greater than low": -math.inf < self.low < self.high < math.inf,
            "low: expected a number above 0 for a log field": self.kind != "log" or self.low > 0,
            "low: expected whole numbers low and high for an int field": self.kind != "int" or whole_bounds,
            "bins: expected 2 or more, for a float or log field": self.bins is None or (number and self.bins >= 2),
            "rounding: expected 'nearest' for an int or choice field": self.rounding == "nearest" or number,
            "clip: expected false for a choice field": not (self.clip and choice),
            "thresholds: expected rising numbers, one less than choices": not steps or (rising and fitting),
            "number: expected 0 or more": self.number is None or self.number >= 0,
            "unit: expected one word": not re.search(r"[\s<>]", self.unit),
        }
        for expected, met in sound.items():
            if not met:
                raise ValueError(f"{expected}, got {getattr(self, expected.partition(':')[0])!r}")

    def levels(self, bins: int) -> int:
        """How many levels the field has in a vocabulary with `bins` levels per axis."""
        if self.kind == "choice":
            return len(self.choices)
        if self.kind == "int":
            return int(self.high - self.low) + 1
        return self.bins or bins

    def level(self, value: Any, bins: int) -> int:
        """The level that a value is rounded to. Raises InvalidValueError if the field does not allow it."""
        value = self.normalise(value)
        if self.kind == "choice":
            if value not in self.choices:
                raise InvalidValueError(f"expected {self}, got {value!r:.60}")
            return self.choices.index(value)
        if not is_number(value):
            raise InvalidValueError(f"expected {self}, got {type(value).__name__} {value!r:.60}")
        if not -SLACK <= self.fraction(value) <= 1 + SLACK:
            raise InvalidValueError(f"{value!r:.30} is outside its range, {self}")
        if self.kind == "int":
            if value != round(value):
                raise InvalidValueError(f"expected {self}, got {value!r:.30}")
            return round(value - self.low)
        if self.rounding == "down":
            return self.level_below(value, self.levels(bins))
        return coordinate_level(self.clipped(value), self.levels(bins))

    def level_below(self, value: float, levels: int) -> int:
        """The highest level that is not above a value, as 4M computes it.

        A share of the range times the levels may be just below a whole number that it should be; levels that are whole
        numbers apart, such as 32 pixels, are divided by, which is exact.
        """
        step = (self.high - self.low) / (levels - 1)
        if self.kind == "float" and step.is_integer():
            return int((min(max(value, self.low), self.high) - self.low) // step)
        return int(self.clipped(value) * (levels - 1))

    def normalise(self, value: Any) -> Any:
        """A number outside the range as its end, with `clip`; one of `thresholds` as its choice; all else as it is."""
        if is_number(value) and (isinstance(value, int) or math.isfinite(value)):
            if self.thresholds:
                return self.choices[bisect_right(self.thresholds, value)]
            if self.clip and not self.low <= value <= self.high:
                return self.nearest_value(value)
        return value

    def value(self, level: int, bins: int) -> Number:
        """Return the value of a level: the centre of the values that are rounded to it.

        With rounding down, the highest level means `high` alone.
        """
        last = self.levels(bins) - 1
        level = min(level, last)
        if self.kind == "choice":
            return self.choices[level]
        if self.kind == "int":
            return int(self.low) + level
        middle = min((level + 0.5) / last, 1.0)
        fraction = middle if self.rounding == "down" else coordinate_fraction(level, last + 1)
        if self.kind == "log":
            return self.low * (self.high / self.low) ** fraction
        return self.low + fraction * (self.high - self.low)

    def fraction(self, value: float) -> float:
        """Where in the range a number is, 0 at `low` and 1 at `high`."""
        value = min(max(value, -sys.float_info.max), sys.float_info.max)  # whole numbers may be larger than any float
        if self.kind == "log":
            return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -math.inf
        return (value - self.low) / (self.high - self.low)

    def clipped(self, value: float) -> float:
        """The fraction of the nearest number of the range."""
        return min(max(self.fraction(value), 0.0), 1.0)

    def nearest_value(self, value: Number) -> Number | None:
        """Return the field's value nearest to a computed value; None without one."""
        if self.kind == "choice" or isinstance(value, str):
            value = self.normalise(value)
            return value if value in self.choices else None
        value = min(max(value, self.low), self.high)
        return round(value) if self.kind == "int" else float(value)

    def error(self, predicted: Any, target: Number) -> float:
        """How far a prediction is off as a share of the range, at most 1; a wrong choice, or none, is 1."""
        if self.kind == "choice":
            return float(self.normalise(predicted) != self.normalise(target))
        if not is_number(predicted):
            return 1.0
        return abs(self.clipped(predicted) - self.clipped(float(target)))

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}{', or a number' if self.thresholds else ''}"
        number_kind = "a whole number" if self.kind == "int" else "a number"
        return f"{number_kind} from {self.low:g} to {self.high:g}{f' {self.unit}' if self.unit else ''}"

    def declaration(self, bins: int) -> str:
        """The whole declaration in a line, for people."""
        meaning = f"{self.meaning}: " if self.meaning else ""
        if self.kind in ("int", "choice"):
            return f"{meaning}{self}"
        steps = " steps even in the logarithm" if self.kind == "log" else " steps"
        down = ", rounded down" if self.rounding == "down" else ""
        return f"{meaning}{self}, in {self.levels(bins)}{steps}{down}"

    def token(self, name: str, bins: int) -> str:
        """The field's special token.

        It holds the declaration: another range is another token, so stored tokens never change their meaning.
        """
        numbers: list[Number] = [self.low, self.high, self.levels(bins)]
        numbers = list(self.choices) if self.kind == "choice" else numbers
        numbers += ["down"] if self.rounding == "down" else []
        return f"<field:{name} {self.kind} {json.dumps(numbers, ensure_ascii=False)} {self.unit}>"


def is_number(value: Any) -> bool:
    """True for an int or a float; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
