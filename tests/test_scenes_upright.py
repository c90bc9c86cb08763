"""The upright 3-D boxes and the place labels of the `scenes` source."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

import zoo_scenes
from tokenizers_zoo.config import Settings
from zoo_scenes import observe
from zoo_scenes.compose import compose
from zoo_scenes.furniture import plain, walls
from zoo_scenes.observe import EMPTY, FURNITURE, LEAST, Seen, scene_class
from zoo_scenes.render import render
from zoo_scenes.stage import build
from zoo_scenes.things import (
    BOX,
    CAPSULE,
    CLASSES,
    COLOURS,
    CYLINDER,
    ELLIPSOID,
    SPHERE,
    Camera,
    Part,
    Scene,
    SceneSettings,
    Thing,
    Vector,
    about_z,
)
from zoo_semantics.boxes_3d import plugin

SURFACE = plain(COLOURS["red"])


def samples(count: int = 40, **own: Any) -> Any:
    return zoo_scenes.scenes.samples("train", count, 0, Settings("scenes", own))


def room(*things: Thing, yaw: float = 90.0, pitch: float = -20.0) -> Scene:
    """Return a plain room, seen from (2, 0.5, 1.5)."""
    camera = Camera(position=(2.0, 0.5, 1.5), yaw=math.radians(yaw), pitch=math.radians(pitch), fov=math.radians(60))
    return Scene(
        width=5.0, depth=6.0, height=2.5, wall_colour="white", wall_kind="", floor_kind="tiled", floor=SURFACE,
        wall=SURFACE, ceiling=SURFACE, camera=camera, lamp=(2.5, 3.0, 2.3), exposure=1.0, things=list(things),
    )  # fmt: skip


def boxed(thing: Thing, **camera: float) -> dict[str, Any]:
    """Return the box of a thing that is alone in a room."""
    stage = build(room(thing, **camera))
    return observe.boxes_3d(stage, [Seen(0, thing, 10, (0, 0, 1, 1), 3.0, True)], 8)[0]


def block(label: str, noun: str = "", half: Vector = (0.2, 0.4, 0.5), yaw: float = 0.0) -> Thing:
    """Return a thing made of one block, with its front towards `yaw` and its foot at (2, 3.5, 0)."""
    part = Part(BOX, half, (0.0, 0.0, half[2]), SURFACE)
    return Thing(label, noun or label, "red", [part], half, (2.0, 3.5, 0.0), about_z(yaw))


def test_one_box_by_hand() -> None:
    """The camera looks along the room's y, so a thing 3 m ahead has z = -3 and its foot is 1.5 m below."""
    found = boxed(block("chair"))
    assert found["label"] == "chair"
    np.testing.assert_allclose(found["center"], [0, -1.0, -3], atol=1e-12)
    np.testing.assert_allclose(found["size"], [0.4, 1.0, 0.8], atol=1e-12)  # along the front, up, across
    assert found["yaw"] == pytest.approx(0)  # the front faces right, along the room's x
    turned = boxed(block("chair", yaw=math.pi / 2))
    np.testing.assert_allclose(turned["size"], [0.4, 1.0, 0.8], atol=1e-12)
    assert turned["yaw"] == pytest.approx(math.pi / 2)  # faces away from the viewer
    aside = boxed(block("chair"), yaw=60.0)  # the camera turns to the right by 30 degrees
    np.testing.assert_allclose(aside["center"], [-1.5, -1.0, -1.5 * math.sqrt(3)], atol=1e-12)
    assert aside["yaw"] == pytest.approx(math.radians(30))


def test_pitch_is_removed() -> None:
    assert boxed(block("chair", yaw=0.4), pitch=-20.0) == boxed(block("chair", yaw=0.4), pitch=5.0)


@pytest.mark.parametrize(
    ("label", "noun", "degrees", "expected"),
    [
        ("sofa", "", 130, 130), ("person", "", -170, -170),  # things with a front
        ("table", "table", 130, -50), ("table", "table", 10, -80), ("rug", "rug", -60, -60), ("table", "", -140, -50),
        ("table", "round table", 130, -90), ("rug", "round rug", 20, -90),
        ("plant", "potted plant", 20, -90), ("lamp", "floor lamp", 20, -90),
    ],
)  # fmt: skip
def test_things_without_a_front_face_the_viewer(label: str, noun: str, degrees: float, expected: float) -> None:
    found = boxed(block(label, noun, (0.3, 0.6, 0.4), math.radians(degrees)))
    assert math.degrees(found["yaw"]) == pytest.approx(expected)


