"""Furniture and loose things, built of a few geoms each; x is the front, the origin is on the ground.

Loose things have their origin at the centre: physics lets them fall.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from zoo_scenes.scene import (
    BOX,
    COLOURS,
    CYLINDER,
    ELLIPSOID,
    SPHERE,
    VIVID,
    WALLS,
    WOODS,
    Body,
    Colour,
    Part,
    Quaternion,
    Scene,
    Surface,
    Vector,
    about_z,
    blend,
    darken,
)

WHITE: Colour = (0.93, 0.93, 0.91)


@dataclass(slots=True)
class Wall:
    """One wall: its middle on the floor, the yaw of its inward normal, its length, and the stretches in use.

    A stretch is (start, stop, height), in metres along the wall's x axis from its middle.
    """

    middle: tuple[float, float]
    facing: float
    length: float
    used: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def turn(self) -> Quaternion:
        """The wall's frame: x along the wall, y up, z into the room."""
        half = (self.facing + math.pi / 2) / 2
        cos, sin = math.cos(half) * math.sqrt(0.5), math.sin(half) * math.sqrt(0.5)
        return (cos, cos, sin, sin)

    def at(self, along: float, up: float, out: float = 0.0) -> Vector:
        """The point `along` metres from the middle, `up` above the floor and `out` of the wall."""
        cos, sin = math.cos(self.facing), math.sin(self.facing)
        return (self.middle[0] - along * sin + out * cos, self.middle[1] + along * cos + out * sin, up)

    def is_free(self, start: float, stop: float, bottom: float) -> bool:
        """Return whether everything between start and stop is below `bottom` metres."""
        fits = -self.length / 2 + 0.05 < start and stop < self.length / 2 - 0.05
        return fits and all(stop < low or high < start or top <= bottom for low, high, top in self.used)


def walls(scene: Scene) -> list[Wall]:
    """The walls in view order: opposite the camera's side, left, right, behind."""
    width, depth = scene.width, scene.depth
    return [
        Wall((width / 2, depth), -math.pi / 2, width),
        Wall((0.0, depth / 2), 0.0, depth),
        Wall((width, depth / 2), math.pi, depth),
        Wall((width / 2, 0.0), math.pi / 2, width),
    ]


def floor_surface(rng: random.Random) -> tuple[str, Surface]:
    """Draw the floor's name and material."""
    kind = rng.choice(("planks", "planks", "parquet", "checker", "tiles", "carpet"))
    if kind in ("planks", "parquet"):
        colours = WOODS[rng.choice(list(WOODS))]
        return ("wooden" if kind == "planks" else "parquet"), Surface(kind, colours, 1.3, 0.22)
    if kind == "checker":
        dark = rng.choice((COLOURS["black"], COLOURS["grey"], (0.35, 0.12, 0.1), (0.2, 0.3, 0.42)))
        return "checkered", Surface(kind, (WHITE, dark, (0.55, 0.54, 0.5)), rng.choice((0.8, 1.0)), 0.35)
    if kind == "tiles":
        base = rng.choice(((0.80, 0.76, 0.68), (0.62, 0.62, 0.62), (0.72, 0.46, 0.34)))
        return "tiled", Surface(kind, (base, darken(base, 0.82), darken(base, 0.5)), 1.2, 0.3)
    colour = rng.choice(("grey", "blue", "green", "red", "brown"))
    base = blend(COLOURS[colour], (0.6, 0.58, 0.55), 0.35)
    return f"{colour} carpeted", Surface("carpet", (base, darken(base, 0.75), base), 0.8)


def wall_surface(rng: random.Random) -> tuple[str, str, Surface]:
    """Kind ("", "brick", "striped"), colour name, and look of the walls."""
    share = rng.random()
    if share < 0.14:
        red = rng.choice(((0.62, 0.30, 0.22), (0.70, 0.42, 0.30)))
        return "brick", "red", Surface("bricks", (red, darken(red, 0.78), (0.74, 0.70, 0.65)), 1.1)
    name = rng.choice(list(WALLS))
    base = WALLS[name]
    if share < 0.32:
        return "striped", name, Surface("stripes", (base, darken(base, 0.85), base), 1.6)
    return "", name, Surface("plaster", (base, base, base), 2.0)


