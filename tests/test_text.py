"""Sequence modalities on the shared vocabulary: captions, boxes, metadata and palettes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.families.text import TextModality, TextTokenizer, whole_groups
from tokenizers_zoo.modality import Crop
from tokenizers_zoo.vocabulary import TextVocabulary
from zoo_images.palette import Palette, central_palette, lab, main_colours, paired
from zoo_images.palette import plugin as palette
from zoo_language.caption import best_words, bleu_2, word_f1, words
from zoo_language.caption import plugin as caption
from zoo_metadata.fields import DEFAULT_FIELDS, MetadataField, parse_token
from zoo_metadata.metadata import plugin as metadata
from zoo_semantics.boxes import plugin as boxes
from zoo_semantics.matching import best_boxes, intersection_over_union, match

PLUGINS: dict[str, TextModality[Any]] = {
    "caption": caption, "boxes": boxes, "metadata": metadata, "palette": palette,
}  # fmt: skip
BINS = 64
TABLES = {"text": {"size": 2048, "sentinels": 16, "coordinate_bins": BINS, "reserve": 64}}
CAPTIONS = ["a red chair and two people in a room", "a potted plant", "a blue chair in a small room"] * 3


def settings_of(name: str, **own: Any) -> Settings:
    return Settings(name, own, vocabularies=TABLES)


def samples(texts: list[str] = CAPTIONS, tokens: tuple[str, ...] = ()) -> TrainingSamples:
    return TrainingSamples(train=[], test=[], texts=lambda: texts, special_tokens=tokens, provenance={"source": "test"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One vocabulary, trained by one modality and then grown by the others."""
    folder = tmp_path_factory.mktemp("tokenizers") / "text"
    for name, plugin in PLUGINS.items():
        assert plugin.train_tokenizer(settings_of(name), samples(), folder) == folder
    return folder


Load = Callable[..., TextTokenizer[Any]]


@pytest.fixture(scope="module")
def load(checkpoint: Path) -> Iterator[Load]:
    yield lambda name, **own: PLUGINS[name].load_tokenizer(checkpoint, settings_of(name, **own))


def round_trip(tokenizer: TextTokenizer[Any], value: Any, name: str | None = None) -> Any:
    plugin = PLUGINS[name or tokenizer.name]
    tokens = plugin.encode(tokenizer, [value])
    assert tokens[0].dtype == np.int64 and tokens[0].ndim == 1
    return plugin.decode(tokenizer, tokens)[0]


# ---- the family


def test_importing_plugins_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'tokenizers', 'PIL', 'scipy', 'skimage', 'sklearn'}"
    modules = "zoo_language.caption, zoo_semantics.boxes, zoo_metadata.metadata, zoo_images.palette"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "length"), [("caption", 64), ("boxes", 96), ("metadata", 34), ("palette", 15)])
def test_spec_follows_from_settings_alone(name: str, length: int) -> None:
    spec = PLUGINS[name].modality_spec(settings_of(name))
    assert spec.name == name and spec.vocabulary == "text" and spec.vocab_size == 2048
    layout = spec.layout
    assert (layout.kind, layout.max_length) == ("sequence", length)
    assert (layout.end, layout.sentinel_start, layout.num_sentinels) == (1, 2, 16)  # type: ignore[union-attr]
    assert bool(spec.derived_from) == hasattr(PLUGINS[name], "derive")


def test_too_few_axes_are_an_error_that_says_what_to_set() -> None:
    few = Settings("boxes", vocabularies={"text": {"coordinate_axes": 2}})
    with pytest.raises(ConfigError, match=r"boxes: writes coordinates on 4 axes.*coordinate_axes is 2; set it to 4"):
        boxes.modality_spec(few)