@pytest.mark.parametrize("label", ["picture", "window", "door"])
def test_things_on_a_wall_face_the_room(label: str) -> None:
    wall = walls(room())[0]  # the wall in front of the camera
    half = (0.5, 0.3, 0.02)
    found = boxed(Thing(label, label, "", [Part(BOX, half, (0, 0, 0), SURFACE)], half, wall.at(0, 1.5), wall.turn))
    assert found["yaw"] == pytest.approx(-math.pi / 2)
    np.testing.assert_allclose(found["size"], [observe.THINNEST, 0.6, 1.0], atol=1e-9)
    np.testing.assert_allclose(found["center"], [0.5, 0.0, -5.5], atol=1e-9)


def test_a_cylinder_lies_or_stands() -> None:
    def cylinder(turn: tuple[float, float, float, float]) -> dict[str, Any]:
        part = Part(CYLINDER, (0.1, 0.3, 0.0), (0, 0, 0), SURFACE)
        return boxed(Thing("cylinder", "cylinder", "red", [part], (0.1, 0.1, 0.3), (2.0, 3.5, 0.3), turn))

    standing, s = cylinder(about_z(0.4)), math.sqrt(0.5)
    assert standing["yaw"] == pytest.approx(-math.pi / 2)
    np.testing.assert_allclose(standing["size"], [0.2, 0.6, 0.2], atol=1e-9)
    leaning = cylinder((math.cos(0.1), 0.6 * math.sin(0.1), 0.8 * math.sin(0.1), 0.0))
    assert leaning["yaw"] == pytest.approx(-math.pi / 2) and leaning["size"][0] != pytest.approx(leaning["size"][2])
    across, along = cylinder((s, 0.0, s, 0.0)), cylinder((s, s, 0.0, 0.0))  # its axis along the room's x, then y
    np.testing.assert_allclose(across["size"], [0.2, 0.2, 0.6], atol=1e-9)
    np.testing.assert_allclose(along["size"], [0.6, 0.2, 0.2], atol=1e-9)
    assert across["yaw"] == pytest.approx(-math.pi / 2) and along["yaw"] == pytest.approx(-math.pi / 2)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (SPHERE, (0.4, 0, 0)), (BOX, (0.2, 0.3, 0.5)), (ELLIPSOID, (0.2, 0.3, 0.5)), (CYLINDER, (0.2, 0.5, 0)),
        (CAPSULE, (0.2, 0.5, 0)),
    ],
)  # fmt: skip
def test_extents_of_solids(shape: str, size: Vector) -> None:
    """Compared with many surface points that follow MuJoCo's definitions of sizes."""
    draw = np.random.default_rng(0)
    unit = draw.normal(size=(40_000, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    sign, rim = np.sign(unit), unit[:, :2]
    points = {
        SPHERE: unit * size[0],
        BOX: sign * size,
        ELLIPSOID: unit * size,
        CYLINDER: np.c_[rim / np.linalg.norm(rim, axis=1, keepdims=True) * size[0], sign[:, 2] * size[1]],
        CAPSULE: unit * size[0] + sign[:, 2:] * (0, 0, size[1]),
    }[shape]
    turn = draw.normal(size=4)
    thing = Thing("box", "box", "red", [Part(shape, size, (0, 0, 0), SURFACE)], (1, 1, 1), (2.0, 3.0, 1.0))
    thing.turn = tuple((turn / np.linalg.norm(turn)).tolist())
    stage = build(room(thing))
    frame = stage.solids.frames[6].reshape(3, 3)
    directions = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    found = stage.solids.reach(np.array([6]), directions[None])[0]
    expected = (points @ frame.T @ directions.T).max(axis=0)
    assert (expected <= found + 1e-9).all()
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_boxes_contain_the_visible_pixels_of_things() -> None:
    """All pixels of a thing, back-projected by depth, lie in its box, and some lie near each side."""
    settings = SceneSettings(image_size=48, max_boxes=64, min_fov=56.0, max_fov=74.0)
    touched = list[bool]()
    for number in range(25):
        stage = build(compose(random.Random(f"upright {number}"), settings))
        view = render(stage, 48, False)
        observation = observe.observe(stage, view, settings)
        steps = 2 * (np.arange(48) + 0.5) / 48 - 1
        up, right = np.meshgrid(-steps, steps, indexing="ij")
        camera = stage.scene.camera
        rays = camera.rays(np.stack([right, up, np.ones_like(up)]).reshape(3, -1)).T.reshape(48, 48, 3)
        points = view.depth[..., None] * rays  # the room's axes in camera coordinates
        back = np.array([math.cos(camera.yaw), math.sin(camera.yaw), 0.0])
        axes = np.array([[math.sin(camera.yaw), -math.cos(camera.yaw), 0.0], [0.0, 0.0, 1.0], -back])
        found = observe.boxes_3d(stage, observation.seen, 64)
        assert [box["label"] for box in found] == [item.thing.label for item in observation.seen]
        plugin.write_value(found)
        for rank, box in enumerate(found, 1):
            seen = points[observation.instances == rank] @ axes.T - box["center"]
            cos, sin = math.cos(box["yaw"]), math.sin(box["yaw"])
            x, y, z = seen.T
            own = np.stack([x * cos - z * sin, y, x * sin + z * cos], axis=1)
            half = np.array(box["size"]) / 2
            assert (np.abs(own) <= half + 2e-3).all(), box
            if len(own) > 60:
                touched.append(bool((np.abs(own).max(axis=0) > 0.8 * half).all()))
    assert len(touched) > 80 and np.mean(touched) > 0.85


def test_boxes_3d_are_those_of_the_boxes() -> None:
    for _, sample in samples(30, max_boxes=5):
        assert [box["label"] for box in sample["boxes_3d"]] == [box["label"] for box in sample["boxes"]]
        assert len(sample["boxes_3d"]) <= 5
        for box in sample["boxes_3d"]:
            assert -math.pi <= box["yaw"] <= math.pi and min(box["size"]) >= observe.THINNEST
            assert all(type(number) is float for number in (*box["center"], *box["size"], box["yaw"]))
            low = box["center"][1] - box["size"][1] / 2
            if box["label"] in ("table", "chair", "shelf", "plant"):
                assert low == pytest.approx(-sample["metadata"]["camera_height"], abs=1e-6)
    assert samples(1, min_visible=1.0)[0][1]["boxes_3d"] == []


# -- place labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("covered", "expected"),
    [
        ({}, "empty room"), ({"sofa": 0.039}, "empty room"), ({"sofa": 0.04}, "living room"),
        ({"sofa": 0.05, "table": 0.03, "chair": 0.03}, "dining room"), ({"books": 0.03, "shelf": 0.02}, "library"),
        ({"box": 0.02, "ball": 0.02, "cylinder": 0.02, "sofa": 0.05}, "playroom"),
        ({"window": 0.5, "rug": 0.3, "person": 0.1, "plant": 0.1}, "empty room"),
        ({"table": 0.1, "sofa": 0.1}, "dining room"),
    ],
)  # fmt: skip
def test_the_furniture_that_covers_most_decides(covered: dict[str, float], expected: str) -> None:
    assert scene_class(dict.fromkeys(CLASSES, 0.0) | covered) == expected


def test_the_place_follows_from_what_is_seen() -> None:
    found: Counter[str] = Counter()
    for _, sample in samples(80, image_size=24, shadows=False):
        shares = np.bincount(sample["semseg"].reshape(-1), minlength=len(CLASSES)) / sample["semseg"].size
        covered = {place: sum(shares[CLASSES.index(label)] for label in labels) for place, labels in FURNITURE.items()}
        best = max(covered, key=lambda place: covered[place])
        assert sample["scene_class"] == (best if covered[best] >= LEAST else EMPTY)
        found[sample["scene_class"]] += 1
    assert set(found) == {*FURNITURE, EMPTY}
    assert max(found.values()) < 40
