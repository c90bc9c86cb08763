"""The kind of place: one of declared classes."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers_zoo.families.classes import ClassModality, ClassSettings

PLACES = "dining room", "living room", "library", "playroom", "empty room"


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneClassSettings(ClassSettings):
    """Settings of scene_class."""

    classes: tuple[str, ...] = PLACES
    """Names of the ids 0, 1, ...; more may be added at the end. By default those of the source `scenes`: the furniture
    that covers most of the picture decides, all tables and chairs for a dining room, sofas for a living room, shelves
    and books for a library, boxes, balls and cylinders for a playroom; below 4 % of the picture it is an empty room."""


class SceneClass(ClassModality[SceneClassSettings]):
    """The name of a class."""

    summary = "The kind of place that the picture shows, one of declared classes"
    settings_class = SceneClassSettings


plugin = SceneClass()
