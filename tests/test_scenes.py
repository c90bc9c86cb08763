"""The `scenes` source: settings, captions, exact geometry, and reused MuJoCo models against models of one scene."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import re
from collections import Counter
from typing import Any

import mujoco
import numpy as np
import pytest

import zoo_scenes
from tokenizers_zoo.records.config import Settings, field_docstrings
from zoo_scenes import captions, observe, people, textures
from zoo_scenes import stage as stages
from zoo_scenes.compose import compose
from zoo_scenes.furniture import plain, walls
from zoo_scenes.observe import EMPTY, FURNITURE, LEAST, VisibleBody, scene_class
from zoo_scenes.render import render
from zoo_scenes.scene import (
    BOX,
    CAPSULE,
    CLASSES,
    COLOURS,
    CYLINDER,
    SPHERE,
    Body,
    Camera,
    Part,
    Scene,
    SceneSettings,
    Vector,
    about_z,
)
from zoo_scenes.stage import STEP_SECONDS, STEPS, Stage, build
from zoo_semantics.boxes_3d import plugin


def samples(split: str = "train", count: int = 40, seed: int = 0, **table: Any) -> Any:
    return zoo_scenes.scenes.samples(split, count, seed, Settings("scenes", table))


@pytest.fixture(scope="module")
def scene_samples() -> list[tuple[str, Any]]:
    return list(samples(count=40))


# -- consistency between modalities -----------------------------------------------------------------------------------


def test_pictures_are_varied(scene_samples: list[tuple[str, Any]]) -> None:
    present = np.unique(np.concatenate([np.unique(sample["semseg"]) for _, sample in scene_samples]))
    assert set(present) == set(range(1, len(CLASSES)))
    assert 0.3 < np.mean([sample["metadata"]["brightness"] for _, sample in scene_samples]) < 0.8
    assert len({sample["caption"] for _, sample in scene_samples}) == len(scene_samples)


def test_boxes_are_those_of_the_largest_instances(scene_samples: list[tuple[str, Any]]) -> None:
    for _, sample in scene_samples:
        instances, size = sample["sam_instance"], 64
        counts = np.bincount(instances.reshape(-1))[1:]
        assert (np.diff(counts) <= 0).all() and counts.min() > 0
        visible_count = int((counts >= 0.003 * size * size).sum())
        assert len(sample["boxes"]) == min(8, visible_count)
        for number, box in enumerate(sample["boxes"], 1):
            rows, columns = np.nonzero(instances == number)
            expected = [columns.min() / size, rows.min() / size, (columns.max() + 1) / size, (rows.max() + 1) / size]
            assert box["box"] == expected
            assert {CLASSES[k] for k in np.unique(sample["semseg"][instances == number])} == {box["label"]}
        background = sample["semseg"][instances == 0]
        assert {CLASSES[k] for k in np.unique(background)} <= {"floor", "wall", "ceiling"}


NOUNS = {
    "table": "table", "chair": "chair", "armchair": "sofa", "sofa": "sofa", "bookcase": "shelf", "books": "books",
    "lamp": "lamp", "plant": "plant", "box": "box", "ball": "ball", "cylinder": "cylinder", "person": "person",
    "people": "person", "window": "window", "door": "door", "picture": "picture", "rug": "rug", "floor": "floor",
    "walls": "wall",
}  # fmt: skip


def test_captions_name_only_what_is_seen() -> None:
    settings = SceneSettings(image_size=48)
    mentioned: Counter[str] = Counter()
    for number in range(60):
        stage = build(compose(random.Random(f"caption {number}"), settings))
        _, _, visible, shares = observe.observe(stage, render(stage, settings.image_size), settings.min_visible)
        text = captions.caption(random.Random(number), stage.scene, visible, shares)
        assert re.fullmatch(r"([A-Z][a-z ,:]+\. ?){1,4}", text) and not re.search(r"  | \.| ,", text), text
        plain_text = re.sub(r"^The picture shows |\. The picture shows ", " ", text).lower()
        words = re.findall(r"[a-z]+", plain_text)
        counts = Counter(item.body.label for item in visible)
        for word in words:
            name = NOUNS.get(word) or NOUNS.get(word.removesuffix("s")) or NOUNS.get(word.removesuffix("es"))
            if name in ("floor", "wall"):
                assert shares[name] > 0.03
            elif name:
                mentioned[name] += 1
                assert counts[name], text
        for colour, noun in re.findall(rf"\b({'|'.join(COLOURS)}) (ball|box|cylinder|sofa|chair)\b", plain_text):
            assert any((item.body.colour, item.body.noun) == (colour, noun) for item in visible), text
        for number_word, noun in re.findall(r"\b(two|three|four|five) (window|picture)s\b", plain_text):
            assert counts[noun] == {"two": 2, "three": 3, "four": 4, "five": 5}[number_word]
    assert set(mentioned) == set(NOUNS.values()) - {"floor", "wall"}


def test_a_layout_names_each_box_and_where_it_reaches() -> None:
    described = samples(count=30, image_size=48)
    layouts = samples(count=30, image_size=48, captions="layout")
    for (key, sample), (_, described_sample) in zip(layouts, described, strict=True):
        first, *sentences = sample["caption"].removesuffix(".").split(". ")
        assert re.fullmatch(r"An? (empty )?room( with [a-z ]+)?", first), first
        by_area = sorted(sample["boxes"], key=lambda box: -np.prod(np.subtract(box["box"][2:], box["box"][:2])))
        assert len(sentences) == len(by_area), key
        for sentence, entry in zip(sentences, by_area, strict=True):
            match = re.fullmatch(r"((?:A|An) [a-z ]+?|Books) (?:(?:on|in) the|from) ([a-z ]+), ([a-z ]+)", sentence)
            assert match, sentence
            noun = match[1].removeprefix("A ").partition(" in ")[0].split()[-1].lower()
            assert NOUNS[noun] == entry["label"], sentence
            left, top, right, bottom = entry["box"]
            for words, steps, low, high in (
                (match[2], captions._ACROSS, left, right), (match[3], captions._DOWN, top, bottom)
            ):  # fmt: skip
                first_step, _, last_step = words.partition(" to ")
                begins, ends = steps.index(first_step), steps.index(last_step or first_step)
                assert begins / 7 <= low < (begins + 1) / 7 and ends / 7 < high <= (ends + 1) / 7, sentence
        np.testing.assert_equal(sample, described_sample | {"caption": sample["caption"]})


def test_how_a_layout_names_places_people_and_an_empty_room() -> None:
    assert captions._extent(visible_item("box", (0.3, 0.9, 0.4, 1), 3)) == "in the left centre, bottom"
    assert captions._extent(visible_item("box", (0, 0, 0.1, 0.1), 3)) == "on the far left, top"
    person = dataclasses.replace(visible_item("standing", (0, 0, 0.1, 0.1), 3, "person"), clear=False)
    scene = compose(random.Random(0), SceneSettings())
    for clear, words in ((False, "A person on"), (True, "A person in a red shirt on")):
        assert words in captions.layout(scene, [dataclasses.replace(person, clear=clear)], {})
    assert re.fullmatch(r"An empty room with [a-z ]+\.", captions.layout(scene, [], {"wall": 0.5, "floor": 0.2}))


def visible_item(
    noun: str, box: tuple[float, float, float, float], depth: float, label: str = "box"
) -> captions.VisibleBody:
    item = Body(label, noun, "red", [], (0.1, 0.1, 0.1))
    return captions.VisibleBody(0, item, 10, box, depth, True)


def test_relations_are_those_of_the_boxes_and_depths() -> None:
    left, right = visible_item("box", (0.1, 0.5, 0.3, 0.7), 3.0), visible_item("ball", (0.6, 0.5, 0.8, 0.7), 3.0)
    assert captions.position_phrase(left) == "on the left" and captions.position_phrase(right) == "on the right"
    assert captions.position_phrase(visible_item("box", (0.3, 0, 0.6, 1), 1.5)) == "in the middle close by"
    assert captions.position_phrase(visible_item("box", (0.7, 0, 0.8, 1), 4.5)) == "on the right at the back"
    assert captions.position_phrase(visible_item("box", (0.8, 0, 0.9, 1), 3)) == "on the far right"
    wide, rug = visible_item("sofa", (0.1, 0, 0.45, 1), 3), visible_item("rug", (0.0, 0, 1.0, 1), 4.5)
    assert captions.position_phrase(wide) == "from the far left to the middle"
    assert captions.position_phrase(rug) == "from the far left to the far right at the back"
    assert captions.group_phrase([right, left]) == "on the left and on the right"
    assert captions.group_phrase([left, left]) == "on the left" and captions.group_phrase([right]) == "on the right"
    assert captions.group_phrase([left, right, wide]) == ""
    assert captions.relation(left, right) == "is to the left of"
    assert captions.relation(right, left) == "is to the right of"
    near = visible_item("box", (0.15, 0.6, 0.4, 0.9), 1.5)
    assert captions.relation(near, left) == "is in front of"
    assert captions.relation(left, near) == "is behind"
    beside = visible_item("box", (0.32, 0.5, 0.4, 0.7), 3.1)
    assert captions.relation(beside, left) == "is next to"
    picture = visible_item("picture", (0.1, 0.1, 0.3, 0.3), 4, "picture")
    sofa = visible_item("sofa", (0.1, 0.5, 0.6, 0.8), 3, "sofa")
    assert captions.relation(picture, sofa) == "is above"
    assert captions.relation(sofa, picture) == ""


def test_books_are_many() -> None:
    books = dataclasses.replace(
        visible_item("books", (0.1, 0.5, 0.3, 0.7), 3, "books"), body=Body("books", "books", "", [], (1, 1, 1))
    )
    lamp = dataclasses.replace(visible_item("floor lamp", (0.6, 0.5, 0.8, 0.7), 3, "lamp"), index=1, pixels=20)
    speaker = captions._Speaker(random.Random(0), [books, lamp])
    assert speaker.relations() == ["Books are to the left of a floor lamp."]
    assert speaker.relations() == ["The books are to the left of the floor lamp."]
    speaker = captions._Speaker(random.Random(0), [books, dataclasses.replace(lamp, pixels=5)])
    assert speaker.relations() == ["A floor lamp is to the right of books."]
    assert speaker.relations() == ["The floor lamp is to the right of the books."]
    assert captions.counted("books", 1) == captions.counted("books", 2) == captions.article("books") == "books"


def test_phrases_by_hand() -> None:
    table = Body("table", "round table", "dark wooden", [], (1, 1, 1))
    orange = Body("box", "box", "orange", [], (1, 1, 1))
    person = Body("person", "waving", "blue", [], (1, 1, 1))
    words = [
        captions.phrase(captions.VisibleBody(0, item, 1, (0, 0, 1, 1), 1.0, True)) for item in (table, orange, person)
    ]
    assert words == ["round dark wooden table", "orange box", "person in a blue shirt"]
    assert captions.counted(words[1], 1) == "an orange box"
    assert captions.counted(words[1], 3) == "three orange boxes"
    assert captions.counted(words[2], 2) == "two people in blue shirts"
    assert captions.definite(words[2]) == "the person in the blue shirt"


# -- settings and contract --------------------------------------------------------------------------------------------


def test_documented_ranges_of_settings_are_the_checked_ones() -> None:
    meanings = field_docstrings(SceneSettings)
    for name in ("image_size", "people", "clutter", "min_fov", "max_boxes", "min_visible"):
        with pytest.raises(ValueError, match=name) as caught:
            SceneSettings(**{name: -1})
        low, high = map(float, re.findall(r"in \[(\S+), (\S+)\]", str(caught.value))[0])
        assert f"{low:g} to {high:g}" in meanings[name], name


def test_settings_change_the_scenes() -> None:
    for _, sample in samples(count=8, people=0, clutter=0, max_boxes=3, image_size=32):
        assert not {"person", "box", "ball", "cylinder"} & {CLASSES[k] for k in np.unique(sample["semseg"])}
        assert len(sample["boxes"]) <= 3
    for table, low, high in (({}, 62, 68), ({"min_fov": 40.0, "max_fov": 41.0}, 40, 41)):
        lenses = [sample["metadata"]["camera_fov"] for _, sample in samples(count=6, **table)]
        assert low <= min(lenses) < max(lenses) <= high
    (_, usual), (_, lit), (_, strict) = (
        samples(1, **table)[0] for table in ({}, {"shadows": False}, {"min_visible": 0.1})
    )
    assert (lit["rgb"] >= usual["rgb"]).all() and (lit["rgb"] > usual["rgb"] + 0.02).any()
    assert np.array_equal(lit["depth"], usual["depth"]) and np.array_equal(strict["rgb"], usual["rgb"])
    assert strict["boxes"] == usual["boxes"][: len(strict["boxes"])] != usual["boxes"]


@pytest.fixture(scope="module")
def staged() -> list[tuple[Scene, Scene]]:
    """Return scenes before and after physics."""
    pairs = []
    for number in range(25):
        scene = compose(random.Random(f"physics {number}"), SceneSettings())
        before = copy.deepcopy(scene)
        build(scene)
        pairs.append((before, scene))
    return pairs


def bare_scene(*items: Body, pitch: float = -20.0, yaw: float = 90.0) -> Scene:
    """Return a plain room of 5 x 6 x 2.5 metres, seen from (2, 0.5, 1.5) with a field of view of 60 degrees."""
    white = plain(COLOURS["white"])
    camera = Camera(position=(2.0, 0.5, 1.5), yaw=math.radians(yaw), pitch=math.radians(pitch), fov=math.radians(60))
    return Scene(
        width=5.0, depth=6.0, height=2.5, wall_colour="white", wall_kind="", floor_kind="tiled",
        floor=white, wall=white, ceiling=white, camera=camera, lamp=(2.5, 3.0, 2.3), exposure=1.0, bodies=list(items),
    )  # fmt: skip


# -- geometry ---------------------------------------------------------------------------------------------------------


def test_floor_and_sphere_have_their_analytic_depth_and_normal() -> None:
    centre, radius, size = np.array([2.2, 3.5, 0.6]), 0.6, 36
    ball = Body("ball", "ball", "red", [Part(SPHERE, (radius,) * 3, (0, 0, 0), plain(COLOURS["red"]))], (radius,) * 3)
    ball.at = tuple(centre)
    stage = build(bare_scene(ball))
    view = render(stage, size)
    pitch, tangent = math.radians(-20), math.tan(math.radians(30))
    # camera axes written out for yaw 90 degrees, which looks along +y
    right = np.array([1.0, 0.0, 0.0])
    up = np.array([0.0, -math.sin(pitch), math.cos(pitch)])
    view_direction = np.array([0.0, math.cos(pitch), math.sin(pitch)])
    on_ball = on_floor = 0
    for row in range(size):
        for column in range(size):
            x, y = (2 * (column + 0.5) / size - 1) * tangent, (1 - 2 * (row + 0.5) / size) * tangent
            ray = view_direction + x * right + y * up
            towards = np.array([2.0, 0.5, 1.5]) - centre
            a, b, c = ray @ ray, ray @ towards, towards @ towards - radius**2
            owner = stage.owners[view.geoms[row, column]]
            if b * b - a * c > 1e-9:
                depth = (-b - math.sqrt(b * b - a * c)) / a
                normal = (towards + depth * ray) / radius
                assert owner == 0
                on_ball += 1
            elif owner == -1:
                depth, normal = -1.5 / ray[2], np.array([0.0, 0.0, 1.0])
                on_floor += 1
            else:
                continue
            assert view.depth[row, column] == pytest.approx(depth, rel=1e-5)
            in_camera = [normal @ right, normal @ up, -normal @ view_direction]
            np.testing.assert_allclose(view.normals[:, row, column], in_camera, atol=1e-4)
    assert on_ball > 60 and on_floor > 150


def test_floor_is_at_height_zero_by_depth_and_metadata_alone() -> None:
    for _, sample in samples(count=40):
        numbers, depth = sample["metadata"], sample["depth"][0]
        size = depth.shape[0]
        pitch, scale = math.radians(numbers["camera_pitch"]), math.tan(math.radians(numbers["camera_fov"]) / 2)
        up = (1 - 2 * (np.arange(size) + 0.5) / size)[:, None]
        height = numbers["camera_height"] + depth * (math.sin(pitch) + up * scale * math.cos(pitch))
        floor = sample["semseg"] == CLASSES.index("floor")
        assert floor.any()
        assert np.abs(height[floor]).max() < 1e-4
        assert height.min() > -0.02 and height.max() < numbers["room_height"] + 1e-4


def test_components_of_normals_are_within_one() -> None:
    _, sample = samples(count=5208)[5207]  # a wall that faces the camera: 1.0000001 as it was turned
    assert sample["normal"].max() <= 1 <= sample["normal"].max() + 1e-6


# -- MuJoCo: the fast path equals a model compiled for the scene ------------------------------------------------------


def test_low_and_high_resolution_meet_at_shared_pixel_centres() -> None:
    size = 37
    low, high = samples(count=2, image_size=size)[1][1], samples(count=2, image_size=3 * size)[1][1]
    assert low["rgb"].shape == (3, size, size)
    shared = np.s_[..., 1::3, 1::3]
    np.testing.assert_allclose(low["depth"], high["depth"][shared], rtol=1e-5)
    np.testing.assert_allclose(low["normal"], high["normal"][shared], atol=1e-5)
    np.testing.assert_array_equal(low["semseg"], high["semseg"][shared])
    # colours are averaged over a pixel's footprint, so only their mean agrees
    assert np.abs(low["rgb"] - high["rgb"][shared]).mean() < 0.03


def compiled(scene: Scene) -> tuple[Any, Any, list[int]]:
    """Slow reference: compile and settle a model for this scene alone; also return each geom's owner."""
    spec = mujoco.MjSpec()
    spec.option.timestep = STEP_SECONDS
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.iterations = 15
    plane, owners = mujoco.mjtGeom.mjGEOM_PLANE, [-1, -3, -2, -2, -2, -2]
    spec.worldbody.add_geom(type=plane, size=[0, 0, 1])
    spec.worldbody.add_geom(type=plane, size=[0, 0, 1], pos=[0, 0, scene.height], quat=[0, 1, 0, 0])
    for wall in walls(scene):
        spec.worldbody.add_geom(type=plane, size=[0, 0, 1], pos=[*wall.middle, 0], quat=wall.turn)
    for index, item in enumerate(scene.bodies):
        body = spec.worldbody.add_body(pos=item.at, quat=item.turn)
        dynamics: dict[str, Any] = {}
        if item.free:
            body.add_joint(type=mujoco.mjtJoint.mjJNT_FREE, damping=[0.3, 0, 0])
            dynamics = {"mass": 1.0, "friction": [0.9, 0.01, 0.002], "condim": 3 if item.label == "box" else 6}
        for part in item.parts:
            body.add_geom(type=mujoco.mjtGeom(part.shape), size=part.size, pos=part.at, quat=part.turn, **dynamics)
            owners.append(index)
    model = spec.compile()
    data = mujoco.MjData(model)
    if model.nq:
        mujoco.mj_step(model, data, nstep=STEPS)
    mujoco.mj_kinematics(model, data)
    return model, data, owners


