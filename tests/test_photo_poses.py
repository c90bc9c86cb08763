"""People in photographs: detector, regions, landmarks, camera, rotations, files, and `zoo data derive`.

The networks' outputs are written by hand. MediaPipe's real networks run if ai-edge-litert is installed and
ZOO_POSE_NETWORKS names a folder of its .tflite files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from pose_people import METRES, answer_by_hand, landmarks_around, network_files, seen, standing

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.pretrained import PretrainedError
from zoo_geometry import body
from zoo_geometry.body import ADULT, JOINTS, PARENTS, half_sizes, look_at_rotation, offset_of, rotations_of
from zoo_geometry.pose_labeller import (
    PoseLabeller,
    Region,
    anchors,
    detections,
    head_of_landmarks,
    joints_of_landmarks,
    landmarks_of,
    person_of,
    region_of,
    sample_pixels,
)

NAME = "human_poses"
DARK, LIGHT = np.zeros((3, 60, 80), np.float32), np.zeros((3, 60, 80), np.float32)
LIGHT[:, 28:32, 48:52] = 1  # hips at (50, 30)


def handle(model: Path | str, **settings: Any) -> Any:
    return Zoo.from_tables({"modalities": {NAME: {"labeller": {"model": str(model), **settings}}}})[NAME]


# ---- regions of a picture


def test_a_region_is_cropped_turned_and_resized() -> None:
    picture = np.random.default_rng(0).random((3, 6, 6))
    upright = Region(x=3, y=3, side=6)
    np.testing.assert_allclose(upright.sample(picture, 6, "black"), picture.transpose(1, 2, 0))
    turned = dataclasses.replace(upright, angle=math.pi / 2).sample(picture, 6, "edge")
    np.testing.assert_allclose(turned, np.rot90(picture.transpose(1, 2, 0)), atol=1e-12)
    halves = upright.sample(picture, 3, "black")
    np.testing.assert_allclose(halves, picture.reshape(3, 3, 2, 3, 2).mean((2, 4)).transpose(1, 2, 0))


def test_sampling_interpolates_and_extends_beyond_the_picture() -> None:
    picture = np.array([[[1.0, 3.0]]])
    points = np.array([[0.5, 0.5], [1.0, 0.5], [1.25, 0.5], [-5, 0.5], [9, 9], [2.0, 0.5]])
    np.testing.assert_allclose(sample_pixels(picture, points, "edge")[:, 0], [1, 2, 2.5, 1, 3, 3])
    np.testing.assert_allclose(sample_pixels(picture, points, "black")[:, 0], [1, 2, 2.5, 0, 0, 1.5])


# ---- the detector


def test_anchors_are_those_of_the_network() -> None:
    centres = anchors()
    assert centres.shape == (2 * 28 * 28 + 2 * 14 * 14 + 6 * 7 * 7, 2) == (2254, 2)
    np.testing.assert_allclose(centres[[0, 1, 2]] * 28, [[0.5, 0.5], [0.5, 0.5], [1.5, 0.5]])
    np.testing.assert_allclose(centres[2 * 28 : 2 * 28 + 1] * 28, [[0.5, 1.5]])
    np.testing.assert_allclose(centres[1568] * 14, [0.5, 0.5])
    np.testing.assert_allclose(centres[[1960, 1965, 1966, -1]] * 7, [[0.5, 0.5], [0.5, 0.5], [1.5, 0.5], [6.5, 6.5]])


def test_detections_are_decoded_from_network_outputs() -> None:
    numbers, logits = np.zeros((2254, 12)), np.full(2254, -200.0)
    numbers[1568] = [8, -8, 20, 40, 0, 10, 20, 30, 40, 50, 60, 70]  # the anchor at (8, 8) pixels
    logits[1568] = math.log(3)
    (points,) = detections(numbers, logits, 0.7)
    np.testing.assert_allclose(points * 224, [[8, 18], [28, 38], [48, 58], [68, 78]])
    assert detections(numbers, logits, 0.8) == []


def test_points_of_overlapping_boxes_are_averaged_by_score() -> None:
    numbers, logits = np.zeros((2254, 12)), np.full(2254, -200.0)
    # boxes at (0, 0) and, in units of their side, at (0.1, 0), (0.8, 0) and far away; overlaps 0.82, 0.11 and 0
    for anchor, right, score in ((0, 3, 0.3), (1, 0, 0.9), (2, 24, 0.5), (3, 150, 0.7)):
        corner = np.array([right, 0]) - anchors()[anchor] * 224
        numbers[anchor] = [*(corner + 15), 30, 30, *np.tile(corner, 4)]
        logits[anchor] = math.log(score / (1 - score))
    first, second, third_box = detections(numbers, logits, 0.2)
    np.testing.assert_allclose(first * 224, np.tile([0.75, 0], (4, 1)), atol=1e-9)
    np.testing.assert_allclose(second * 224, np.tile([150, 0], (4, 1)), atol=1e-9)
    np.testing.assert_allclose(third_box * 224, np.tile([24, 0], (4, 1)), atol=1e-9)


@pytest.mark.parametrize(("rim", "angle"), [((0, -8), 0), ((8, 0), 90), ((-8, 0), -90), ((0, 8), 180)])
def test_the_region_of_a_body_is_upright_for_it(rim: tuple[int, int], angle: float) -> None:
    source = Region(x=50, y=50, side=100)
    points = np.array([(0.4, 0.6), (0.4 + rim[0] / 100, 0.6 + rim[1] / 100), (0, 0), (0, 0)])
    region = region_of(source.to_picture(points))
    assert (region.x, region.y, region.side) == pytest.approx((40, 60, 2 * 8 * 1.25))
    head = region.to_picture(np.array([0.5, 0.1])) - (40, 60)
    np.testing.assert_allclose(head, np.array(rim), atol=1e-9)
    assert math.degrees(region.angle) == pytest.approx(angle)


# ---- landmarks


def test_landmarks_are_in_the_picture_and_in_camera_axes() -> None:
    raw, world = np.zeros((39, 5)), np.zeros((39, 3))
    raw[0], world[0] = [128, 64, -32, 0, 9], [0.1, -0.3, -0.2]
    mask = np.full((256, 256), -1.0)
    mask[63, 127] = 1
    region = Region(x=100, y=200, side=512, angle=math.pi / 2)
    landmarks = landmarks_of(raw.reshape(1, -1), world.reshape(1, -1), mask, region)
    np.testing.assert_allclose(landmarks.image[0], [228, -200, 64], atol=1e-9)  # the region's up is the picture's right
    np.testing.assert_allclose(landmarks.world[0], [0.3, -0.1, 0.2], atol=1e-9)
    np.testing.assert_allclose(landmarks.outline, [[229, 199]], atol=1e-9)
    assert landmarks.image.shape == landmarks.world.shape == (33, 3)
    assert landmarks.visible[0] == 0.5


# ---- the camera


def test_fields_of_view_by_hand() -> None:
    np.testing.assert_allclose(half_sizes(90.0, 100, 200), [2, 1])
    np.testing.assert_allclose(half_sizes((90.0, 53.13010235), 100, 200), [0.5, 1])
    np.testing.assert_allclose(half_sizes(None, 300, 400), [0.4, 0.3])
    turn = look_at_rotation(np.array([1.0, 0.5]), np.array([1.0, 1.0]))  # 45 degrees to the right
    np.testing.assert_allclose(turn @ (0, 0, -1), np.array([1, 0, -1]) / math.sqrt(2), atol=1e-12)
    np.testing.assert_allclose(turn @ (0, 1, 0), (0, 1, 0), atol=1e-12)


@settings(deadline=None)
@given(strategies.floats(-2, 2), strategies.floats(-2, 2), strategies.floats(1.5, 30))
def test_a_body_is_put_where_it_is_seen(x: float, y: float, depth: float) -> None:
    half, points = np.array([0.7, 0.4]), standing() - standing().mean(axis=0)
    placed = points + np.array([x, y, -depth])
    image = 0.5 + 0.5 * body.directions(placed) * (1, -1) / half
    np.testing.assert_allclose(offset_of(points, image, np.ones(24), half), (x, y, -depth), atol=1e-6)
    image[3] += 0.3  # hidden, with a wrong guess
    weights = np.ones(24)
    weights[3] = 0
    np.testing.assert_allclose(offset_of(points, image, weights, half), (x, y, -depth), atol=1e-6)


@pytest.mark.parametrize("fov", [None, 50.0, (40.0, 70.0)])
@pytest.mark.parametrize("at", [(0.0, 0.0, -4.0), (1.2, 0.2, -3.0), (-0.5, -0.3, -2.0)])
def test_perfect_network_outputs_give_the_true_people(fov: Any, at: tuple[float, float, float]) -> None:
    size, rng = (300, 400), np.random.default_rng(1)
    turns = rng.normal(0, 0.2, (24, 3))
    turns[[3, 6, 9, 12, 13, 14, 15]] = 0  # the spine is hidden
    points = landmarks_around(standing(turns)) + np.array(at)
    half = half_sizes(fov, *size)
    hips = points[[23, 24]].mean(axis=0)[None]
    centre = 0.5 + 0.5 * body.directions(hips)[0] * (1, -1) / half
    region = Region(x=centre[0] * size[1], y=centre[1] * size[0], side=300)
    landmarks = seen(points, region, size, half, look_at_rotation(centre, half))
    person = person_of(landmarks, size, fov)
    assert person is not None
    truth, joints = standing(turns) + at, np.array(person["joints_camera"])
    end_joints = [
        body.JOINTS.index(name) for name in ("left_hip", "left_ankle", "right_wrist", "left_shoulder", "right_knee")
    ]
    np.testing.assert_allclose(joints[end_joints], truth[end_joints], atol=1e-6)
    assert np.linalg.norm(joints - truth, axis=1).max() < 0.05
    image = 0.5 + 0.5 * body.directions(joints) * (1, -1) / half
    np.testing.assert_allclose(np.array(person["joints_image"])[end_joints], image[end_joints], atol=1e-6)
    assert np.abs(np.array(person["joints_image"]) - image).max() < 0.03
    rebuilt = body.joints_of(np.array(person["joint_rotations"])[None], body.ADULT[None], truth[:1])
    assert np.linalg.norm(rebuilt[0] - joints, axis=1).max() < 0.06
    assert person["box"] == pytest.approx([*np.clip(image, 0, 1).min(0), *np.clip(image, 0, 1).max(0)], abs=0.12)


def test_people_outside_the_picture_or_behind_the_camera_are_left_out() -> None:
    points = landmarks_around(standing()) + np.array([0, 0, -4.0])
    half, region = half_sizes(60.0, 100, 100), Region(x=50, y=50, side=80)
    landmarks = seen(points, region, (100, 100), half, np.eye(3))
    assert person_of(landmarks, (100, 100), 60.0) is not None
    outside = dataclasses.replace(landmarks, outline=landmarks.outline + 500, visible=np.zeros(33) + 0.4)
    assert person_of(outside, (100, 100)) is None
    mirrored = dataclasses.replace(landmarks, image=landmarks.image * (-1, -1, 1) + (100, -100, 0))
    assert person_of(mirrored, (100, 100), 60.0) is None


# ---- rotations from joints

AT = {name: index for index, name in enumerate(JOINTS)}


def global_rotations(turns: np.ndarray) -> np.ndarray:
    """Axis-angle (24, 3) relative to the parents as matrices (24, 3, 3) from the rest pose's axes to the camera's."""
    frames = body.matrices_of(turns)
    for joint, parent in enumerate(PARENTS[1:], 1):
        frames[joint] = frames[parent] @ frames[joint]
    return frames


def angles_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angles between rotations (..., 3, 3), degrees."""
    relative = np.swapaxes(first, -1, -2) @ second
    return np.degrees(np.linalg.norm(body.vectors_of(relative), axis=-1))


