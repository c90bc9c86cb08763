"""Pictures of the balls in their box, and how each pixel moves."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_worlds.camera import Handheld
from zoo_worlds.physics import HEIGHT, WIDTH, Ball, Motion

SUPERSAMPLING = 2
"""Rays along each side of a pixel."""
LIGHT = np.array([-0.45, 0.65, 0.61])
"""Direction to the lamp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Colours and pattern of the box's back and sides."""

    wall: NDArray[np.float64]
    trim: NDArray[np.float64]
    bricks: NDArray[np.float64]
    spacing: float
    slant: float

    @classmethod
    def paint(cls, rng: np.random.Generator) -> Room:
        """A random one."""
        hue = rng.random()
        return cls(
            wall=np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.4), rng.uniform(0.65, 0.95))),
            trim=np.array(colorsys.hsv_to_rgb(hue + 0.08, rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.8))),
            bricks=np.array(colorsys.hsv_to_rgb(rng.uniform(0.0, 0.1), rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.5))),
            spacing=rng.uniform(0.7, 1.4),
            slant=rng.uniform(-1.0, 1.0),
        )

    def colour(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """sRGB (..., 3) of points (..., 2) that no ball covers."""
        x, y = points[..., 0], points[..., 1]
        band = np.sin(2 * math.pi * (x + self.slant * y) / self.spacing)
        dots = np.sin(2 * math.pi * x / 0.5) * np.sin(2 * math.pi * y / 0.5)
        mix = (0.5 + 0.5 * np.tanh(4 * band))[..., None] * 0.5 + (dots > 0.6)[..., None] * 0.3
        wall = self.wall * (1 - mix) + self.trim * mix
        row = np.floor(y / 0.25)
        seam = ((y / 0.25) % 1 < 0.15) | ((x / 0.6 + 0.5 * (row % 2)) % 1 < 0.08)
        bricks = self.bricks * np.where(seam, 0.6, 1.0 + 0.15 * np.sin(37 * row + 11 * np.floor(x / 0.6)))[..., None]
        outside = (y < 0) | (x < 0) | (x > WIDTH)
        light = 0.75 + 0.25 * np.clip(y / HEIGHT, 0, 1)
        return np.where(outside[..., None], bricks, wall * light[..., None])


def owners(points: NDArray[np.floating[Any]], state: NDArray[np.float64], balls: list[Ball]) -> NDArray[np.int64]:
    """Which ball each point (..., 2) is on, the last of several; -1 for none."""
    found = np.full(points.shape[:-1], -1)
    for index, ball in enumerate(balls):
        found[np.hypot(*np.moveaxis(points - state[index, :2], -1, 0)) <= ball.radius] = index
    return found


def frame(motion: Motion, room: Room, camera: Handheld, time: float, size: int) -> NDArray[np.float32]:
    """The picture at a time: float32 (3, size, size) in [0, 1]."""
    points = camera.rays(time, size * SUPERSAMPLING).astype(np.float32)
    state = motion.at(time)
    owner = owners(points, state, motion.balls)
    colours = room.colour(points)
    for index, ball in enumerate(motion.balls):
        own = owner == index
        colours[own] = ball_colour(ball, points[own] - state[index, :2], state[index, 2])
    fine = np.clip(colours, 0, 1).reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
    return np.ascontiguousarray(fine.mean(axis=(1, 3)).transpose(2, 0, 1), np.float32)


def ball_colour(ball: Ball, offsets: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """sRGB (n, 3) at offsets (n, 2) from the centre: a painted ball under a lamp, turned by `angle`."""
    unit = offsets / ball.radius
    height = np.sqrt(np.clip(1 - (unit**2).sum(axis=1), 0, 1))
    base = np.array(ball.material.colour or colorsys.hsv_to_rgb(ball.hue, 0.8, 0.9))
    around = np.arctan2(unit[:, 1], unit[:, 0]) - angle
    sectors = np.sin(3 * around) > 0
    cap = np.hypot(unit[:, 0] - 0.5 * math.cos(angle), unit[:, 1] - 0.5 * math.sin(angle)) < 0.28
    paint = np.where(sectors[:, None], base, 0.45 + 0.4 * base)
    paint = np.where(cap[:, None], base * 0.35, paint)
    shade = np.clip(unit @ LIGHT[:2] + height * LIGHT[2], 0, 1)
    highlight = ball.material.gloss * shade**12
    return paint * (0.35 + 0.65 * shade)[:, None] + highlight[:, None]


def flow_between(motion: Motion, camera: Handheld, first: float, second: float, size: int) -> NDArray[np.float32]:
    """Optical flow float32 (2, size, size) in pixels, right and down, of the point at each pixel's centre from `first`
    to `second`.

    It is exact, also for points that are hidden or out of the picture afterwards.
    """
    points = camera.rays(first, size)
    before, after = motion.at(first), motion.at(second)
    owner = owners(points, before, motion.balls)
    moved = points.copy()
    for index in range(len(motion.balls)):
        own = owner == index
        turn = after[index, 2] - before[index, 2]
        cos, sin = math.cos(turn), math.sin(turn)
        turned = (points[own] - before[index, :2]) @ np.array([[cos, sin], [-sin, cos]])
        moved[own] = after[index, :2] + turned
    centres = np.arange(size) + 0.5
    columns, rows = np.meshgrid(centres, centres)
    there = camera.project(second, moved, size)
    return np.stack([there[..., 0] - columns, there[..., 1] - rows]).astype(np.float32)
