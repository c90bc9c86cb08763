"""Human poses: rotations and bodies by hand, crops and mirrors, bad values, and tokens there and back."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies

from tokenizers_zoo import ModalityHandle, Zoo
from tokenizers_zoo.contract.layouts import SequenceLayout
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.families.object_tokens import numbers_of
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.io import read_table
from zoo_geometry import body
from zoo_geometry.human_poses import person_error, plugin
from zoo_geometry.people import MISSED

NAME = "human_poses"
LEFT_SHOULDER, LEFT_ELBOW, LEFT_HAND = (
    body.JOINTS.index(name) for name in ("left_shoulder", "left_elbow", "left_hand")
)
RIGHT_ELBOW = body.JOINTS.index("right_elbow")
TINY = {"steps": 3, "batch_size": 8, "eval_every": 3}
SIDE = {"left": 1.0, "right": -1.0}


def skeleton() -> np.ndarray:
    """Return bones of 20 cm: arms point sideways, legs down, the rest up."""
    bones = np.zeros((24, 3))
    for joint, name in enumerate(body.JOINTS[1:], 1):
        side = SIDE.get(name.partition("_")[0], 0.0)
        leg = any(part in name for part in ("hip", "knee", "ankle", "foot"))
        bones[joint] = (0.05 * side, -0.2, 0.0) if leg else (0.2 * side, 0.0, 0.0) if side else (0.0, 0.2, 0.0)
    return bones


def person(
    turns: dict[int, tuple[float, float, float]] | None = None,
    at: tuple[float, float, float] = (0.3, -0.2, -4.0),
    focal: float = 0.8,
    size: float = 1.0,
    **entries: Any,
) -> dict[str, Any]:
    """Return a person with this skeleton, seen by a camera with a centred principal point."""
    vectors = np.zeros((24, 3))
    for joint, vector in (turns or {}).items():
        vectors[joint] = vector
    joints = body.joints_of(vectors[None], size * skeleton()[None], np.array([at], dtype=float))[0]
    image = np.stack([0.5 + focal * joints[:, 0] / -joints[:, 2], 0.5 - focal * joints[:, 1] / -joints[:, 2]], axis=1)
    low, high = np.clip(image.min(axis=0), 0, 0.98), np.clip(image.max(axis=0), 0.02, 1)
    value = {
        "joint_rotations": vectors.tolist(),
        "joints_camera": joints.tolist(),
        "joints_image": image.tolist(),
        "box": [*low.tolist(), *high.tolist()],
    }
    return value | entries


def crowd(count: int, seed: int = 0) -> list[list[dict[str, Any]]]:
    """Return values with 0, 1 and 2 people in random poses."""
    rng = np.random.default_rng(seed)

    def random_person() -> dict[str, Any]:
        turns = {joint: tuple(rng.normal(0, 0.4, 3)) for joint in range(24)}
        at = (rng.uniform(-1, 1), rng.uniform(-1, 0.5), -rng.uniform(3, 8))
        return person(turns, at, rng.uniform(0.6, 1.2), rng.uniform(0.8, 1.2))

    return [[random_person() for _ in range(index % 3)] for index in range(count)]


def trained(folder: Path, values: list[Any] | None = None, **table: Any) -> ModalityHandle:
    handle = Zoo.from_tables({"modalities": {NAME: table}})[NAME]
    values = crowd(12) if values is None else values
    return handle.at(handle.train_tokenizer(TrainingSamples(train=values, test=values), folder, seed=0, **TINY))


@pytest.fixture(scope="module")
def poses(tmp_path_factory: pytest.TempPathFactory) -> ModalityHandle:
    return trained(tmp_path_factory.mktemp("poses") / "tokenizer")


def largest_angle(first: Any, second: Any) -> float:
    """Return the largest angle between corresponding rotations, in degrees."""
    relative = np.swapaxes(body.matrices_of(np.asarray(first)), -1, -2) @ body.matrices_of(np.asarray(second))
    return float(np.degrees(np.linalg.norm(body.vectors_of(relative), axis=-1)).max())


# ---------------------------------------------------------------- rotations and the body


def test_rotations_by_hand() -> None:
    quarter = np.array([0, 0, math.pi / 2])  # x to y, y to -x
    np.testing.assert_allclose(body.matrices_of(quarter), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(body.six_numbers_of(quarter), [0, 1, 0, -1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(body.vectors_of_six(np.array([0, 3, 0, -0.5, 0.0, 0])), quarter, atol=1e-12)


vectors = strategies.lists(strategies.floats(-1.8, 1.8), min_size=3, max_size=3).map(np.array)


@given(vectors)
def test_any_rotation_survives_conversion_to_matrices_and_back(vector: np.ndarray) -> None:
    assert largest_angle(vector, body.vectors_of(body.matrices_of(vector))) < 1e-5
    assert largest_angle(vector, body.vectors_of_six(2 * body.six_numbers_of(vector))) < 1e-5
    mirror = np.diag([-1.0, 1, 1])
    expected = mirror @ body.matrices_of(vector) @ mirror
    np.testing.assert_allclose(body.matrices_of(body.mirrored(vector)), expected, atol=1e-12)


def test_the_joints_are_those_of_the_scenes() -> None:
    skeleton = pytest.importorskip("zoo_scenes.people")
    assert skeleton.JOINTS == body.JOINTS and skeleton.PARENTS == body.PARENTS


def test_a_raised_arm_by_hand() -> None:
    up = (0.0, 0.0, math.pi / 2)
    value = person({LEFT_SHOULDER: up}, at=(0, 0, -4))
    joints = np.array(value["joints_camera"])
    shoulder = joints[LEFT_SHOULDER]
    np.testing.assert_allclose(joints[LEFT_ELBOW] - shoulder, [0, 0.2, 0], atol=1e-12)
    np.testing.assert_allclose(joints[LEFT_HAND] - shoulder, [0, 0.6, 0], atol=1e-12)
    np.testing.assert_allclose(joints[RIGHT_ELBOW] - joints[0], [-0.6, 0.6, 0], atol=1e-12)
    bones = body.bones_of(np.array([value["joint_rotations"]]), joints[None])
    np.testing.assert_allclose(bones[0], skeleton(), atol=1e-12)


def test_the_skeleton_is_found_in_people_of_all_sizes() -> None:
    """A person without extent does not count."""
    options, point = plugin.options(Settings(NAME)), person(size=0.0, box=[0.5, 0.5, 0.6, 0.7])
    people = [person({k: (0.1 * k, 0.2, -0.1) for k in range(24)}, size=size) for size in (0.8, 1.0, 1.2)]
    fitted = plugin.fit([*people, point], options)
    np.testing.assert_allclose(fitted["skeleton"], skeleton(), atol=1e-9)
    np.testing.assert_array_equal(plugin.fit([point, point], options)["skeleton"], body.ADULT)
    assert np.isfinite(plugin.coordinates([point, *people], fitted, options)).all()


# ---------------------------------------------------------------- crops and mirrors


def test_a_crop_by_hand() -> None:
    value = person(box=[0.4, 0.25, 0.8, 0.75])
    crop = Crop(top=0.25, left=0.5, height=0.5, width=0.5)
    (cropped,) = plugin.transform([value], crop, Settings(NAME))
    np.testing.assert_allclose(cropped["box"], [0, 0, 0.6, 1], atol=1e-12)
    x, y = value["joints_image"][0]
    np.testing.assert_allclose(cropped["joints_image"][0], [2 * x - 1, 2 * y - 0.5], atol=1e-12)
    assert cropped["joints_camera"] == value["joints_camera"] and cropped["joint_rotations"] == value["joint_rotations"]
    assert plugin.transform([value], Crop(left=0.75, width=0.25), Settings(NAME)) == []  # an eighth remains visible
    assert len(plugin.transform([value], Crop(left=0.75, width=0.25), Settings(NAME, {"min_visible": 0.1}))) == 1


def test_4m_people_keep_any_visible_part() -> None:
    value, crop = person(box=[0, 0.1, 0.3, 0.9]), Crop(left=0.29, width=0.71)
    published = Settings(NAME, {"preset": "4m"}, vocabularies={"text": {"preset": "4m"}})
    (cropped,) = plugin.transform([value], crop, published)
    np.testing.assert_allclose(cropped["box"], [0, 0.1, 0.01 / 0.71, 0.9])
    assert plugin.transform([value], Crop(left=0.3, width=0.7), published) == []


def test_a_mirror_swaps_left_and_right() -> None:
    value = person({LEFT_ELBOW: (0.2, 0.3, 0.4)}, at=(0.3, 0, -4), box=[0.1, 0.2, 0.4, 0.9], shape=[1.0])
    (mirrored,) = plugin.transform([value], Crop(flip=True), Settings(NAME))
    np.testing.assert_allclose(mirrored["box"], [0.6, 0.2, 0.9, 0.9])
    np.testing.assert_allclose(mirrored["joint_rotations"][RIGHT_ELBOW], [0.2, -0.3, -0.4])
    assert not np.any(mirrored["joint_rotations"][LEFT_ELBOW])
    x, y, z = value["joints_camera"][LEFT_HAND]
    np.testing.assert_allclose(mirrored["joints_camera"][body.JOINTS.index("right_hand")], [-x, y, z])
    u, v = value["joints_image"][LEFT_HAND]
    np.testing.assert_allclose(mirrored["joints_image"][body.JOINTS.index("right_hand")], [1 - u, v])
    assert mirrored["shape"] == [1.0]
    # mirrored rotations give the mirrored joints
    turns, joints = np.array([mirrored["joint_rotations"]]), np.array([mirrored["joints_camera"]])
    np.testing.assert_allclose(body.joints_of(turns, skeleton()[None], joints[:, 0]), joints, atol=1e-12)


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "crop", [Crop(), Crop(flip=True), Crop(top=0.1, left=0.2, height=0.8, width=0.5, flip=True)], ids=str
)
def test_split_and_join_are_inverse(crop: Crop) -> None:
    """Without quantization, for people seen through a crop."""
    config, people = Settings(NAME), [person({5: (0.4, 0.1, 0)}), person({16: (0, 1, 1)}, (-0.3, 0.1, -6), 1.4)]
    options = plugin.options(config)
    visible = plugin.split(plugin.transform(people, crop, config), options)
    fitted = plugin.fit(people, options)
    items = plugin.items(visible, options).astype(np.float64)
    joined = plugin.join(plugin.coordinates(visible, fitted, options), items, fitted, options)
    for before, after in zip(visible, joined, strict=True):
        assert before.keys() == after.keys()
        assert largest_angle(before["joint_rotations"], after["joint_rotations"]) < 1e-3
        for name in ("joints_camera", "joints_image", "box"):
            np.testing.assert_allclose(after[name], before[name], atol=1e-5)
    assert joined


def test_coordinates_are_exact_to_half_a_level(poses: ModalityHandle) -> None:
    values = crowd(9, seed=1)
    tokens = poses.encode(values)
    layout = poses.spec.layout
    assert isinstance(layout, SequenceLayout) and [len(ids) for ids in tokens] == [0, 22, 44] * 3
    for value, decoded in zip(values, poses.decode(tokens), strict=True):
        for before, after in zip(plugin.split(value, plugin.options(poses.settings)), decoded, strict=True):
            np.testing.assert_allclose(after["box"], before["box"], atol=0.5 / 255)
            np.testing.assert_allclose(after["joints_image"][0], before["joints_image"][0], atol=1.5 / 255)
            depths = after["joints_camera"][0][2] / before["joints_camera"][0][2]
            assert abs(math.log(depths)) <= 0.5 * math.log(500) / 255 + 1e-9
            assert largest_angle(after["joint_rotations"][0], before["joint_rotations"][0]) < 1


def test_the_smallest_people_are_left_out(tmp_path: Path) -> None:
    handle = trained(tmp_path / "tokenizer", max_people=1)
    small, large = person(at=(0, 0, -8)), person(at=(0, 0, -3))
    ((decoded,),) = handle.decode(handle.encode([[small, large]]))
    np.testing.assert_allclose(decoded["box"], large["box"], atol=1 / 255)


@pytest.mark.parametrize("preset", [{}, {"preset": "4m"}], ids=["codes", "4m"])
def test_people_of_any_levels_can_be_written(preset: dict[str, str]) -> None:
    options = plugin.options(Settings(NAME, preset, vocabularies={"text": {"preset": "4m"}}))
    rng, axes = np.random.default_rng(0), plugin.axes(options)
    turns = body.matrices_of(rng.normal(0, 0.4, (300, 23, 3))).reshape(300, -1)
    levels = rng.integers(0, options.bins, (300, len(axes)))
    levels[::2] = (options.bins - 1) * rng.integers(0, 2, (150, len(axes)))  # the ends of the axes
    people = plugin.join(numbers_of(axes, levels, options.bins), turns, {"skeleton": body.ADULT}, options)
    assert {error for value in people if (error := person_error(value))} == set()


# ---------------------------------------------------------------- bad values


def test_files_may_hold_rotation_matrices(poses: ModalityHandle) -> None:
    value = person({k: (0.1, 0.2 * k / 24, -0.3) for k in range(24)})
    matrices = body.matrices_of(np.array(value["joint_rotations"]))
    for read_from, degrees in ((matrices, 1e-5), (matrices.round(1), 9)):  # tenths are the coarsest accepted rounding
        (decoded,) = poses.read(json.dumps([value | {"joint_rotations": read_from.tolist()}]).encode(), "json")
        assert largest_angle(decoded["joint_rotations"], value["joint_rotations"]) < degrees
    assert poses.read(*poses.write([value])) == [value]


# ---------------------------------------------------------------- metrics, settings, checkpoints


def test_metrics_by_hand() -> None:
    truth, second = person(), person(at=(-1.5, 0, -4))
    guess = copy.deepcopy(truth)
    guess["joints_camera"][LEFT_HAND][1] += 0.24  # 240 mm over 24 joints
    shifted = copy.deepcopy(guess)
    shifted["joints_camera"] = np.subtract(shifted["joints_camera"], (0, 0, 1)).tolist()  # pelvis aligned
    for predicted in (guess, shifted):
        assert plugin.score([[predicted]], [[truth]], Settings(NAME)) == pytest.approx(
            {"joint_error": 10, "found_joint_error": 10, "found_f1": 1}
        )
    assert plugin.score([[guess], []], [[truth, second], []], Settings(NAME)) == pytest.approx(
        {"joint_error": (10 + MISSED) / 2, "found_joint_error": 10, "found_f1": 2 / 3}
    )
    assert plugin.score([[], [truth]], [[truth], []], Settings(NAME)) == pytest.approx(
        {"joint_error": MISSED, "found_joint_error": MISSED, "found_f1": 0}
    )
    assert plugin.score([[]], [[]], Settings(NAME)) == {"joint_error": 0, "found_joint_error": 0, "found_f1": 1}


def test_a_picture_shows_left_and_right(poses: ModalityHandle) -> None:
    picture = np.asarray(poses.render([person(at=(0, 0, -4))])).astype(int)
    red, blue = picture[..., 0] - picture[..., 2] > 60, picture[..., 2] - picture[..., 0] > 60
    assert red[:, 128:].sum() > 5 * red[:, :128].sum() and blue[:, :128].sum() > 5 * blue[:, 128:].sum()  # faces us
    wild = person()
    wild["joints_image"][5] = [1e9, -1e9]
    assert np.asarray(poses.render([wild])).std() > 0 and np.asarray(poses.render([])).std() >= 0


def test_a_batch_or_a_test_split_without_a_person_is_fine(tmp_path: Path) -> None:
    handle = Zoo.from_tables({"modalities": {NAME: {}}})[NAME]
    samples = TrainingSamples(train=[[]] * 15 + [[person()]], test=[[]])
    folder = handle.train_tokenizer(samples, tmp_path / "tokenizer", seed=0, **{**TINY, "batch_size": 1, "steps": 4})
    assert read_table(folder / "evaluation.json")["metrics"]["found_f1"] == 1
