"""A hand-held camera: its motion, and the readings of an inertial sensor in it."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_worlds.physics import GRAVITY, HEIGHT, WIDTH, Ball, Impact, Motion

DISTANCE = 9.0
"""Metres from the plane of the balls."""
FIELD = 2 * math.atan(0.56 * WIDTH / DISTANCE)
"""Field of view across, radians: a little more than the box."""
ANGLES = np.radians([2.0, 1.5, 2.5])
"""Size of pitch (about x), yaw (about y) and roll (about z)."""
SWAY = np.array([0.05, 0.04, 0.05])
"""Metres of the hands' movements along x, y and z."""
NOISE = np.array([0.05, 0.05, 0.05, 0.004, 0.004, 0.004])
"""Deviation of the sensor's noise, m/s2 and rad/s."""
THUMP = (0.002, 0.06, 14.0)
"""How the floor passes on an impact: m/s2 per kg m/s, seconds of decay, Hz."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Handheld:
    """Six movements (x, y, z in metres; pitch, yaw, roll in radians), each a sum of slow sine waves.

    Camera axes: x right, y up, z towards the viewer; it looks along -z, at the plane z = 0 of the world.
    """

    amplitudes: NDArray[np.float64]
    """(6, waves)."""
    frequencies: NDArray[np.float64]
    """(6, waves), Hz."""
    phases: NDArray[np.float64]
    """(6, waves), radians."""

    @classmethod
    def grasp(cls, rng: np.random.Generator, shake: float, waves: int = 3) -> Handheld:
        """A random hand, `shake` times as restless as usual."""
        frequencies = rng.uniform(0.2, 2.2, (6, waves))
        sizes = np.concatenate([SWAY, ANGLES])[:, None] * shake
        amplitudes = sizes * rng.uniform(0.3, 1.0, (6, waves)) / (0.6 + frequencies)
        return cls(amplitudes=amplitudes, frequencies=frequencies, phases=rng.uniform(0, 2 * np.pi, (6, waves)))

    def moves(self, times: NDArray[np.float64], derivative: int = 0) -> NDArray[np.float64]:
        """(times, 6): the movements, or their rates of change."""
        speed = 2 * np.pi * self.frequencies
        angles = speed * times[:, None, None] + self.phases + derivative * np.pi / 2
        return (self.amplitudes * speed**derivative * np.sin(angles)).sum(axis=2)

    def pose(self, time: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (3,) in the world, metres, and the rotation (3, 3) from camera axes to the world's."""
        moved = self.moves(np.array([time]))[0]
        return moved[:3] + np.array([WIDTH / 2, HEIGHT / 2 - 0.2, DISTANCE]), rotation(*moved[3:])

    def rays(self, time: float, size: int) -> NDArray[np.float64]:
        """World points (size, size, 2) on the plane z = 0 that the centres of the pixels see."""
        position, turn = self.pose(time)
        steps = ((np.arange(size) + 0.5) / size * 2 - 1) * math.tan(FIELD / 2)
        right, down = np.meshgrid(steps, steps)
        directions = np.stack([right, -down, -np.ones_like(right)], axis=-1) @ turn.T
        reach = -position[2] / directions[..., 2:]
        return position[:2] + reach * directions[..., :2]

    def project(self, time: float, points: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        """Where world points (..., 2) on the plane appear: columns and rows (..., 2), pixels from the upper left."""
        position, turn = self.pose(time)
        relative = np.concatenate([points, np.zeros_like(points[..., :1])], axis=-1) - position
        in_camera = relative @ turn
        scale = size / 2 / math.tan(FIELD / 2) / -in_camera[..., 2]
        return np.stack([size / 2 + in_camera[..., 0] * scale, size / 2 - in_camera[..., 1] * scale], axis=-1)

    def imu(self, times: NDArray[np.float64], impacts: list[Impact], rng: np.random.Generator) -> NDArray[np.float32]:
        """float32 (6, times): acceleration with gravity, m/s2, and rotation rates, rad/s, both in camera axes."""
        moves, rates, forces = (self.moves(times, order) for order in range(3))
        felt = forces[:, :3] + [0.0, GRAVITY, 0.0]
        strength, decay, frequency = THUMP
        for impact in impacts:
            since = np.clip(times - impact.time, 0, None)
            wave = strength * impact.impulse * np.exp(-since / decay) * np.sin(2 * np.pi * frequency * since)
            felt[:, 1] += np.where(times >= impact.time, wave, 0)
        turns = np.stack([rotation(*angles) for angles in moves[:, 3:]])
        acceleration = np.einsum("tij,ti->tj", turns, felt)
        rotating = np.stack([body_rates(a, r) for a, r in zip(moves[:, 3:], rates[:, 3:], strict=True)])
        clean = np.concatenate([acceleration, rotating], axis=1)
        return (clean + NOISE * rng.standard_normal(clean.shape)).T.astype(np.float32)


def rotation(pitch: float, yaw: float, roll: float) -> NDArray[np.float64]:
    """Yaw about y, then pitch about x, then roll about z, each about the turned axes: R = Ry Rx Rz."""
    cp, sp, cy, sy, cr, sr = (f(a) for a in (pitch, yaw, roll) for f in (math.cos, math.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def body_rates(angles: NDArray[np.float64], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation rates about the turned axes (3,), rad/s, of `rotation`'s angles and their rates of change."""
    pitch, _, roll = angles
    unrolled = np.array([[math.cos(roll), math.sin(roll), 0], [-math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    after_pitch = np.array([rates[0], math.cos(pitch) * rates[1], -math.sin(pitch) * rates[1]])
    return unrolled @ after_pitch + [0, 0, rates[2]]


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
    indices = np.full(points.shape[:-1], -1)
    for index, ball in enumerate(balls):
        indices[np.hypot(*np.moveaxis(points - state[index, :2], -1, 0)) <= ball.radius] = index
    return indices


def frame(motion: Motion, room: Room, camera: Handheld, time: float, size: int) -> NDArray[np.float32]:
    """The picture at a time: float32 (3, size, size) in [0, 1]."""
    points = camera.rays(time, size * SUPERSAMPLING).astype(np.float32)
    state = motion.at(time)
    owner = owners(points, state, motion.balls)
    colours = room.colour(points)
    for index, ball in enumerate(motion.balls):
        mask = owner == index
        colours[mask] = ball_colour(ball, points[mask] - state[index, :2], state[index, 2])
    fine = np.clip(colours, 0, 1).reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
    return np.ascontiguousarray(fine.mean(axis=(1, 3)).transpose(2, 0, 1), np.float32)


def ball_colour(ball: Ball, offsets: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """sRGB (n, 3) at offsets (n, 2) from the centre: a painted ball under a lamp, turned by `angle`."""
    unit = offsets / ball.radius
    height = np.sqrt(np.clip(1 - (unit**2).sum(axis=1), 0, 1))
    base = np.array(ball.material.colour or colorsys.hsv_to_rgb(ball.hue, 0.8, 0.9))
    sector_angles = np.arctan2(unit[:, 1], unit[:, 0]) - angle
    sectors = np.sin(3 * sector_angles) > 0
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
        mask = owner == index
        turn = after[index, 2] - before[index, 2]
        cos, sin = math.cos(turn), math.sin(turn)
        turned = (points[mask] - before[index, :2]) @ np.array([[cos, sin], [-sin, cos]])
        moved[mask] = after[index, :2] + turned
    centres = np.arange(size) + 0.5
    columns, rows = np.meshgrid(centres, centres)
    projected = camera.project(second, moved, size)
    return np.stack([projected[..., 0] - columns, projected[..., 1] - rows]).astype(np.float32)
