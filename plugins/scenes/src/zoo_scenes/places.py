"""What kind of place a picture shows."""

from __future__ import annotations

from collections.abc import Mapping

FURNITURE: Mapping[str, tuple[str, ...]] = {
    "dining room": ("table", "chair"),
    "living room": ("sofa",),
    "library": ("shelf", "books"),
    "playroom": ("box", "ball", "cylinder"),
}
"""The classes of things that make a place."""
EMPTY = "empty room"
LEAST = 0.04
"""Share of the picture that the furniture of a place covers at least."""


def scene_class(shares: Mapping[str, float]) -> str:
    """The place whose furniture covers most of the picture, the first of equals; an empty room below LEAST.

    `shares` says how much of the picture each class covers.
    """
    covered = {place: sum(shares[label] for label in labels) for place, labels in FURNITURE.items()}
    place = max(covered, key=covered.__getitem__)
    return place if covered[place] >= LEAST else EMPTY
