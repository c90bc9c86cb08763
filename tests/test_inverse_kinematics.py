"""Rotations from joints: round trips, accuracy where joints determine them, and rules for the other angles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from pose_people import landmarks_around, standing

from tokenizers_zoo import Zoo
from zoo_geometry import body
from zoo_geometry.body import ADULT, JOINTS, PARENTS, rotations_of
from zoo_geometry.pose_labeller import head_of_landmarks, joints_of_landmarks

AT = {name: index for index, name in enumerate(JOINTS)}
TOLD = ("pelvis", "left_collar", "right_collar", "left_wrist", "right_wrist")
ENOUGH = math.radians(35)


def globals_of(turns: np.ndarray) -> np.ndarray:
    """Axis-angle (24, 3) relative to the parents as matrices (24, 3, 3) from the rest pose's axes to the camera's."""
    frames = body.matrices_of(turns)
    for joint, parent in enumerate(PARENTS[1:], 1):
        frames[joint] = frames[parent] @ frames[joint]
    return frames


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angles between rotations (..., 3, 3), degrees."""
    relative = np.swapaxes(first, -1, -2) @ second
    return np.degrees(np.linalg.norm(body.vectors_of(relative), axis=-1))


def posed(**degrees: tuple[float, float, float]) -> np.ndarray:
    turns = np.zeros((24, 3))
    for name, vector in degrees.items():
        turns[AT[name]] = np.radians(vector)
    return turns


@pytest.fixture(scope="module")
def people() -> list[dict[str, Any]]:
    """Return the people of 60 scenes as the scenes source describes them."""
    samples = Zoo.from_tables({"modalities": {}}).source("scenes").samples("train", 60, 0)
    found = [person for index in range(60) for person in samples[index][1]["human_poses"]]
    assert len(found) > 20
    return found


def test_scene_people_round_trip(people: list[dict[str, Any]]) -> None:
    near: dict[str, list[float]] = {name: [] for name in (*TOLD, "spine3", "left_hip", "right_hip", "head")}
    for person in people:
        turns, joints = np.array(person["joint_rotations"]), np.array(person["joints_camera"])
        bones = body.bones_of(turns[None], joints[None])[0]
        true = globals_of(turns)
        found = rotations_of(joints, bones, true[AT["head"]])
        again = body.joints_of(found[None], bones[None], joints[:1])[0]
        assert np.linalg.norm(again - joints, axis=1).max() < 1e-6  # metres
        off = apart(globals_of(found), true)
        local = apart(body.matrices_of(found), body.matrices_of(turns))
        for name in TOLD:
            near[name].append(local[AT[name]])
        near["spine3"].append(off[AT["spine3"]])
        near["head"].append(off[AT["head"]])
        for side in ("left", "right"):
            if np.linalg.norm(turns[AT[f"{side}_knee"]]) > ENOUGH:
                near[f"{side}_hip"].append(local[AT[f"{side}_hip"]])
    for name in (*TOLD, "spine3", "head"):
        assert max(near[name]) < 1e-3, name
    for name in ("left_hip", "right_hip"):  # their knees are no exact hinges: 5 degrees of noise around all axes
        assert len(near[name]) > 3 and max(near[name]) < 15, (name, near[name])


vectors = strategies.lists(strategies.floats(-3, 3, allow_nan=False), min_size=72, max_size=72)


@settings(max_examples=40, deadline=None)
@given(vectors)
def test_any_pose_round_trips(numbers: list[float]) -> None:
    joints = standing(np.array(numbers).reshape(24, 3))
    found = rotations_of(joints, ADULT)
    assert np.isfinite(found).all() and np.linalg.norm(found, axis=1).max() <= math.pi + 1e-9
    np.testing.assert_allclose(standing(found), joints, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    *(strategies.floats(15, 130) for _ in range(4)), *(strategies.floats(-60, 60) for _ in range(4)),
    strategies.lists(strategies.floats(-3, 3), min_size=3, max_size=3),
)  # fmt: skip
def test_hinged_limbs_are_recovered_exactly(
    knee: float, elbow: float, knee_2: float, elbow_2: float, a: float, b: float, c: float, d: float,
    facing: list[float],
) -> None:  # fmt: skip
    bent = [30 + angle for angle in (knee, elbow, knee_2, elbow_2)]
    turns = posed(
        left_knee=(bent[0], 0, 0), right_knee=(bent[2], 0, 0), left_elbow=(0, -bent[1], 0), right_elbow=(0, bent[3], 0),
        left_hip=(a, b / 2, c / 2), right_hip=(b, c / 2, -d / 2), left_shoulder=(c, d, a), right_shoulder=(d, a, -b),
    )  # fmt: skip
    turns[0] = facing
    found = rotations_of(standing(turns), ADULT)
    off = apart(globals_of(found), globals_of(turns))
    for side in ("left", "right"):
        for name in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist"):
            assert off[AT[f"{side}_{name}"]] < 1e-3, name


