"""The levels of an oriented box's seven numbers, and the special token that says from where to where they go."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers_zoo.text_vocab import coordinate_fraction, coordinate_level

Span = tuple[float, float]
AXES = (0, 1, 2, 0, 1, 2, 3)
"""The axis of each coordinate token: centre on v0 v1 v2, size on v0 v1 v2, yaw on v3."""
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
TOKEN = re.compile(rf"<boxes_3d x {NUMBER} {NUMBER} y {NUMBER} {NUMBER} z {NUMBER} {NUMBER} size {NUMBER} {NUMBER} m>")


@dataclass(frozen=True, slots=True)
class Spans:
    """From where to where centres and sizes have levels, in metres; sizes have levels even in their logarithm.

    What lies outside is clipped. The levels of yaw go once around, so that no two of them mean the same.
    """

    x: Span
    y: Span
    z: Span
    size: Span

    @property
    def token(self) -> str:
        """The special token that stands before boxes with these levels, so that they mean the same ever after."""
        ends = (f"{name} {low!r} {high!r}" for name, (low, high) in zip("xyz", self.centres, strict=True))
        return f"<boxes_3d {' '.join(ends)} size {self.size[0]!r} {self.size[1]!r} m>"

    @classmethod
    def of_token(cls, token: str) -> Spans | None:
        """What `token` wrote; None for other special tokens."""
        found = TOKEN.fullmatch(token)
        if found is None:
            return None
        ends = [float(number) for number in found.groups()]
        return cls(*zip(ends[::2], ends[1::2], strict=True))

    @property
    def centres(self) -> tuple[Span, Span, Span]:
        """Of the three numbers of a centre."""
        return self.x, self.y, self.z

    def levels(self, centre: Sequence[float], size: Sequence[float], yaw: float, bins: int) -> list[int]:
        """The nearest level of each number, in the order of AXES."""
        fractions = [(number - low) / (high - low) for number, (low, high) in zip(centre, self.centres, strict=True)]
        low, high = self.size
        fractions += [math.log(side / low) / math.log(high / low) for side in size]
        around = round((yaw + math.pi) / (2 * math.pi) * bins) % bins
        return [*(coordinate_level(fraction, bins) for fraction in fractions), around]

    def numbers(self, levels: Sequence[int], bins: int) -> tuple[list[float], list[float], float]:
        """Centre, size and yaw in [-pi, pi) that levels stand for."""
        shares = [coordinate_fraction(level, bins) for level in levels[:6]]
        centre = [low + share * (high - low) for share, (low, high) in zip(shares[:3], self.centres, strict=True)]
        low, high = self.size
        size = [min(low * (high / low) ** share, high) for share in shares[3:]]
        return centre, size, -math.pi + 2 * math.pi * (levels[6] % bins) / bins
