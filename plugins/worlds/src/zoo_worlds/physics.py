"""Balls that fall, bounce, spin and knock against each other in a box, in two dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Frequencies apply to a ball of 0.5 m radius; smaller balls sound higher."""

    density: float
    """kg/m3 (balls are hollow)."""
    bounce: float
    """Coefficient of restitution."""
    modes: tuple[float, ...]
    """Hz of the modes, strongest first."""
    decay: float
    """Seconds in which the lowest mode falls to 1/e; higher ones fall sooner."""
    click: float
    """Loudness of the noise at the moment of contact, relative to the modes."""
    colour: tuple[float, float, float] | None
    """sRGB; None takes the ball's own hue."""
    gloss: float
    """Strength of the highlight."""


MATERIALS: dict[str, Material] = {
    "rubber": Material(
        density=60.0, bounce=0.85, modes=(95.0, 190.0, 280.0), decay=0.07, click=0.3, colour=None, gloss=0.15
    ),
    "wood": Material(
        density=200.0,
        bounce=0.6,
        modes=(310.0, 790.0, 1290.0, 1870.0),
        decay=0.06,
        click=0.8,
        colour=(0.62, 0.42, 0.22),
        gloss=0.1,
    ),
    "metal": Material(
        density=500.0,
        bounce=0.7,
        modes=(640.0, 1040.0, 1750.0, 2490.0, 3330.0),
        decay=0.6,
        click=0.4,
        colour=(0.55, 0.57, 0.62),
        gloss=0.6,
    ),
    "glass": Material(
        density=300.0,
        bounce=0.65,
        modes=(1650.0, 2900.0, 4300.0, 6100.0),
        decay=0.25,
        click=0.5,
        colour=(0.62, 0.86, 0.86),
        gloss=0.9,
    ),
}


GRAVITY = 9.81
"""m/s2, downwards."""
WIDTH, HEIGHT = 6.0, 5.0
"""The box, metres; x = 0 is its left wall and y = 0 its floor."""
STEPS_PER_SECOND = 1024
FRICTION = 0.25
"""Coulomb friction coefficient of every contact."""
QUIET = 0.35
"""m/s: slower contacts make no sound and do not bounce."""


@dataclass(slots=True)
class Ball:
    """A disc. Its state changes while it moves."""

    material: Material
    radius: float
    hue: float
    x: float
    y: float
    vx: float
    vy: float
    spin: float
    angle: float = 0.0

    @property
    def mass(self) -> float:
        """kg, of a ball of this radius."""
        return self.material.density * 4 / 3 * math.pi * self.radius**3


