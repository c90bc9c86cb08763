"""Instance masks and their edges: files, crops and metrics by hand, bad values, and tokens there and back."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays
from PIL import Image

from tokenizers_zoo import ModalityHandle, Zoo
from tokenizers_zoo.contract.layouts import SequenceLayout
from tokenizers_zoo.contract.pictures import crop_and_resize
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import array_bytes as npy
from tokenizers_zoo.families.object_tokens import levels_of, numbers_of
from tokenizers_zoo.records.config import Settings
from zoo_images.edges import sam_edge as edge_plugin
from zoo_semantics import instance_maps
from zoo_semantics.instance_maps import distinct_masks, instances_of, map_of_masks, shape_of
from zoo_semantics.sam_instance import InstanceSettings, plugin

NAME = "sam_instance"
SIZE = 32
TABLE = {"image_size": SIZE, "mask_size": 16, "max_instances": 4, "tokenizer": {"patch_size": 8, "width": 16}}
SETTINGS = Settings(NAME, TABLE)
OPTIONS = plugin.options(SETTINGS)
TINY = {"steps": 3, "batch_size": 4, "eval_every": 3}


def mask_of_runs(counts: str | list[int], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return the mask of COCO's run lengths, column by column."""
    runs = instance_maps.runs_of(counts, size)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def picture(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """A map of rectangles (top, left, bottom, right) with the ids 7, 8, ..., later ones on top."""
    value = np.zeros(size, np.int32)
    for index, (top, left, bottom, right) in enumerate(boxes, 7):
        value[top:bottom, left:right] = index
    return value


ROOM = picture((2, 3, 20, 15), (10, 20, 14, 30), (25, 0, 32, 32))


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> ModalityHandle:
    handle = Zoo.from_tables({"modalities": {NAME: TABLE}})[NAME]
    values = [ROOM, picture(), picture((0, 0, 9, 9)), ROOM.T.copy()] * 2
    folder = tmp_path_factory.mktemp("instances") / "tokenizer"
    return handle.at(handle.train_tokenizer(TrainingSamples(train=values, test=values), folder, seed=0, **TINY))


# ---------------------------------------------------------------- maps, by hand


def test_instances_by_hand() -> None:
    value = picture((0, 0, 1, 4), (2, 1, 4, 3), size=(4, 4))
    value[3, 3] = 8  # makes the second one larger, and no rectangle
    first, second = instances_of(value)
    assert first[:4] == (2, 1, 4, 4) and first.pixels == 5
    np.testing.assert_array_equal(first.mask, [[True, True, False], [True, True, True]])
    assert second[:4] == (0, 0, 1, 4) and second.mask.all()
    assert instances_of(np.zeros((4, 4), np.int32)) == []


def test_smaller_of_overlapping_masks_is_on_top() -> None:
    full, part, empty = np.ones((2, 3), bool), np.array([[0, 1, 1], [0, 0, 0]], bool), np.zeros((2, 3), bool)
    for masks in ([part, empty, full], [full, part]):
        np.testing.assert_array_equal(map_of_masks(masks, (2, 3)), [[1, 2, 2], [1, 1, 1]])
    assert map_of_masks([], (2, 3)).sum() == 0


def runs_text(counts: list[int]) -> str:
    """COCO's text of run lengths, as its specification has it: 5 bits a character, differences from the fourth on."""
    text = ""
    for index, count in enumerate(counts):
        number, continues = count - (counts[index - 2] if index > 2 else 0), True
        while continues:
            bits, number = number & 31, number >> 5
            continues = number != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if continues else bits) + 48)
    return text


@pytest.mark.parametrize(("layout", "count"), [("4m", 2), ("codes", 3)])
def test_near_duplicate_instances_are_merged(layout: str, count: int) -> None:
    """Edges at 120 and 121 of 1000 are merged. A mask inside of the first, or sharing half of it, stays."""
    options = InstanceSettings(layout=layout, image_size=100, mask_size=32)  # type: ignore[arg-type]
    boxes = np.array([[0.12, 0.1, 0.8, 0.9], [0.121, 0.1, 0.81, 0.9], [0.3, 0.3, 0.5, 0.5]])
    joined = plugin.join(boxes, np.ones((3, 1, 32, 32), np.float32), {}, options)
    assert joined.max() == count
    assert distinct_masks([]) == []
    left, right = np.zeros((2, 4, 9), bool)
    left[:, :6], right[:, 2:8] = True, True  # IoU 0.5
    assert len(distinct_masks([left, right, left])) == 2


def test_run_lengths_go_down_the_columns() -> None:
    np.testing.assert_array_equal(mask_of_runs([1, 2, 3], (2, 3)), [[0, 1, 0], [1, 0, 0]])
    assert runs_text([1, 2, 3]) == "123"
    np.testing.assert_array_equal(mask_of_runs("123", (2, 3)), [[0, 1, 0], [1, 0, 0]])


