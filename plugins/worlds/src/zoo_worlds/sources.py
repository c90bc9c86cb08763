"""Two sources of worlds: balls in a box, seen, heard and felt; and landscapes with what covers them, from orbit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from tokenizers_zoo.contract.source import Sample, SourceSpec
from tokenizers_zoo.families.sources import MadeSource
from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class BouncingSettings(Checked):
    """Settings of the `bouncing` source. Raises ValueError, naming the field, for a value out of range."""

    image_size: Annotated[int, Interval("[8, 1024]")] = 64
    """Height and width of the frames in pixels, 8 to 1024."""
    frames: Annotated[int, Interval("[2, 256]")] = 8
    """Frames of a video, 2 to 256; the flow is from the first to the second."""
    frame_rate: Annotated[float, Interval("[1, 256]")] = 8.0
    """Frames per second, 1 to 256."""
    seconds: Annotated[float, Interval("[0.1, 10]")] = 1.0
    """Length of sound and inertial measurements, 0.1 to 10."""
    sample_rate: Annotated[int, Interval("[4000, 96000]")] = 16000
    """Hz of the sound, 4000 to 96000."""
    imu_rate: Annotated[float, Interval("[16, 1024]")] = 128.0
    """Inertial measurements per second, 16 to 1024."""
    balls: Annotated[int, Interval("[1, 8]")] = 4
    """Most balls, 1 to 8."""
    shake: Annotated[float, Interval("[0, 4]")] = 1.0
    """How restless the camera is, 0 to 4; at 0 it stands still."""


def generator(name: str, split: str, seed: int, number: int) -> tuple[str, np.random.Generator]:
    """The key of a sample, and a random generator that depends on these arguments alone."""
    return f"{name}-{split}-{seed}-{number:06d}", np.random.default_rng([*f"{name}/{split}".encode(), seed, number])


def bounce(settings: BouncingSettings, split: str, seed: int, number: int) -> Sample:
    """All modalities of one sample.

    Contents at a given time do not depend on sizes and rates. The noise of microphone and sensor does: both draw from
    one generator.
    """
    from zoo_worlds.camera import Handheld, Room, flow_between, frame
    from zoo_worlds.physics import simulate, soundtrack, throw

    key, rng = generator("bouncing", split, seed, number)
    world, noise = rng.spawn(2)
    balls, room = throw(world, settings.balls), Room.paint(world)
    camera = Handheld.grasp(world, settings.shake)
    motion = simulate(balls, max(settings.seconds, settings.frames / settings.frame_rate))
    times = np.arange(settings.frames) / settings.frame_rate
    felt_at = np.arange(round(settings.seconds * settings.imu_rate)) / settings.imu_rate
    return key, {
        "video": np.stack([frame(motion, room, camera, time, settings.image_size) for time in times]),
        "flow": flow_between(motion, camera, times[0], times[1], settings.image_size),
        "audio": soundtrack(motion, settings.seconds, settings.sample_rate, noise),
        "imu": camera.imu(felt_at, motion.impacts, noise),
    }


bouncing = MadeSource(
    SourceSpec(
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
    ),
    bounce,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TerrainSettings(Checked):
    """Settings of the `terrain` source. Raises ValueError, naming the field, for a value out of range."""

    image_size: Annotated[int, Interval("[8, 1024]")] = 64
    """Height and width in pixels, 8 to 1024; above 128 there is no more detail."""
    extent: Annotated[float, Interval("[500, 50000]")] = 3840.0
    """Metres that a sample shows along each side, 500 to 50000. No value shows it: set the `pixel_metres` of height
    maps to extent / their `image_size`; as it is, 60, it goes with the 3840 m here on 64 pixels."""


def raise_land(settings: TerrainSettings, split: str, seed: int, number: int) -> Sample:
    """Both modalities of one sample; the landscape does not depend on the picture's size."""
    from tokenizers_zoo.contract.pictures import crop_and_resize
    from tokenizers_zoo.contract.spec import Crop
    from zoo_worlds.land import raise_relief, reflectance

    key, rng = generator("terrain", split, seed, number)
    metres = raise_relief(rng)
    size = (settings.image_size, settings.image_size)
    fields = {"heightmap": metres[None], "multispectral": reflectance(metres, settings.extent, rng)}
    return key, {name: crop_and_resize(field.astype(np.float32), Crop(), size) for name, field in fields.items()}


terrain = MadeSource(
    SourceSpec(
        name="terrain",
        summary="landscapes shaped by water, with fields, forests and snow: heights and twelve bands",
        modalities=("heightmap", "multispectral"),
        licence="Apache-2.0, made by this code",
        settings=TerrainSettings,
    ),
    raise_land,
)
