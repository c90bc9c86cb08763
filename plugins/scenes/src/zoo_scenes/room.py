"""The empty room: its surfaces, and what hangs on its walls or lies on its floor."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from zoo_scenes.palette import COLOURS, VIVID, WALLS, WOODS, Colour, darker, mixed
from zoo_scenes.things import BOX, CYLINDER, ELLIPSOID, Part, Quaternion, Scene, Surface, Thing, Vector, about_z

WHITE: Colour = (0.93, 0.93, 0.91)


def _wall_turn(facing: float) -> Quaternion:
    """The frame of a wall whose inward normal has yaw `facing`: x along the wall, y up, z into the room."""
    half = (facing + math.pi / 2) / 2
    cos, sin = math.cos(half) * math.sqrt(0.5), math.sin(half) * math.sqrt(0.5)
    return (cos, cos, sin, sin)


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
        return _wall_turn(self.facing)

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
        return "tiled", Surface(kind, (base, darker(base, 0.82), darker(base, 0.5)), 1.2, 0.3)
    colour = rng.choice(("grey", "blue", "green", "red", "brown"))
    base = mixed(COLOURS[colour], (0.6, 0.58, 0.55), 0.35)
    return f"{colour} carpeted", Surface("carpet", (base, darker(base, 0.75), base), 0.8)


def wall_surface(rng: random.Random) -> tuple[str, str, Surface]:
    """Kind ("", "brick", "striped"), colour name, and look of the walls."""
    share = rng.random()
    if share < 0.14:
        red = rng.choice(((0.62, 0.30, 0.22), (0.70, 0.42, 0.30)))
        return "brick", "red", Surface("bricks", (red, darker(red, 0.78), (0.74, 0.70, 0.65)), 1.1)
    name = rng.choice(list(WALLS))
    base = WALLS[name]
    if share < 0.32:
        return "striped", name, Surface("stripes", (base, darker(base, 0.85), base), 1.6)
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
                scene.things.append(_door(rng, wall, along))
                doors += 1
            elif kind < 0.52:
                _hang_window(rng, scene, wall, along)
            elif kind < 0.84:
                _hang_picture(rng, scene, wall, along)


def _door(rng: random.Random, wall: Wall, along: float) -> Thing:
    name = rng.choice((*WOODS, "white", "blue", "green", "red"))
    colour = WOODS[name][0] if name in WOODS else mixed(COLOURS[name], WHITE, 0.15)
    panel = Surface("door", (colour, darker(colour, 0.62), (0.75, 0.65, 0.3)), 0.0, 0.2)
    rim = Surface("plain", (WHITE, WHITE, WHITE), 1.0, 0.1)
    half = (0.44, 1.02, 0.035)
    parts = [
        Part(BOX, (half[0] + 0.06, half[1] + 0.03, 0.02), (0.0, 0.03, 0.0), rim),
        Part(BOX, half, (0.0, 0.0, 0.0), panel),
    ]
    wall.used.append((along - 0.55, along + 0.55, 2.2))
    return Thing("door", "door", name, parts, half, wall.at(along, 1.02), wall.turn)


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
    scene.things.append(Thing("window", "window", "", parts, half, at, wall.turn))
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
    scene.things.append(Thing("picture", "picture", "", parts, half, wall.at(along, bottom + half[1]), wall.turn))
    wall.used.append((along - half[0] - 0.08, along + half[0] + 0.08, 2.2))


def rug(rng: random.Random, at: tuple[float, float], yaw: float) -> Thing:
    """A thin rug, rectangular or round."""
    names = rng.sample((*VIVID, "white", "grey", "brown"), 3)
    colours = (COLOURS[names[0]], mixed(COLOURS[names[1]], WHITE, 0.2), mixed(COLOURS[names[2]], WHITE, 0.35))
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
    return Thing("rug", noun, colour, parts, half, (at[0], at[1], thin), about_z(yaw))


def ceiling_lamp(rng: random.Random, scene: Scene) -> Thing:
    """The lamp that lights the room, just above the scene's light."""
    x, y, z = scene.lamp
    light: Colour = (1.0, 0.96, 0.86)
    glow = Surface("plain", (light, light, light), 0.5, 0.0, 0.95)
    metal = Surface("plain", ((0.5, 0.5, 0.52),) * 3, 0.5, 0.3)
    radius = rng.uniform(0.13, 0.22)
    cord = max((scene.height - z) / 2, 0.01)
    shade = (
        Part(ELLIPSOID, (radius, radius, radius * 0.75), (0, 0, 0), glow)
        if rng.random() < 0.5
        else Part(CYLINDER, (radius, 0.07, 0.0), (0, 0, 0), glow)
    )
    parts = [shade, Part(CYLINDER, (0.012, cord, 0.0), (0, 0, cord), metal)]
    return Thing("lamp", "ceiling lamp", "", parts, (radius, radius, 0.1), (x, y, z))
