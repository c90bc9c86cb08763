"""Positions: sin-cos rows by hand, and the effect of rotating queries and keys."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.backbone_samples import all_layouts, spec
from tokenizers_zoo.spec import GridLayout
from zoo_backbone.config import ModelConfig
from zoo_backbone.embedding_layout import EmbeddingLayout, grid_angles, rotation_table, sincos_grid
from zoo_backbone.model import FourM
from zoo_backbone.published import PublishedConfig, PublishedLayout
from zoo_backbone.transformer import rotate


def test_sincos_by_hand() -> None:
    # Periods of 4 and of 8 x 3 steps.
    line = sincos_grid((3,), 4)
    assert line[0].tolist() == [0, 0, 1, 1]
    expected = [math.sin(math.pi), math.sin(math.pi / 6), math.cos(math.pi), math.cos(math.pi / 6)]
    assert line[2].tolist() == pytest.approx(expected, abs=1e-6)
    grid = sincos_grid((2, 3), 8)
    row, column = ([1, math.sin(math.pi / n), 0, math.cos(math.pi / n)] for n in (8, 12))
    assert grid[3].tolist() == pytest.approx([*row, 0, 0, 1, 1], abs=1e-6)
    assert grid[1].tolist() == pytest.approx([0, 0, 1, 1, *column], abs=1e-6)
    # Three axes have a third each; channels that do not divide are zero.
    cube = sincos_grid((2, 2, 2), 8)
    assert cube.shape == (8, 8) and cube[7, :6].tolist() == pytest.approx([1, 0] * 3, abs=1e-6)
    assert not cube[:, 6:].any()


def test_angles_by_hand() -> None:
    # Twelve pairs: nine turn, four of them for each axis, from a quarter to eight times around.
    angles = grid_angles((2, 4), 12)
    assert angles.shape == (8, 12) and not angles[:, 8:].any()
    around = [2 * math.pi * 0.25 * 32 ** (k / 3) for k in range(4)]
    assert angles[6].tolist() == pytest.approx([0.75 * a for a in around] + [0.625 * a for a in around] + [0] * 4)
    assert grid_angles((4,), 2).tolist() == [[pytest.approx(math.pi / 2 * (n + 0.5) / 4), 0] for n in range(4)]
    assert grid_angles((2, 2, 2), 4).tolist()[7] == pytest.approx([0.75 * math.pi / 2] * 3 + [0])


def test_fine_and_coarse_grids_agree_on_positions() -> None:
    coarse, fine = grid_angles((2, 2), 16).view(2, 2, 16), grid_angles((6, 6), 16).view(6, 6, 16)
    torch.testing.assert_close(fine[1::3, 1::3], coarse)


def test_query_key_products_depend_only_on_position_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(16, generator=generator, dtype=torch.float64) for _ in range(2))
    layout = EmbeddingLayout([spec("picture", GridLayout(shape=(5, 5)))])
    turns = rotation_table(layout, 16).double().unsqueeze(0)
    products = rotate(query.expand(1, 1, 25, 16), turns)[0, 0] @ rotate(key.expand(1, 1, 25, 16), turns)[0, 0].T
    by_step: dict[tuple[int, int], list[float]] = {}
    for a in range(25):
        for b in range(25):
            by_step.setdefault((b // 5 - a // 5, b % 5 - a % 5), []).append(float(products[a, b]))
    assert all(max(same) - min(same) < 1e-5 for same in by_step.values())
    means = sorted(same[0] for same in by_step.values())
    assert min(b - a for a, b in itertools.pairwise(means)) > 1e-4  # and each step has its own


def test_only_grids_use_rotary_positions() -> None:
    layout = PublishedLayout(all_layouts(), PublishedConfig(stored_positions={"clip": 40}))
    rows = rotation_table(layout, 8)
    still = torch.tensor([1.0] * 4 + [0.0] * 4)
    for name in ("picture", "pixels"):
        assert not torch.equal(rows[layout.positions[name]], still.expand_as(rows[layout.positions[name]]))
    for name in ("clip", "words", "code", "vectors"):
        assert torch.equal(rows[layout.positions[name]], still.expand_as(rows[layout.positions[name]]))
    x = torch.randn(1, 2, 5, 8)
    assert torch.equal(rotate(x, still.expand(1, 5, -1)), x) and rotate(x, None) is x


def test_turns_are_computed_and_not_stored() -> None:
    with pytest.raises(ValueError, match="rotary: expected an even head size"):
        ModelConfig(dim=12, heads=4, rotary=True)
    plain, rotary = (
        FourM.seeded(ModelConfig(dim=32, encoder_depth=1, decoder_depth=1, heads=2, rotary=on), all_layouts(), 0)
        for on in (False, True)
    )
    assert plain.state_dict().keys() == rotary.state_dict().keys()
    assert plain.rotations(torch.zeros(1, 1, dtype=torch.int64)) is None
