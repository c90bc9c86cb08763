"""Furniture and loose things, built of a few geoms each; x is the front, the origin is on the ground.

Loose things have their origin at the centre: physics lets them fall.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from zoo_scenes.palette import COLOURS, VIVID, WOODS, Colour, darker, mixed
from zoo_scenes.things import BOX, CYLINDER, ELLIPSOID, SPHERE, Part, Surface, Thing, Vector

METAL: Colour = (0.45, 0.46, 0.48)


def plain(colour: Colour, shine: float = 0.0, texture: str = "plain", tile: float = 0.5) -> Surface:
    """One colour with a slight texture of darker tone."""
    return Surface(texture, (colour, darker(colour, 0.74), darker(colour, 0.45)), tile, shine)


def _finish(rng: random.Random) -> tuple[str, Surface]:
    """Draw the material of a piece of furniture: mostly wood, or paint."""
    if rng.random() < 0.68:
        name = rng.choice(list(WOODS))
        return name, Surface("grain", WOODS[name], 0.6, 0.18)
    name = rng.choice(("white", "black", "red", "blue", "green", "grey", "yellow", "teal"))
    return name, plain(COLOURS[name], 0.25)


def _block(surface: Surface, half: Vector, at: Vector) -> Part:
    return Part(BOX, half, at, surface)


def _legs(surface: Surface, x: float, y: float, height: float, radius: float, round_legs: bool) -> list[Part]:
    shape = CYLINDER if round_legs else BOX
    size = (radius, height / 2, 0.0) if round_legs else (radius, radius, height / 2)
    return [Part(shape, size, (sx * x, sy * y, height / 2), surface) for sx in (-1, 1) for sy in (-1, 1)]


def table(rng: random.Random) -> Thing:
    """A rectangular table on four legs, a round one on a pedestal, or a low coffee table."""
    colour, surface = _finish(rng)
    kind = rng.random()
    if kind < 0.3:
        radius, height = rng.uniform(0.42, 0.62), rng.uniform(0.68, 0.76)
        parts = [
            Part(CYLINDER, (radius, 0.025, 0.0), (0, 0, height - 0.025), surface),
            Part(CYLINDER, (0.05, height / 2 - 0.03, 0.0), (0, 0, height / 2), surface),
            Part(CYLINDER, (radius * 0.55, 0.02, 0.0), (0, 0, 0.02), surface),
        ]
        return Thing("table", "round table", colour, parts, (radius, radius, height / 2), top=height)
    low = kind > 0.8
    x, y = rng.uniform(0.32, 0.48), rng.uniform(0.5, 0.85)
    height = rng.uniform(0.36, 0.46) if low else rng.uniform(0.68, 0.78)
    parts = [
        _block(surface, (x, y, 0.022), (0, 0, height - 0.022)),
        *_legs(surface, x - 0.06, y - 0.06, height - 0.04, 0.032, rng.random() < 0.3),
    ]
    if not low:
        parts.append(_block(surface, (x - 0.05, y - 0.05, 0.04), (0, 0, height - 0.08)))
    return Thing("table", "coffee table" if low else "table", colour, parts, (x, y, height / 2), top=height)


def chair(rng: random.Random) -> Thing:
    """A chair with a back, or an armless upholstered one."""
    colour, surface = _finish(rng)
    half, seat = rng.uniform(0.2, 0.24), rng.uniform(0.43, 0.48)
    back = rng.uniform(0.38, 0.52)
    cushion = surface
    if rng.random() < 0.4:
        colour = rng.choice(VIVID)
        cushion = plain(COLOURS[colour], 0.0, "fabric", 0.3)
    parts = [
        _block(cushion, (half, half, 0.03), (0, 0, seat - 0.03)),
        *_legs(surface, half - 0.03, half - 0.03, seat - 0.05, 0.022, rng.random() < 0.4),
        _block(cushion, (0.018, half, back * 0.32), (-half + 0.018, 0, seat + back * 0.68)),
        *[
            _block(surface, (0.016, 0.018, back / 2), (0.018 - half, s * (half - 0.04), seat + back / 2))
            for s in (-1, 1)
        ],
    ]
    return Thing("chair", "chair", colour, parts, (half, half, (seat + back) / 2), seat=seat)


def sofa(rng: random.Random) -> Thing:
    """An upholstered sofa or armchair with its back at -x."""
    colour = rng.choice((*VIVID, "grey", "brown", "white"))
    fabric = plain(COLOURS[colour], 0.02, "fabric", 0.4)
    cushions = plain(mixed(COLOURS[colour], (1.0, 1.0, 1.0), 0.18), 0.02, "fabric", 0.4)
    seats = rng.choice((1, 2, 3))
    x, y = rng.uniform(0.4, 0.46), 0.16 + 0.3 * seats
    arm, seat, back = 0.09, rng.uniform(0.40, 0.45), rng.uniform(0.75, 0.86)
    width = (y - 2 * arm) / seats
    parts = [
        _block(fabric, (x, y, 0.14), (0, 0, 0.19)),
        _block(fabric, (0.1, y, (back - 0.05) / 2), (-x + 0.1, 0, (back + 0.05) / 2)),
        *[_block(fabric, (x, arm, 0.27), (0, s * (y - arm), 0.33)) for s in (-1, 1)],
        *[
            _block(
                cushions,
                (x - 0.12, width - 0.012, seat / 2 - 0.16),
                (0.1, (2 * k + 1 - seats) * width, seat / 2 + 0.16),
            )
            for k in range(seats)
        ],
    ]
    noun = "armchair" if seats == 1 else "sofa"
    return Thing("sofa", noun, colour, parts, (x, y, back / 2), seat=seat)


def shelf(rng: random.Random) -> list[Thing]:
    """A bookcase, and the rows of books on its boards as things of their own that it carries."""
    colour, surface = _finish(rng)
    x, y = rng.uniform(0.14, 0.18), rng.uniform(0.35, 0.6)
    boards = rng.choice((3, 4, 5))
    gap = rng.uniform(0.32, 0.38)
    height = boards * gap + 0.04
    side = 0.016
    parts = [
        _block(surface, (0.008, y, height / 2), (-x + 0.008, 0, height / 2)),
        *[_block(surface, (x, side, height / 2), (0, s * (y - side), height / 2)) for s in (-1, 1)],
        *[_block(surface, (x, y - 2 * side, 0.014), (0, 0, 0.02 + k * gap)) for k in range(boards + 1)],
    ]
    noun = "bookcase" if boards > 3 else "low bookcase"
    things = [Thing("shelf", noun, colour, parts, (x, y, height / 2), top=height)]
    rows = []
    for k in range(boards):
        if rng.random() < 0.62:
            tall, wide = gap * rng.uniform(0.62, 0.8) / 2, (y - 0.05) * rng.uniform(0.45, 1.0)
            shift = rng.uniform(-1, 1) * (y - 0.04 - wide)
            first, second, third = (COLOURS[name] for name in rng.sample((*VIVID, "brown", "white"), 3))
            spines = Surface("books", (first, second, third), 0.0, 0.1)
            rows.append(_block(spines, (x * 0.75, wide, tall), (0.0, shift, 0.034 + k * gap + tall)))
    if rows:
        things.append(Thing("books", "books", "", rows, (x, y, height / 2)))
    return things


def lamp(rng: random.Random) -> Thing:
    """A floor lamp with a glowing shade."""
    shade = rng.choice(("white", "yellow", "orange", "red"))
    light = mixed(COLOURS[shade], (1.0, 0.95, 0.85), 0.55)
    height = rng.uniform(1.35, 1.7)
    metal = plain(METAL, 0.5)
    glow = Surface("plain", (light, light, light), 0.5, 0.0, 0.75)
    cap = Part(CYLINDER, (rng.uniform(0.14, 0.2), 0.13, 0.0), (0, 0, height), glow)
    if rng.random() < 0.35:
        radius = rng.uniform(0.15, 0.2)
        cap = Part(SPHERE, (radius, radius, radius), (0, 0, height), glow)
    parts = [
        Part(CYLINDER, (0.14, 0.015, 0.0), (0, 0, 0.015), metal),
        Part(CYLINDER, (0.017, height / 2 - 0.05, 0.0), (0, 0, height / 2), metal),
        cap,
    ]
    return Thing("lamp", "floor lamp", shade, parts, (0.2, 0.2, height / 2 + 0.07))


def plant(rng: random.Random) -> Thing:
    """A pot with a crown of leaves."""
    pot = rng.choice(("brown", "white", "orange", "blue", "grey"))
    radius, height = rng.uniform(0.13, 0.19), rng.uniform(0.25, 0.38)
    green: Colour = (rng.uniform(0.16, 0.3), rng.uniform(0.42, 0.58), rng.uniform(0.12, 0.22))
    leaves = Surface("leaves", (green, darker(green, 0.45), green), 0.5, 0.08)
    parts = [
        Part(CYLINDER, (radius, height / 2, 0.0), (0, 0, height / 2), plain(COLOURS[pot], 0.2)),
        Part(CYLINDER, (0.02, 0.2, 0.0), (0, 0, height + 0.18), plain((0.33, 0.22, 0.12))),
    ]
    crown = rng.uniform(0.35, 0.62)
    for _ in range(rng.choice((3, 4, 5))):
        angle, out = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.16)
        size = (rng.uniform(0.12, 0.2), rng.uniform(0.12, 0.2), rng.uniform(0.16, 0.28))
        at = (out * math.cos(angle), out * math.sin(angle), height + crown * rng.uniform(0.6, 1.0))
        parts.append(Part(ELLIPSOID, size, at, leaves, (math.cos(angle), 0.0, 0.0, math.sin(angle))))
    return Thing("plant", "potted plant", "green", parts, (0.26, 0.26, (height + crown) / 2))


def box(rng: random.Random) -> Thing:
    """A box: plain, a wooden crate, striped, or tied with a ribbon."""
    colour = rng.choice((*VIVID, "brown", "white", "grey"))
    base = COLOURS[colour]
    other = COLOURS["white" if colour not in ("white", "grey", "yellow") else "red"]
    texture = rng.choice(("plain", "plain", "ribbon", "stripes"))
    second = other if texture == "ribbon" else darker(base, 0.72)
    half = (rng.uniform(0.09, 0.22), rng.uniform(0.09, 0.22), rng.uniform(0.07, 0.2))
    surface = Surface(texture, (base, second, base), 0.0, 0.1)
    return Thing("box", "box", colour, [Part(BOX, half, (0, 0, 0), surface)], half, free=True)


def ball(rng: random.Random) -> Thing:
    """A ball: plain, with sectors, or dotted."""
    colour = rng.choice((*VIVID, "white", "black"))
    base = COLOURS[colour]
    texture = rng.choice(("plain", "plain", "stripes", "dots"))
    second = mixed(base, (1.0, 1.0, 1.0), 0.55) if colour not in ("white", "yellow") else darker(base, 0.6)
    radius = rng.uniform(0.09, 0.23)
    surface = Surface(texture, (base, second, base), 0.0, 0.45)
    return Thing("ball", "ball", colour, [Part(SPHERE, (radius,) * 3, (0, 0, 0), surface)], (radius,) * 3, free=True)


def cylinder(rng: random.Random) -> Thing:
    """A cylinder: a can, a drum or a tube."""
    colour = rng.choice((*VIVID, "white", "grey", "black"))
    base = COLOURS[colour]
    texture = rng.choice(("plain", "plain", "bands"))
    second = mixed(base, (1.0, 1.0, 1.0), 0.5) if colour != "white" else COLOURS["red"]
    radius, height = rng.uniform(0.07, 0.16), rng.uniform(0.1, 0.24)
    surface = Surface(texture, (base, second, base), 0.0, 0.3)
    part = Part(CYLINDER, (radius, height, 0.0), (0, 0, 0), surface)
    return Thing("cylinder", "cylinder", colour, [part], (radius, radius, height), free=True)


LOOSE: tuple[Callable[[random.Random], Thing], ...] = (box, ball, cylinder)