def hang(rng: random.Random, scene: Scene, sides: list[Wall]) -> None:
    """Put a door, windows and pictures where the walls are free; the first window is the daylight."""
    doors = 0
    for wall in rng.sample(sides, len(sides)):
        count = max(1, round(wall.length / 1.5))
        for slot in range(count):
            along = (slot + 0.5) / count * wall.length - wall.length / 2 + rng.uniform(-0.15, 0.15)
            kind = rng.random()
            if kind < 0.22 and not doors and wall.is_free(along - 0.5, along + 0.5, 0.0):
                scene.bodies.append(_door(rng, wall, along))
                doors += 1
            elif kind < 0.52:
                _hang_window(rng, scene, wall, along)
            elif kind < 0.84:
                _hang_picture(rng, scene, wall, along)


def _door(rng: random.Random, wall: Wall, along: float) -> Body:
    name = rng.choice((*WOODS, "white", "blue", "green", "red"))
    colour = WOODS[name][0] if name in WOODS else blend(COLOURS[name], WHITE, 0.15)
    panel = Surface("door", (colour, darken(colour, 0.62), (0.75, 0.65, 0.3)), 0.0, 0.2)
    rim = Surface("plain", (WHITE, WHITE, WHITE), 1.0, 0.1)
    half = (0.44, 1.02, 0.035)
    parts = [
        Part(BOX, (half[0] + 0.06, half[1] + 0.03, 0.02), (0.0, 0.03, 0.0), rim),
        Part(BOX, half, (0.0, 0.0, 0.0), panel),
    ]
    wall.used.append((along - 0.55, along + 0.55, 2.2))
    return Body("door", "door", name, parts, half, wall.at(along, 1.02), wall.turn)


def _hang_window(rng: random.Random, scene: Scene, wall: Wall, along: float) -> None:
    half = (rng.uniform(0.4, 0.62), rng.uniform(0.45, 0.6), 0.02)
    if not wall.is_free(along - half[0] - 0.1, along + half[0] + 0.1, 0.85):
        return
    evening = scene.exposure < 0.9
    sky: Colour = (0.95, 0.72, 0.55) if evening and rng.random() < 0.5 else (0.62, 0.80, 0.98)
    glass = Surface("window", (sky, (0.30, 0.46, 0.24), WHITE), 0.0, 0.0, 0.62)
    rim = Surface("plain", (WHITE, WHITE, WHITE), 1.0, 0.1)
    parts = [
        Part(BOX, (half[0] + 0.06, half[1] + 0.06, 0.03), (0.0, 0.0, -0.015), rim),
        Part(BOX, half, (0.0, 0.0, 0.0), glass),
        Part(BOX, (half[0] + 0.09, 0.02, 0.07), (0.0, -half[1] - 0.06, 0.0), rim),
    ]
    at = wall.at(along, 0.95 + half[1])
    scene.bodies.append(Body("window", "window", "", parts, half, at, wall.turn))
    wall.used.append((along - half[0] - 0.1, along + half[0] + 0.1, 2.2))
    if scene.daylight is None:
        scene.daylight = (at, (math.cos(wall.facing), math.sin(wall.facing), 0.0))


def _hang_picture(rng: random.Random, scene: Scene, wall: Wall, along: float) -> None:
    half = (rng.uniform(0.18, 0.42), rng.uniform(0.2, 0.34), 0.02)
    bottom = rng.uniform(1.15, 1.35)
    if not wall.is_free(along - half[0] - 0.08, along + half[0] + 0.08, bottom):
        return
    kind = rng.choice(("landscape", "abstract", "flower"))
    first, second, third = (COLOURS[name] for name in rng.sample((*VIVID, "white", "black"), 3))
    if kind == "landscape":
        first, second, third = (0.55, 0.75, 0.95), rng.choice(((0.35, 0.4, 0.5), (0.2, 0.42, 0.25))), COLOURS["yellow"]
    frame = rng.choice((COLOURS["black"], COLOURS["white"], WOODS["wooden"][0]))
    rim = Surface("plain", (frame, frame, frame), 1.0, 0.2)
    parts = [
        Part(BOX, (half[0] + 0.035, half[1] + 0.035, 0.025), (0.0, 0.0, 0.0), rim),
        Part(BOX, half, (0.0, 0.0, 0.008), Surface(kind, (first, second, third), 0.0, 0.1)),
    ]
    scene.bodies.append(Body("picture", "picture", "", parts, half, wall.at(along, bottom + half[1]), wall.turn))
    wall.used.append((along - half[0] - 0.08, along + half[0] + 0.08, 2.2))


