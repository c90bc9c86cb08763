"""Classes of semantic segmentation, and named colours."""

from __future__ import annotations

Colour = tuple[float, float, float]

CLASSES = (
    "void",
    "floor",
    "wall",
    "ceiling",
    "window",
    "door",
    "picture",
    "rug",
    "table",
    "chair",
    "sofa",
    "shelf",
    "books",
    "box",
    "ball",
    "cylinder",
    "lamp",
    "plant",
    "person",
)
CLASS_IDS = {name: index for index, name in enumerate(CLASSES)}

# sRGB in [0, 1]. The names are the words that captions use.
COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.14, 0.12),
    "orange": (0.94, 0.50, 0.10),
    "yellow": (0.95, 0.82, 0.18),
    "green": (0.18, 0.56, 0.22),
    "teal": (0.10, 0.56, 0.56),
    "blue": (0.15, 0.33, 0.78),
    "purple": (0.50, 0.22, 0.62),
    "pink": (0.94, 0.54, 0.68),
    "brown": (0.46, 0.28, 0.15),
    "white": (0.92, 0.92, 0.90),
    "grey": (0.52, 0.53, 0.54),
    "black": (0.11, 0.11, 0.12),
}
VIVID = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
CLOTHES = ("red", "yellow", "green", "teal", "blue", "purple", "pink", "white", "grey", "orange")
TROUSERS = ("black", "blue", "brown", "grey")

WALLS: dict[str, Colour] = {
    "white": (0.90, 0.90, 0.88),
    "cream": (0.93, 0.87, 0.72),
    "pale blue": (0.66, 0.78, 0.88),
    "pale green": (0.70, 0.82, 0.68),
    "pale pink": (0.90, 0.74, 0.74),
    "grey": (0.68, 0.69, 0.70),
    "yellow": (0.93, 0.82, 0.48),
    "lilac": (0.76, 0.70, 0.86),
}
WOODS: dict[str, tuple[Colour, Colour, Colour]] = {
    "light wooden": ((0.80, 0.64, 0.42), (0.70, 0.53, 0.33), (0.45, 0.32, 0.18)),
    "wooden": ((0.60, 0.40, 0.22), (0.50, 0.32, 0.17), (0.27, 0.16, 0.08)),
    "dark wooden": ((0.36, 0.22, 0.13), (0.28, 0.16, 0.09), (0.13, 0.07, 0.04)),
}
SKIN: tuple[Colour, ...] = ((0.93, 0.76, 0.65), (0.82, 0.62, 0.48), (0.60, 0.42, 0.30), (0.40, 0.27, 0.19))
HAIR: tuple[Colour, ...] = ((0.10, 0.08, 0.07), (0.30, 0.18, 0.10), (0.62, 0.46, 0.22), (0.55, 0.54, 0.53))


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with `share` in [0, 1] of `other`."""
    return (
        colour[0] + share * (other[0] - colour[0]),
        colour[1] + share * (other[1] - colour[1]),
        colour[2] + share * (other[2] - colour[2]),
    )


def darker(colour: Colour, factor: float) -> Colour:
    """`colour` times `factor`."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)
