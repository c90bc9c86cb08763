"""The `bouncing` source: balls of four materials in a box, filmed by hand: seen, heard, and felt by the camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.source import MadeSamples, SourceSpec
from zoo_worlds.samples import check_limits, made


@dataclass(frozen=True, kw_only=True, slots=True)
class BouncingSettings:
    """Settings of the `bouncing` source. Raises ValueError, naming the field, for a value out of range."""

    image_size: int = 64
    """Height and width of the frames in pixels, 8 to 1024."""
    frames: int = 8
    """Frames of a video, 2 to 256; the flow is from the first to the second."""
    frame_rate: float = 8.0
    """Frames per second, 1 to 256."""
    seconds: float = 1.0
    """Length of sound and inertial measurements, 0.1 to 10."""
    sample_rate: int = 16000
    """Hz of the sound, 4000 to 96000."""
    imu_rate: float = 128.0
    """Inertial measurements per second, 16 to 1024."""
    balls: int = 4
    """Most balls, 1 to 8."""
    shake: float = 1.0
    """How restless the camera is, 0 to 4; at 0 it stands still."""

    def __post_init__(self) -> None:
        limits = {
            "image_size": (8, 1024), "frames": (2, 256), "frame_rate": (1, 256), "seconds": (0.1, 10),
            "sample_rate": (4000, 96000), "imu_rate": (16, 1024), "balls": (1, 8), "shake": (0, 4),
        }  # fmt: skip
        check_limits(self, limits)


def make_sample(rng: np.random.Generator, settings: BouncingSettings) -> dict[str, Any]:
    """All modalities of one sample.

    Contents at a given time do not depend on sizes and rates. The noise of microphone and sensor does: both draw from
    one generator.
    """
    from zoo_worlds.camera import Handheld
    from zoo_worlds.draw import Room, flow_between, frame
    from zoo_worlds.physics import simulate, throw
    from zoo_worlds.sound import soundtrack

    world, noise = rng.spawn(2)
    balls, room = throw(world, settings.balls), Room.paint(world)
    camera = Handheld.grasp(world, settings.shake)
    motion = simulate(balls, max(settings.seconds, settings.frames / settings.frame_rate))
    times = np.arange(settings.frames) / settings.frame_rate
    felt_at = np.arange(round(settings.seconds * settings.imu_rate)) / settings.imu_rate
    return {
        "video": np.stack([frame(motion, room, camera, time, settings.image_size) for time in times]),
        "flow": flow_between(motion, camera, times[0], times[1], settings.image_size),
        "audio": soundtrack(motion, settings.seconds, settings.sample_rate, noise),
        "imu": camera.feel(felt_at, motion.impacts, noise),
    }


class BouncingSource:
    """The plugin object of the entry point `bouncing`."""

    @hookimpl
    def source_spec(self) -> SourceSpec:
        return SourceSpec(
            name="bouncing",
            summary="balls that bounce in a box, filmed by hand: video, exact flow, sound, inertial sensor",
            modalities=("video", "flow", "audio", "imu"),
            licence="Apache-2.0, made by this code",
            agrees={
                "video": {"frame_rate": "frame_rate"},
                "audio": {"sample_rate": "sample_rate"},
                "imu": {"sample_rate": "imu_rate"},
            },
            settings=BouncingSettings,
        )

    @hookimpl
    def samples(self, split: str, count: int | None, seed: int, settings: Settings) -> MadeSamples:
        return made("bouncing", make_sample, split, count, seed, settings.take(BouncingSettings))


source = BouncingSource()