def test_the_second_to_train_grows_the_vocabulary(tmp_path: Path) -> None:
    caption.train_tokenizer(settings_of("caption"), samples(), tmp_path)
    first = TextVocabulary.load(tmp_path)
    caption.train_tokenizer(settings_of("caption"), samples(["other texts"] * 9), tmp_path)
    assert TextVocabulary.load(tmp_path).fingerprint == first.fingerprint  # nothing missing, nothing touched
    metadata.train_tokenizer(settings_of("metadata"), samples(tokens=("<other>",)), tmp_path)
    grown = TextVocabulary.load(tmp_path)
    assert grown.grown_tokens == ("<other>", *metadata.vocabulary_tokens(settings_of("metadata")))
    assert grown.lineage == ((first.fingerprint, first.used),) and grown.trained_on == {"source": "test"}
    assert grown.encode_text(CAPTIONS[0]) == first.encode_text(CAPTIONS[0])


def test_another_id_space_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = Settings("caption", vocabularies={"text": {**TABLES["text"], "sentinels": 17}})
    for call in (lambda: caption.load_tokenizer(checkpoint, other),
                 lambda: caption.train_tokenizer(other, samples(), checkpoint)):  # fmt: skip
        with pytest.raises(CheckpointError, match="sentinels = 16, registry"):
            call()
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        caption.load_tokenizer(tmp_path, settings_of("caption"))
    with pytest.raises(ConfigError, match="unknown key"):
        caption.train_tokenizer(settings_of("caption", tokenizer={"steps": 3}), samples(), tmp_path)


def test_a_missing_special_token_says_to_train_again(tmp_path: Path) -> None:
    caption.train_tokenizer(settings_of("caption"), samples(), tmp_path)
    tokenizer = metadata.load_tokenizer(tmp_path, settings_of("metadata"))
    with pytest.raises(InvalidValueError, match="metadata: the vocabulary has no special token '<field:num_people"):
        metadata.encode(tokenizer, [{"num_people": 1}])


@pytest.mark.parametrize("name", PLUGINS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ids_decode_to_a_value_that_encodes(load: Load, name: str, data: st.DataObject) -> None:
    tokenizer = load(name)
    start = tokenizer.vocabulary.config.coordinate_start
    useful = st.one_of(st.integers(0, 2047), st.integers(start, start + 4 * BINS), st.integers(1094, 1900))
    ids = data.draw(st.lists(useful, max_size=60))
    values = PLUGINS[name].decode(tokenizer, [np.array(ids, dtype=np.int64)])
    again = PLUGINS[name].encode(tokenizer, values)
    assert len(again[0]) <= PLUGINS[name].max_length(tokenizer.settings)


def test_whole_groups_never_cuts_one() -> None:
    assert whole_groups([[1, 2], [3], [4, 5], [6]], 4) == [1, 2, 3]
    assert whole_groups([[1, 2]], 1) == []


# ---- captions


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_captions_are_exact(load: Load, text: str) -> None:
    assert round_trip(load("caption", max_length=400), text) == text


def test_long_captions_are_cut_before_a_word(load: Load) -> None:
    text = "a red chair in a room " * 20
    kept = round_trip(load("caption", max_length=10), text)
    assert text.startswith(kept) and text[len(kept)] == " " and len(kept) > 20


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x" * 10_000_000, "text of 10000000 characters; at most 2000"),
        ("bell \x07", r"control character U\+0007 at character 5"),
        ("next\x85line", r"control character U\+0085"),
        ("\ud800", "lone surrogate"),
        (3, "expected a text, got int"),
    ],
)
def test_what_is_no_caption_is_refused_in_one_line(load: Load, value: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message) as error:
        caption.encode(load("caption"), ["fine", value])
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
    assert str(error.value).startswith("caption: ") and str(error.value).endswith("(value 1 of 2)")


def test_captions_are_read_from_text_and_json() -> None:
    at = settings_of("caption")
    assert caption.read_value("é\r\nb\n".encode(), "txt", at) == "é\nb"
    assert caption.read_value(b'"one"', "json", at) == "one"
    assert caption.read_value(b'["one", "two"]', "json", at) == "one"
    for text in ("", "a\n", "\n\n", "é\tb"):
        assert caption.read_value(*caption.write_value(text, at), at) == text
    for data, extension in ((b"\xff", "txt"), (b"[]", "json"), (b"{", "json"), (b"", "png"), (b"NaN", "json")):
        with pytest.raises(InvalidValueError):
            caption.read_value(data, extension, at)