def turns_of(**degrees: tuple[float, float, float]) -> np.ndarray:
    turns = np.zeros((24, 3))
    for name, vector in degrees.items():
        turns[AT[name]] = np.radians(vector)
    return turns


vectors = strategies.lists(strategies.floats(-3, 3, allow_nan=False), min_size=72, max_size=72)


@settings(max_examples=40, deadline=None)
@given(vectors)
def test_any_pose_round_trips(numbers: list[float]) -> None:
    joints = standing(np.array(numbers).reshape(24, 3))
    rotations = rotations_of(joints, ADULT)
    assert np.isfinite(rotations).all() and np.linalg.norm(rotations, axis=1).max() <= math.pi + 1e-9
    np.testing.assert_allclose(standing(rotations), joints, atol=1e-6)


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
    turns = turns_of(
        left_knee=(bent[0], 0, 0), right_knee=(bent[2], 0, 0), left_elbow=(0, -bent[1], 0), right_elbow=(0, bent[3], 0),
        left_hip=(a, b / 2, c / 2), right_hip=(b, c / 2, -d / 2), left_shoulder=(c, d, a), right_shoulder=(d, a, -b),
    )  # fmt: skip
    turns[0] = facing
    rotations = rotations_of(standing(turns), ADULT)
    errors = angles_between(global_rotations(rotations), global_rotations(turns))
    for side in ("left", "right"):
        for name in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist"):
            assert errors[AT[f"{side}_{name}"]] < 1e-3, name


