"""The shared text vocabulary: exact round trips, stable ids, reproducible training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_plugins import snapshot

from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.files.run_folder import FolderError
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.io import read_table, write_table
from tokenizers_zoo.tokenizers.text_vocab import (
    PAD,
    Coordinate,
    Special,
    TextVocabulary,
    VocabularyConfig,
    coordinate_fraction,
    coordinate_level,
)
from tokenizers_zoo.tokenizers.wordpieces import ALPHABET, CONTINUES, LONGEST_WORD, byte_characters

CONFIG = VocabularyConfig(size=2048, sentinels=8, coordinate_axes=4, coordinate_bins=64)
TEXTS = [
    "a room with a red chair and two people",
    "a small room with a blue sofa, a lamp and one person waving",
    "zwei Stühle und ein Tisch: 日本語も",
    "[EOS] and v0=5 and <field:x> are only words here",
] * 4
VOCABULARY = TextVocabulary.train(CONFIG, TEXTS, ["<a>", "<b>"])
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def test_ids_follow_the_documented_order() -> None:
    assert (PAD, CONFIG.end, CONFIG.sentinel_start, CONFIG.coordinate_start) == (0, 1, 2, 10)
    assert CONFIG.special_start == 10 + 4 * 64
    ids = VOCABULARY.encode([Coordinate(0, 0), Coordinate(1, 0), Coordinate(3, 63), Special("<a>"), Special("<b>")])
    assert ids == [10, 10 + 64, 265, 266, 267]
    first_text = 268
    assert VOCABULARY.encode_text(ALPHABET[0]) == [first_text]
    assert [list(range(ids.start, ids.stop)) for ids in CONFIG.ordered_ids] == [
        VOCABULARY.encode([Coordinate(axis, level) for level in range(64)]) for axis in range(4)
    ]
    assert VOCABULARY.used == first_text + 512 + len(VOCABULARY.pieces)
    assert len(VOCABULARY.pieces) > 20


SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Größenwahn, Übermut und Äpfel – «ça va»?",
    "أَبْجَدِيَّة عَرَبِيَّة كاملة",
    "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "ภาษาไทยไม่มีช่องว่าง",
    "色は匂へど 散りぬるを",
    "한글은 소리글자이다",
    "𐌰𐌱𐌲 𓀀𓁐 𝔘𝔫𝔦",
    "e\u0301 и\u0306 \u200d\u2066x\u2069",
]


AWKWARD = [
    "", " ", "\n\n \t", "a" * 5000, "é" * 333, "x" * (LONGEST_WORD + 1), "\x00\x7f\x85", "\u203f##",
    "🧑‍🦽‍➡️ " * 20, "ﬁ İ ǆ",
    "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000),
]  # fmt: skip
JAPANESE = "色は匂へど散りぬるを我が世誰ぞ常ならむ有為の奥山今日越えて浅き夢見じ酔ひもせず、日本語の文章はとても長い。"
PLAIN, OF_SCRIPTS = TextVocabulary(CONFIG), TextVocabulary.train(CONFIG, [*SENTENCES, JAPANESE, JAPANESE[3:]] * 3)


@pytest.mark.parametrize("text", [*SENTENCES, *AWKWARD], ids=len)
def test_every_script_round_trips_and_is_cut_exactly(text: str) -> None:
    for vocabulary in (VOCABULARY, PLAIN, OF_SCRIPTS):
        assert vocabulary.decode_text(vocabulary.encode_text(text)) == text
        assert all(text.startswith(vocabulary.decode_text(vocabulary.encode_text(text, n))) for n in range(0, 40, 7))
    assert len(OF_SCRIPTS.encode_text(text)) < len(PLAIN.encode_text(text)) or text in AWKWARD


@settings(max_examples=100, deadline=None)
@given(st.one_of(ANY_TEXT, st.sampled_from(["[EOS]", "[PAD]", "v0=5", " v3=63", "<a>", "<b>", "<a><b>", "pad end"])))
def test_text_never_produces_a_token_that_is_not_text(text: str) -> None:
    ids = VOCABULARY.encode_text(text)
    assert all(268 <= index < 268 + 512 + len(VOCABULARY.pieces) for index in ids)
    assert all(isinstance(piece, str) for piece in VOCABULARY.decode(ids))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, CONFIG.size - 1), max_size=40))
def test_any_ids_decode(ids: list[int]) -> None:
    pieces = VOCABULARY.decode(ids)
    decoded_twice = VOCABULARY.decode(VOCABULARY.encode(pieces))
    assert decoded_twice == pieces
    assert not any(isinstance(a, str) and isinstance(b, str) for a, b in pairwise(pieces))


def test_decode_stops_at_the_end_and_skips_meaningless_ids() -> None:
    word = VOCABULARY.encode_text("chair")
    ids = [PAD, *word, CONFIG.sentinel_start, CONFIG.size - 1, Special, CONFIG.end, *word]
    ids[ids.index(Special)] = VOCABULARY.encode([Special("<b>")])[0]
    assert VOCABULARY.decode(ids) == ["chair", Special("<b>")]
    broken = VOCABULARY.encode_text("é")[:1]  # the first byte of two
    assert PLAIN.decode_text(PLAIN.encode_text("é")[:1]) == "\ufffd"
    assert isinstance(VOCABULARY.decode_text(broken), str)


def test_lone_surrogates_are_refused_in_one_line() -> None:
    with pytest.raises(InvalidValueError, match=r"lone surrogate U\+D800 at character 2: [^\n]*$"):
        VOCABULARY.encode_text("ab\ud800")
    with pytest.raises(InvalidValueError, match="lone surrogate"):
        TextVocabulary.train(CONFIG, ["\udfff"])


def test_text_is_cut_before_a_word() -> None:
    """Without pieces, " chair" takes six ids."""
    for text, limit, cut in (("a red chair", 9, "a red"), ("a red chair", 5, "a red"), ("extraordinary", 5, "extra"),
                              ("ééé", 3, "é")):  # fmt: skip
        assert PLAIN.decode_text(PLAIN.encode_text(text, limit)) == cut


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.sampled_from([*SENTENCES, JAPANESE]),
        st.text(st.sampled_from("".join(SENTENCES)), max_size=60),
        st.lists(st.sampled_from(["it's", "'ll", "l", "x" * 9, "é", "日本", "'", "'re", "。"]), max_size=30).map(
            "".join
        ),
    ),
    st.integers(0, 25),
    st.integers(0, 25),
)
def test_without_spaces_the_longest_beginning_is_kept(text: str, start: int, limit: int) -> None:
    text = "".join(text.split())[start:]
    for vocabulary in (OF_SCRIPTS, VOCABULARY, PLAIN):
        beginnings = (text[:end] for end in range(len(text), -1, -1))
        longest = next(beginning for beginning in beginnings if len(vocabulary.encode_text(beginning)) <= limit)
        ids = vocabulary.encode_text(text, limit)
        assert len(ids) <= limit and vocabulary.decode_text(ids) == longest


def test_bytes_that_cross_characters_leave_something() -> None:
    """The only piece holds a character's last bytes and the next character's first byte."""
    first, *last_bytes = (byte_characters()[byte] for byte in "日".encode())
    crossing = TextVocabulary(CONFIG, pieces=(CONTINUES + "".join([*last_bytes, first]),))
    text = "日" * 100
    assert [len(crossing.decode_text(crossing.encode_text(text, limit))) for limit in (2, 3, 4, 10)] == [0, 1, 2, 8]
    assert len(crossing.decode_text(crossing.encode_text(text, 64))) > 50
    mixed = crossing.encode_text("a " + text, 30)
    assert "日日" in crossing.decode_text(mixed) and len(mixed) <= 30


@settings(max_examples=100)
@given(st.floats(0, 1), st.integers(2, 1000))
def test_coordinates_are_exact_to_half_a_level(fraction: float, bins: int) -> None:
    level = coordinate_level(fraction, bins)
    assert 0 <= level < bins
    assert abs(coordinate_fraction(level, bins) - fraction) <= 0.5 / (bins - 1) + 1e-12


def test_coordinates_outside_are_clipped_or_refused() -> None:
    assert [coordinate_level(x, 5) for x in (-1, 0, 0.5, 1, 2)] == [0, 0, 2, 4, 4]
    with pytest.raises(InvalidValueError, match="axes v0 to v3 with levels 0 to 63"):
        VOCABULARY.encode([Coordinate(0, 64)])
    with pytest.raises(InvalidValueError, match="no special token '<c>'"):
        VOCABULARY.encode([Special("<c>")])


def test_growing_keeps_every_id(tmp_path: Path) -> None:
    first = VOCABULARY.save(tmp_path / "a")
    grown = VOCABULARY.grow(["<b>", "<c>", "<d>", "<c>"])
    assert grown.grown_tokens == ("<c>", "<d>") and grown.used == VOCABULARY.used + 2
    all_ids = range(VOCABULARY.used)
    assert [grown.decode([i]) for i in all_ids] == [VOCABULARY.decode([i]) for i in all_ids]
    assert grown.encode([Special("<c>"), Special("<d>")]) == [VOCABULARY.used, VOCABULARY.used + 1]
    assert grown.encode_text(TEXTS[0]) == VOCABULARY.encode_text(TEXTS[0])
    second = grown.save(tmp_path / "b")
    grown_twice = TextVocabulary.load(tmp_path / "b").grow(["<e>"])
    third = grown_twice.save(tmp_path / "c")
    loaded = TextVocabulary.load(tmp_path / "c")
    used = VOCABULARY.used
    assert loaded.compatible_fingerprints == {first: used, second: used + 2, third: used + 3}
    assert loaded.all_special_tokens == ("<a>", "<b>", "<c>", "<d>", "<e>")
    assert loaded.grow(["<e>", "<a>"]) is loaded


def test_the_parts_cover_all_ids() -> None:
    grown = VOCABULARY.grow(["<c>"])
    ends = [first + count for first, count in grown.parts.values()]
    assert [first for first, _ in grown.parts.values()] == [0, *ends[:-1]] and ends[-1] == CONFIG.size
    assert grown.parts["special tokens"] == (266, 2) and grown.parts["special tokens grown later"][1] == 1
    assert grown.parts["free"] == (grown.used, CONFIG.size - grown.used)
    assert grown.decode([grown.parts["special tokens grown later"][0]]) == [Special("<c>")]


def test_an_interrupted_growth_leaves_the_old_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = VOCABULARY.save(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenizers_zoo.files.checkpoint.table_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TextVocabulary.grow_folder(tmp_path, CONFIG, ["<c>"])
    monkeypatch.undo()
    assert TextVocabulary.load(tmp_path).fingerprint == first
    old, new = TextVocabulary.grow_folder(tmp_path, CONFIG, ["<c>"])
    assert (old.fingerprint, new.grown_tokens) == (first, ("<c>",))
    grown = snapshot(tmp_path)
    old, new = TextVocabulary.grow_folder(tmp_path, CONFIG, ["<a>", "<c>"])
    assert new is old and snapshot(tmp_path) == grown


def test_only_one_process_trains_or_grows_a_vocabulary(tmp_path: Path) -> None:
    refused = []

    def names_while_locked(names: list[str]) -> Iterator[str]:
        """Yield names; before that, check that training is refused while the lock is held."""
        with ThreadPoolExecutor() as pool, pytest.raises(FolderError, match="another process"):
            pool.submit(TextVocabulary.train_folder, tmp_path, CONFIG, lambda: TEXTS, ["<other>"], {}).result()
        refused.append("train")
        yield from names

    TextVocabulary.train_folder(tmp_path, CONFIG, lambda: names_while_locked(TEXTS), ["<a>"], {})
    TextVocabulary.grow_folder(tmp_path, CONFIG, names_while_locked(["<b>"]))
    assert refused == ["train", "train"]
    assert TextVocabulary.load(tmp_path).all_special_tokens == ("<a>", "<b>")


def test_a_full_vocabulary_names_the_setting_to_raise() -> None:
    small = VocabularyConfig(size=784, sentinels=4, coordinate_axes=4, coordinate_bins=64, reserve=0)
    full = TextVocabulary.train(small, TEXTS)
    assert full.used == small.size and len(full.pieces) == 784 - 262 - 512
    with pytest.raises(ConfigError, match=r"needs 785 ids and has 784: raise `size`"):
        full.grow(["<one too many>"])
    assert full.grow(["<fits>"], size=785).decode([784]) == [Special("<fits>")]
    assert TextVocabulary.train(replace(CONFIG, size=1100, reserve=300), TEXTS, ["<a>"]).used == 800


def test_the_published_vocabulary_is_a_preset() -> None:
    def config(**table: object) -> VocabularyConfig:
        return Settings("m", vocabularies={"text": table}).vocabulary("text", VocabularyConfig)

    published = config(preset="4m")
    # [EOS] is 3, [S_0] is 4, v0=0 is 204 and v3=999 is 4203 in the published file; spans are marked from [S_1] on.
    assert (published.size, published.sentinels, published.end, published.sentinel_start) == (30_000, 199, 3, 5)
    vocabulary = TextVocabulary.train(published, TEXTS)
    assert vocabulary.encode([Coordinate(0, 0), Coordinate(3, 999)]) == [204, 4203]
    assert vocabulary.decode([204, 3, 204]) == [Coordinate(0, 0)]
    assert config(preset="4m", size=31_000).size == 31_000
    with pytest.raises(ConfigError, match=r"\[vocabularies.text\] preset: .*'big'"):
        config(preset="big")


def test_loading_takes_the_configured_size_and_refuses_other_ids(tmp_path: Path) -> None:
    trained = TextVocabulary.train(CONFIG, TEXTS, ["<a>", "<b>"], {"source": "tests"})
    fingerprint, loaded = trained.save(tmp_path), TextVocabulary.load(tmp_path)
    assert (loaded.config, loaded.pieces, loaded.special_tokens) == (CONFIG, trained.pieces, ("<a>", "<b>"))
    assert loaded.fingerprint == fingerprint and loaded.trained_on == {"source": "tests"}
    assert loaded.encode_text(TEXTS[2]) == trained.encode_text(TEXTS[2])
    assert TextVocabulary.load(tmp_path, replace(CONFIG, size=9000)).config.size == 9000
    for name in ("coordinate_bins", "sentinels"):
        count = getattr(CONFIG, name)
        with pytest.raises(CheckpointError, match=f"trained with {name} = {count}, registry"):
            TextVocabulary.load(tmp_path, replace(CONFIG, **{name: count + 1}))
    with pytest.raises(CheckpointError, match=f"needs {VOCABULARY.used} ids and has 800"):
        TextVocabulary.load(tmp_path, replace(CONFIG, size=800))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "Other"}, "holds a Other, expected a TextVocabulary"),
        ({"special_tokens": ["<a>", "<a>"]}, "distinct, non-empty"),
        ({"lineage": [{"fingerprint": "x"}]}, r"damaged: lineage\[0\]\.length: is missing"),
        ({"vocabulary": {"size": 600}}, "size: expected at least"),
        ({"weights_sha256": "0" * 64}, "not the file that config.json was written with"),
    ],
)
def test_an_altered_checkpoint_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    VOCABULARY.save(tmp_path)
    write_table(tmp_path / "config.json", read_table(tmp_path / "config.json") | change)
    with pytest.raises(CheckpointError, match=message):
        TextVocabulary.load(tmp_path)


TRAIN = """
import random, sys
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary, VocabularyConfig
draw = random.Random(0)
words = ["".join(draw.choice("abcdeé日") for _ in range(draw.randint(1, 7))) for _ in range(300)]
texts = [" ".join(draw.choices(words, k=9)) for _ in range(300)]
if sys.argv[1] == "backwards":
    texts.reverse()
print(ascii(TextVocabulary.train(VocabularyConfig(size=2600), texts, ["<x>"]).pieces))
"""


def test_training_gives_the_same_in_every_process() -> None:
    """The texts have many ties; hash seed, thread count and text order differ between processes."""
    learned = []
    for seed, threads, order in (("1", "1", "forwards"), ("2", "4", "backwards"), ("3", "2", "forwards")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", TRAIN, order]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        learned.append(result.stdout)
    assert len(learned[0].split(", ")) > 500
    assert len(set(learned)) == 1