@dataclass(frozen=True, kw_only=True, slots=True)
class Impact:
    """A contact that can be heard."""

    time: float
    """Seconds from the start."""
    speed: float
    """Speed of approach, m/s."""
    impulse: float
    """kg m/s."""
    ball: int
    other_ball: int | None
    """The other ball, or None for a wall or the floor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """What happened."""

    balls: list[Ball]
    states: NDArray[np.float64]
    """(steps + 1, balls, 3): x, y in metres and angle in radians."""
    impacts: list[Impact] = field(default_factory=list)

    def at(self, time: float) -> NDArray[np.float64]:
        """(balls, 3) at the nearest step."""
        return self.states[round(time * STEPS_PER_SECOND)]


def throw(rng: np.random.Generator, max_balls: int) -> list[Ball]:
    """One to `max_balls` balls of random materials that do not touch, thrown in random directions."""
    balls: list[Ball] = []
    count = int(rng.integers(1, max_balls + 1))
    names = sorted(MATERIALS)
    for _ in range(100):
        if len(balls) == count:
            break
        radius = rng.uniform(0.35, 0.75)
        x, y = rng.uniform(radius, WIDTH - radius), rng.uniform(radius, HEIGHT - radius)
        if all(math.hypot(x - b.x, y - b.y) > radius + b.radius + 0.05 for b in balls):
            balls.append(
                Ball(
                    material=MATERIALS[names[int(rng.integers(len(names)))]],
                    radius=radius,
                    hue=rng.random(),
                    x=x,
                    y=y,
                    vx=rng.uniform(-3.5, 3.5),
                    vy=rng.uniform(-2.0, 3.0),
                    spin=rng.uniform(-4, 4),
                )
            )
    return balls


def simulate(balls: list[Ball], seconds: float) -> Motion:
    """Move the balls by semi-implicit Euler steps, and settle each contact by an impulse with friction."""
    steps = math.ceil(seconds * STEPS_PER_SECOND)
    step = 1 / STEPS_PER_SECOND
    motion = Motion(balls=balls, states=np.zeros((steps + 1, len(balls), 3)))
    for number in range(steps + 1):
        motion.states[number] = [(ball.x, ball.y, ball.angle) for ball in balls]
        for ball in balls:
            ball.vy -= GRAVITY * step
            ball.x += ball.vx * step
            ball.y += ball.vy * step
            ball.angle += ball.spin * step
        for index, ball in enumerate(balls):
            for second_index in range(index + 1, len(balls)):
                _meet(motion, index, second_index, number * step)
            for nx, ny, gap in (
                (1.0, 0.0, ball.x - ball.radius),
                (-1.0, 0.0, WIDTH - ball.x - ball.radius),
                (0.0, 1.0, ball.y - ball.radius),
            ):
                if gap < 0:
                    ball.x, ball.y = ball.x - nx * gap, ball.y - ny * gap
                    _bounce(motion, index, None, nx, ny, number * step)
    return motion


def _meet(motion: Motion, index: int, second_index: int, time: float) -> None:
    """Two balls, if they overlap: part them and exchange an impulse."""
    ball, second = motion.balls[index], motion.balls[second_index]
    dx, dy = ball.x - second.x, ball.y - second.y
    distance = math.hypot(dx, dy)
    gap = distance - ball.radius - second.radius
    if gap >= 0:
        return
    nx, ny = (dx / distance, dy / distance) if distance > 1e-9 else (1.0, 0.0)
    share = second.mass / (ball.mass + second.mass)
    ball.x, ball.y = ball.x - nx * gap * share, ball.y - ny * gap * share
    second.x, second.y = second.x + nx * gap * (1 - share), second.y + ny * gap * (1 - share)
    _bounce(motion, index, second_index, nx, ny, time)


def _bounce(motion: Motion, index: int, second_index: int | None, nx: float, ny: float, time: float) -> None:
    """The impulse on a ball along the normal (away from the obstacle), and its friction."""
    ball = motion.balls[index]
    second = motion.balls[second_index] if second_index is not None else None
    vx, vy = (ball.vx, ball.vy) if second is None else (ball.vx - second.vx, ball.vy - second.vy)
    approach = -(vx * nx + vy * ny)
    if approach <= 0:
        return
    surface = ball.spin * ball.radius + (second.spin * second.radius if second else 0.0)
    slide = vx * -ny + vy * nx - surface  # along the tangent (-ny, nx), at the point of contact
    bounce = ball.material.bounce if second is None else min(ball.material.bounce, second.material.bounce)
    reduced = ball.mass if second is None else ball.mass * second.mass / (ball.mass + second.mass)
    impulse = reduced * approach * (1 + (bounce if approach > QUIET else 0.0))
    # A solid ball's inertia is 2/5 m r^2: the impulse 2/7 m v makes it roll.
    drag = max(-FRICTION * impulse, min(FRICTION * impulse, -slide * reduced * 2 / 7))
    for body, sign in ((ball, 1.0), (second, -1.0)):
        if body is not None:
            body.vx += sign * (impulse * nx - drag * ny) / body.mass
            body.vy += sign * (impulse * ny + drag * nx) / body.mass
            body.spin -= drag * 2.5 / (body.mass * body.radius)
    if approach > QUIET:
        motion.impacts.append(Impact(time=time, speed=approach, impulse=impulse, ball=index, other_ball=second_index))


REFERENCE_RADIUS = 0.5
"""Metres for which the materials' frequencies are given."""
FLOOR_MODES = (62.0, 118.0)
"""Hz of the floor and the walls."""
FLOOR_DECAY = 0.05
LOUDNESS = 0.03
"""Amplitude of a mode after an impact at 1 m/s."""
CLICK = 0.004
"""Seconds of noise at the moment of contact."""
HISS = 2e-4
"""Deviation of the microphone's noise."""


def soundtrack(motion: Motion, seconds: float, sample_rate: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A waveform float32 (seconds x sample_rate,) in (-1, 1), limited as tape does."""
    count = round(seconds * sample_rate)
    track = HISS * rng.standard_normal(count)
    for impact in motion.impacts:
        start = round(impact.time * sample_rate)
        if start < count:
            times = np.arange(count - start) / sample_rate
            track[start:] += ring(motion, impact, times, sample_rate / 2, rng)
    return np.tanh(track).astype(np.float32)


def ring(
    motion: Motion, impact: Impact, times: NDArray[np.float64], highest: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The sound of one impact at `times` after it, with frequencies below `highest` Hz."""
    loudness = LOUDNESS * impact.speed**1.2
    sound = np.zeros_like(times)
    for ball in (motion.balls[index] for index in (impact.ball, impact.other_ball) if index is not None):
        tone = np.zeros_like(times)
        for number, mode in enumerate(ball.material.modes):
            frequency = mode * REFERENCE_RADIUS / ball.radius
            if frequency < highest:
                decay = ball.material.decay * ball.material.modes[0] / mode
                tone += 0.75**number * np.exp(-times / decay) * np.sin(2 * math.pi * frequency * times)
        sound += loudness * tone
    if impact.other_ball is None:
        for frequency in FLOOR_MODES:
            sound += loudness * 1.2 * np.exp(-times / FLOOR_DECAY) * np.sin(2 * math.pi * frequency * times)
    click = motion.balls[impact.ball].material.click * loudness
    return sound + click * np.exp(-times / CLICK) * rng.standard_normal(len(times))
