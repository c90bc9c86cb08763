"""Settings of this source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_FOV = 68.0
"""Degrees. Without this setting, the error is about a greater `min_fov`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSettings:
    """Settings of the `scenes` source. Raises ValueError, naming the field, for a value out of range."""

    image_size: int = 64
    """Height and width of every picture in pixels, 8 to 2048."""
    people: int = 2
    """Most people in one room, 0 to 4."""
    clutter: int = 6
    """Most loose things (boxes, balls, cylinders) that are dropped into one room, 0 to 12."""
    min_fov: float = 62.0
    """Least vertical field of view of the camera in degrees, 30 to 110. Distances can only be inferred if the lens is
    known: with any lens allowed, the same picture shows a near or a far thing."""
    max_fov: float = MAX_FOV
    """Greatest one, `min_fov` to 110."""
    shadows: bool = True
    """Whether the lamp casts shadows; a second ray per pixel."""
    max_boxes: int = 8
    """Most bounding boxes per picture, the largest things first, 1 to 64."""
    min_visible: float = 0.003
    """Share of the picture that a thing must cover to be in captions, boxes, poses and numbers of things, 0 to 1."""
    captions: Literal["sentences", "layout"] = "sentences"
    """sentences: some of the things and their rough places, in up to four sentences. layout: every thing with a box,
    largest first, and its extent in seven steps across and down. That is about 120 tokens with eight boxes, so
    `caption` and the backbone's input budget need room for it (`max_length = 128`), and it is true of the whole picture
    alone: take it without crops."""

    def __post_init__(self) -> None:
        limits = {
            "image_size": (8, 2048),
            "people": (0, 4),
            "clutter": (0, 12),
            "min_fov": (30.0, 110.0),
            "max_fov": (30.0, 110.0),
            "max_boxes": (1, 64),
            "min_visible": (0.0, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {value}")
        if self.min_fov > self.max_fov == MAX_FOV:
            raise ValueError(f"min_fov: expected up to max_fov ({self.max_fov:g}), got {self.min_fov:g}")
        if self.min_fov > self.max_fov:
            raise ValueError(f"max_fov: expected at least min_fov ({self.min_fov:g}), got {self.max_fov:g}")