def test_straight_legs_turn_with_the_foot_and_straight_arms_not() -> None:
    straight = ADULT.copy()
    for side in ("left", "right"):
        straight[AT[f"{side}_ankle"]] = straight[AT[f"{side}_knee"]]
        straight[AT[f"{side}_elbow"]] = straight[AT[f"{side}_wrist"]] = (0.25 if side == "left" else -0.25, 0, 0)
    thigh = straight[AT["left_knee"]] / np.linalg.norm(straight[AT["left_knee"]])
    turns = turns_of(left_shoulder=(40, 0, 0))
    turns[AT["left_hip"]] = -math.radians(35) * thigh  # the foot points outwards
    rotations = rotations_of(standing(turns, straight), straight)
    np.testing.assert_allclose(rotations[AT["left_hip"]], turns[AT["left_hip"]], atol=1e-6)
    np.testing.assert_allclose(rotations[AT["left_shoulder"]], 0, atol=1e-6)


def test_a_knee_bent_forwards_does_not_turn_the_leg() -> None:
    rotations = rotations_of(standing(turns_of(left_knee=(-40, 0, 0))), ADULT)
    assert np.degrees(np.linalg.norm(rotations[AT["left_hip"]])) < 15
    assert np.degrees(rotations[AT["left_knee"], 0]) == pytest.approx(-40, abs=8)


