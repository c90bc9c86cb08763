"""Lists of objects: a grammar that reads its own output exactly and tolerates any other ids, and the item loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies

from tokenizers_zoo.families.object_tokens import levels_of, numbers_of
from tokenizers_zoo.families.objects import Axis, ObjectGrammar, box_seen_through
from tokenizers_zoo.spec import Crop

SMALL = ObjectGrammar(sentinels=2, axes=2, bins=10, positions=2, codebooks=2, codebook_size=5)
FIRST = [3, 13, 23, 28, 24, 29]  # levels 0 0, codes 0 0 | 1 1


def test_ids_by_hand() -> None:
    assert (SMALL.coordinate_start, SMALL.code_start, SMALL.vocab_size, SMALL.object_length) == (3, 23, 33, 6)
    ids = SMALL.write(np.array([[0, 0], [9, 4]]), np.array([[0, 0, 1, 1], [4, 3, 2, 1]]))
    assert ids.tolist() == [*FIRST, 12, 17, 27, 31, 25, 29]


@pytest.mark.parametrize(
    ("ids", "objects"),
    [
        ([], 0),
        (FIRST, 1),
        ([*FIRST, *FIRST], 2),
        ([*FIRST[:4], *FIRST], 1),  # the first object is cut off, the second is complete
        ([13, 23, *FIRST], 1),  # starts in the middle of an object
        ([*FIRST[:2], 3, *FIRST[1:]], 1),  # a first coordinate starts a new object
        ([*FIRST[:3], 24, *FIRST[4:]], 0),  # a code of the first codebook in place of the second codebook's
        ([0, 1, 2, *FIRST, 0], 1),  # the end token and sentinels are ignored
        ([-5, 99, *FIRST], 1),
    ],
)
def test_ids_that_form_no_object_are_skipped(ids: list[int], objects: int) -> None:
    levels, codes = SMALL.read(ids)
    assert levels.tolist() == [[0, 0]] * objects and codes.tolist() == [[0, 0, 1, 1]] * objects


sizes = strategies.integers(1, 5)


@given(strategies.data())
def test_written_objects_are_read_back(data: strategies.DataObject) -> None:
    names = ("sentinels", "axes", "positions", "codebooks", "codebook_size")
    grammar = ObjectGrammar(bins=data.draw(strategies.integers(2, 9)), **{name: data.draw(sizes) for name in names})
    rng = np.random.default_rng(data.draw(strategies.integers(0, 99)))
    count = data.draw(strategies.integers(0, 4))
    levels = rng.integers(0, grammar.bins, (count, grammar.axes))
    codes = rng.integers(0, grammar.codebook_size, (count, grammar.codes))
    ids = grammar.write(levels, codes)
    assert ((ids > grammar.sentinels) & (ids < grammar.vocab_size)).all()
    ordered = [(ids.start, ids.stop) for ids in grammar.ordered_ids]
    assert ordered == list(zip(grammar.starts[: grammar.axes], grammar.stops[: grammar.axes], strict=True))
    cut = data.draw(strategies.integers(0, grammar.object_length - 1))
    for noise in ([], ids[:cut].tolist(), [grammar.end]):
        found = grammar.read([*noise, *ids.tolist()])
        np.testing.assert_array_equal(found[0], levels)
        np.testing.assert_array_equal(found[1], codes)


@given(strategies.lists(strategies.integers(-1, 40), max_size=60))
def test_any_ids_are_read(ids: list[int]) -> None:
    levels, codes = SMALL.read(ids)
    assert levels.shape[1:] == (2,) and codes.shape == (len(levels), 4)
    assert SMALL.read(SMALL.write(levels, codes))[0].tolist() == levels.tolist()


def test_ends_of_an_axis_are_exact_and_numbers_beyond_are_clipped() -> None:
    axes = (Axis(name="a", low=-2, high=0.3), Axis(name="b"))
    levels = levels_of(axes, np.array([[-2, 0], [0.3, 1], [-9, 9], [-0.85, 0.5]]), 11)
    assert levels.tolist() == [[0, 0], [10, 10], [0, 10], [5, 5]]
    assert numbers_of(axes, levels, 11)[:2].tolist() == [[-2, 0], [0.3, 1]]


@given(strategies.floats(-1.5, 2.5), strategies.integers(2, 1000))
def test_numbers_are_exact_to_half_a_level(number: float, bins: int) -> None:
    axis = (Axis(name="a", low=-1.5, high=2.5),)
    found = numbers_of(axis, levels_of(axis, np.array([[number]]), bins), bins)
    assert abs(found[0, 0] - number) <= 0.5 * 4 / (bins - 1) + 1e-12


def test_boxes_through_crops_by_hand() -> None:
    right = Crop(left=0.5, width=0.5)
    assert box_seen_through(right, [0.25, 0.2, 0.75, 0.6], 0.5) == [0, 0.2, 0.5, 0.6]
    assert box_seen_through(right, [0.25, 0.2, 0.75, 0.6], 0.51) is None
    assert box_seen_through(right, [0.0, 0.2, 0.5, 0.6], 0.01) is None
    mirrored = box_seen_through(Crop(left=0.5, width=0.5, flip=True), [0.75, 0.0, 1.0, 0.5], 1.0)
    assert mirrored == [0, 0, 0.5, 0.5]
