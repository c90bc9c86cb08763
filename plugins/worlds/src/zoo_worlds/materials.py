"""What balls are made of: how heavy they are, how they bounce, sound and look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Frequencies are those of a ball of 0.5 m radius; smaller ones sound higher."""

    density: float
    """kg/m3 (balls are hollow)."""
    bounce: float
    """Coefficient of restitution."""
    modes: tuple[float, ...]
    """Hz of the modes, strongest first."""
    decay: float
    """Seconds in which the lowest mode falls to 1/e; higher ones fall sooner."""
    click: float
    """Loudness of the noise at the moment of contact, beside the modes."""
    colour: tuple[float, float, float] | None
    """sRGB; None takes the ball's own hue."""
    gloss: float
    """Strength of the highlight."""


MATERIALS: dict[str, Material] = {
    "rubber": Material(
        density=60.0, bounce=0.85, modes=(95.0, 190.0, 280.0), decay=0.07, click=0.3, colour=None, gloss=0.15
    ),
    "wood": Material(
        density=200.0, bounce=0.6, modes=(310.0, 790.0, 1290.0, 1870.0), decay=0.06, click=0.8,
        colour=(0.62, 0.42, 0.22), gloss=0.1,
    ),
    "metal": Material(
        density=500.0, bounce=0.7, modes=(640.0, 1040.0, 1750.0, 2490.0, 3330.0), decay=0.6, click=0.4,
        colour=(0.55, 0.57, 0.62), gloss=0.6,
    ),
    "glass": Material(
        density=300.0, bounce=0.65, modes=(1650.0, 2900.0, 4300.0, 6100.0), decay=0.25, click=0.5,
        colour=(0.62, 0.86, 0.86), gloss=0.9,
    ),
}  # fmt: skip
