"""Bounding boxes as text with coordinates."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import BINS, load, round_trip, settings_of

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.object_tokens import box_overlaps
from tokenizers_zoo.spec import Crop
from zoo_semantics.boxes import plugin as boxes


def box(label: str, *edges: float) -> dict[str, Any]:
    return {"label": label, "box": list(edges)}


side = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda pair: pair[0] < pair[1])
label = st.sampled_from(["chair", "potted plant", "Stühl", "v0=1", "[EOS]", "日本"])
any_box = st.builds(lambda name, x, y: box(name, x[0], y[0], x[1], y[1]), label, side, side)


@settings(max_examples=100, deadline=None)
@given(st.lists(any_box, max_size=5))
def test_boxes_are_exact_to_half_a_level(value: list[dict[str, Any]]) -> None:
    decoded = round_trip(load("boxes", max_length=300), value)
    assert [b["label"] for b in decoded] == [b["label"] for b in sorted(value, key=sort_key)]
    for got, expected in zip(decoded, sorted(value, key=sort_key), strict=True):
        assert np.abs(np.subtract(got["box"], expected["box"])).max() <= 0.55 / (BINS - 1) + 1e-9
        wide = np.subtract(expected["box"][2:], expected["box"][:2]) > 1 / (BINS - 1)
        off = np.abs(np.subtract(got["box"], expected["box"])).reshape(2, 2)[:, wide]
        assert (off <= 0.5 / (BINS - 1) + 1e-9).all()


def sort_key(b: dict[str, Any]) -> tuple[Any, ...]:
    xmin, ymin, xmax, ymax = b["box"]
    return (-(xmax - xmin) * (ymax - ymin), xmin, ymin, xmax, ymax, b["label"])


def test_boxes_are_the_four_coordinates_and_the_label() -> None:
    tokenizer = load("boxes")
    pieces = tokenizer.vocabulary.decode(boxes.encode(tokenizer, [[box("chair", 0, 1 / 63, 0.5, 1)]])[0])
    assert [str(piece) for piece in pieces] == ["v0=0", "v1=1", "v2=32", "v3=63", " chair"]


def test_the_smallest_boxes_are_dropped() -> None:
    value = [box("chair", 0, 0, 0.1 * k, 0.1 * k) for k in (3, 1, 4, 2)]
    kept = round_trip(load("boxes", max_boxes=3), value)
    assert [round(b["box"][2], 1) for b in kept] == [0.4, 0.3, 0.2]
    assert len(round_trip(load("boxes", max_length=12), value)) == 2
    assert round_trip(load("boxes"), []) == []


def test_malformed_boxes_are_skipped() -> None:
    tokenizer = load("boxes")
    ids = tokenizer.vocabulary.encode
    good = boxes.encode(tokenizer, [[box("chair", 0, 0, 1, 1)]])[0].tolist()
    turned = boxes.encode(tokenizer, [[box("lamp", 0.5, 0, 1, 1)]])[0].tolist()
    turned[2] = good[0] + 2 * BINS  # xmax 0 < xmin
    sequences = [
        [*good[:3], *good], [*good[:4], *good], [*turned, *good], [*ids([" word"]), *good, good[3]],
        [*good[:4], *ids([" \n"]), *good],
    ]  # fmt: skip
    for sequence in sequences:
        assert boxes.decode(tokenizer, [sequence]) == [[box("chair", 0, 0, 1, 1)]]


def test_an_edge_may_be_outside_by_rounding() -> None:
    whole, rounded = [box("a", 0, 0, 1, 1)], [box("a", -1e-9, 0, 1.0000001, np.nextafter(1.0, 2.0).item())]
    assert np.array_equal(boxes.encode(load("boxes"), [rounded])[0], boxes.encode(load("boxes"), [whole])[0])


def test_boxes_follow_the_crop() -> None:
    at = settings_of("boxes")
    value = [box("a", 0.25, 0.25, 0.75, 0.75), box("b", 0.0, 0.0, 0.3, 0.3)]
    assert boxes.transform(value, Crop(), at) == value
    flipped = boxes.transform(value, Crop(flip=True), at)
    assert np.allclose([b["box"] for b in flipped], [[0.25, 0.25, 0.75, 0.75], [0.7, 0, 1, 0.3]])
    half = boxes.transform(value, Crop(left=0.5, width=0.5, flip=True), at)
    assert [b["label"] for b in half] == ["a"] and np.allclose(half[0]["box"], [0.5, 0.25, 1, 0.75])
    strict = settings_of("boxes", min_visible=0.6)
    assert boxes.transform(value, Crop(left=0.5, width=0.5), strict) == []


def test_any_visible_part_of_a_4m_box_is_kept() -> None:
    person, crop = box("person", 0, 0.1, 0.3, 0.9), Crop(left=0.29, width=0.71)
    assert boxes.transform([person], crop, settings_of("boxes")) == []
    at = settings_of("boxes", preset="4m")
    (seen,) = boxes.transform([person], crop, at)
    assert np.allclose(seen["box"], [0, 0.1, 0.01 / 0.71, 0.9])
    assert boxes.transform([person], Crop(left=0.3, width=0.7), at) == []


def test_boxes_on_disk() -> None:
    value = [box("é", 0.1, 0, 1, 1)]
    data, extension = boxes.write_value(value)
    assert extension == "json" and boxes.read_value(data, extension) == value
    with pytest.raises(InvalidValueError, match="xmin < xmax"):
        boxes.read_value(json.dumps([box("a", 1, 0, 1, 1)]).encode(), "json")


def test_overlap_by_hand() -> None:
    first = np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 1]])
    second = np.array([[0.25, 0.25, 0.75, 0.75], [0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5], [0, 0.2, 1, 0.6]])
    expected = [[0.0625 / 0.4375, 0, 1, 0.15 / 0.5], [0.25, 0.25, 0.25, 0.4]]
    assert np.allclose(box_overlaps(first, second), expected)


def test_box_scores_by_hand() -> None:
    target = [[box("a", 0, 0, 0.5, 0.5), box("b", 0.5, 0.5, 1, 1)], []]
    predicted = [[box("a", 0, 0, 0.5, 0.4), box("a", 0, 0, 0.5, 0.5), box("b", 0, 0, 0.1, 0.1)], [box("a", 0, 0, 1, 1)]]
    assert len(boxes.matched(predicted[0], target[0])) == 1  # the second "a" finds nothing left
    assert boxes.score(predicted, target) == pytest.approx({"f1": 2 / 6, "mean_iou": 1.0, "label_f1": 4 / 6})
    assert boxes.score([[]], [[]]) == {"f1": 1.0, "mean_iou": 0.0, "label_f1": 1.0}


def test_the_constant_boxes_beat_every_single_value() -> None:
    draw = np.random.default_rng(0)
    places = {"chair": (0.1, 0.5), "lamp": (0.6, 0.1), "table": (0.4, 0.6)}
    values = []
    for _ in range(40):
        some = [name for name in places if draw.random() < 0.6]
        moved = {name: np.array(places[name]) + draw.normal(0, 0.03, 2) for name in some}
        values.append([box(name, *np.clip([*at, *(at + 0.3)], 0, 1).tolist()) for name, at in moved.items()])
    floor = boxes.score([boxes.constant_baseline(values)] * 40, values)["f1"]
    assert floor >= max(boxes.score([value] * 40, values)["f1"] for value in values)
    assert {b["label"] for b in boxes.constant_baseline(values)} == set(places)
    assert boxes.constant_baseline([[], []]) == []


def test_boxes_are_drawn() -> None:
    picture = boxes.render([box("armchair", 0.25, 0.25, 1, 1)])
    assert picture.size == (256, 256)
    inside, edge = picture.getpixel((150, 150)), picture.getpixel((64, 150))
    assert inside == picture.getpixel((5, 5)) != edge
