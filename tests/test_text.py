"""All modalities that are sequences over the shared text vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    samples,
    settings_of,
)  # fmt: skip

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.families.text import TextModality, printable, whole_groups
from tokenizers_zoo.text_vocab import Special, TextVocabulary
from zoo_images.palette import Palette, lab, main_colours, paired

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


def test_too_few_axes_are_an_error_that_says_what_to_set() -> None:
    few = Settings("boxes", vocabularies={"text": {"coordinate_axes": 2}})
    with pytest.raises(ConfigError, match=r"boxes: writes coordinates on 4 axes.*coordinate_axes is 2; set it to 4"):
        boxes.modality_spec(few)


def test_the_second_to_train_grows_the_vocabulary(tmp_path: Path) -> None:
    caption.train_tokenizer(settings_of("caption"), samples(), tmp_path)
    first = TextVocabulary.load(tmp_path)
    caption.train_tokenizer(settings_of("caption"), samples(["other texts"] * 9), tmp_path)
    assert TextVocabulary.load(tmp_path).fingerprint == first.fingerprint  # no missing tokens, so no change
    metadata.train_tokenizer(settings_of("metadata"), samples(tokens=("<other>",)), tmp_path)
    grown = TextVocabulary.load(tmp_path)
    assert grown.grown_tokens == ("<other>", *metadata.vocabulary_tokens(settings_of("metadata")))
    assert grown.lineage == ((first.fingerprint, first.used),) and grown.trained_on == {"source": "test"}
    assert grown.encode_text(CAPTIONS[0]) == first.encode_text(CAPTIONS[0])


class Fewer(type(caption)):  # type: ignore[misc]
    """A plugin whose hook omits an optional argument."""

    @hookimpl
    def vocabulary_texts(self, values: list[str]) -> list[str]:
        return list(values)


@pytest.mark.parametrize("plugin", [caption, Fewer()])
def test_without_texts_it_learns_from_the_training_values(plugin: TextModality[Any], tmp_path: Path) -> None:
    given = TrainingSamples(train=[], test=[], texts=lambda: CAPTIONS)
    plugin.train_tokenizer(settings_of("caption"), given, tmp_path / "given")
    plugin.train_tokenizer(settings_of("caption"), TrainingSamples(train=CAPTIONS, test=[]), tmp_path / "own")
    own = TextVocabulary.load(tmp_path / "own")
    assert own.pieces and own.pieces == TextVocabulary.load(tmp_path / "given").pieces
    both = TrainingSamples(train=["quite another thing"] * 9, test=[], texts=lambda: CAPTIONS)
    plugin.train_tokenizer(settings_of("caption"), both, tmp_path / "both")
    assert TextVocabulary.load(tmp_path / "both").pieces == own.pieces  # from all sharing modalities


def test_a_modality_that_writes_no_text_learns_none_of_its_values(tmp_path: Path) -> None:
    metadata.train_tokenizer(settings_of("metadata"), TrainingSamples(train=[{"num_people": 1}], test=[]), tmp_path)
    assert not TextVocabulary.load(tmp_path).pieces


def test_another_id_space_is_refused(tmp_path: Path) -> None:
    other = Settings("caption", vocabularies={"text": {**TABLES["text"], "sentinels": 17}})
    for call in (lambda: caption.load_tokenizer(checkpoint(), other),
                 lambda: caption.train_tokenizer(other, samples(), checkpoint())):  # fmt: skip
        with pytest.raises(CheckpointError, match="sentinels = 16, registry"):
            call()
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        caption.load_tokenizer(tmp_path, settings_of("caption"))
    with pytest.raises(ConfigError, match="unknown key"):
        caption.train_tokenizer(settings_of("caption", tokenizer={"steps": 3}), samples(), tmp_path)


def test_a_missing_special_token_says_how_to_get_it(tmp_path: Path) -> None:
    caption.train_tokenizer(settings_of("caption"), samples(), tmp_path)
    tokenizer = metadata.load_tokenizer(tmp_path, settings_of("metadata"))
    with pytest.raises(InvalidValueError, match=r"'<field:num_people.*: run `zoo vocabulary grow`"):
        metadata.encode(tokenizer, [{"num_people": 1}])


@pytest.mark.parametrize("name", PLUGINS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ids_decode_to_a_value_that_encodes(name: str, data: st.DataObject) -> None:
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


# ---- text that looks like something else

HOSTILE = [
    "<field:num_people int [0.0, 8.0, 9] >", "v0=5", " v3=63", "[EOS]", "[PAD]", "<extra_id_0>", "<s>", "</s>",
    "<|end|>", "##a", "\u203fa", "\ufffd", "\u202eabc", "Ġ", "\x00", "[S_1]", "<mask>", "\ufeff",
]  # fmt: skip
hostile_text = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5)), max_size=6).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(hostile_text, min_size=1, max_size=3))
def test_labels_never_become_more_than_labels(labels: list[str]) -> None:
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


def test_a_palette_as_4m_has_it_leaves_room_for_the_end() -> None:
    published = Settings("palette", {"preset": "4m"}, vocabularies={"text": {"preset": "4m"}})
    assert palette.modality_spec(published).layout.length == 1 + 7 * 3 + 1
    assert palette.modality_spec(settings_of("palette", colours=7)).layout.length == 7 * 3
    with pytest.raises(ConfigError, match=r'palette: with layout = "4m" .* coordinate_bins has to be 256'):
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
    columns, distance = paired(lab(first), lab(second))
    assert distance == pytest.approx(deltaE_cie76(lab(first)[columns], lab(second)).mean())
    assert paired(lab(first), lab(first[::-1]))[0].tolist() == [3, 2, 1, 0]
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