def rug(rng: random.Random, at: tuple[float, float], yaw: float) -> Body:
    """A thin rug, rectangular or round."""
    names = rng.sample((*VIVID, "white", "grey", "brown"), 3)
    colours = (COLOURS[names[0]], blend(COLOURS[names[1]], WHITE, 0.2), blend(COLOURS[names[2]], WHITE, 0.35))
    colour = names[0]
    thin = 0.004
    if rng.random() < 0.3:
        radius = rng.uniform(0.7, 1.1)
        surface = Surface("rug_rings", colours, 0.0)
        parts = [Part(CYLINDER, (radius, thin, 0.0), (0, 0, 0), surface)]
        half, noun = (radius, radius, thin), "round rug"
    else:
        half = (rng.uniform(0.6, 0.9), rng.uniform(0.9, 1.4), thin)
        texture = rng.choice(("rug_border", "rug_border", "rug_stripes"))
        parts = [Part(BOX, half, (0, 0, 0), Surface(texture, colours, 0.0))]
        noun = "striped rug" if texture == "rug_stripes" else "rug"
        colour = "" if texture == "rug_stripes" else colour
    return Body("rug", noun, colour, parts, half, (at[0], at[1], thin), about_z(yaw))


def ceiling_lamp(rng: random.Random, scene: Scene) -> Body:
    """The lamp that lights the room, just above the scene's light."""
    x, y, z = scene.lamp
    light: Colour = (1.0, 0.96, 0.86)
    glow = Surface("plain", (light, light, light), 0.5, 0.0, 0.95)
    metal = Surface("plain", ((0.5, 0.5, 0.52),) * 3, 0.5, 0.3)
    radius = rng.uniform(0.13, 0.22)
    cord = max((scene.height - z) / 2, 0.01)
    shade = Part(CYLINDER, (radius, 0.07, 0.0), (0, 0, 0), glow)
    if rng.random() < 0.5:
        shade = Part(ELLIPSOID, (radius, radius, radius * 0.75), (0, 0, 0), glow)
    parts = [shade, Part(CYLINDER, (0.012, cord, 0.0), (0, 0, cord), metal)]
    return Body("lamp", "ceiling lamp", "", parts, (radius, radius, 0.1), (x, y, z))


METAL: Colour = (0.45, 0.46, 0.48)


def plain(colour: Colour, shine: float = 0.0, texture: str = "plain", tile: float = 0.5) -> Surface:
    """One colour with a slight texture of darker tone."""
    return Surface(texture, (colour, darken(colour, 0.74), darken(colour, 0.45)), tile, shine)


def _finish(rng: random.Random) -> tuple[str, Surface]:
    """Draw the material of a piece of furniture: mostly wood, or paint."""
    if rng.random() < 0.68:
        name = rng.choice(list(WOODS))
        return name, Surface("grain", WOODS[name], 0.6, 0.18)
    name = rng.choice(("white", "black", "red", "blue", "green", "grey", "yellow", "teal"))
    return name, plain(COLOURS[name], 0.25)


def _legs(surface: Surface, x: float, y: float, height: float, radius: float, round_legs: bool) -> list[Part]:
    shape = CYLINDER if round_legs else BOX
    size = (radius, height / 2, 0.0) if round_legs else (radius, radius, height / 2)
    return [Part(shape, size, (sx * x, sy * y, height / 2), surface) for sx in (-1, 1) for sy in (-1, 1)]