def cast_all(model: Any, data: Any, origin: Any, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = len(rays)
    geoms, reach, normals = np.empty((count, 1), np.int32), np.empty((count, 1)), np.empty((3 * count, 1))
    mujoco.mj_multiRay(
        model, data, np.array(origin), rays.reshape(-1, 1), None, True, -1, geoms, reach, normals, count, 100.0
    )
    return reach[:, 0], geoms[:, 0], normals.reshape(-1, 3)


@pytest.mark.parametrize("number", range(8))
def test_reused_models_equal_models_compiled_for_the_scene(number: int) -> None:
    scene = compose(random.Random(f"twin {number}"), SceneSettings())
    model, data, owners = compiled(scene)
    stage = build(scene)
    loose = [item for item in scene.bodies if item.free]
    assert loose
    rest = data.qpos.reshape(-1, 7)
    np.testing.assert_allclose([item.at for item in loose], rest[:, :3], atol=2e-3)
    fixed = np.array([owner < 0 or not scene.bodies[owner].free for owner in owners])
    count = len(stage.parts) - len(loose)
    assert stage.owners[:count] == np.array(owners)[fixed].tolist()
    solids = stage.solids
    np.testing.assert_allclose(solids.centres[:count], data.geom_xpos[fixed], atol=1e-12)
    np.testing.assert_allclose(solids.frames[:count], data.geom_xmat[fixed], atol=1e-12)
    bounded = [geom for geom in np.flatnonzero(fixed) if owners[geom] >= 0]
    np.testing.assert_allclose(solids.halves[6:count], model.geom_aabb[bounded, 3:], atol=1e-12)
    np.testing.assert_allclose(solids.radii[6:count], model.geom_rbound[bounded], atol=1e-12)
    right, up = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(1, -1, 32))
    rays = scene.camera.rays(np.stack([right, up, np.ones_like(up)]).reshape(3, -1))
    down = np.array([[0.0], [0.0], [1.0]])
    for origin, directions in ((scene.camera.position, rays), (scene.lamp, rays - down)):
        for bundles in (1, 32):
            reach, geoms, normals = stage.cast(origin, directions, stages.bundle_sides(directions, bundles))
            expected, twin_geoms, twin_normals = cast_all(model, data, origin, directions.T.copy())
            same = np.array(stage.owners)[geoms] == np.array(owners)[twin_geoms]
            assert same.mean() > 0.995  # rounding may change a few pixels at silhouettes
            np.testing.assert_allclose(reach[same], expected[same], atol=0.02)
            still = same & (geoms < count)
            np.testing.assert_allclose(reach[still], expected[still], atol=1e-9)
            np.testing.assert_allclose(normals[:, still], twin_normals[still].T, atol=1e-7)