def test_a_mirrored_caption_exchanges_the_sides() -> None:
    text = "A chair is to the left of a lamp, on the right side of the right door. Left of it: right, leftovers."
    other = "A chair is to the right of a lamp, on the left side of the left door. Right of it: right, leftovers."
    assert caption.transform(text, Crop(flip=True)) == other and caption.transform(other, Crop(flip=True)) == text
    assert caption.transform(text, Crop(left=0.5, width=0.5)) == text


def test_caption_scores_by_hand() -> None:
    assert words("A red-brown Chair!") == ["a", "red", "brown", "chair"]
    pairs = [(["a", "a", "red"], ["a", "red", "chair"]), (["x"], ["y"])]
    assert word_f1(pairs) == pytest.approx(2 * 2 / 8)
    # words 2/4, pairs (a a), (a red) of which 1/2 is right; as long as the target
    assert bleu_2(pairs) == pytest.approx((2 / 4 * 1 / 2) ** 0.5)
    assert bleu_2([(["a", "b"], ["a", "b", "c", "d"])]) == pytest.approx(np.exp(1 - 2))
    assert caption.score(["a b", "c"], ["a b", "C"]) == {"word_f1": 1.0, "bleu_2": 1.0, "exact": 0.5}
    assert word_f1([([], [])]) == 1.0 and bleu_2([(["a"], ["a"])]) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=4), min_size=1, max_size=5))
def test_no_constant_caption_scores_better(texts: list[list[str]]) -> None:
    """Against every bag of up to two copies of each of four words."""
    best = word_f1([(best_words(texts).split(), text) for text in texts])
    for bag in np.ndindex(3, 3, 3, 3):
        guess = [word for word, copies in zip("abcd", bag, strict=True) for _ in range(copies)]
        assert word_f1([(guess, text) for text in texts]) <= best + 1e-12


# ---- boxes


def box(label: str, *edges: float) -> dict[str, Any]:
    return {"label": label, "box": list(edges)}


side = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda pair: pair[0] < pair[1])
label = st.sampled_from(["chair", "potted plant", "Stühl", "v0=1", "[EOS]", "日本"])
any_box = st.builds(lambda name, x, y: box(name, x[0], y[0], x[1], y[1]), label, side, side)


@settings(max_examples=100, deadline=None)
@given(st.lists(any_box, max_size=5))
def test_boxes_are_exact_to_half_a_level(load: Load, value: list[dict[str, Any]]) -> None:
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


def test_boxes_are_the_four_coordinates_and_the_label(load: Load) -> None:
    tokenizer = load("boxes")
    pieces = tokenizer.vocabulary.decode(boxes.encode(tokenizer, [[box("chair", 0, 1 / 63, 0.5, 1)]])[0])
    assert [str(piece) for piece in pieces] == ["v0=0", "v1=1", "v2=32", "v3=63", " chair"]


def test_the_smallest_boxes_are_dropped(load: Load) -> None:
    value = [box("chair", 0, 0, 0.1 * k, 0.1 * k) for k in (3, 1, 4, 2)]
    kept = round_trip(load("boxes", max_boxes=3), value)
    assert [round(b["box"][2], 1) for b in kept] == [0.4, 0.3, 0.2]
    assert len(round_trip(load("boxes", max_length=12), value)) == 2
    assert round_trip(load("boxes"), []) == []


