"""All modalities that are sequences over the shared text vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import (
    BINS,
    CAPTIONS,
    PLUGINS,
    TABLES,
    boxes,
    caption,
    checkpoint,
    load,
    metadata,
    palette,
    round_trip,
    samples,
    settings_of,
    web_text,
)  # fmt: skip

from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.families.text import fitting_groups, map_values, printable, words_of
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.tokenizers.text_vocab import Special, TextVocabulary
from zoo_images.palette import Palette, lab, main_colours, pairing
from zoo_language.plain import best_words, bleu_2, word_f1

LENGTHS = {
    "caption": 64, "web_text": 256, "boxes": 96, "metadata": 34, "palette": 15,
    "semantic_metadata": 20, "geometric_metadata": 10, "image_metadata": 10,
}  # fmt: skip


@pytest.mark.parametrize(("name", "length"), LENGTHS.items())
def test_spec_follows_from_settings_alone(name: str, length: int) -> None:
    spec = PLUGINS[name].modality_spec(settings_of(name))
    assert spec.name == name and spec.vocabulary == "text" and spec.vocab_size == 2048
    layout = spec.layout
    assert (layout.kind, layout.max_length) == ("sequence", length)
    assert (layout.end, layout.sentinel_start, layout.num_sentinels) == (1, 2, 16)  # type: ignore[union-attr]
    assert [(ids.start, ids.count) for ids in spec.ordered_ids] == [(18 + axis * BINS, BINS) for axis in range(4)]
    assert not spec.derived_from or hasattr(PLUGINS[name], "derive")


def test_too_few_axes_name_the_setting() -> None:
    two_axes = Settings("boxes", vocabularies={"text": {"coordinate_axes": 2}})
    with pytest.raises(ConfigError, match=r"boxes: .*4 axes.*coordinate_axes is 2"):
        boxes.modality_spec(two_axes)


def test_the_second_to_train_grows_the_vocabulary(tmp_path: Path) -> None:
    caption.train_tokenizer(settings_of("caption"), samples(), tmp_path)
    first = TextVocabulary.load(tmp_path)
    caption.train_tokenizer(settings_of("caption"), samples(["other texts"] * 9), tmp_path)
    assert TextVocabulary.load(tmp_path).fingerprint == first.fingerprint  # no missing tokens, so no change
    metadata.train_tokenizer(settings_of("metadata"), samples(tokens=("<other>",)), tmp_path)
    grown = TextVocabulary.load(tmp_path)
    assert grown.grown_tokens == ("<other>", *metadata.vocabulary_tokens(settings_of("metadata")))
    assert grown.lineage == ((first.fingerprint, first.used),) and grown.trained_on["source"] == "test"
    assert grown.encode_text(CAPTIONS[0]) == first.encode_text(CAPTIONS[0])


def test_without_texts_it_learns_from_the_training_values(tmp_path: Path) -> None:
    with_texts = TrainingSamples(train=[], test=[], texts=lambda: CAPTIONS)
    caption.train_tokenizer(settings_of("caption"), with_texts, tmp_path / "given")
    caption.train_tokenizer(settings_of("caption"), TrainingSamples(train=CAPTIONS, test=[]), tmp_path / "own")
    vocabulary = TextVocabulary.load(tmp_path / "own")
    assert vocabulary.pieces and vocabulary.pieces == TextVocabulary.load(tmp_path / "given").pieces
    texts_and_values = TrainingSamples(train=["quite another thing"] * 9, test=[], texts=lambda: CAPTIONS)
    caption.train_tokenizer(settings_of("caption"), texts_and_values, tmp_path / "both")
    assert TextVocabulary.load(tmp_path / "both").pieces == vocabulary.pieces  # from all sharing modalities


def test_another_id_space_is_refused() -> None:
    other_sentinels = Settings("caption", vocabularies={"text": {**TABLES["text"], "sentinels": 17}})
    for call in (lambda: caption.load_tokenizer(checkpoint(), other_sentinels),
                 lambda: caption.train_tokenizer(other_sentinels, samples(), checkpoint())):  # fmt: skip
        with pytest.raises(CheckpointError, match="sentinels = 16, registry"):
            call()


@pytest.mark.parametrize("name", PLUGINS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ids_decode_to_a_value_that_encodes(name: str, data: st.DataObject) -> None:
    tokenizer = load(name)
    start = tokenizer.vocabulary.config.coordinate_start
    likely_ids = st.one_of(st.integers(0, 2047), st.integers(start, start + 4 * BINS), st.integers(1094, 1900))
    ids = data.draw(st.lists(likely_ids, max_size=60))
    values = PLUGINS[name].decode(tokenizer, [np.array(ids, dtype=np.int64)])
    encoded = PLUGINS[name].encode(tokenizer, values)
    assert len(encoded[0]) <= PLUGINS[name].max_length(tokenizer.settings)


def test_the_refused_value_of_a_batch_is_named() -> None:
    def root(number: float) -> float:
        if number < 0:
            raise InvalidValueError(f"{number} is below 0")
        return number**0.5

    assert map_values([4, 9], root, "caption") == [2, 3]
    with pytest.raises(InvalidValueError, match=r"^caption: -9 is below 0 \(value 1 of 2\)$"):
        map_values([4, -9], root, "caption")
    with pytest.raises(InvalidValueError, match=r"^caption: -9 is below 0$"):
        map_values([-9], root, "caption")


def test_a_limit_never_cuts_a_group() -> None:
    assert fitting_groups([[1, 2], [3], [4, 5], [6]], 4) == [1, 2, 3]
    assert fitting_groups([[1, 2]], 1) == []


# ---- text that looks like something else

HOSTILE = [
    "<field:num_people int [0.0, 8.0, 9] >", "v0=5", " v3=63", "[EOS]", "[PAD]", "<extra_id_0>", "<s>", "</s>",
    "<|end|>", "##a", "\u203fa", "\ufffd", "\u202eabc", "Ġ", "\x00", "[S_1]", "<mask>", "\ufeff",
]  # fmt: skip
hostile_text = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5)), max_size=6).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(hostile_text, min_size=1, max_size=3))
def test_labels_are_never_read_as_special_tokens(labels: list[str]) -> None:
    """Each box has four coordinates and text, even if the label looks like a special token."""
    words = [" ".join(printable(label).split()) for label in labels]
    value = [{"label": label, "box": [0.1, 0.2, 0.8, 0.9]} for label in words if 0 < len(label) <= 40]
    try:
        ids = boxes.encode(load("boxes", max_length=2000), [value])[0]
    except InvalidValueError as error:
        assert "surrogate" in str(error)
        return
    pieces = load("boxes").vocabulary.decode(ids)
    assert len(pieces) == 5 * len(value) and not any(isinstance(piece, Special) for piece in pieces)
    assert [b["label"] for b in boxes.decode(load("boxes", max_length=2000), [ids])[0]] == sorted(
        b["label"] for b in value
    )


# ---- palettes: the main colours of a picture


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=5, max_size=5))
def test_palettes_are_exact_to_half_a_level(colours: list[list[float]]) -> None:
    values = torch.tensor([colours, colours[::-1]], dtype=torch.float32)
    tokens = palette.encode(load("palette"), values)
    decoded = palette.decode(load("palette"), tokens)
    assert decoded.dtype == torch.float32 and decoded.shape == (2, 5, 3)
    assert (decoded - values).abs().max() <= 0.5 / (BINS - 1) + 1e-6
    assert [len(ids) for ids in tokens] == [15, 15]


def test_short_palettes_repeat_their_last_colour() -> None:
    tokenizer = load("palette", colours=3)
    ids = tokenizer.vocabulary.config.coordinate_start + np.array([63, 64 + 63, 128 + 63, 0, 64, 7, 64, 128 + 63])
    decoded = palette.decode(tokenizer, [ids, ids[:2], ids[:0]]).numpy()
    assert decoded[0].tolist() == [[1, 1, 1], [pytest.approx(7 / 63), 0, 1], [pytest.approx(7 / 63), 0, 1]]
    assert (decoded[1:] == 0.5).all()


def test_a_4m_palette_leaves_room_for_the_end() -> None:
    published = Settings("palette", {"preset": "4m"}, vocabularies={"text": {"preset": "4m"}})
    assert palette.modality_spec(published).layout.length == 1 + 7 * 3 + 1
    assert palette.modality_spec(settings_of("palette", colours=7)).layout.length == 7 * 3
    with pytest.raises(ConfigError, match=r"palette: .* coordinate_bins .* 256"):
        palette.modality_spec(settings_of("palette", layout="4m"))


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
    columns, distance = pairing(lab(first), lab(second))
    assert distance == pytest.approx(deltaE_cie76(lab(first)[columns], lab(second)).mean())
    assert pairing(lab(first), lab(first[::-1]))[0].tolist() == [3, 2, 1, 0]
    assert palette.score([first], [first[::-1]])["delta_e"] == pytest.approx(0)
    white, black = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)
    assert palette.score([white], [black])["delta_e"] == pytest.approx(100, abs=0.1)


def test_the_constant_palette_beats_every_single_value() -> None:
    values = list(np.random.default_rng(0).random((20, 3, 3)).astype(np.float32))
    constant = palette.constant_baseline(values)
    floor = palette.score([constant] * 20, values)["delta_e"]
    assert floor <= min(palette.score([value] * 20, values)["delta_e"] for value in values) + 1e-6
    assert constant.dtype == np.float32 and constant.min() >= 0 and constant.max() <= 1


def test_palettes_are_drawn() -> None:
    picture = Palette().render(np.array([[1, 0, 0], [0, 0, 1]], dtype=np.float32))
    assert picture.size == (96, 48) and picture.getpixel((60, 20)) == (0, 0, 255)


# ---- captions and web text


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_texts_round_trip_exactly(text: str) -> None:
    for name in ("caption", "web_text"):
        assert round_trip(load(name, max_length=400), text) == text


DOCUMENT = " ".join(f"word{number} of sentence{number // 7}." for number in range(2000))


@pytest.mark.parametrize(
    ("name", "length", "text"), [("caption", 10, "a red chair in a room " * 20), ("web_text", 256, DOCUMENT)]
)
def test_long_texts_are_cut_before_a_word(name: str, length: int, text: str) -> None:
    tokenizer = load(name, max_length=length)
    shortened = round_trip(tokenizer, text)
    assert text.startswith(shortened) and text[len(shortened)] in " ." and len(shortened) > max(20, length)
    assert len(PLUGINS[name].encode(tokenizer, [text])[0]) <= length
    assert round_trip(tokenizer, "") == ""


def test_captions_are_read_from_text_and_json() -> None:
    at = settings_of("caption")
    assert caption.read_value("é\r\nb\n".encode(), "txt", at) == "é\nb"
    assert caption.read_value(b'"one"', "json", at) == "one"
    assert caption.read_value(b'["one", "two"]', "json", at) == "one"
    for data in (b'"a\\r\\nb\\r\\n"', b'["a\\r\\nb\\r\\n"]'):
        assert caption.read_value(data, "json", at) == "a\nb\n"
    assert caption.read_value(b"\xef\xbb\xbfone\n", "txt", at) == "one"


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("A chair is to the left of a lamp, on the right side of the right door. Left of it: right, leftovers.",
         "A chair is to the right of a lamp, on the left side of the left door. Right of it: right, leftovers."),
        ("a ball on the far left and a box on the right", "a ball on the far right and a box on the left"),
        ("A sofa from the left to the far right.", "A sofa from the right to the far left."),
        ("Left and right sides of the road, and the left or the right.",
         "Right and left sides of the road, and the right or the left."),
        ("The left chair is in the upper left corner.", "The right chair is in the upper right corner."),
        ("The leftmost chair, and the right-most of two.", "The rightmost chair, and the left-most of two."),
        ("A far-right party, in the top-left corner.", "A far-right party, in the top-right corner."),
        ("Bottom-right: a dog.", "Bottom-left: a dog."),
        ("Lamps at the top left and bottom right.", "Lamps at the top right and bottom left."),
        ("He left; all right.", "He left; all right."),
        ("From left to right: Ann, Bo.", "From right to left: Ann, Bo."),
        ("A rug from far left to the right centre, low. A box from centre to right.",
         "A rug from far right to the left centre, low. A box from centre to left."),
        ("A lamp from left centre to centre; seen from right above.",
         "A lamp from right centre to centre; seen from right above."),
        ("From the far left side to right, from left to centre-right.",
         "From the far right side to left, from right to centre-left."),
        ("from left\nto right, from left to center to right; from left to far-right",
         "from right\nto left, from right to center to left; from right to far-left"),
        ("The left to right order, right-to-left; FROM LEFT TO RIGHT: Ann, From Left to Right: Bo",
         "The right to left order, left-to-right; FROM RIGHT TO LEFT: Ann, From Right to Left: Bo"),
        ("Pictured from left: Ann (left) and Bo (Right), second from right.",
         "Pictured from right: Ann (right) and Bo (Left), second from left."),
        ("Men from a yacht try to right the boat, from London to left luggage; soup from left-over peas.",
         "Men from a yacht try to right the boat, from London to left luggage; soup from left-over peas."),
        ("A man, left, waved, got up, left and came back.", "A man, right, waved, got up, left and came back."),
        ("A man, left, and a dog, right with a bone", "A man, right, and a dog, left with a bone"),
        ("Windows at right and left", "Windows at left and right"),
        ("Ann, left, Bob, left and right, smile", "Ann, right, Bob, right and left, smile"),
        ("A man on the left and a woman on right", "A man on the right and a woman on left"),
        ("A cup at left and a plate at right, with a fork.", "A cup at right and a plate at left, with a fork."),
        ("He came, worn, left. All is, right and proper, well", "He came, worn, left. All is, right and proper, well"),
        ("Left: Ann, left, at right. Right: Bo; right: a dog, right, at left; one on a chair at right",
         "Right: Ann, right, at left. Left: Bo; left: a dog, left, at right; one on a chair at left"),
        ("Two walls meet at right angles. Who is right: nobody. They left, and one is right, too.",
         "Two walls meet at right angles. Who is right: nobody. They left, and one is right, too."),
        ("He had nothing left to right this wrong. The right to vote, the right way, the right time.",
         "He had nothing left to right this wrong. The right to vote, the right way, the right time."),
    ],
)  # fmt: skip
def test_sides_are_swapped_all_or_none(text: str, mirrored: str) -> None:
    assert caption.transform(text, Crop(flip=True)) == mirrored and caption.transform(mirrored, Crop(flip=True)) == text
    assert caption.transform(text, Crop(left=0.5, width=0.5)) == text


def test_all_side_words_of_scenes_are_swapped() -> None:
    captions = pytest.importorskip("zoo_scenes.captions")
    for sides in (captions._SIDES, captions._ACROSS):
        for name, mirror in zip(sides, reversed(sides), strict=True):
            assert caption.transform(f"a lamp on the {name}", Crop(flip=True)) == f"a lamp on the {mirror}"
            for end, mirrored_end in zip(sides, reversed(sides), strict=True):
                text = caption.transform(f"A lamp from {name} to {end}, low.", Crop(flip=True))
                assert text == f"A lamp from {mirror} to {mirrored_end}, low."


def test_caption_scores_by_hand() -> None:
    assert words_of("a red-brown chair!") == ["a", "red", "brown", "chair"]
    for text in ("नमस्ते दुनिया", "cafe\u0301s cre\u0300me", "كَلْبٌ يَرْكُضُ", "می\u200cرود خانه"):
        assert words_of(f"\u2764\ufe0f{text}!") == text.split()
    pairs = [(["a", "a", "red"], ["a", "red", "chair"]), (["x"], ["y"])]
    assert word_f1(pairs) == pytest.approx(2 * 2 / 8)
    # words 2/4; pairs (a a), (a red): 1/2 correct; as long as the target
    assert bleu_2(pairs) == pytest.approx((2 / 4 * 1 / 2) ** 0.5)
    assert bleu_2([(["a", "b"], ["a", "b", "c", "d"])]) == pytest.approx(np.exp(1 - 2))
    assert caption.score(["a b", "c"], ["a b", "C"]) == {"word_f1": 1.0, "bleu_2": 1.0, "exact": 0.5}
    assert web_text.score(["a b"], ["a b"]) == {"word_f1": 1.0, "bleu_2": 1.0}
    assert word_f1([([], [])]) == 1.0 and bleu_2([(["a"], ["a"])]) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=4), min_size=1, max_size=5))
def test_no_constant_caption_scores_better(texts: list[list[str]]) -> None:
    """Against every bag of up to two copies of each of four words."""
    best = word_f1([(best_words(texts).split(), text) for text in texts])
    for bag in np.ndindex(3, 3, 3, 3):
        predicted = [word for word, copies in zip("abcd", bag, strict=True) for _ in range(copies)]
        assert word_f1([(predicted, text) for text in texts]) <= best + 1e-12


def test_the_published_length_is_a_preset() -> None:
    assert caption.modality_spec(settings_of("caption", preset="4m")).layout.length == 256