@given(arrays(bool, strategies.tuples(strategies.integers(1, 40), strategies.integers(1, 40))))
def test_any_mask_survives_its_run_lengths(mask: np.ndarray) -> None:
    counts = runs_of(mask)
    for form in (counts, runs_text(counts)):
        np.testing.assert_array_equal(mask_of_runs(form, mask.shape), mask)


def test_a_thin_diagonal_object_is_not_lost() -> None:
    size = 512
    line = np.eye(size, dtype=bool)
    shape = shape_of(line, (16, 16))
    assert shape.diagonal().all() and shape.sum() <= 48
    block = line.copy()
    block[:, : size // 2] = True  # pixels covered by less than half do not count next to better covered ones
    np.testing.assert_array_equal(
        shape_of(block, (16, 16)), crop_and_resize(block.astype(np.float32), Crop(), (16, 16)) >= 0.5
    )


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize(("layout", "bins"), [("codes", 256), ("4m", 1000)])
def test_a_line_thinner_than_the_step_of_a_level_is_not_lost(layout: Any, bins: int, upright: bool) -> None:
    size = 640
    options = InstanceSettings(image_size=size, layout=layout)
    for position in (*range(0, size, 7), size // 2, size - 1):
        value = np.zeros((size, size), np.int32)
        value[(slice(None), position) if upright else position] = 1
        objects = plugin.split(value, options)
        axes = plugin.axes(options)
        numbers = numbers_of(axes, levels_of(axes, plugin.coordinates(objects, {}, options), bins), bins)
        positions = plugin.join(numbers, 2 * plugin.items(objects, options) - 1, {}, options).nonzero()[int(upright)]
        assert len(positions) >= size and np.abs(positions - position).max() <= 3, position


def test_rectangles_are_exact() -> None:
    objects, axes = plugin.split(ROOM, OPTIONS), plugin.axes(OPTIONS)
    levels = levels_of(axes, plugin.coordinates(objects, {}, OPTIONS), OPTIONS.bins)
    logits = 2.0 * plugin.items(objects, OPTIONS) - 1
    joined = plugin.join(numbers_of(axes, levels, OPTIONS.bins), logits, {}, OPTIONS)
    assert joined.dtype == np.int32
    order = {7: 2, 8: 3, 9: 1}  # by size: 216, 40 and 224 pixels
    np.testing.assert_array_equal(joined, np.vectorize(lambda index: order.get(index, 0))(ROOM))


def test_a_map_that_is_no_square_round_trips() -> None:
    size = (24, 40)
    options, value = InstanceSettings(image_size=size, mask_size=16), picture((2, 30, 20, 39), size=size)
    objects = plugin.split(value, options)
    coordinates = plugin.coordinates(objects, {}, options)
    np.testing.assert_allclose(coordinates, [[30 / 40, 2 / 24, 39 / 40, 20 / 24]])
    joined = plugin.join(coordinates, 2.0 * plugin.items(objects, options) - 1, {}, options)
    np.testing.assert_array_equal(joined, value > 0)
    published = plugin.coordinates(objects, {}, InstanceSettings(image_size=size, layout="4m"))
    np.testing.assert_allclose(published[0, 2:], coordinates[0])
    assert 2 / 24 < published[0, 0] < 20 / 24 and 30 / 40 < published[0, 1] < 39 / 40, "a point, y then x"


# ---------------------------------------------------------------- crops and mirrors


def test_crops_and_mirrors_by_hand() -> None:
    value = picture((0, 0, 2, 1), (2, 2, 4, 4), size=(4, 4))
    small_settings = Settings(NAME, {"image_size": 4})
    np.testing.assert_array_equal(plugin.transform(value, Crop(flip=True), small_settings), value[:, ::-1])
    half = plugin.transform(value, Crop(top=0.5, left=0.5, height=0.5, width=0.5), small_settings)
    assert half.dtype == np.int32 and (half == 8).all()
    large = plugin.transform(value, Crop(), Settings(NAME, {"image_size": [8, 8]}))
    np.testing.assert_array_equal(large, value.repeat(2, axis=0).repeat(2, axis=1))


# ---------------------------------------------------------------- tokens


def test_tokens_are_box_and_codes_largest_first(instances: ModalityHandle) -> None:
    layout = instances.spec.layout
    assert isinstance(layout, SequenceLayout) and layout.max_length == 4 * (4 + 4)
    assert instances.spec.vocab_size == 1 + 64 + 4 * 256 + 240
    tokens, no_tokens = instances.encode([ROOM, picture()])
    assert tokens.shape == (24,) and no_tokens.shape == (0,)
    floor = [round(edge * 255) for edge in (0, 25 / 32, 1, 1)]  # the largest: across the bottom
    assert (tokens[:4] - 65 - 256 * np.arange(4)).tolist() == floor
    assert (tokens.reshape(3, 8)[:, 4:] >= 1 + 64 + 4 * 256).all()


def test_the_smallest_instances_are_left_out(instances: ModalityHandle) -> None:
    crowd = picture(*((k, k, k + 3, k + 3) for k in range(0, 20, 4)), (25, 0, 32, 32))
    (tokens,) = instances.encode([crowd])
    assert len(instances_of(crowd)) == 6 and len(tokens) == 4 * (4 + 4)


@settings(max_examples=30, deadline=None)
@given(strategies.data())
def test_any_ids_decode_to_a_map(instances: ModalityHandle, data: strategies.DataObject) -> None:
    noise = data.draw(strategies.lists(strategies.integers(65, instances.spec.vocab_size - 1), max_size=32))
    (decoded,) = instances.decode([np.array(noise, dtype=np.int64)])
    instances.check(decoded)
    (good,) = instances.encode([ROOM])
    assert instances.decode([np.concatenate([noise[:7], good]).astype(np.int64)])[0].max() >= 1


# ---------------------------------------------------------------- metrics


def test_metrics_by_hand() -> None:
    truth = picture((0, 0, 10, 10), (20, 20, 24, 24))
    assert plugin.score([truth * 3], [truth], SETTINGS) == {"best_iou": 1, "f1": 1}  # numbers mean nothing
    half = picture((0, 0, 10, 6))  # 60 of 100 pixels, and nothing of the second
    assert plugin.score([half], [truth], SETTINGS) == pytest.approx({"best_iou": 0.3, "f1": 2 / 3})
    pieces = picture((0, 0, 10, 5), (0, 5, 10, 10))  # an overlap of exactly a half is not enough
    assert plugin.score([pieces], [picture((0, 0, 10, 10))], SETTINGS) == pytest.approx({"best_iou": 0.5, "f1": 0})
    empty = picture()
    assert plugin.score([empty], [empty], SETTINGS) == {"best_iou": 1, "f1": 1}
    assert plugin.score([truth], [empty], SETTINGS) == {"best_iou": 0, "f1": 0}
    assert plugin.score([empty, truth], [truth, truth], SETTINGS) == pytest.approx({"best_iou": 0.5, "f1": 2 / 3})


# ---------------------------------------------------------------- files and bad values


def picture_file(value: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(value).save(buffer, format=kind)
    return buffer.getvalue()


def runs_of(mask: np.ndarray) -> list[int]:
    """Return the run lengths of a mask, down the columns, beginning with False."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    return [int(count) for count in np.diff([0, *edges, flat.size])]


def test_masks_are_read_from_files_of_all_kinds(instances: ModalityHandle) -> None:
    value = picture((0, 0, 4, 6), (2, 2, 4, 4), size=(6, 8))
    masks = np.stack([value == 8, value >= 7])  # the second one goes on below the first
    written = instances.write(value)
    assert written[1] == "png" and Image.open(io.BytesIO(written[0])).mode == "I;16"
    for data, extension in (
        written,
        (npy(value), "npy"),
        (picture_file(value.astype(np.uint8), "PNG"), "png"),
        (picture_file(value.astype(">u2"), "TIFF"), "tif"),
    ):
        loaded = instances.read(data, extension)
        assert loaded.dtype == np.int32
        np.testing.assert_array_equal(loaded, value)
    entries = [{"segmentation": {"size": [6, 8], "counts": runs_text(runs_of(mask))}} for mask in masks]
    sam = {"image": {"height": 6}, "annotations": entries}
    for data, extension in (
        (npy(masks), "npy"),
        (json.dumps(sam).encode(), "json"),
        (json.dumps(entries).encode(), "json"),
    ):
        np.testing.assert_array_equal(instances.read(data, extension), np.where(value == 8, 2, value > 0))
    loaded = instances.read(npy(np.zeros((0, 6, 8), bool)), "npy")  # as SAM says that there is nothing
    assert loaded.shape == (6, 8) and not loaded.any()
    no_annotations = {"image": {"height": 5, "width": 9}, "annotations": []}
    loaded = instances.read(json.dumps(no_annotations).encode(), "json")
    assert loaded.shape == (5, 9) and not loaded.any()


# ---------------------------------------------------------------- edges


def test_edges_are_the_outermost_pixels_of_each_instance() -> None:
    value = picture((1, 1, 5, 5), size=(6, 8))
    value[1:5, 5:7] = 3  # touches it on the right
    edges = edge_plugin.derive({NAME: value})
    expected = [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 1, 1, 1, 0],
        [0, 1, 0, 0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert edges.dtype == np.float32
    np.testing.assert_array_equal(edges, [expected])
    assert edge_plugin.derive({NAME: np.zeros((4, 4), np.int32)}).sum() == 0
    np.testing.assert_array_equal(edge_plugin.derive({NAME: value[:, ::-1].copy()}), edges[..., ::-1])
