"""Labels of pictures without a network: settings, normals from depth, and post-processing of outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.pretrained import PretrainedError
from zoo_geometry.depth import metres_of_relative
from zoo_geometry.normal import angle_degrees, normals_of_depth
from zoo_semantics.labellers import (
    InstanceLabeller,
    boxes_of_masks,
    class_table,
    labelled_boxes,
    suppressed,
)


def zoo_with(name: str, **own: Any) -> Zoo:
    return Zoo.from_tables({"modalities": {name: own}})


# ---- a hook that is enabled by settings


@pytest.mark.parametrize("name", ["depth", "semseg", "boxes", "sam_instance", "caption"])
def test_only_a_labeller_makes_a_modality_derived(name: str) -> None:
    plain = zoo_with(name)[name]
    assert plain.spec.derived_from == () and plain.spec.derive_setting == "labeller"
    with pytest.raises(
        DataError, match=rf"{name}: is not derived .* without the setting labeller in \[modalities.{name}"
    ):
        plain.derive({"rgb": np.zeros((3, 8, 8), np.float32)})
    spec = zoo_with(name, labeller={"model": "owner/network"})[name].spec
    assert spec.derived_from == ("rgb",) and "labels by owner/network" in spec.licence
    assert spec.layout == plain.spec.layout and spec.value == plain.spec.value


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("depth", {}, "model: required"),
        ("depth", {"model": "a/b", "scaled_to": [8, 1]}, r"scaled_to: expected two rising distances .* \[8.0, 1.0\]"),
        ("depth", {"model": "a/b", "sacled_to": [1, 8]}, "sacled_to: unknown key; did you mean scaled_to"),
        ("semseg", {"model": "a/b", "labels": {"tree": "shrub"}}, "'tree' is to be 'shrub', which is none of the"),
        ("boxes", {"model": "a/b", "threshold": 1.0}, r"threshold: expected a score in \(0, 1\), got 1"),
        ("sam_instance", {"model": "a/b", "min_quality": 88}, r"min_quality: expected a share in \[0, 1\], got 88"),
    ],
)
def test_invalid_labeller_settings(name: str, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        zoo_with(name, labeller=table)[name]


# ---- normals of depth


def plane(normal: tuple[float, float, float], shape: tuple[int, int], fov: tuple[float, float]) -> np.ndarray:
    """Depth of the plane normal . point = -2, point in x right, y up, z towards the viewer: float64 (height, width)."""
    height, width = shape
    top, side = (np.tan(np.radians(angle) / 2) for angle in fov)
    x = np.linspace(-1 + 1 / width, 1 - 1 / width, width) * side
    y = np.linspace(1 - 1 / height, -1 + 1 / height, height)[:, None] * top
    return -2 / (normal[0] * x + normal[1] * y - normal[2])


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (0.0, 0.6, 0.8), (-0.48, 0.36, 0.8)])
def test_normals_of_a_plane_are_exact(normal: tuple[float, float, float]) -> None:
    truth = np.broadcast_to(np.array(normal)[:, None, None], (3, 12, 12))
    square = normals_of_depth(plane(normal, (12, 12), (50, 50)), 50)
    assert square.dtype == np.float32 and angle_degrees(square, truth).max() < 1e-3
    wide = normals_of_depth(plane(normal, (12, 12), (40, 60)), (40, 60))  # a wide picture, squeezed to a square
    assert angle_degrees(wide, truth).max() < 1e-3
    across = 2 * np.degrees(np.arctan(np.tan(np.radians(20)) * 20 / 12))
    long = normals_of_depth(plane(normal, (12, 20), (40, across)), 40)
    assert angle_degrees(long, truth[..., :1].repeat(20, axis=2)).max() < 1e-3


def test_normals_are_not_smoothed_across_edges() -> None:
    left, right = (-0.6, 0.0, 0.8), (0.0, 0.6, 0.8)
    depth = plane(left, (10, 10), (50, 50))
    depth[:, 5:] = plane(right, (10, 10), (50, 50))[:, 5:] + 0.0
    truth = np.array(left)[:, None, None].repeat(10, axis=1).repeat(10, axis=2)
    truth[:, :, 5:] = np.array(right)[:, None, None]
    depth[:, 5:] *= 2  # the same slopes, twice as far away
    assert angle_degrees(normals_of_depth(depth, 50), truth).max() < 1e-3


def test_normals_of_scenes_agree_with_the_exact_ones() -> None:
    zoo = zoo_with("normal", camera_fov="metadata")
    assert zoo["normal"].spec.derived_from == ("depth", "metadata")
    samples = zoo.source("scenes").samples("test", 8, 0)
    angles = []
    for index in range(8):
        sample = samples[index][1]
        angles.append(angle_degrees(zoo["normal"].derive(sample), sample["normal"]).ravel())
    found = np.concatenate(angles)
    assert np.median(found) < 0.01 and (found < 1).mean() > 0.8 and found.mean() < 6


def test_camera_comes_from_settings_or_sample() -> None:
    depth = plane((0.6, 0.0, 0.8), (12, 12), (50, 50))[None].astype(np.float32)
    own = zoo_with("normal", camera_fov="metadata")["normal"]
    fixed = zoo_with("normal", camera_fov=50.0)["normal"]
    both = zoo_with("normal", camera_fov=[50.0, 50.0])["normal"]
    assert fixed.spec.derived_from == both.spec.derived_from == ("depth",)
    expected = fixed.derive({"depth": depth})
    np.testing.assert_array_equal(both.derive({"depth": depth}), expected)
    np.testing.assert_array_equal(own.derive({"depth": depth, "metadata": {"camera_fov": 50.0}}), expected)
    with pytest.raises(DataError, match="normal: the sample's metadata lack camera_fov"):
        own.derive({"depth": depth, "metadata": {}})


# ---- metres


def test_relative_depth_is_scaled_by_the_declared_rule() -> None:
    inverse = np.array([[-1.0, 0.0], [1.0, 3.0]])
    scaled = metres_of_relative(inverse, 1.0, 4.0)
    np.testing.assert_allclose(1 / scaled, [[0.25, 0.4375], [0.625, 1.0]])
    np.testing.assert_allclose(metres_of_relative(inverse * 7 - 3, 1.0, 4.0), scaled)
    with pytest.raises(DataError, match="the same depth everywhere"):
        metres_of_relative(np.array([[3.5, 3.5 + 1e-7]]), 1.0, 4.0)


# ---- classes

CLASSES = ("void", "floor", "wall", "chair")


def test_labels_become_classes() -> None:
    names = {0: "Wall", 1: "floor, flooring", 2: "sky", 3: "armchair", 4: "seat;chair"}
    table = class_table(names, {"armchair": "chair"}, CLASSES, "net")
    assert table.tolist() == [2, 1, 0, 3, 3] and table.dtype.kind == "i"
    np.testing.assert_array_equal(table[np.array([[2, 3], [0, 1]])], [[0, 3], [2, 1]])
    declared = class_table({0: "wall", 1: "sky"}, {"wall": "void", "sky": "wall"}, CLASSES, "net")
    assert declared.tolist() == [0, 2]  # declared names take precedence over similar ones


def test_labels_without_a_class() -> None:
    with pytest.raises(PretrainedError, match=r"net: none of its labels .*it has LABEL_0, LABEL_1"):
        class_table({0: "LABEL_0", 1: "LABEL_1"}, {}, CLASSES, "net")
    with pytest.raises(PretrainedError, match="no class for its label 'sky' and 1 other, and no class void"):
        class_table({0: "wall", 1: "sky", 2: "sea"}, {}, CLASSES[1:], "net")
    with pytest.raises(PretrainedError, match=r"net: has no label 'tree', which labeller.labels names; it has wall"):
        class_table({0: "wall"}, {"tree": "floor"}, CLASSES, "net")


# ---- boxes


def test_boxes_are_sorted_clipped_and_named() -> None:
    edges = [[-0.1, 0.2, 0.5, 1.3], [0.4, 0.4, 0.6, 0.6], [1.1, 0.0, 1.2, 0.5], [0, 0, 1, 1], [0, 0, 1, 1]]
    labels = ["potted  plant", "chair", "chair", "N/A", ""]
    assert labelled_boxes(labels, edges, [0.5, 0.9, 0.8, 0.7, 0.6]) == [
        {"label": "chair", "box": [0.4, 0.4, 0.6, 0.6]},
        {"label": "potted plant", "box": [0.0, 0.2, 0.5, 1.0]},
    ]
    assert labelled_boxes([], [], []) == []


# ---- instances


def test_boxes_of_masks_and_suppression_by_hand() -> None:
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 1:3, 2:7] = masks[1, 5, 0] = masks[2, 0:6, 0:8] = True
    boxes = boxes_of_masks(masks)
    assert boxes.tolist() == [[2, 1, 7, 3], [0, 5, 1, 6], [0, 0, 8, 6]]
    shifted = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [5, 0, 15, 10], [20, 20, 30, 30]])
    scores = np.array([0.5, 0.9, 0.8, 0.1])  # overlaps with the second: 0.8, 40 / 140, 0
    assert suppressed(shifted, scores, 0.7) == [1, 2, 3]
    assert suppressed(shifted, scores, 0.8) == [1, 2, 0, 3]
    assert suppressed(shifted, scores, 0.2) == [1, 3]
    assert suppressed(np.zeros((0, 4)), np.zeros(0), 0.5) == []


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered(InstanceLabeller):
    """Fake answers: an object, the same object at lower quality, an unstable, a low-quality and an empty mask."""

    def _answers(self, picture: Any) -> Iterator[tuple[Any, Any]]:
        logits = np.full((5, 8, 8), -5.0)
        logits[0, 1:4, 1:4] = logits[1, 1:4, 1:4] = logits[3, 5:, 5:] = 5.0
        logits[2, :, 6:] = 0.5
        yield logits[:2], np.array([0.9, 0.95])
        yield logits[2:], np.array([0.99, 0.5, 0.99])


def test_masks_are_filtered() -> None:
    picture = np.zeros((3, 8, 8))
    masks = Answered(model="none").masks(picture)
    assert masks.shape == (1, 8, 8) and masks[0].sum() == 9 and masks[0, 1:4, 1:4].all()
    assert len(Answered(model="none", max_overlap=1.0).masks(picture)) == 2
    assert len(Answered(model="none", min_quality=0.4).masks(picture)) == 2
    assert Answered(model="none", min_quality=1.0).masks(picture).shape == (0, 8, 8)
