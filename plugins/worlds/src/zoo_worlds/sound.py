"""What impacts sound like: each thing rings in the modes of its material (modal synthesis)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zoo_worlds.physics import Ball, Impact, Motion

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
    for index in (impact.ball, impact.other):
        if index is not None:
            sound += loudness * _modes(motion.balls[index], times, highest)
    if impact.other is None:
        for frequency in FLOOR_MODES:
            sound += loudness * 1.2 * np.exp(-times / FLOOR_DECAY) * np.sin(2 * math.pi * frequency * times)
    click = motion.balls[impact.ball].material.click * loudness
    return sound + click * np.exp(-times / CLICK) * rng.standard_normal(len(times))


def _modes(ball: Ball, times: NDArray[np.float64], highest: float) -> NDArray[np.float64]:
    material = ball.material
    sound = np.zeros_like(times)
    for number, mode in enumerate(material.modes):
        frequency = mode * REFERENCE_RADIUS / ball.radius
        if frequency < highest:
            decay = material.decay * material.modes[0] / mode
            sound += 0.75**number * np.exp(-times / decay) * np.sin(2 * math.pi * frequency * times)
    return sound
