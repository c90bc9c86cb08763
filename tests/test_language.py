"""Captions and web text: exact, cut before a word, read from files, scored by their words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import PLUGINS, caption, load, round_trip, settings_of, web_text

from tokenizers_zoo.families.text import words_of
from tokenizers_zoo.spec import Crop
from zoo_language.plain import best_words, bleu_2, word_f1


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_texts_are_exact(text: str) -> None:
    for name in ("caption", "web_text"):
        assert round_trip(load(name, max_length=400), text) == text


DOCUMENT = " ".join(f"word{number} of sentence{number // 7}." for number in range(2000))


@pytest.mark.parametrize(
    ("name", "length", "text"), [("caption", 10, "a red chair in a room " * 20), ("web_text", 256, DOCUMENT)]
)
def test_long_texts_are_cut_before_a_word(name: str, length: int, text: str) -> None:
    tokenizer = load(name, max_length=length)
    kept = round_trip(tokenizer, text)
    assert text.startswith(kept) and text[len(kept)] in " ." and len(kept) > max(20, length)
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
    for text in ("", "a\n", "\n\n", "é\tb", "\ufeffb"):
        assert caption.read_value(*caption.write_value(text, at), at) == text


def test_mirrored_caption_swaps_left_and_right() -> None:
    text = "A chair is to the left of a lamp, on the right side of the right door. Left of it: right, leftovers."
    other = "A chair is to the right of a lamp, on the left side of the left door. Right of it: right, leftovers."
    assert caption.transform(text, Crop(flip=True)) == other and caption.transform(other, Crop(flip=True)) == text
    assert caption.transform(text, Crop(left=0.5, width=0.5)) == text


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("a ball on the far left and a box on the right", "a ball on the far right and a box on the left"),
        ("A sofa from the left to the far right.", "A sofa from the right to the far left."),
        ("Trees on the left and right.", "Trees on the right and left."),
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
        ("A man on left holding a bat, woman on right.", "A man on right holding a bat, woman on left."),
        ("A man, left, waved, got up, left and came back.", "A man, right, waved, got up, left and came back."),
        ("A man, left, and a dog, right with a bone", "A man, right, and a dog, left with a bone"),
        ("Two people at left and right.", "Two people at right and left."),
        ("Windows at right and left", "Windows at left and right"),
        ("Ann, left, Bob, left and right, smile", "Ann, right, Bob, right and left, smile"),
        ("A man on the left and a woman on right", "A man on the right and a woman on left"),
        ("The left and right hands, on right angles", "The right and left hands, on right angles"),
        ("A man, left, and a woman, right.", "A man, right, and a woman, left."),
        ("A cup at left and a plate at right, with a fork.", "A cup at right and a plate at left, with a fork."),
        ("He came, worn, left. All is, right and proper, well", "He came, worn, left. All is, right and proper, well"),
        ("Left: Ann, left, at right. Right: Bo; right: a dog, right, at left; one on a chair at right",
         "Right: Ann, right, at left. Left: Bo; left: a dog, left, at right; one on a chair at left"),
        ("Two walls meet at right angles. Who is right: nobody. They left, and one is right, too.",
         "Two walls meet at right angles. Who is right: nobody. They left, and one is right, too."),
        ("A path from the door on the right to the sofa on the left.",
         "A path from the door on the left to the sofa on the right."),
        ("He had nothing left to right this wrong. The right to vote, the right way, the right time.",
         "He had nothing left to right this wrong. The right to vote, the right way, the right time."),
    ],
)  # fmt: skip
def test_sides_are_swapped_all_or_none(text: str, other: str) -> None:
    assert caption.transform(text, Crop(flip=True)) == other and caption.transform(other, Crop(flip=True)) == text


def test_all_side_words_of_scenes_are_swapped() -> None:
    captions = pytest.importorskip("zoo_scenes.captions")
    for sides in (captions._SIDES, captions._ACROSS):
        for name, mirror in zip(sides, reversed(sides), strict=True):
            assert caption.transform(f"a lamp on the {name}", Crop(flip=True)) == f"a lamp on the {mirror}"
            for end, other in zip(sides, reversed(sides), strict=True):
                text = caption.transform(f"A lamp from {name} to {end}, low.", Crop(flip=True))
                assert text == f"A lamp from {mirror} to {other}, low."


def test_caption_scores_by_hand() -> None:
    assert words_of("a red-brown chair!") == ["a", "red", "brown", "chair"]
    for written in ("नमस्ते दुनिया", "cafe\u0301s cre\u0300me", "كَلْبٌ يَرْكُضُ", "می\u200cرود خانه"):
        assert words_of(f"\u2764\ufe0f{written}!") == written.split()
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
        guess = [word for word, copies in zip("abcd", bag, strict=True) for _ in range(copies)]
        assert word_f1([(guess, text) for text in texts]) <= best + 1e-12


def test_the_published_length_is_a_preset() -> None:
    assert caption.modality_spec(settings_of("caption", preset="4m")).layout.length == 256