def test_what_is_malformed_is_skipped(load: Load) -> None:
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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "expected a list of boxes, got dict"),
        ([3], "box 0: expected a table"),
        ([box("a", 0, 0, 1, 1), {"label": "a"}], "box 1: expected a table .* got keys label"),
        ([box("", 0, 0, 1, 1)], "label: expected words"),
        ([box(" a", 0, 0, 1, 1)], "label: expected words"),
        ([box("a\x07", 0, 0, 1, 1)], "label: expected up to 100 printable"),
        ([box("a" * 101, 0, 0, 1, 1)], "label: expected up to 100 printable"),
        ([box("a", 0, 0, 64, 64)], r"fractions of width and height in \[0, 1\], got \[0, 0, 64, 64\]"),
        ([box("a", 0, 0, float("nan"), 1)], "fractions"),
        ([box("a", 0, 0, True, 1)], "fractions"),
        ([box("a", 0, 0, 1)], "fractions"),
        ([box("a", 0.5, 0, 0.5, 1)], "expected xmin < xmax"),
    ],
)
def test_what_is_no_box_is_refused(load: Load, value: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=f"^boxes: .*{message}"):
        boxes.encode(load("boxes"), [value])


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
    assert np.allclose(intersection_over_union(first, second), expected)


def test_box_scores_by_hand() -> None:
    target = [[box("a", 0, 0, 0.5, 0.5), box("b", 0.5, 0.5, 1, 1)], []]
    predicted = [[box("a", 0, 0, 0.5, 0.4), box("a", 0, 0, 0.5, 0.5), box("b", 0, 0, 0.1, 0.1)], [box("a", 0, 0, 1, 1)]]
    assert match(predicted[0], target[0]) == [1.0]  # the second "a" finds nothing left
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
    floor = boxes.score([best_boxes(values)] * 40, values)["f1"]
    assert floor >= max(boxes.score([value] * 40, values)["f1"] for value in values)
    assert {b["label"] for b in best_boxes(values)} == set(places)
    assert best_boxes([[], []]) == []


def test_boxes_are_drawn() -> None:
    picture = boxes.render([box("armchair", 0.25, 0.25, 1, 1)])
    assert picture.size == (256, 256)
    inside, edge = picture.getpixel((150, 150)), picture.getpixel((64, 150))
    assert inside == picture.getpixel((5, 5)) != edge


# ---- metadata


field_values = {
    name: st.integers(int(declared.low), int(declared.high))
    if declared.kind == "int"
    else st.floats(declared.low, declared.high)
    for name, declared in DEFAULT_FIELDS.items()
}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional=field_values))
def test_metadata_is_exact_to_half_a_level(load: Load, value: dict[str, float]) -> None:
    decoded = round_trip(load("metadata"), value)
    assert decoded.keys() == value.keys()
    for name, number in value.items():
        declared = DEFAULT_FIELDS[name]
        half = 0 if declared.kind == "int" else 0.5 * (declared.high - declared.low) / (BINS - 1)
        assert abs(decoded[name] - number) <= half + 1e-9


def own_fields(**more: Any) -> dict[str, Any]:
    fields = {"weather": {"kind": "choice", "choices": ["sun", "rain, or <hail>"]}, "speed": {"high": 40, "bins": 5}}
    return {"fields": fields, "default_fields": False, **more}


def test_fields_of_the_registry(tmp_path: Path) -> None:
    at = settings_of("metadata", **own_fields(unknown="drop"))
    assert metadata.modality_spec(at).layout.length == 4
    metadata.train_tokenizer(at, samples(), tmp_path)
    tokenizer = metadata.load_tokenizer(tmp_path, at)
    value = {"speed": 17, "other": 1, "weather": "rain, or <hail>"}
    assert round_trip(tokenizer, value) == {"weather": "rain, or <hail>", "speed": 20.0}
    assert round_trip(tokenizer, {"speed": 14.9}) == {"speed": 10.0}


def test_a_changed_range_is_another_token_and_old_tokens_keep_their_meaning(tmp_path: Path) -> None:
    before = settings_of("metadata", fields={"speed": {"high": 10}})
    after = settings_of("metadata", fields={"speed": {"high": 20}})
    metadata.train_tokenizer(before, samples(), tmp_path)
    old = metadata.encode(metadata.load_tokenizer(tmp_path, before), [{"speed": 10}])
    metadata.train_tokenizer(after, samples(), tmp_path)
    tokenizer = metadata.load_tokenizer(tmp_path, after)
    assert metadata.decode(tokenizer, old) == [{"speed": 10.0}]
    assert round_trip(tokenizer, {"speed": 10}) == {"speed": pytest.approx(10, abs=10 / 63)}
    assert metadata.encode(tokenizer, [{"speed": 10}])[0][0] != old[0][0]


