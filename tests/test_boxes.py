"""Labelled boxes, flat and in metres: levels, overlap, scores, files, flips, pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import BINS, load, round_trip, samples, settings_of

from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.object_tokens import box_overlaps
from zoo_semantics.boxes import plugin as boxes
from zoo_semantics.boxes_3d import NONE_FOUND, Boxes3dSettings, corners, numbers_of, plugin, wrap_angle

NAME = "boxes_3d"
Box = dict[str, Any]


def box(label: str, center: Any = (0, 0, -3), size: Any = (1, 1, 1), yaw: Any = 0.0) -> Box:
    return {"label": label, "center": list(center), "size": list(size), "yaw": yaw}


side = st.floats(0.05, 4)
angle = st.floats(-math.pi, math.pi)
label = st.sampled_from(["chair", "potted plant", "Stühl", "v0=1", "[EOS]", "日本"])
any_box = st.builds(
    box, label, st.tuples(st.floats(-4, 4), st.floats(-2, 2), st.floats(-8, 0)), st.tuples(side, side, side), angle
)


@settings(max_examples=100, deadline=None)
@given(st.lists(any_box, max_size=5))
def test_boxes_are_exact_to_half_a_level(value: list[Box]) -> None:
    decoded = round_trip(load(NAME, max_length=300), value)
    assert [b["label"] for b in decoded] == [b["label"] for b in value]
    for decoded_box, true in zip(decoded, value, strict=True):
        off = np.abs(np.subtract(decoded_box["center"], true["center"]))
        assert (off <= np.array([8, 4, 8]) * 0.5 / (BINS - 1) + 1e-9).all()
        ratio = np.abs(np.log(np.divide(decoded_box["size"], true["size"])))
        assert (ratio <= math.log(4 / 0.05) * 0.5 / (BINS - 1) + 1e-9).all()
        assert abs(wrap_angle(decoded_box["yaw"] - true["yaw"])) <= math.pi / BINS + 1e-9
        assert -math.pi <= decoded_box["yaw"] < math.pi


def test_boxes_are_a_levels_token_then_seven_coordinates_and_a_label() -> None:
    tokenizer = load(NAME)
    ids = plugin.encode(tokenizer, [[box("chair", (-4, 2, -4), (0.05, 4, math.sqrt(0.2)), math.pi / 2)]])[0]
    pieces = [str(piece) for piece in tokenizer.vocabulary.decode(ids)]
    assert pieces[0] == "<boxes_3d x -4.0 4.0 y -2.0 2.0 z -8.0 0.0 size 0.05 4.0 m>"
    # sqrt(0.2) is in the middle of 0.05 and 4, between the levels 31 and 32
    assert pieces[1:6] == ["v0=0", "v1=63", "v2=32", "v0=0", "v1=63"] and pieces[6] in ("v2=31", "v2=32")
    assert pieces[7:] == ["v3=48", " chair"]


def test_last_boxes_are_dropped() -> None:
    value = [box("a", (0, 0, -3), (1, 1, 1)), box("b", (0, 0, -1), (2, 1, 1)), box("c", (3, 0, -3), (3, 1, 1))]
    assert "".join(b["label"] for b in round_trip(load(NAME, max_boxes=2), value)) == "ab"
    # 1 token for the levels, 8 for each box
    assert "".join(b["label"] for b in round_trip(load(NAME, max_length=17), value)) == "ab"
    assert len(plugin.encode(load(NAME, max_length=17), [value])[0]) == 17
    assert plugin.encode(load(NAME, max_length=8), [value])[0].size == 0
    assert round_trip(load(NAME), []) == []


def test_malformed_boxes_are_skipped() -> None:
    tokenizer = load(NAME)
    good = plugin.encode(tokenizer, [[box("chair")]])[0].tolist()
    expected = plugin.decode(tokenizer, [good])[0]
    words = tokenizer.vocabulary.encode
    start, rest = good[:1], good[1:]
    sequences = [
        rest,  # without the token, the settings' levels apply
        [*start, *rest[:2], *rest], [*start, *rest[:5], *words([" lamp"]), *rest],
        [*start, *rest[:7], *rest], [*start, *rest, rest[6]], [*start, *words([" word"]), *rest],
        [*start, *rest[:7], *words([" \n"]), *rest], [*start, *rest[1:], *rest],
        [*start, rest[1], *rest[1:], *rest], [*start, *rest[:7], *start, *rest],
    ]  # fmt: skip
    for sequence in sequences:
        assert plugin.decode(tokenizer, [sequence])[0] == expected


def test_tokens_decode_the_same_under_other_settings(tmp_path: Path) -> None:
    """Other levels need another token, which must be added to the vocabulary first."""
    wide = settings_of(NAME, x=[-10, 10], size=[0.1, 10])
    for config in (settings_of(NAME), wide):
        plugin.train_tokenizer(config, samples(), tmp_path / "text")
    near, far = (plugin.load_tokenizer(tmp_path / "text", config) for config in (settings_of(NAME), wide))
    ids = plugin.encode(far, [[box("chair", (9, 0, -2))]])
    assert plugin.decode(near, ids) == plugin.decode(far, ids)
    assert abs(plugin.decode(near, ids)[0][0]["center"][0] - 9) < 20 / 62
    with pytest.raises(InvalidValueError, match=r"'<boxes_3d x -1.0 .*zoo vocabulary grow"):
        plugin.encode(load(NAME, x=[-1, 1]), [[box("chair")]])


def test_numbers_that_are_outside_by_rounding_are_accepted() -> None:
    """Single precision has pi above half a turn, and x / width + w / width may be above 1."""
    tokens = [
        boxes.encode(load("boxes"), [[{"label": "a", "box": edges}]])[0].tolist()
        for edges in ([0, 0, 1, 1], [-1e-9, 0, 1.0000001, math.nextafter(1, 2)])
    ]
    assert tokens[0] == tokens[1]
    half = float(np.float32(math.pi))
    value = plugin.read_value(*plugin.write_value([box("a", yaw=half), box("a", yaw=-half)]))
    assert half > math.pi and {decoded["yaw"] for decoded in round_trip(load(NAME), value)} == {-math.pi}


def test_the_longest_side_decodes_to_a_value() -> None:
    for least in (0.15, 0.17, 0.3, 0.34, 0.6):  # least * (100 / least) may be above 100
        levels = Boxes3dSettings(size=(least, 100.0))
        assert max(levels.numbers(levels.levels((0, 0, -3), (100, 1, 1), 0.0, 256), 256)[1]) == 100


def test_a_flip_mirrors_and_a_crop_leaves_the_boxes() -> None:
    value = [box("a", (1, 0.5, -3), (2, 1, 0.5), 0.4), box("b", (-1, 0, -2), yaw=-math.pi / 2), box("c", yaw=-3.0)]
    assert plugin.transform(value, Crop()) == value
    assert plugin.transform(value, Crop(left=0.5, width=0.5)) == value
    flipped = plugin.transform(value, Crop(top=0.1, height=0.5, flip=True))
    assert [b["center"] for b in flipped] == [[-1, 0.5, -3], [1, 0, -2], [0, 0, -3]]
    assert np.allclose([b["yaw"] for b in flipped], [math.pi - 0.4, -math.pi / 2, 3.0 - math.pi])
    # the mirrored corners are the corners of the mirrored boxes
    before, after = (corners(numbers_of(boxes)) for boxes in (value, flipped))
    for mine, theirs in zip(before * (-1, 1), after, strict=True):
        assert np.allclose(sorted(map(tuple, mine.round(9))), sorted(map(tuple, theirs.round(9))))
    assert np.allclose(numbers_of(plugin.transform(flipped, Crop(flip=True))), numbers_of(value))


def iou(first: Box, second: Box) -> float:
    return float(plugin.labelled_overlaps([first], [second])[0, 0])


def test_overlap_by_hand() -> None:
    unit = box("a", (0, 0, 0), (1, 1, 1))
    eighth = math.pi / 4
    octagon = 2 * (math.sqrt(2) - 1)  # intersection of a unit square and the same square rotated by 45 degrees
    band = 0.5 * math.sqrt(2) - 0.125  # intersection of a unit square and a band of width 0.5 along its diagonal
    cases = [
        (box("a", (0, 0, 0), (1, 1, 1)), 1.0),
        (box("b", (0, 0, 0), (1, 1, 1)), 0.0),
        (box("a", (0.5, 0, 0), (1, 1, 1)), 1 / 3),
        (box("a", (0, 0.5, 0), (1, 1, 1)), 1 / 3),
        (box("a", (0, 0, 0.25), (1, 0.5, 1)), 0.375 / 1.125),
        (box("a", (0, 0, 0), (1, 1, 1), math.pi / 2), 1.0),
        (box("a", (0, 0, 0), (1, 1, 1), eighth), octagon / (2 - octagon)),
        (box("a", (0, 0, 0), (4, 1, 0.5), -eighth), band / (1 + 2 - band)),
        (box("a", (1.1, 0, 0), (1, 1, 1)), 0.0),
        (box("a", (0, 0, 0), (0.5, 0.5, 0.5), 0.3), 0.125),
    ]
    for second, expected in cases:
        assert np.isclose(iou(unit, second), expected), second
        assert np.isclose(iou(second, unit), expected), second
    # a long thin one, turned so that yaw's sign matters
    assert iou(box("a", size=(4, 1, 0.2), yaw=0.5), box("a", size=(4, 1, 0.2), yaw=-0.5)) < 0.1
    assert np.isclose(iou(box("a", (1, 0, -1), (4, 1, 0.2), 0.5), box("a", (1, 0, -1), (4, 1, 0.2), 0.5 - math.pi)), 1)


placed = st.builds(box, st.just("a"), st.tuples(*[st.floats(-1, 1)] * 3), st.tuples(*[st.floats(0.3, 2)] * 3), angle)


@settings(max_examples=60, deadline=None)
@given(placed, placed)
def test_overlap_agrees_with_random_points(first: Box, second: Box) -> None:
    """Draw points in the first box; the fraction inside the second box estimates the shared volume."""
    draw, count = np.random.default_rng(0), 20_000
    offsets = (draw.random((count, 3)) - 0.5) * first["size"]

    def turned(points: np.ndarray, yaw: float) -> np.ndarray:
        cos, sin = math.cos(yaw), math.sin(yaw)  # about y, x towards -z
        return points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])

    points = turned(offsets, first["yaw"]) + first["center"]
    inside = np.abs(turned(points - np.array(second["center"]), -second["yaw"])) <= np.array(second["size"]) / 2
    shared = inside.all(axis=1).mean() * math.prod(first["size"])
    union = math.prod(first["size"]) + math.prod(second["size"]) - shared
    assert abs(iou(first, second) - shared / union) < 0.03
    assert np.isclose(iou(first, second), iou(second, first), atol=1e-9)


def test_scores_by_hand() -> None:
    target = [[box("a", (0, 0, -3)), box("b", (2, 0, -3))], []]
    predicted = [
        [box("a", (0.6, 0, -3)), box("a", (0, 0.3, -3)), box("b", (0, 0, -3))],  # overlap 0.4 / 1.6, 0.7 / 1.3, none
        [box("c")],
    ]
    scores = plugin.score(predicted, target)
    assert scores == pytest.approx({"f1": 2 / 6, "center_error": 0.3, "label_f1": 4 / 6})
    exact = plugin.score([[box("a", (0.6, 0, -3))], []], [target[0][:1], []])
    assert exact == pytest.approx({"f1": 1.0, "center_error": 0.6, "label_f1": 1.0})
    assert plugin.score([[box("a", (0.61, 0, -3))]], [target[0][:1]])["f1"] == 0
    assert plugin.score([[], []], target) == {"f1": 0.0, "center_error": NONE_FOUND, "label_f1": 0.0}
    assert plugin.score([[]], [[]]) == {"f1": 1.0, "center_error": 0.0, "label_f1": 1.0}


def test_the_picture_shows_boxes_from_above() -> None:
    config = settings_of(NAME)
    value = [box("a", (1, 0, -4), (1, 1, 2), -math.pi / 2)]
    empty, picture = plugin.render([], config), plugin.render(value, config)
    assert picture.size == empty.size == (256, 256)
    scale = 256 / 8.45
    changed = np.array(picture, int) - np.array(empty, int)
    rows, columns = np.nonzero(np.abs(changed).sum(axis=2)[round(3.2 * scale) :] > 60)
    # 2 m across from 0 to 2 m on the right; the tick at the side of the viewer
    assert abs(columns.min() - (4.225 + 0) * scale) < 3 and abs(columns.max() - (4.225 + 2) * scale) < 3
    tick = [np.abs(changed[round(down * scale), round(5.225 * scale)]).sum() > 100 for down in (8 - 3.44, 8 - 4.56)]
    assert tick == [True, False] and rows.size


def flat(label: str, *edges: float) -> dict[str, Any]:
    return {"label": label, "box": list(edges)}


span = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda pair: pair[0] < pair[1])
any_flat = st.builds(lambda name, x, y: flat(name, x[0], y[0], x[1], y[1]), label, span, span)


@settings(max_examples=100, deadline=None)
@given(st.lists(any_flat, max_size=5))
def test_flat_boxes_are_exact_to_half_a_level(value: list[dict[str, Any]]) -> None:
    decoded = round_trip(load("boxes", max_length=300), value)
    assert [b["label"] for b in decoded] == [b["label"] for b in sorted(value, key=sort_key)]
    for decoded_box, expected in zip(decoded, sorted(value, key=sort_key), strict=True):
        assert np.abs(np.subtract(decoded_box["box"], expected["box"])).max() <= 0.55 / (BINS - 1) + 1e-9
        wide = np.subtract(expected["box"][2:], expected["box"][:2]) > 1 / (BINS - 1)
        off = np.abs(np.subtract(decoded_box["box"], expected["box"])).reshape(2, 2)[:, wide]
        assert (off <= 0.5 / (BINS - 1) + 1e-9).all()


def sort_key(b: dict[str, Any]) -> tuple[Any, ...]:
    xmin, ymin, xmax, ymax = b["box"]
    return (-(xmax - xmin) * (ymax - ymin), xmin, ymin, xmax, ymax, b["label"])


def test_boxes_are_the_four_coordinates_and_the_label() -> None:
    tokenizer = load("boxes")
    pieces = tokenizer.vocabulary.decode(boxes.encode(tokenizer, [[flat("chair", 0, 1 / 63, 0.5, 1)]])[0])
    assert [str(piece) for piece in pieces] == ["v0=0", "v1=1", "v2=32", "v3=63", " chair"]


def test_the_smallest_boxes_are_dropped() -> None:
    value = [flat("chair", 0, 0, 0.1 * k, 0.1 * k) for k in (3, 1, 4, 2)]
    largest = round_trip(load("boxes", max_boxes=3), value)
    assert [round(b["box"][2], 1) for b in largest] == [0.4, 0.3, 0.2]
    assert len(round_trip(load("boxes", max_length=12), value)) == 2
    assert round_trip(load("boxes"), []) == []


def test_boxes_follow_the_crop() -> None:
    config = settings_of("boxes")
    value = [flat("a", 0.25, 0.25, 0.75, 0.75), flat("b", 0.0, 0.0, 0.3, 0.3)]
    flipped = boxes.transform(value, Crop(flip=True), config)
    assert np.allclose([b["box"] for b in flipped], [[0.25, 0.25, 0.75, 0.75], [0.7, 0, 1, 0.3]])
    half = boxes.transform(value, Crop(left=0.5, width=0.5, flip=True), config)
    assert [b["label"] for b in half] == ["a"] and np.allclose(half[0]["box"], [0.5, 0.25, 1, 0.75])
    strict = settings_of("boxes", min_visible=0.6)
    assert boxes.transform(value, Crop(left=0.5, width=0.5), strict) == []


def test_any_visible_part_of_a_4m_box_is_kept() -> None:
    person, crop = flat("person", 0, 0.1, 0.3, 0.9), Crop(left=0.29, width=0.71)
    assert boxes.transform([person], crop, settings_of("boxes")) == []
    config = settings_of("boxes", preset="4m")
    (visible_part,) = boxes.transform([person], crop, config)
    assert np.allclose(visible_part["box"], [0, 0.1, 0.01 / 0.71, 0.9])
    assert boxes.transform([person], Crop(left=0.3, width=0.7), config) == []


def test_flat_overlap_by_hand() -> None:
    first = np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 1]])
    second = np.array([[0.25, 0.25, 0.75, 0.75], [0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5], [0, 0.2, 1, 0.6]])
    expected = [[0.0625 / 0.4375, 0, 1, 0.15 / 0.5], [0.25, 0.25, 0.25, 0.4]]
    assert np.allclose(box_overlaps(first, second), expected)


def test_box_scores_by_hand() -> None:
    target = [[flat("a", 0, 0, 0.5, 0.5), flat("b", 0.5, 0.5, 1, 1)], []]
    predicted = [
        [flat("a", 0, 0, 0.5, 0.4), flat("a", 0, 0, 0.5, 0.5), flat("b", 0, 0, 0.1, 0.1)],
        [flat("a", 0, 0, 1, 1)],
    ]
    assert len(boxes.match_boxes(predicted[0], target[0])) == 1  # the second "a" finds nothing left
    assert boxes.score(predicted, target) == pytest.approx({"f1": 2 / 6, "mean_iou": 1.0, "label_f1": 4 / 6})
    assert boxes.score([[]], [[]]) == {"f1": 1.0, "mean_iou": 0.0, "label_f1": 1.0}


def test_the_constant_boxes_beat_every_single_value() -> None:
    draw = np.random.default_rng(0)
    top_left = {"chair": (0.1, 0.5), "lamp": (0.6, 0.1), "table": (0.4, 0.6)}
    values = []
    for _ in range(40):
        labels = [name for name in top_left if draw.random() < 0.6]
        moved = {name: np.array(top_left[name]) + draw.normal(0, 0.03, 2) for name in labels}
        values.append([flat(name, *np.clip([*at, *(at + 0.3)], 0, 1).tolist()) for name, at in moved.items()])
    floor = boxes.score([boxes.constant_baseline(values)] * 40, values)["f1"]
    assert floor >= max(boxes.score([value] * 40, values)["f1"] for value in values)
    assert {b["label"] for b in boxes.constant_baseline(values)} == set(top_left)
    assert boxes.constant_baseline([[], []]) == []
