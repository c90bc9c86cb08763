"""Palettes: the main colours of a picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import BINS, load, settings_of

from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import ConfigError
from zoo_images.palette import Palette, lab, main_colours, paired
from zoo_images.palette import plugin as palette


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=5, max_size=5))
def test_palettes_are_exact_to_half_a_level(colours: list[list[float]]) -> None:
    import torch

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


def test_bytes_need_as_many_levels() -> None:
    with pytest.raises(
        ConfigError, match=r'palette: with layout = "4m" \[vocabularies.text\] coordinate_bins has to be 256'
    ):
        palette.modality_spec(settings_of("palette", layout="4m"))


AS_4M = Settings("palette", {"preset": "4m"}, vocabularies={"text": {"preset": "4m"}})


def test_a_palette_as_4m_has_it_leaves_room_for_the_end() -> None:
    layout = palette.modality_spec(AS_4M).layout
    assert layout.length == 1 + 7 * 3 + 1
    assert palette.modality_spec(settings_of("palette", colours=7)).layout.length == 7 * 3


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