@pytest.mark.parametrize("size", [16, 37, 96])
def test_culling_changes_no_pixel(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(solids: Any, origin: Any, sides: np.ndarray) -> np.ndarray:
        return np.ones((sides.shape[2], len(solids)), bool)

    for number in range(3):
        stage = build(compose(random.Random(f"pictures {number}"), SceneSettings()))
        view = render(stage, size)
        with monkeypatch.context() as patch:
            patch.setattr(stages, "meets", always)
            expected = render(stage, size)
        for name in ("rgb", "depth", "normals", "geoms"):
            np.testing.assert_array_equal(getattr(view, name), getattr(expected, name))


# -- people -----------------------------------------------------------------------------------------------------------


def test_loose_things_fall_and_come_to_rest_on_something(staged: list[tuple[Scene, Scene]]) -> None:
    fallen_count, carried_count, resting = 0, 0, []
    for before, after in staged:
        for item_before, item in zip(before.bodies, after.bodies, strict=True):
            if not item.free:
                assert item.at == item_before.at
                continue
            fallen_count += item.at[2] < item_before.at[2]
            bottom = item.at[2] - item.reach_down()
            supports = [0.0] + [support.top + support.at[2] for support in after.bodies if support.top is not None]
            resting.append(min(abs(bottom - top) for top in supports) < 0.02)
            assert bottom > -0.02
            assert 0 < item.at[0] < after.width and 0 < item.at[1] < after.depth
            if item.on is not None:
                carried_count += 1
                carrier = after.bodies[item.on]
                assert carrier.top is not None and bottom > carrier.at[2]
    assert fallen_count > 0.95 * len(resting) and carried_count > 15
    assert np.mean(resting) > 0.9


def test_forward_kinematics_is_that_of_mujoco() -> None:
    rng = np.random.default_rng(0)
    rotations = rng.normal(size=(24, 3))
    spec = mujoco.MjSpec()
    bodies: list[Any] = []
    for joint, parent in enumerate(people.PARENTS):
        body = (bodies[parent] if parent >= 0 else spec.worldbody).add_body(pos=people.OFFSETS[joint] * 1.05)
        body.add_joint(type=mujoco.mjtJoint.mjJNT_BALL)
        body.add_geom(size=[0.01, 0, 0])
        bodies.append(body)
        body.name = people.JOINTS[joint]
    model = spec.compile()
    data = mujoco.MjData(model)
    for joint, name in enumerate(people.JOINTS):
        address = model.joint(model.body(name).jntadr[0]).qposadr[0]
        angle = float(np.linalg.norm(rotations[joint]))
        mujoco.mju_axisAngle2Quat(data.qpos[address : address + 4], rotations[joint] / angle, angle)
    mujoco.mj_kinematics(model, data)
    expected = np.array([data.body(name).xpos for name in people.JOINTS])
    np.testing.assert_allclose(people.joint_positions(rotations, 1.05), expected - expected[0], atol=1e-9)


def test_poses_agree_with_each_other_and_with_the_picture() -> None:
    posed, heads, hits = 0, 0, 0
    for _, sample in samples(count=40, image_size=48):
        scale = math.tan(math.radians(sample["metadata"]["camera_fov"]) / 2)
        assert len(sample["human_poses"]) == sample["metadata"]["num_people"]
        for pose in sample["human_poses"]:
            posed += 1
            joints, image = np.array(pose["joints_camera"]), np.array(pose["joints_image"])
            rotations = np.array(pose["joint_rotations"])
            assert joints.shape == rotations.shape == (24, 3) and image.shape == (24, 2)
            from_rotations, bones = people.joint_positions(rotations), joints - joints[0]
            size = np.linalg.norm(bones) / np.linalg.norm(from_rotations)
            assert 0.9 < size < 1.12
            np.testing.assert_allclose(from_rotations * size, bones, atol=1e-6)
            np.testing.assert_allclose((2 * image[:, 0] - 1) * scale, joints[:, 0] / -joints[:, 2], atol=1e-6)
            np.testing.assert_allclose((1 - 2 * image[:, 1]) * scale, joints[:, 1] / -joints[:, 2], atol=1e-6)
            column, row = (int(part * 48) for part in image[people.JOINTS.index("head")])
            if 0 <= column < 48 and 0 <= row < 48:
                heads += 1
                hits += CLASSES[sample["semseg"][row, column]] == "person"
    assert posed > 12 and hits > 0.75 * heads


def test_standing_people_have_their_feet_on_the_floor() -> None:
    for number in range(20):
        body = people.person(random.Random(number), people.UPRIGHT_POSES[number % len(people.UPRIGHT_POSES)])
        stage = build(bare_scene(body))
        limbs = [k for k, part in enumerate(body.parts) if part.shape == CAPSULE]
        lowest = [
            stage.solids.centres[6 + k, 2]
            - abs(stage.solids.frames[6 + k, 8]) * body.parts[k].size[1]
            - body.parts[k].size[0]
            for k in limbs
        ]
        assert -0.001 < min(lowest) < 0.01
        assert body.pose is not None and body.pose.joints[people.JOINTS.index("head"), 2] > 1.2


# -- light and texture ------------------------------------------------------------------------------------------------


def test_a_box_hides_the_lamp_from_the_floor_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slab = Body("table", "table", "red", [Part(BOX, (0.5, 0.5, 0.02), (0, 0, 1.0), plain(COLOURS["red"]))], (0.5,) * 3)
    slab.at = (2.5, 3.0, 0.0)
    scene = bare_scene(slab, pitch=-35.0)
    stage = build(scene)
    view = render(stage, 32)
    monkeypatch.setattr(Stage, "blocked", lambda stage, origin, rays, bundles: np.zeros(rays.shape[1], bool))
    lit, dark = render(stage, 32).rgb, view.rgb
    assert (lit >= dark - 1e-6).all()
    changed = np.abs(lit - dark).max(0) > 0.02
    assert changed.sum() > 20
    points = np.array(scene.camera.position) + view.depth[..., None] * _rays(stage, 32)
    # the light at 2.3 m, the slab at 1 m: on the floor its half shadow is 0.5 * 2.3 / (2.3 - 1.02) metres wide
    reach = np.abs(points[changed][:, :2] - (2.5, 3.0)).max(1)
    assert reach.max() < 0.5 * 2.3 / (2.3 - 1.02) + 0.01


def _rays(stage: Stage, size: int) -> np.ndarray:
    steps = 2 * (np.arange(size) + 0.5) / size - 1
    up, right = np.meshgrid(-steps, steps, indexing="ij")
    rays = stage.scene.camera.rays(np.stack([right, up, np.ones_like(up)]).reshape(3, -1))
    return rays.T.reshape(size, size, 3)


# -- upright boxes ----------------------------------------------------------------------------------------------------

RED = plain(COLOURS["red"])


def test_coarse_texture_levels_are_means() -> None:
    edge = textures.EDGE
    for name in ("planks", "checker", "door"):
        index = np.full(1, textures.pyramids()[0][name], np.int32)
        centres = ((np.arange(edge) + 0.5) / edge).astype(np.float32)
        u, v = (axis.reshape(-1) for axis in np.meshgrid(centres, centres))
        finest = textures.look_up(np.repeat(index, edge * edge), u, v, np.ones(edge * edge, np.float32))
        first = np.zeros(1, np.float32)
        coarsest = textures.look_up(index, first, first, np.full(1, 4.0 * edge, np.float32))
        half = textures.look_up(index, first, first, np.full(1, 2.0, np.float32))
        for k in range(3):
            assert coarsest[k][0] == pytest.approx(finest[k].mean(), abs=1e-3)
            assert half[k][0] == pytest.approx(finest[k].reshape(edge, edge)[:2, :2].mean(), abs=1e-5)


def boxed(item: Body, **camera: float) -> dict[str, Any]:
    """Return the box of a thing that is alone in a room."""
    stage = build(bare_scene(item, **camera))
    return observe.boxes_3d(stage, [VisibleBody(0, item, 10, (0, 0, 1, 1), 3.0, True)], 8)[0]


def block(label: str, noun: str = "", half: Vector = (0.2, 0.4, 0.5), yaw: float = 0.0) -> Body:
    """Return a thing made of one block, with its front towards `yaw` and its foot at (2, 3.5, 0)."""
    part = Part(BOX, half, (0.0, 0.0, half[2]), RED)
    return Body(label, noun or label, "red", [part], half, (2.0, 3.5, 0.0), about_z(yaw))


def test_one_box_by_hand() -> None:
    """The camera looks along the room's y, so a thing 3 m ahead has z = -3 and its foot is 1.5 m below."""
    box = boxed(block("chair"))
    assert box["label"] == "chair"
    np.testing.assert_allclose(box["center"], [0, -1.0, -3], atol=1e-12)
    np.testing.assert_allclose(box["size"], [0.4, 1.0, 0.8], atol=1e-12)  # along the front, up, across
    assert box["yaw"] == pytest.approx(0)  # the front faces right, along the room's x
    turned = boxed(block("chair", yaw=math.pi / 2))
    np.testing.assert_allclose(turned["size"], [0.4, 1.0, 0.8], atol=1e-12)
    assert turned["yaw"] == pytest.approx(math.pi / 2)  # faces away from the viewer
    aside = boxed(block("chair"), yaw=60.0)  # the camera turns to the right by 30 degrees
    np.testing.assert_allclose(aside["center"], [-1.5, -1.0, -1.5 * math.sqrt(3)], atol=1e-12)
    assert aside["yaw"] == pytest.approx(math.radians(30))
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
    box = boxed(block(label, noun, (0.3, 0.6, 0.4), math.radians(degrees)))
    assert math.degrees(box["yaw"]) == pytest.approx(expected)


@pytest.mark.parametrize("label", ["picture", "window", "door"])
def test_things_on_a_wall_face_the_room(label: str) -> None:
    wall = walls(bare_scene())[0]  # the wall in front of the camera
    half = (0.5, 0.3, 0.02)
    box = boxed(Body(label, label, "", [Part(BOX, half, (0, 0, 0), RED)], half, wall.at(0, 1.5), wall.turn))
    assert box["yaw"] == pytest.approx(-math.pi / 2)
    np.testing.assert_allclose(box["size"], [observe.THINNEST, 0.6, 1.0], atol=1e-9)
    np.testing.assert_allclose(box["center"], [0.5, 0.0, -5.5], atol=1e-9)


def test_a_cylinder_lies_or_stands() -> None:
    def cylinder(turn: tuple[float, float, float, float]) -> dict[str, Any]:
        part = Part(CYLINDER, (0.1, 0.3, 0.0), (0, 0, 0), RED)
        return boxed(Body("cylinder", "cylinder", "red", [part], (0.1, 0.1, 0.3), (2.0, 3.5, 0.3), turn))

    standing, s = cylinder(about_z(0.4)), math.sqrt(0.5)
    assert standing["yaw"] == pytest.approx(-math.pi / 2)
    np.testing.assert_allclose(standing["size"], [0.2, 0.6, 0.2], atol=1e-9)
    leaning = cylinder((math.cos(0.1), 0.6 * math.sin(0.1), 0.8 * math.sin(0.1), 0.0))
    assert leaning["yaw"] == pytest.approx(-math.pi / 2) and leaning["size"][0] != pytest.approx(leaning["size"][2])
    across, along = cylinder((s, 0.0, s, 0.0)), cylinder((s, s, 0.0, 0.0))  # its axis along the room's x, then y
    np.testing.assert_allclose(across["size"], [0.2, 0.2, 0.6], atol=1e-9)
    np.testing.assert_allclose(along["size"], [0.6, 0.2, 0.2], atol=1e-9)
    assert across["yaw"] == pytest.approx(-math.pi / 2) and along["yaw"] == pytest.approx(-math.pi / 2)


def test_boxes_contain_the_visible_pixels_of_things() -> None:
    """All pixels of a thing, back-projected by depth, lie in its box, and some lie near each side."""
    settings = SceneSettings(image_size=48, max_boxes=64, min_fov=56.0, max_fov=74.0)
    fills_box = list[bool]()
    for number in range(25):
        stage = build(compose(random.Random(f"upright {number}"), settings))
        view = render(stage, 48)
        _, instances, items, _ = observe.observe(stage, view, settings.min_visible)
        camera, points = stage.scene.camera, view.depth[..., None] * _rays(stage, 48)
        back = np.array([math.cos(camera.yaw), math.sin(camera.yaw), 0.0])
        axes = np.array([[math.sin(camera.yaw), -math.cos(camera.yaw), 0.0], [0.0, 0.0, 1.0], -back])
        boxes = observe.boxes_3d(stage, items, 64)
        assert [box["label"] for box in boxes] == [item.body.label for item in items]
        plugin.write_value(boxes)
        for rank, box in enumerate(boxes, 1):
            visible = points[instances == rank] @ axes.T - box["center"]
            cos, sin = math.cos(box["yaw"]), math.sin(box["yaw"])
            x, y, z = visible.T
            in_box_axes = np.stack([x * cos - z * sin, y, x * sin + z * cos], axis=1)
            half = np.array(box["size"]) / 2
            assert (np.abs(in_box_axes) <= half + 2e-3).all(), box
            if len(in_box_axes) > 60:
                fills_box.append(bool((np.abs(in_box_axes).max(axis=0) > 0.8 * half).all()))
    assert len(fills_box) > 80 and np.mean(fills_box) > 0.85


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


def test_the_scene_class_follows_from_visible_furniture() -> None:
    place_counts: Counter[str] = Counter()
    for _, sample in samples(count=80, image_size=24):
        shares = np.bincount(sample["semseg"].reshape(-1), minlength=len(CLASSES)) / sample["semseg"].size
        covered = {
            scene_class: sum(shares[CLASSES.index(label)] for label in labels)
            for scene_class, labels in FURNITURE.items()
        }
        best = max(covered, key=lambda scene_class: covered[scene_class])
        assert sample["scene_class"] == (best if covered[best] >= LEAST else EMPTY)
        place_counts[sample["scene_class"]] += 1
    assert set(place_counts) == {*FURNITURE, EMPTY}
    assert max(place_counts.values()) < 40