def table(rng: random.Random) -> Body:
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
        return Body("table", "round table", colour, parts, (radius, radius, height / 2), top=height)
    low = kind > 0.8
    x, y = rng.uniform(0.32, 0.48), rng.uniform(0.5, 0.85)
    height = rng.uniform(0.36, 0.46) if low else rng.uniform(0.68, 0.78)
    parts = [
        Part(BOX, (x, y, 0.022), (0, 0, height - 0.022), surface),
        *_legs(surface, x - 0.06, y - 0.06, height - 0.04, 0.032, rng.random() < 0.3),
    ]
    if not low:
        parts.append(Part(BOX, (x - 0.05, y - 0.05, 0.04), (0, 0, height - 0.08), surface))
    return Body("table", "coffee table" if low else "table", colour, parts, (x, y, height / 2), top=height)


def chair(rng: random.Random) -> Body:
    """A chair with a back, or an armless upholstered one."""
    colour, surface = _finish(rng)
    half, seat = rng.uniform(0.2, 0.24), rng.uniform(0.43, 0.48)
    back = rng.uniform(0.38, 0.52)
    cushion = surface
    if rng.random() < 0.4:
        colour = rng.choice(VIVID)
        cushion = plain(COLOURS[colour], 0.0, "fabric", 0.3)
    parts = [
        Part(BOX, (half, half, 0.03), (0, 0, seat - 0.03), cushion),
        *_legs(surface, half - 0.03, half - 0.03, seat - 0.05, 0.022, rng.random() < 0.4),
        Part(BOX, (0.018, half, back * 0.32), (-half + 0.018, 0, seat + back * 0.68), cushion),
        *[
            Part(BOX, (0.016, 0.018, back / 2), (0.018 - half, s * (half - 0.04), seat + back / 2), surface)
            for s in (-1, 1)
        ],
    ]
    return Body("chair", "chair", colour, parts, (half, half, (seat + back) / 2), seat=seat)


def sofa(rng: random.Random) -> list[Body]:
    """An upholstered sofa or armchair with its back at -x; alone in its list."""
    colour = rng.choice((*VIVID, "grey", "brown", "white"))
    fabric = plain(COLOURS[colour], 0.02, "fabric", 0.4)
    cushions = plain(blend(COLOURS[colour], (1.0, 1.0, 1.0), 0.18), 0.02, "fabric", 0.4)
    seats = rng.choice((1, 2, 3))
    x, y = rng.uniform(0.4, 0.46), 0.16 + 0.3 * seats
    arm, seat, back = 0.09, rng.uniform(0.40, 0.45), rng.uniform(0.75, 0.86)
    width = (y - 2 * arm) / seats
    parts = [
        Part(BOX, (x, y, 0.14), (0, 0, 0.19), fabric),
        Part(BOX, (0.1, y, (back - 0.05) / 2), (-x + 0.1, 0, (back + 0.05) / 2), fabric),
        *[Part(BOX, (x, arm, 0.27), (0, s * (y - arm), 0.33), fabric) for s in (-1, 1)],
        *[
            Part(
                BOX,
                (x - 0.12, width - 0.012, seat / 2 - 0.16),
                (0.1, (2 * k + 1 - seats) * width, seat / 2 + 0.16),
                cushions,
            )
            for k in range(seats)
        ],
    ]
    noun = "armchair" if seats == 1 else "sofa"
    return [Body("sofa", noun, colour, parts, (x, y, back / 2), seat=seat)]