def test_the_turn_of_the_chest_is_shared_by_the_spine() -> None:
    upright = ADULT.copy()
    for name in ("spine1", "spine2", "spine3"):
        upright[AT[name]] *= (0, 1, 0)
    rotations = rotations_of(standing(turns_of(spine2=(0, 30, 0)), upright), upright)
    for name in ("spine1", "spine2", "spine3"):
        np.testing.assert_allclose(np.degrees(rotations[AT[name]]), (0, 10, 0), atol=1e-6)


def test_the_neck_takes_half_of_the_heads_rotation() -> None:
    upright = ADULT.copy()
    upright[AT["head"]] *= (0, 1, 0)
    head = body.matrices_of(np.radians([0, 40.0, 0]))
    rotations = rotations_of(standing(bones=upright), upright, head)
    np.testing.assert_allclose(np.degrees(rotations[[AT["neck"], AT["head"]]]), [(0, 20, 0), (0, 20, 0)], atol=1e-6)
    np.testing.assert_allclose(rotations_of(standing(bones=upright), upright), 0, atol=1e-6)


def test_coincident_joints_give_no_direction() -> None:
    joints = standing()
    joints[AT["left_hand"]] = joints[AT["left_wrist"]]
    joints[AT["right_ankle"]] = joints[AT["right_foot"]] = joints[AT["right_knee"]]
    rotations = rotations_of(joints, ADULT)
    np.testing.assert_allclose(rotations, 0, atol=1e-6)
    assert np.isfinite(rotations_of(np.zeros((24, 3)), ADULT)).all()