@pytest.mark.parametrize(
    "declared",
    [
        *DEFAULT_FIELDS.values(),
        MetadataField(kind="choice", choices=("a]", 'b"', "<c>")),
        MetadataField(high=1e-7, bins=9),
    ],
)
def test_a_field_token_holds_the_declaration(declared: MetadataField) -> None:
    parsed = parse_token(declared.token("some_field", BINS))
    assert parsed is not None and parsed[0] == "some_field"
    assert [parsed[1].value(k, BINS) for k in (0, 1, 99)] == [declared.value(k, BINS) for k in (0, 1, 99)]
    assert (parsed[1].kind, parsed[1].unit) == (declared.kind, declared.unit)
    assert parse_token("<other>") is None and parse_token("<field:x float [1] m>") is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a table of fields, got list"),
        ({"camera_hight": 1}, "field 'camera_hight' is not declared; declared: camera_height"),
        ({"camera_height": 3.5}, "field camera_height: 3.5 is outside its range, a number from 0 to 3 m"),
        ({"camera_height": float("nan")}, "field camera_height: nan is outside"),
        ({"camera_height": "tall"}, "field camera_height: expected a number from 0 to 3 m, got str 'tall'"),
        ({"camera_height": True}, "field camera_height: .* got bool True"),
        ({"num_people": 1.5}, "field num_people: expected a whole number from 0 to 8, got 1.5"),
    ],
)
def test_wrong_metadata_is_refused(load: Load, value: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=f"^metadata: {message}"):
        metadata.encode(load("metadata"), [value])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"fields": {"x": {"low": 2}}}, r"\[?.*high must be a number greater than low"),
        ({"fields": {"x": {"kind": "choice"}}}, "choices: expected for kind 'choice'"),
        ({"fields": {"x": {"kind": "int", "low": 0.5}}}, "whole numbers"),
        ({"fields": {"x": {"bins": 1}}}, "bins: expected 2 or more"),
        ({"fields": {"x": {"unit": "m s"}}}, "unit: expected one word"),
        ({"fields": {"x": {"hihg": 2}}}, "did you mean high"),
        ({"fields": {"X y": {}}}, "lower-case"),
        ({"default_fields": False}, "at least one is needed"),
        ({"fields": {"x": {"kind": "int", "high": 64}}}, "field x has 65 levels.*coordinate_bins is 64"),
    ],
)
def test_unsound_fields_are_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metadata.modality_spec(settings_of("metadata", **own))


def test_numbers_may_leave_the_range_by_rounding_only(load: Load) -> None:
    assert round_trip(load("metadata"), {"walkability": 1 + 1e-9}) == {"walkability": 1.0}
    with pytest.raises(InvalidValueError, match="outside its range"):
        metadata.encode(load("metadata"), [{"walkability": 1.001}])


def test_metadata_scores_by_hand() -> None:
    at = settings_of("metadata")
    target = [{"camera_height": 1.5, "num_people": 2}, {"brightness": 0.5}, {}]
    predicted = [{"camera_height": 1.8}, {"brightness": 0.51, "room_width": 3}, {"brightness": 1}]
    scores = metadata.score(predicted, target, at)
    assert scores == pytest.approx({"range_error": (0.1 + 1 + 0.01) / 3, "field_accuracy": 1 / 3})
    assert metadata.score(target, target, at) == {"range_error": 0.0, "field_accuracy": 1.0}
    assert metadata.score([{}], [{}], at) == {"range_error": 0.0, "field_accuracy": 1.0}


def test_the_constant_metadata_is_the_median_and_the_mode() -> None:
    at = settings_of("metadata", **own_fields())
    values = [{"speed": speed, "weather": "sun"} for speed in (1, 2, 30)] + [{"weather": "rain, or <hail>"}]
    assert metadata.constant_answer(values, at) == {"weather": "sun", "speed": 2}