def shelf(rng: random.Random) -> list[Body]:
    """A bookcase, and the rows of books on its boards as things of their own that it carries."""
    colour, surface = _finish(rng)
    x, y = rng.uniform(0.14, 0.18), rng.uniform(0.35, 0.6)
    boards = rng.choice((3, 4, 5))
    gap = rng.uniform(0.32, 0.38)
    height = boards * gap + 0.04
    side = 0.016
    parts = [
        Part(BOX, (0.008, y, height / 2), (-x + 0.008, 0, height / 2), surface),
        *[Part(BOX, (x, side, height / 2), (0, s * (y - side), height / 2), surface) for s in (-1, 1)],
        *[Part(BOX, (x, y - 2 * side, 0.014), (0, 0, 0.02 + k * gap), surface) for k in range(boards + 1)],
    ]
    noun = "bookcase" if boards > 3 else "low bookcase"
    bodies = [Body("shelf", noun, colour, parts, (x, y, height / 2), top=height)]
    rows = []
    for k in range(boards):
        if rng.random() < 0.62:
            tall, wide = gap * rng.uniform(0.62, 0.8) / 2, (y - 0.05) * rng.uniform(0.45, 1.0)
            shift = rng.uniform(-1, 1) * (y - 0.04 - wide)
            first, second, third = (COLOURS[name] for name in rng.sample((*VIVID, "brown", "white"), 3))
            spines = Surface("books", (first, second, third), 0.0, 0.1)
            rows.append(Part(BOX, (x * 0.75, wide, tall), (0.0, shift, 0.034 + k * gap + tall), spines))
    if rows:
        bodies.append(Body("books", "books", "", rows, (x, y, height / 2)))
    return bodies


def lamp(rng: random.Random) -> Body:
    """A floor lamp with a glowing shade."""
    shade = rng.choice(("white", "yellow", "orange", "red"))
    light = blend(COLOURS[shade], (1.0, 0.95, 0.85), 0.55)
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
    return Body("lamp", "floor lamp", shade, parts, (0.2, 0.2, height / 2 + 0.07))


def plant(rng: random.Random) -> Body:
    """A pot with a crown of leaves."""
    pot = rng.choice(("brown", "white", "orange", "blue", "grey"))
    radius, height = rng.uniform(0.13, 0.19), rng.uniform(0.25, 0.38)
    green: Colour = (rng.uniform(0.16, 0.3), rng.uniform(0.42, 0.58), rng.uniform(0.12, 0.22))
    leaves = Surface("leaves", (green, darken(green, 0.45), green), 0.5, 0.08)
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
    return Body("plant", "potted plant", "green", parts, (0.26, 0.26, (height + crown) / 2))


def box(rng: random.Random) -> Body:
    """A box: plain, a wooden crate, striped, or tied with a ribbon."""
    colour = rng.choice((*VIVID, "brown", "white", "grey"))
    base = COLOURS[colour]
    ribbon = COLOURS["white" if colour not in ("white", "grey", "yellow") else "red"]
    texture = rng.choice(("plain", "plain", "ribbon", "stripes"))
    second = ribbon if texture == "ribbon" else darken(base, 0.72)
    half = (rng.uniform(0.09, 0.22), rng.uniform(0.09, 0.22), rng.uniform(0.07, 0.2))
    surface = Surface(texture, (base, second, base), 0.0, 0.1)
    return Body("box", "box", colour, [Part(BOX, half, (0, 0, 0), surface)], half, free=True)


def ball(rng: random.Random) -> Body:
    """A ball: plain, with sectors, or dotted."""
    colour = rng.choice((*VIVID, "white", "black"))
    base = COLOURS[colour]
    texture = rng.choice(("plain", "plain", "stripes", "dots"))
    second = blend(base, (1.0, 1.0, 1.0), 0.55) if colour not in ("white", "yellow") else darken(base, 0.6)
    radius = rng.uniform(0.09, 0.23)
    surface = Surface(texture, (base, second, base), 0.0, 0.45)
    return Body("ball", "ball", colour, [Part(SPHERE, (radius,) * 3, (0, 0, 0), surface)], (radius,) * 3, free=True)


def cylinder(rng: random.Random) -> Body:
    """A cylinder: a can, a drum or a tube."""
    colour = rng.choice((*VIVID, "white", "grey", "black"))
    base = COLOURS[colour]
    texture = rng.choice(("plain", "plain", "bands"))
    second = blend(base, (1.0, 1.0, 1.0), 0.5) if colour != "white" else COLOURS["red"]
    radius, height = rng.uniform(0.07, 0.16), rng.uniform(0.1, 0.24)
    surface = Surface(texture, (base, second, base), 0.0, 0.3)
    part = Part(CYLINDER, (radius, height, 0.0), (0, 0, 0), surface)
    return Body("cylinder", "cylinder", colour, [part], (radius, radius, height), free=True)


LOOSE: tuple[Callable[[random.Random], Body], ...] = (box, ball, cylinder)
