"""Composes a scene: a room, a camera in it, and what stands, sits and lies where the camera looks."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from zoo_scenes import furniture, people
from zoo_scenes.people import UPRIGHT_POSES
from zoo_scenes.scene import Body, Camera, Colour, Quaternion, Scene, SceneSettings, Surface, about_z, yaw_of

Rectangle = tuple[float, float, float, float]

CEILING: Colour = (0.93, 0.93, 0.92)


def compose(rng: random.Random, settings: SceneSettings) -> Scene:
    """A furnished scene before physics: loose things hang where they will be dropped."""
    scene = _empty_room(rng, settings)
    placer = _Placer(rng, scene)
    sides = furniture.walls(scene)
    placer.furnish_walls(sides)
    placer.furnish_middle()
    placer.scatter_people(rng.choice(range(settings.people + 1)) if rng.random() < 0.85 else 0)
    furniture.hang(rng, scene, sides[:3])
    if rng.random() < 0.5:
        spot = placer.spot(0.5, 0.5, anywhere=True)
        if spot:
            scene.bodies.append(furniture.rug(rng, spot, rng.choice((0.0, math.pi / 2))))
    scene.bodies.append(furniture.ceiling_lamp(rng, scene))
    for _ in range(rng.randint(min(2, settings.clutter), settings.clutter)):
        placer.drop(rng.choice(furniture.LOOSE)(rng))
    return scene


def _empty_room(rng: random.Random, settings: SceneSettings) -> Scene:
    width, depth, height = rng.uniform(3.2, 6.0), rng.uniform(3.6, 6.5), rng.uniform(2.4, 3.0)
    wall_kind, wall_colour, wall = furniture.wall_surface(rng)
    floor_kind, floor = furniture.floor_surface(rng)
    x, y = rng.uniform(0.15, 0.85) * width, rng.uniform(0.25, 0.22 * depth)
    target_x, target_y = rng.uniform(0.25, 0.75) * width, rng.uniform(0.62, 0.95) * depth
    camera = Camera(
        position=(x, y, rng.uniform(1.0, 1.75)),
        yaw=math.atan2(target_y - y, target_x - x),
        pitch=math.radians(rng.uniform(-22.0, -2.0)),
        fov=math.radians(rng.uniform(settings.min_fov, settings.max_fov)),
    )
    lamp = (width * rng.uniform(0.35, 0.65), depth * rng.uniform(0.4, 0.65), height - rng.uniform(0.2, 0.55))
    return Scene(
        width=width,
        depth=depth,
        height=height,
        wall_colour=wall_colour,
        wall_kind=wall_kind,
        floor_kind=floor_kind,
        floor=floor,
        wall=wall,
        ceiling=Surface("plaster", (CEILING, CEILING, CEILING), 2.0),
        camera=camera,
        lamp=lamp,
        exposure=rng.uniform(0.75, 1.15),
    )


class _Placer:
    """Find free places on the floor; taken places are kept as rectangles."""

    def __init__(self, rng: random.Random, scene: Scene) -> None:
        self.rng = rng
        self.scene = scene
        x, y, _ = scene.camera.position
        self.taken: list[Rectangle] = [(x - 0.5, y - 0.5, x + 0.5, y + 0.5)]
        self.tops: dict[int, list[tuple[float, float, float]]] = {}

    def is_free(self, rectangle: Rectangle, margin: float = 0.03) -> bool:
        x0, y0, x1, y1 = rectangle
        if x0 < margin or y0 < margin or x1 > self.scene.width - margin or y1 > self.scene.depth - margin:
            return False
        return all(x1 < a or c < x0 or y1 < b or d < y0 for a, b, c, d in self.taken)

    def spot(
        self, half_x: float, half_y: float, anywhere: bool = False, nearest: float = 1.1
    ) -> tuple[float, float] | None:
        """A point in view, `nearest` metres off or more, around which a rectangle is free (or `anywhere` in the room).

        None if some tries find none.
        """
        camera = self.scene.camera
        for _ in range(14):
            away = nearest + (self.scene.depth - nearest) * math.sqrt(self.rng.random())
            yaw = camera.yaw + camera.fov * self.rng.uniform(-0.5, 0.5)
            x, y = camera.position[0] + away * math.cos(yaw), camera.position[1] + away * math.sin(yaw)
            rectangle = (x - half_x, y - half_y, x + half_x, y + half_y)
            inside = half_x < x < self.scene.width - half_x and half_y < y < self.scene.depth - half_y
            if (inside and anywhere) or self.is_free(rectangle):
                return x, y
        return None

    def stand(self, body: Body, x: float, y: float, yaw: float, apart: float = 0.04) -> bool:
        """Put `body` on the ground at (x, y), front towards `yaw`, where that is free."""
        cos, sin = abs(math.cos(yaw)), abs(math.sin(yaw))
        half_x = body.half[0] * cos + body.half[1] * sin + apart
        half_y = body.half[0] * sin + body.half[1] * cos + apart
        rectangle = (x - half_x, y - half_y, x + half_x, y + half_y)
        if not self.is_free(rectangle, 0.0):
            return False
        body.at, body.turn = (x, y, 0.0), about_z(yaw)
        self.taken.append(rectangle)
        self.scene.bodies.append(body)
        return True

    def furnish_walls(self, sides: list[furniture.Wall]) -> None:
        """Bookcases and sofas with their backs to a wall in view."""
        rng = self.rng
        for kind, chance in ((furniture.sofa, 0.55), (furniture.shelf, 0.6), (furniture.shelf, 0.25)):
            if rng.random() > chance:
                continue
            group = kind(rng)
            body = group[0]
            wall = rng.choice((sides[0], sides[0], sides[1], sides[2]))
            room_left = wall.length / 2 - body.half[1] - 0.08
            for _ in range(4):
                along = rng.uniform(-room_left, room_left) if room_left > 0 else 0.0
                x, y, _ = wall.at(along, 0.0, body.half[0] + 0.03)
                if self.stand(body, x, y, wall.facing, 0.0):
                    for part in group[1:]:
                        part.at, part.turn = body.at, body.turn
                        part.on = len(self.scene.bodies) - 1
                        self.scene.bodies.append(part)
                    wall.used.append((along - body.half[1], along + body.half[1], 2 * body.half[2]))
                    break

    def furnish_middle(self) -> None:
        """Tables with chairs around, single chairs, lamps and plants."""
        rng = self.rng
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            self._table_group()
        makers = [(furniture.chair, 0.35), (furniture.lamp, 0.35), (furniture.plant, 0.5), (furniture.plant, 0.15)]
        for make, chance in makers:
            if rng.random() < chance:
                body = make(rng)
                spot = self.spot(body.half[0], body.half[1])
                if spot:
                    self.stand(body, *spot, rng.uniform(-math.pi, math.pi))

    def _table_group(self) -> None:
        rng = self.rng
        table = furniture.table(rng)
        spot = self.spot(table.half[0] + 0.1, table.half[1] + 0.1, nearest=1.6)
        yaw = rng.choice((0.0, math.pi / 2)) + rng.choice((0.0, 0.0, rng.uniform(-0.6, 0.6)))
        if spot is None or not self.stand(table, *spot, yaw, 0.0):
            return
        self.tops[len(self.scene.bodies) - 1] = []
        if table.noun == "coffee table":
            return
        pattern = furniture.chair(rng)
        for side in rng.sample(range(4), rng.choice((0, 1, 2, 2, 3, 4))):
            angle = yaw + side * math.pi / 2
            away = table.half[side % 2] + pattern.half[0] + rng.uniform(0.05, 0.3)
            chair = replace(pattern)
            x, y = spot[0] + away * math.cos(angle), spot[1] + away * math.sin(angle)
            self.stand(chair, x, y, angle + math.pi + rng.uniform(-0.2, 0.2), -0.05)

    def scatter_people(self, count: int) -> None:
        """People who stand or move about, and people who sit where there is a seat."""
        rng = self.rng
        seats = [index for index, body in enumerate(self.scene.bodies) if body.seat is not None]
        for _ in range(count):
            if seats and rng.random() < 0.45:
                self._sit(seats.pop(rng.randrange(len(seats))))
                continue
            body = people.person(rng, rng.choice(UPRIGHT_POSES))
            spot = self.spot(0.3, 0.3, nearest=1.5)
            if spot:
                to_camera = math.atan2(self.scene.camera.position[1] - spot[1], self.scene.camera.position[0] - spot[0])
                turn = to_camera + rng.gauss(0, 0.9)
                body.half = (max(body.half[0], 0.25), min(max(body.half[1], 0.25), 0.45), body.half[2])
                self.stand(body, *spot, turn)

    def _sit(self, index: int) -> None:
        seat = self.scene.bodies[index]
        assert seat.seat is not None
        body = people.person(self.rng, "sitting", seat.seat)
        yaw = yaw_of(seat.turn)
        forward = -seat.half[0] + (0.36 if seat.label == "sofa" else 0.19)
        aside = 0.0
        if seat.noun == "sofa":
            aside = self.rng.choice((-1, 1)) * (seat.half[1] - 0.39)
        cos, sin = math.cos(yaw), math.sin(yaw)
        body.at = (seat.at[0] + forward * cos - aside * sin, seat.at[1] + forward * sin + aside * cos, 0.0)
        body.turn = seat.turn
        body.on = index
        self.scene.bodies.append(body)

    def drop(self, body: Body) -> None:
        """Hang a loose thing a little above a table, another thing, or the floor."""
        rng = self.rng
        yaw, tilt, towards = rng.uniform(-math.pi, math.pi), abs(rng.gauss(0, 0.12)), rng.uniform(0, 2 * math.pi)
        if body.label == "cylinder" and rng.random() < 0.2:
            tilt = math.pi / 2 - 0.05
        body.turn = _tilted(yaw, tilt, towards)
        reach = max(body.half[0], body.half[1]) + 0.02
        low = body.reach_down() + rng.uniform(0.008, 0.03)
        if self.tops and rng.random() < 0.5:
            index = rng.choice(list(self.tops))
            if self._drop_on(index, body, reach, low):
                return
        spot = self.spot(reach, reach, nearest=0.9)
        if spot is None:
            return
        body.at = (*spot, low + 0.01)
        self.taken.append((spot[0] - reach, spot[1] - reach, spot[0] + reach, spot[1] + reach))
        self.scene.bodies.append(body)
        if body.label == "box" and min(body.half[:2]) > 0.12:
            body.top = body.half[2]
            self.tops[len(self.scene.bodies) - 1] = []

    def _drop_on(self, index: int, body: Body, reach: float, low: float) -> bool:
        below = self.scene.bodies[index]
        assert below.top is not None
        free_x, free_y = below.half[0] - 0.7 * reach, below.half[1] - 0.7 * reach
        if min(free_x, free_y) < 0 or (below.free and max(body.half) > min(below.half[:2])):
            return False
        spread = 0.25 if below.free else 0.7 if below.noun == "round table" else 1.0
        for _ in range(4):
            x, y = self.rng.uniform(-free_x, free_x) * spread, self.rng.uniform(-free_y, free_y) * spread
            if all(math.hypot(x - a, y - b) > reach + radius for a, b, radius in self.tops[index]):
                yaw = yaw_of(below.turn)
                cos, sin = math.cos(yaw), math.sin(yaw)
                top = below.at[2] + below.top + (0.04 if below.free else 0.0)
                body.at = (below.at[0] + x * cos - y * sin, below.at[1] + x * sin + y * cos, top + low)
                body.on = index
                self.tops[index].append((x, y, reach))
                self.scene.bodies.append(body)
                return True
        return False


def _tilted(yaw: float, tilt: float, towards: float) -> Quaternion:
    """A turn about the vertical, then a tilt about a horizontal axis."""
    w, z = math.cos(yaw / 2), math.sin(yaw / 2)
    c, s = math.cos(tilt / 2), math.sin(tilt / 2)
    x_axis, y_axis = s * math.cos(towards), s * math.sin(towards)
    return (c * w, x_axis * w + y_axis * z, y_axis * w - x_axis * z, c * z)