def test_metadata_is_shown_with_units_and_stored_as_json() -> None:
    at = settings_of("metadata")
    assert metadata.render({"camera_height": 1.23456, "num_people": 2}, at) == "camera_height 1.23 m\nnum_people 2"
    data, extension = metadata.write_value({"num_people": 2}, at)
    assert metadata.read_value(data, extension, at) == {"num_people": 2}
    with pytest.raises(InvalidValueError, match="outside its range"):
        metadata.read_value(b'{"num_people": 9}', "json", at)


# ---- palettes


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=5, max_size=5))
def test_palettes_are_exact_to_half_a_level(load: Load, colours: list[list[float]]) -> None:
    import torch

    values = torch.tensor([colours, colours[::-1]], dtype=torch.float32)
    tokens = palette.encode(load("palette"), values)
    decoded = palette.decode(load("palette"), tokens)
    assert decoded.dtype == torch.float32 and decoded.shape == (2, 5, 3)
    assert (decoded - values).abs().max() <= 0.5 / (BINS - 1) + 1e-6
    assert [len(ids) for ids in tokens] == [15, 15]


def test_short_palettes_repeat_their_last_colour(load: Load) -> None:
    tokenizer = load("palette", colours=3)
    ids = tokenizer.vocabulary.config.coordinate_start + np.array([63, 64 + 63, 128 + 63, 0, 64, 7, 64, 128 + 63])
    decoded = palette.decode(tokenizer, [ids, ids[:2], ids[:0]]).numpy()
    assert decoded[0].tolist() == [[1, 1, 1], [pytest.approx(7 / 63), 0, 1], [pytest.approx(7 / 63), 0, 1]]
    assert (decoded[1:] == 0.5).all()


def test_main_colours_of_a_made_picture() -> None:
    picture = np.zeros((3, 64, 64), dtype=np.float32)
    picture[0, :, :40] = 0.75
    picture[1, :, 56:] = 1.0
    given_colours = [[0.75, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert main_colours(picture, 3).tolist() == given_colours
    assert main_colours(picture, 5).tolist() == [*given_colours, [0, 1, 0], [0, 1, 0]]
    noise = np.random.default_rng(0).normal(0, 0.01, picture.shape)
    noisy = main_colours(np.clip(picture + noise, 0, 1).astype(np.float32), 3)
    assert np.abs(noisy - given_colours).max() < 0.02
    derived = palette.derive({"rgb": picture}, settings_of("palette", colours=2))
    assert derived.shape == (2, 3) and derived.dtype == np.float32 and (derived == main_colours(picture, 2)).all()


def test_colour_differences_against_scikit_image() -> None:
    from skimage.color import deltaE_cie76

    draw = np.random.default_rng(0)
    first, second = draw.random((2, 4, 3)).astype(np.float32)
    columns, distance = paired(lab(first), lab(second))
    assert distance == pytest.approx(deltaE_cie76(lab(first)[columns], lab(second)).mean())
    assert paired(lab(first), lab(first[::-1]))[0].tolist() == [3, 2, 1, 0]
    scores = palette.score([first], [first[::-1]])
    assert scores["delta_e"] == pytest.approx(0) and scores["first_delta_e"] > 1
    white, black = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)
    assert palette.score([white], [black])["delta_e"] == pytest.approx(100, abs=0.1)


def test_the_constant_palette_beats_every_single_value() -> None:
    values = list(np.random.default_rng(0).random((20, 3, 3)).astype(np.float32))
    constant = central_palette(values)
    floor = palette.score([constant] * 20, values)["delta_e"]
    assert floor <= min(palette.score([value] * 20, values)["delta_e"] for value in values) + 1e-6
    assert constant.dtype == np.float32 and constant.min() >= 0 and constant.max() <= 1


def test_palettes_are_drawn() -> None:
    picture = Palette().render(np.array([[1, 0, 0], [0, 0, 1]], dtype=np.float32))
    assert picture.size == (96, 48) and picture.getpixel((60, 20)) == (0, 0, 255)
