"""Metadata: declared fields, each a special token and a level; and fields computed from other modalities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import (
    BINS,
    geometric_metadata,
    image_metadata,
    load,
    metadata,
    round_trip,
    samples,
    semantic_metadata,
    settings_of,
)  # fmt: skip

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.records.config import Settings, from_mapping
from zoo_metadata.derived import occlusion_edges
from zoo_metadata.fields import MetadataField
from zoo_metadata.metadata import FIELDS, TableSettings
from zoo_semantics.semseg import CLASSES

SPECS = {"semseg": Zoo.installed()["semseg"].spec}
field_values = {
    name: st.integers(int(declared.low), int(declared.high))
    if declared.kind == "int"
    else st.floats(declared.low, declared.high)
    for name, declared in FIELDS.items()
}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional=field_values))
def test_metadata_is_exact_to_half_a_level(value: dict[str, float]) -> None:
    decoded = round_trip(load("metadata"), value)
    assert decoded.keys() == value.keys()
    for name, number in value.items():
        declared = FIELDS[name]
        half = 0 if declared.kind == "int" else 0.5 * (declared.high - declared.low) / (BINS - 1)
        assert abs(decoded[name] - number) <= half + 1e-9


def test_a_field_name_is_written_once() -> None:
    tokenizer = load("metadata")
    ids = metadata.single_ids(tokenizer)
    tokens = metadata.encode(tokenizer, [{"brightness": 0.5, "num_objects": 3}])[0].tolist()
    assert [token in ids for token in tokens] == [True, False, True, False]
    assert len(set(ids)) == len(ids) >= len(FIELDS)
    twice = metadata.encode(tokenizer, [{"num_objects": 3}, {"num_objects": 4}])
    assert metadata.decode(tokenizer, [np.concatenate(twice)]) == [{"num_objects": 3}]


def test_field_numbers_are_written_once_and_levels_repeatedly(tmp_path: Path) -> None:
    numbered = {"speed": {"high": 5, "number": 2}, "height": {"high": 5, "number": 0}}
    config = settings_of("metadata", fields=numbered, default_fields=False)
    metadata.train_tokenizer(config, samples(), tmp_path)
    tokenizer = metadata.load_tokenizer(tmp_path, config)
    tokens, ids = metadata.encode(tokenizer, [{"speed": 1, "height": 1}])[0].tolist(), metadata.single_ids(tokenizer)
    assert tokens[1] == tokens[3] and [token in ids for token in tokens] == [True, False, True, False]


def own_fields(**options: Any) -> dict[str, Any]:
    fields = {"weather": {"kind": "choice", "choices": ["sun", "rain, or <hail>"]}, "speed": {"high": 40, "bins": 5}}
    return {"fields": fields, "default_fields": False, **options}


def test_fields_can_be_declared_in_the_registry(tmp_path: Path) -> None:
    config = settings_of("metadata", **own_fields(unknown="drop"))
    assert metadata.modality_spec(config).layout.length == 4
    metadata.train_tokenizer(config, samples(), tmp_path)
    tokenizer = metadata.load_tokenizer(tmp_path, config)
    value = {"speed": 17, "other": 1, "weather": "rain, or <hail>"}
    assert round_trip(tokenizer, value) == {"weather": "rain, or <hail>", "speed": 20.0}
    assert round_trip(tokenizer, {"speed": 14.9}) == {"speed": 10.0}


def test_a_changed_range_is_another_token(tmp_path: Path) -> None:
    before = settings_of("metadata", fields={"speed": {"high": 10}})
    after = settings_of("metadata", fields={"speed": {"high": 20}})
    metadata.train_tokenizer(before, samples(), tmp_path)
    old = metadata.encode(metadata.load_tokenizer(tmp_path, before), [{"speed": 10, "clutter": 1}])
    metadata.train_tokenizer(after, samples(), tmp_path)
    tokenizer = metadata.load_tokenizer(tmp_path, after)
    assert metadata.decode(tokenizer, old) == [{"clutter": 1.0}], "not as a number of the other range"
    assert round_trip(tokenizer, {"speed": 10}) == {"speed": pytest.approx(10, abs=10 / 63)}
    assert metadata.encode(tokenizer, [{"speed": 10}])[0][0] != old[0][0]


def test_numbers_may_leave_the_range_by_rounding_only() -> None:
    assert round_trip(load("metadata"), {"walkability": 1 + 1e-9}) == {"walkability": 1.0}
    with pytest.raises(InvalidValueError, match=r"^metadata: field 'odd'"):
        Zoo.installed()["metadata"].write({"odd": 1})
    with pytest.raises(InvalidValueError, match=r"^metadata: .*outside its range"):
        metadata.encode(load("metadata"), [{"walkability": 1.001}])
    wide = MetadataField(kind="log", low=1, high=1e7)
    assert [wide.level(value, BINS) for value in (1 - 1e-9, 1e7 * (1 + 1e-9))] == [0, BINS - 1]
    for value in (0.9, 0, -1, 1.1e7):  # a fraction of the range, and far from it in the logarithm
        with pytest.raises(InvalidValueError, match="outside its range"):
            wide.level(value, BINS)


def test_metadata_scores_by_hand() -> None:
    config = settings_of("metadata")
    target = [{"camera_height": 1.5, "num_people": 2}, {"brightness": 0.5}, {}]
    predicted = [{"camera_height": 1.8}, {"brightness": 0.51, "room_width": 3}, {"brightness": 1}]
    scores = metadata.score(predicted, target, config)
    assert scores == pytest.approx({"range_error": (0.1 + 1 + 0.01) / 3, "field_accuracy": 1 / 3})
    assert metadata.score(target, target, config) == {"range_error": 0.0, "field_accuracy": 1.0}
    assert metadata.score([{}], [{}], config) == {"range_error": 0.0, "field_accuracy": 1.0}


def test_the_constant_metadata_is_the_median_and_the_mode() -> None:
    config = settings_of("metadata", **own_fields())
    values = [{"speed": speed, "weather": "sun"} for speed in (1, 2, 30)] + [{"weather": "rain, or <hail>"}]
    assert metadata.constant_baseline(values, config) == {"weather": "sun", "speed": 2}


def test_metadata_is_shown_with_units_and_stored_as_json() -> None:
    config = settings_of("metadata")
    assert metadata.render({"camera_height": 1.23456, "num_people": 2}, config) == "camera_height 1.23 m\nnum_people 2"
    data, extension = metadata.write_value({"num_people": 2}, config)
    assert metadata.read_value(data, extension, config) == {"num_people": 2}
    with pytest.raises(InvalidValueError, match="outside its range"):
        metadata.read_value(b'{"num_people": 9}', "json", config)


def test_levels_that_are_even_in_the_logarithm() -> None:
    field = MetadataField(kind="log", low=0.1, high=1000, bins=5)
    assert [field.value(level, BINS) for level in range(5)] == pytest.approx([0.1, 1, 10, 100, 1000])
    assert [field.level(value, BINS) for value in (0.1, 2, 5, 900)] == [0, 1, 2, 4]
    assert field.error(1, 100) == pytest.approx(0.5) and field.error(0, 1000) == 1.0
    assert field.declaration(BINS) == "a number from 0.1 to 1000, in 5 steps even in the logarithm"


# ---- as 4M has them

AS_4M = Settings("metadata", {"preset": "4m"}, vocabularies={"text": {"preset": "4m"}})
PUBLISHED = from_mapping(TableSettings, TableSettings.presets["4m"]).fields


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("original_width", 500, 15), ("original_width", 40_000, 999), ("brightness", 103.0, 19), ("brightness", -3, 0),
        ("walkability", 0.99, 48), ("walkability", 1.0, 49), ("caption_n_chars", 1500, 999),
        ("aesthetic_score", 4.49, 0), ("aesthetic_score", 4.5, 1), ("aesthetic_score", 5.5, 2),
        ("aesthetic_score", "4.5 to 5.5", 1),
    ],
)  # fmt: skip
def test_numbers_become_the_levels_of_4m(name: str, value: Any, level: int) -> None:
    assert PUBLISHED[name].level(value, 1000) == level


def test_pixels_are_divided_by_32_and_shares_by_the_range() -> None:
    """Rounding errors just below an integer must match 4M, which divides pixels exactly but not other numbers."""
    sizes = range(32_000)
    assert [PUBLISHED["original_height"].level(size, 1000) for size in sizes] == [size // 32 for size in sizes]
    shares = [pixels / 50_176 for pixels in range(50_177)]
    assert [PUBLISHED["walkability"].level(share, 1000) for share in shares] == [int(share * 49) for share in shares]


def test_a_level_decodes_to_the_middle_of_its_interval() -> None:
    assert [PUBLISHED["original_width"].value(level, 1000) for level in (0, 15, 998, 999)] == [16, 496, 31_952, 31_968]
    field = MetadataField(kind="log", low=1, high=1000, bins=4, rounding="down")
    assert [field.level(value, BINS) for value in (1, 9.99, 10.01, 999, 1000)] == [0, 0, 1, 2, 3]
    assert [field.value(level, BINS) for level in (0, 3)] == pytest.approx([10**0.5, 1000])
    assert field.declaration(BINS).endswith("in 4 steps even in the logarithm, rounded down")


def test_metadata_files_of_4m_are_read_and_scored() -> None:
    data = b'{"brightness": 300, "caption_n_chars": 1500, "original_width": 500, "aesthetic_score": 5.0}'
    value = metadata.read_value(data, "json", AS_4M)
    assert value == {"brightness": 255, "caption_n_chars": 999, "original_width": 500, "aesthetic_score": "4.5 to 5.5"}
    as_numbers = [{"aesthetic_score": 5.0}, {"aesthetic_score": 5.2}, {"aesthetic_score": 2.0}]
    assert metadata.constant_baseline(as_numbers, AS_4M) == {"aesthetic_score": "4.5 to 5.5"}
    assert metadata.score([{"aesthetic_score": "4.5 to 5.5"}], as_numbers[:1], AS_4M)["field_accuracy"] == 1.0


# ---- computed from other modalities


def test_picture_statistics_by_hand() -> None:
    config = settings_of("image_metadata")
    grey = image_metadata.derive({"rgb": np.full((3, 8, 8), 0.5, np.float32)}, config, {})
    assert grey == pytest.approx(
        {"brightness": 0.5, "contrast": 0, "saturation": 0, "colourfulness": 0, "entropy": 0}, abs=1e-6
    )
    halves = np.zeros((3, 8, 8), np.float32)
    halves[0, :, 4:] = 1  # black and red
    # rg 0 or 1, yb 0 or 0.5: spread (0.5, 0.25), strength (0.5, 0.25)
    expected = {
        "brightness": 0.2126 / 2, "contrast": 0.2126 / 2, "saturation": 0.5,
        "colourfulness": 1.3 * math.hypot(0.5, 0.25), "entropy": 1.0,
    }  # fmt: skip
    assert image_metadata.derive({"rgb": halves}, config, {}) == pytest.approx(expected)


def test_picture_statistics_equal_libraries() -> None:
    from PIL import Image
    from skimage.color import rgb2hsv

    rgb = np.random.default_rng(0).random((3, 16, 16)).astype(np.float32)
    derived = image_metadata.derive({"rgb": rgb}, settings_of("image_metadata"), {})
    assert derived["saturation"] == pytest.approx(rgb2hsv(rgb.transpose(1, 2, 0))[..., 1].mean(), abs=1e-6)
    levels = (np.tensordot([0.2126, 0.7152, 0.0722], rgb.astype(np.float64), 1) * 256).astype(np.uint8)
    assert derived["entropy"] == pytest.approx(Image.fromarray(levels).entropy())


def plane(normal: tuple[float, float, float], distance: float, size: int = 32) -> np.ndarray[Any, Any]:
    """Depth (size, size) of the plane n . x = d seen by a camera with 90 degrees."""
    u = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(u, u)
    return distance / (normal[0] * x + normal[1] * y + normal[2])


def test_slanted_planes_have_no_occlusion_edges_and_jumps_have() -> None:
    floor = plane((0.0, 0.8, 0.9), 1.5)
    assert floor.max() / floor.min() > 10 and not occlusion_edges(floor, 0.02).any()
    with_box = floor.copy()
    with_box[10:20, 8:24] = 0.6 * floor[10:20, 8:24]
    edges = occlusion_edges(with_box, 0.1)
    outline = np.zeros((32, 32), bool)
    outline[[9, 20], 8:24] = outline[10:20, [7, 24]] = True
    assert (edges == outline).all(), "the ring of far pixels around the box, and nothing else"
    derived = geometric_metadata.derive(
        {"depth": with_box[None].astype(np.float32), "normal": np.zeros((3, 4, 4), np.float32)},
        settings_of("geometric_metadata"),
        {},
    )
    assert derived["occlusion_score"] == outline.mean()
    ramp = geometric_metadata.derive(
        {"depth": np.linspace(1, 2, 101)[None, None]}, settings_of("geometric_metadata", inputs=["depth"]), {}
    )
    assert [ramp[f"{name}_depth"] for name in ("nearest", "median", "farthest")] == pytest.approx([1.05, 1.5, 1.95])
    assert derived["median_depth"] == pytest.approx(np.median(with_box), rel=1e-6)
    assert derived["geometric_complexity"] == 1.0


def test_geometric_complexity_by_hand() -> None:
    config = settings_of("geometric_metadata", inputs=["normal"])
    normal = np.zeros((3, 2, 2), np.float32)
    normal[2] = 1
    assert geometric_metadata.derive({"normal": normal}, config, {}) == {"geometric_complexity": 0.0}
    normal[:, 0] = [[0], [1], [0]]  # half up, half to the viewer: the mean has length sqrt(1/2)
    assert geometric_metadata.derive({"normal": normal}, config, {}) == {
        "geometric_complexity": pytest.approx(1 - 0.5**0.5)
    }


def test_visible_people_and_classes_are_counted() -> None:
    config = settings_of("semantic_metadata")
    labels = ["person", "chair", "chair", "lamp"]
    semseg = np.array([["floor", "floor", "chair"], ["void", "wall", "person"]])
    sample = {
        "boxes": [{"label": label, "box": [0, 0, 1, 1]} for label in labels],
        "semseg": np.vectorize(CLASSES.index)(semseg),
        "caption": "A person sits. It's late! Is it?",
    }
    assert semantic_metadata.derive(sample, config, SPECS) == {
        "num_people": 1, "num_objects": 4, "num_labels": 3, "object_share": 2 / 5, "walkable_share": 2 / 5,
        "num_classes": 4, "caption_characters": 32, "caption_words": 8, "caption_sentences": 3,
    }  # fmt: skip


def test_fields_without_anything_to_measure_are_omitted() -> None:
    config = settings_of("semantic_metadata")
    empty = {"boxes": [], "semseg": np.zeros((4, 4), np.int64), "caption": "..."}
    assert semantic_metadata.derive(empty, config, SPECS) == {"num_people": 0, "num_objects": 0, "num_labels": 0}
    caption_only = settings_of("semantic_metadata", inputs=["caption"])
    assert semantic_metadata.modality_spec(caption_only).derived_from == ("caption",)
    segments = settings_of("semantic_metadata", inputs=["sam_instance"])
    assert semantic_metadata.derive({"sam_instance": np.array([[0, 3], [3, 9]])}, segments, {}) == {"num_segments": 2}
    assert semantic_metadata.derive({"caption": "日本語。はい。"}, caption_only, {})["caption_sentences"] == 2
    long = "A table, 1.5 m long... It was built in 1910. Nobody sits at it!"
    assert semantic_metadata.derive({"caption": long}, caption_only, {})["caption_sentences"] == 3


def test_computed_numbers_are_clipped_to_their_range() -> None:
    config = settings_of("semantic_metadata", inputs=["boxes", "caption"])
    crowd = [{"label": "person", "box": [0, 0, 1, 1]}] * 99
    derived = semantic_metadata.derive({"boxes": crowd, "caption": "word. " * 500}, config, {})
    assert (derived["num_people"], derived["num_objects"], derived["caption_words"]) == (20, 31, 400)
    assert round_trip(load("semantic_metadata"), derived).keys() == derived.keys()


def test_class_ids_mean_what_semseg_says() -> None:
    table = {"classes": ["sky", "person", "floor"]}
    zoo = Zoo.from_tables({"modalities": {"semseg": table, "semantic_metadata": {"inputs": ["semseg"]}}})
    derived = zoo["semantic_metadata"].derive({"semseg": np.array([[0, 1], [1, 2]])})
    assert derived == {"object_share": 0.5, "walkable_share": 0.25, "num_classes": 3}
    table = {"classes": ["void", "chair", "floor-wood", "wall"]}  # has no walkable class, so the share is unknown
    zoo = Zoo.from_tables({"modalities": {"semseg": table, "semantic_metadata": {"inputs": ["semseg"]}}})
    derived = zoo["semantic_metadata"].derive({"semseg": np.array([[1, 2], [2, 3]])})
    assert derived == {"object_share": 0.25, "num_classes": 3}