# ---- joints from landmarks


def test_the_rest_pose_has_the_joints_of_the_rest_pose() -> None:
    points = landmarks_around(standing())
    joints = joints_of_landmarks(points)
    np.testing.assert_allclose(joints, standing(), atol=1e-9)
    np.testing.assert_allclose(rotations_of(joints, ADULT, head_of_landmarks(points))[[0, 6, 12, 16, 19]], 0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(*(strategies.floats(-3, 3) for _ in range(6)), strategies.floats(0.1, 300))
def test_joints_move_with_the_landmarks(
    a: float, b: float, c: float, x: float, y: float, z: float, scale: float
) -> None:
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
    frames = global_rotations(rotations_of(joints_of_landmarks(points), ADULT, head_of_landmarks(points)))
    yaw = np.degrees([body.vectors_of(frames[AT[name]])[1] for name in ("pelvis", "spine3", "head")])
    np.testing.assert_allclose(yaw, (5, 40, 40), atol=5)
    assert angles_between(head_of_landmarks(points), turn) < 5


def test_a_mirror_swaps_the_landmarks_of_left_and_right() -> None:
    points = landmarks_around(standing(turns_of(left_elbow=(0, -50, 0), spine2=(0, 20, 5))))
    pairs = np.arange(33)
    pairs[[1, 2, 3, 4, 5, 6, 7, 8]] = [4, 5, 6, 1, 2, 3, 8, 7]
    pairs[9::2], pairs[10::2] = np.arange(10, 33, 2), np.arange(9, 33, 2)
    mirrored = points[pairs] * body.MIRROR
    joints, mirrored_joints = joints_of_landmarks(points), joints_of_landmarks(mirrored)
    np.testing.assert_allclose(mirrored_joints, joints[list(body.OTHER_SIDE)] * body.MIRROR, atol=1e-9)
    symmetric = body.mean_skeleton(ADULT[None])
    rotations = rotations_of(mirrored_joints, symmetric, head_of_landmarks(mirrored))
    expected = body.mirrored(rotations_of(joints, symmetric, head_of_landmarks(points))[list(body.OTHER_SIDE)])
    assert angles_between(body.matrices_of(rotations), body.matrices_of(expected)).max() < 1e-3


# ---- files


def test_networks_of_a_folder_are_recorded(tmp_path: Path) -> None:
    digests = {
        "pose_detection.tflite": hashlib.sha256(b"detector").hexdigest(),
        "pose_landmark_full.tflite": hashlib.sha256(b"landmarks").hexdigest(),
    }
    folder = network_files(tmp_path)
    assert PoseLabeller(model=str(folder), camera_fov=50.0).record() == {
        "model": str(folder), "revision": None, "camera_fov": 50.0, "threshold": 0.5,
        "sha256": digests,
    }  # fmt: skip


def test_missing_files_are_one_line_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def assert_refused(message: str, model: Path | str) -> None:
        with pytest.raises(PretrainedError, match=message) as caught:
            handle(model).derive({"rgb": DARK})
        assert "\n" not in str(caught.value)

    assert_refused(r"absent: no such folder, .*; pip download mediapipe==0.10.21 --no-deps; unzip", tmp_path / "absent")
    assert_refused(r"there is no pose_detection.tflite in it", tmp_path)
    folder = network_files(tmp_path / "networks")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    assert_refused(r'its networks need ai-edge-litert; pip install "zoo-geometry\[poses\]"', folder)
    answer_by_hand(monkeypatch)
    swapped = network_files(tmp_path / "swapped", detector=b"landmarks")
    expected = r"expected a network of \(1, 224, 224, 3\) to \(1, 2254, 12\), \(1, 2254, 1\)"
    assert_refused(rf"{expected}, got one of \(1, 256, 256, 3\) to .*; take mediapipe 0.10.21's file", swapped)


# ---- values


def test_people_are_derived_from_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_by_hand(monkeypatch)
    folder = network_files(tmp_path)
    poses = handle(folder)
    assert poses.derive({"rgb": DARK}) == []
    assert handle(folder, threshold=0.99).derive({"rgb": LIGHT}) == []  # the detector's score is 0.95
    assert handle(folder, threshold=0.93).derive({"rgb": LIGHT}) == []  # the landmark network's score is 0.9
    (person,) = poses.derive({"rgb": LIGHT})
    # 40 of the detector's 224 pixels are 40 * 80 / 224 of the picture: the region is 2.5 times as large.
    pixels = 2.5 * 40 * 80 / 224 / 256 * METRES  # per metre
    joints = standing() + np.array([0, 0.09, 0.01])  # from the middle of the hips
    expected = np.stack([50 + joints[:, 0] * pixels, 30 - joints[:, 1] * pixels], axis=1) / (80, 60)
    np.testing.assert_allclose(person["joints_image"], expected, atol=0.005)
    depth = math.hypot(80, 60) / pixels  # the focal length is the picture's diagonal
    assert -person["joints_camera"][0][2] == pytest.approx(depth, rel=0.05)
    side = 2.5 * 40 * 80 / 224
    inner = np.array([50 - side / 8, 30 - side / 4, 50 + side / 8, 30 + side / 4]) / (80, 60, 80, 60)  # of the mask
    assert person["box"][0] < inner[0] and person["box"][2] > inner[2] and person["box"][1] <= inner[1]
    turns = np.degrees(np.linalg.norm(np.array(person["joint_rotations"]), axis=1))
    assert turns[1:].max() < 1 and turns[0] == pytest.approx(math.degrees(math.atan(10 / 100)), abs=1)


# ---- MediaPipe's networks themselves

PLACE = os.environ.get("ZOO_POSE_NETWORKS", "")


@pytest.mark.skipif(not PLACE or not importlib.util.find_spec("ai_edge_litert"), reason="needs ZOO_POSE_NETWORKS")
def test_the_networks_of_mediapipe_find_people_in_photographs() -> None:
    import skimage
    from PIL import Image

    def people(name: str) -> list[dict[str, Any]]:
        with Image.open(Path(skimage.__file__).parent / f"data/{name}.png") as image:
            pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
        return handle(PLACE).derive({"rgb": pixels})  # type: ignore[no-any-return]

    (person,) = people("astronaut")
    joints = dict(zip(body.JOINTS, np.array(person["joints_image"]) * 512, strict=True))
    for name, expected in {"left_shoulder": (300, 250), "right_shoulder": (100, 240), "head": (215, 160)}.items():
        assert np.linalg.norm(joints[name] - expected) < 40, (name, joints[name])
    assert 0.5 < -person["joints_camera"][0][2] < 3 and person["joints_camera"][16][0] > person["joints_camera"][17][0]
    assert len(people("camera")) == 1 and people("coffee") == []