def test_a_straight_leg_turns_as_its_foot_points_and_a_straight_arm_does_not_turn() -> None:
    straight = ADULT.copy()
    for side in ("left", "right"):
        straight[AT[f"{side}_ankle"]] = straight[AT[f"{side}_knee"]]
        straight[AT[f"{side}_elbow"]] = straight[AT[f"{side}_wrist"]] = (0.25 if side == "left" else -0.25, 0, 0)
    thigh = straight[AT["left_knee"]] / np.linalg.norm(straight[AT["left_knee"]])
    turns = posed(left_shoulder=(40, 0, 0))
    turns[AT["left_hip"]] = -math.radians(35) * thigh  # the foot points outwards
    found = rotations_of(standing(turns, straight), straight)
    np.testing.assert_allclose(found[AT["left_hip"]], turns[AT["left_hip"]], atol=1e-6)
    np.testing.assert_allclose(found[AT["left_shoulder"]], 0, atol=1e-6)


def test_a_knee_that_seems_bent_to_the_front_does_not_turn_the_leg_around() -> None:
    found = rotations_of(standing(posed(left_knee=(-40, 0, 0))), ADULT)
    assert np.degrees(np.linalg.norm(found[AT["left_hip"]])) < 15
    assert np.degrees(found[AT["left_knee"], 0]) == pytest.approx(-40, abs=8)


def test_the_turn_of_the_chest_is_shared_by_the_spine() -> None:
    upright = ADULT.copy()
    for name in ("spine1", "spine2", "spine3"):
        upright[AT[name]] *= (0, 1, 0)
    found = rotations_of(standing(posed(spine2=(0, 30, 0)), upright), upright)
    for name in ("spine1", "spine2", "spine3"):
        np.testing.assert_allclose(np.degrees(found[AT[name]]), (0, 10, 0), atol=1e-6)


def test_the_head_is_turned_as_given_and_the_neck_follows_by_half() -> None:
    upright = ADULT.copy()
    upright[AT["head"]] *= (0, 1, 0)
    head = body.matrices_of(np.radians([0, 40.0, 0]))
    found = rotations_of(standing(bones=upright), upright, head)
    np.testing.assert_allclose(np.degrees(found[[AT["neck"], AT["head"]]]), [(0, 20, 0), (0, 20, 0)], atol=1e-6)
    np.testing.assert_allclose(rotations_of(standing(bones=upright), upright), 0, atol=1e-6)


def test_coincident_joints_give_no_direction() -> None:
    joints = standing()
    joints[AT["left_hand"]] = joints[AT["left_wrist"]]
    joints[AT["right_ankle"]] = joints[AT["right_foot"]] = joints[AT["right_knee"]]
    found = rotations_of(joints, ADULT)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    assert np.isfinite(rotations_of(np.zeros((24, 3)), ADULT)).all()


# ---- joints from landmarks


def test_the_rest_pose_has_the_joints_of_the_rest_pose() -> None:
    points = landmarks_around(standing())
    joints = joints_of_landmarks(points)
    np.testing.assert_allclose(joints, standing(), atol=1e-9)
    np.testing.assert_allclose(rotations_of(joints, ADULT, head_of_landmarks(points))[[0, 6, 12, 16, 19]], 0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(*(strategies.floats(-3, 3) for _ in range(6)), strategies.floats(0.1, 300))
def test_joints_go_with_the_landmarks(a: float, b: float, c: float, x: float, y: float, z: float, scale: float) -> None:
    rng = np.random.default_rng(5)
    points = landmarks_around(standing(rng.normal(0, 0.3, (24, 3))))
    turn = body.matrices_of(np.array([a, b, c]))
    moved = joints_of_landmarks(scale * points @ turn.T + (x, y, z))
    np.testing.assert_allclose(moved, scale * joints_of_landmarks(points) @ turn.T + (x, y, z), atol=1e-6 * scale)
    np.testing.assert_allclose(head_of_landmarks(points @ turn.T), turn @ head_of_landmarks(points), atol=1e-6)


def test_twisted_shoulders_turn_the_chest_and_not_the_pelvis() -> None:
    points = landmarks_around(standing())
    turn = body.matrices_of(np.radians([0, 40.0, 0]))
    points[:23] = points[:23] @ turn.T
    frames = globals_of(rotations_of(joints_of_landmarks(points), ADULT, head_of_landmarks(points)))
    yaw = np.degrees([body.vectors_of(frames[AT[name]])[1] for name in ("pelvis", "spine3", "head")])
    np.testing.assert_allclose(yaw, (5, 40, 40), atol=5)
    assert apart(head_of_landmarks(points), turn) < 5


def test_a_mirror_swaps_left_and_right() -> None:
    points = landmarks_around(standing(posed(left_elbow=(0, -50, 0), spine2=(0, 20, 5))))
    pairs = np.arange(33)
    pairs[[1, 2, 3, 4, 5, 6, 7, 8]] = [4, 5, 6, 1, 2, 3, 8, 7]
    pairs[9::2], pairs[10::2] = np.arange(10, 33, 2), np.arange(9, 33, 2)
    mirrored = points[pairs] * body.MIRROR
    joints, other = joints_of_landmarks(points), joints_of_landmarks(mirrored)
    np.testing.assert_allclose(other, joints[list(body.OTHER_SIDE)] * body.MIRROR, atol=1e-9)
    symmetric = body.mean_skeleton(ADULT[None])
    found = rotations_of(other, symmetric, head_of_landmarks(mirrored))
    expected = body.mirrored(rotations_of(joints, symmetric, head_of_landmarks(points))[list(body.OTHER_SIDE)])
    assert apart(body.matrices_of(found), body.matrices_of(expected)).max() < 1e-3
