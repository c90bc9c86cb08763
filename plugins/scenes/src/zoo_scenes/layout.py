"""Captions that say where everything is: the room, then each thing that has a box, the largest box first.

The words are those of a person who describes a picture to one who draws it. Across the picture and down it there are
seven places each, so that a box is known to a seventh of the picture's width and height.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from zoo_scenes.captions import article, capital, phrase, room
from zoo_scenes.observe import Seen
from zoo_scenes.things import Scene

_ACROSS = ("far left", "left", "left centre", "centre", "right centre", "right", "far right")
_DOWN = ("top", "high", "upper middle", "middle", "lower middle", "low", "bottom")


def layout(scene: Scene, boxed: list[Seen], shares: Mapping[str, float]) -> str:
    """A sentence about the room, and one for each thing; `shares` are the classes' shares of the picture."""
    things = sorted(boxed, key=lambda item: -_area(item))
    sentences = [f"{capital(_named(item))} {place(item)}." for item in things]
    opening = f"A room{room(scene, shares)}." if boxed else f"An empty room{room(scene, shares)}."
    return " ".join([opening, *sentences])


def place(item: Seen) -> str:
    """Where a thing's box is: "from left to centre, high to middle", or "on the left, low"."""
    left, top, right, bottom = item.box
    first, last = _ACROSS[_step(left)], _ACROSS[_last_step(right)]
    upper, lower = _DOWN[_step(top)], _DOWN[_last_step(bottom)]
    across = f"from {first} to {last}" if first != last else f"{'in' if 'centre' in first else 'on'} the {first}"
    return f"{across}, {upper if upper == lower else f'{upper} to {lower}'}"


def _step(edge: float) -> int:
    """In which of seven equal parts of [0, 1] what begins at an edge begins."""
    return min(int(edge * len(_DOWN)), len(_DOWN) - 1)


def _last_step(edge: float) -> int:
    """In which of them what ends at an edge ends."""
    return max(math.ceil(edge * len(_DOWN)) - 1, 0)


def _area(item: Seen) -> float:
    left, top, right, bottom = item.box
    return (right - left) * (bottom - top)


def _named(item: Seen) -> str:
    """ "a red ball", "books", or "a person" whose shirt cannot be seen."""
    return article(phrase(item) if item.clear else item.thing.label)
