"""The sources of zoo-worlds: reproducible by seed, correct physics and cameras, and consistent modalities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizers_zoo.build.make import make_data
from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.source import SourceSpec
from tokenizers_zoo.errors import ConfigError, PluginError
from tokenizers_zoo.records.config import Settings
from zoo_worlds import camera, land, physics, sources

SMALL = {"image_size": 32, "frames": 2, "sample_rate": 4000}


def ball(**state: float) -> Any:
    return physics.Ball(
        **{"material": physics.MATERIALS["rubber"], "radius": 0.5, "hue": 0.0, "x": 3.0, "y": 3.0, "vx": 0.0,
           "vy": 0.0, "spin": 0.0, **state},
    )  # fmt: skip


def test_rates_of_the_source_have_to_agree_with_the_modalities(tmp_path: Path) -> None:
    zoo = Zoo.from_tables({"zoo": {"modalities": ["video", "audio", "imu"]}})
    for rate in ({"frame_rate": 16.0}, {"sample_rate": 8000}, {"imu_rate": 256.0}):
        with pytest.raises(ConfigError, match=next(iter(rate))):
            make_data(zoo, "bouncing", tmp_path / "data", train=1, test=0, options=rate)
    assert not (tmp_path / "data").exists()


def test_agreeing_settings_have_to_be_settings_of_the_source() -> None:
    agreeing_settings = {"imu": {"sample_rate": "rate"}}
    with pytest.raises(PluginError, match="world: SourceSpec agrees: rate"):
        SourceSpec(name="world", summary="A world", modalities=("imu",), licence="MIT", agrees=agreeing_settings)


# ---------------------------------------------------------------- physics


def test_a_ball_falls_as_galileo_says_and_bounces_by_its_material() -> None:
    motion = physics.simulate([ball(y=2.5)], 1.0)
    fallen = math.sqrt(2 * (2.5 - 0.5) / 9.81)
    assert motion.impacts[0].time == pytest.approx(fallen, abs=0.003)
    assert motion.impacts[0].speed == pytest.approx(9.81 * fallen, rel=0.01)
    assert motion.at(0.4)[0, 1] == pytest.approx(2.5 - 9.81 / 2 * 0.4**2, abs=0.005)
    after = motion.states[round((fallen + 0.2) * physics.STEPS_PER_SECOND), 0, 1]
    risen = 0.85 * 9.81 * fallen * 0.2 - 9.81 / 2 * 0.2**2
    assert after == pytest.approx(0.5 + risen, abs=0.02)


def test_balls_that_meet_keep_their_momentum_and_lose_energy() -> None:
    pair = [ball(x=2.0, vx=2.0), ball(x=4.0, vx=-1.0, spin=3.0)]
    before = sum(b.mass * b.vx for b in pair), sum(b.mass * b.vx**2 for b in pair)
    motion = physics.simulate(pair, 0.5)
    assert [impact.other_ball for impact in motion.impacts] == [1]
    assert sum(b.mass * b.vx for b in pair) == pytest.approx(before[0], rel=1e-9)
    assert sum(b.mass * b.vx**2 for b in pair) < before[1]
    assert pair[1].vx - pair[0].vx == pytest.approx(0.85 * 3.0)


def test_friction_turns_a_sliding_ball_until_it_rolls() -> None:
    sliding = ball(y=0.5, vx=1.0)
    physics.simulate([sliding], 1.0)
    assert sliding.vx == pytest.approx(5 / 7, abs=0.01)  # 5/7 of the initial speed, for a solid ball
    assert sliding.spin == pytest.approx(-sliding.vx / 0.5, abs=0.02)  # a ball that rolls right spins clockwise


# ---------------------------------------------------------------- camera


def test_nothing_leaves_the_box() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        balls = physics.throw(rng, 4)
        states = physics.simulate(balls, 1.0).states
        for index, body in enumerate(balls):
            assert states[:, index, 1].min() > body.radius - 0.15
            assert (abs(states[:, index, 0] - physics.WIDTH / 2) < physics.WIDTH / 2 - body.radius + 0.15).all()


def test_pixels_are_projected_back_to_themselves() -> None:
    handheld = camera.Handheld.grasp(np.random.default_rng(1), 2.0)
    pixels = handheld.project(0.3, handheld.rays(0.3, 8), 8)
    centres = np.arange(8) + 0.5
    np.testing.assert_allclose(pixels, np.stack(np.meshgrid(centres, centres), axis=-1), atol=1e-9)


def test_a_camera_at_rest_feels_gravity_alone() -> None:
    handheld = camera.Handheld.grasp(np.random.default_rng(0), 0.0)
    measured = handheld.imu(np.arange(64) / 128, [], np.random.default_rng(0))
    np.testing.assert_allclose(measured.mean(axis=1), [0, 9.81, 0, 0, 0, 0], atol=0.05)


def test_rotation_rates_lead_from_pose_to_pose() -> None:
    """R(t + dt) = R(t) (1 + [w]x dt); acceleration is the rotated second difference of the position."""
    handheld = camera.Handheld.grasp(np.random.default_rng(2), 3.0)
    time, step = 0.4, 1e-4
    (before, turn), (middle, _), (after, turned) = (handheld.pose(time + k * step) for k in (-1, 0, 1))
    skew = (turn.T @ turned - np.eye(3)) / (2 * step)
    expected_rates = [skew[2, 1], skew[0, 2], skew[1, 0]]
    expected = handheld.pose(time)[1].T @ ((after - 2 * middle + before) / step**2 + [0, 9.81, 0])

    class Quiet:
        def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return np.zeros(shape)

    measured = handheld.imu(np.array([time]), [], Quiet())[:, 0]
    np.testing.assert_allclose(measured[3:], expected_rates, atol=1e-4)
    np.testing.assert_allclose(measured[:3], expected, atol=1e-3)


# ---------------------------------------------------------------- agreement


def test_flow_leads_from_the_first_frame_to_the_second() -> None:
    """Sampling the second frame along the flow gives the first frame, except for hidden pixels."""
    from scipy.ndimage import map_coordinates

    sample = sources.bouncing.samples("train", 8, 0, Settings("world", {**SMALL, "image_size": 64}))[3][1]
    first, second = sample["video"][:2]
    rows, columns = np.mgrid[:64, :64].astype(float)
    targets = [rows + sample["flow"][1], columns + sample["flow"][0]]
    warped = np.stack([map_coordinates(channel, targets, order=1, mode="nearest") for channel in second])
    inside = (np.minimum(*targets) > 1) & (np.maximum(*targets) < 62)
    error, still = (np.abs(picture - first).mean(axis=0)[inside] for picture in (warped, second))
    assert np.hypot(*sample["flow"]).mean() > 0.5
    assert np.median(error) < 0.02 and error.mean() < 0.5 * still.mean()


def test_flow_of_a_turning_ball_by_hand() -> None:
    """Under a camera at rest, points off the centre of a spinning ball move along the tangent."""
    handheld = camera.Handheld.grasp(np.random.default_rng(0), 0.0)
    states = np.array([[[3.0, 2.3, 0.0]], [[3.0, 2.3, 0.2]]])
    motion = physics.Motion(balls=[ball(radius=1.0)], states=states)
    flow = camera.flow_between(motion, handheld, 0.0, 1 / physics.STEPS_PER_SECOND, 65)
    scale = 65 / (2 * math.tan(camera.FIELD / 2) * camera.DISTANCE)  # pixels per metre
    column = round(0.5 * scale)
    offset = column / scale
    expected = offset * scale * (math.cos(0.2) - 1), -offset * scale * math.sin(0.2)
    np.testing.assert_allclose(flow[:, 32, 32 + column], expected, atol=0.02)
    np.testing.assert_allclose(flow[:, 2, 2], 0, atol=1e-9)


def test_impacts_are_heard_when_they_happen_and_by_their_material() -> None:
    rate = 16000
    for name, hertz in (("wood", 310.0), ("glass", 1650.0)):
        balls = [ball(material=physics.MATERIALS[name], y=1.0)]
        motion = physics.simulate(balls, 0.6)
        track = physics.soundtrack(motion, 0.6, rate, np.random.default_rng(0))
        start = round(motion.impacts[0].time * rate)
        assert np.abs(track[: start - 5]).max() < 0.005 < np.abs(track[start : start + 200]).max()
        spectrum = np.abs(np.fft.rfft(track[start : start + 3200]))
        spectrum[:40] = 0  # ignore the floor's modes
        assert spectrum.argmax() * rate / 3200 == pytest.approx(hertz, rel=0.05)


# ---------------------------------------------------------------- terrain


def test_water_runs_down() -> None:
    """On a plane that falls to the south, each point drains all points north of it."""
    plane = np.repeat(np.arange(128.0, 0, -1)[:, None], 128, axis=1)
    drainage = np.exp(land.drainage(plane) * math.log(128 * 128 / 8))
    np.testing.assert_allclose(drainage[:, 64], np.arange(1, 129), rtol=1e-9)


def test_a_picture_of_any_size_shows_the_same_land() -> None:
    """The mean slope, in metres of height per metre, does not depend on image_size."""

    def slopes(size: int) -> np.ndarray:
        settings = Settings("world", {"image_size": size, "extent": 2000.0})
        metres = sources.terrain.samples("train", 5, 0, settings)[4][1]["heightmap"][0].astype(float)
        positions = (np.arange(size) + 0.5) * 2000.0 / size
        south, east = (np.polyfit(positions, metres.mean(axis=axis), 1)[0] for axis in (1, 0))
        return np.array([south, east])

    expected = slopes(128)
    assert (np.abs(expected) > 0.01).all()
    for size in (32, 64, 256):
        np.testing.assert_allclose(slopes(size), expected, rtol=0.02)


def test_plants_water_and_snow_look_as_they_should() -> None:
    landscape = land.raise_relief(np.random.default_rng(0))
    shares = land.cover(landscape, 3840.0, np.random.default_rng(0))
    np.testing.assert_allclose(sum(shares.values()), 1, atol=1e-9)
    assert min(share.min() for share in shares.values()) > -1e-9
    reflectance = land.reflectance(landscape, 3840.0, np.random.default_rng(0))
    assert reflectance.shape == (12, 128, 128) and reflectance.min() >= 0 and reflectance.max() <= 2
    index = (reflectance[7] - reflectance[3]) / (reflectance[7] + reflectance[3])  # the vegetation index, NDVI
    plants = shares["forest"] + shares["grass"] + shares["crops"]
    assert index[plants > 0.9].mean() > 0.5
    assert (shares["water"][landscape < -10] > 0.99).all()
