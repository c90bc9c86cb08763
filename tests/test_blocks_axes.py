"""Encoders and decoders on one and three axes: shapes, positions by hand, shuffles against torch's own, learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.nn import BlockConfig, build_decoder, build_encoder
from tokenizers_zoo.nn.conv import stages
from tokenizers_zoo.nn.patches import Shuffle, Unshuffle, from_patches, patch_sides, to_patches
from tokenizers_zoo.nn.vit import REFERENCE_GRID, sincos_positions

CONFIGS = {
    "conv": BlockConfig(kind="conv", width=16, depth=3),
    "vit": BlockConfig(kind="vit", width=32, depth=1, heads=2),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> BlockConfig:
    torch.manual_seed(0)
    return CONFIGS[request.param]


@pytest.mark.parametrize("patch", [(4,), (8,), (6,), (1, 4), (2, 4, 4), (1, 8, 8), (4, 2, 6)])
def test_shapes_for_any_number_of_axes(config: BlockConfig, patch: tuple[int, ...]) -> None:
    encoder, decoder = build_encoder(config, 3, 5, patch), build_decoder(config, 5, 2, patch)
    grid = (3, 2, 1)[: len(patch)]
    sizes = [cells * side for cells, side in zip(grid, patch, strict=True)]
    latents = encoder(torch.randn(2, 3, *sizes))
    assert latents.shape == (2, 5, *grid)
    assert decoder(latents).shape == (2, 2, *sizes)


def test_one_model_runs_at_other_lengths(config: BlockConfig) -> None:
    encoder, decoder = build_encoder(config, 2, 4, (4,)).eval(), build_decoder(config, 4, 2, (4,)).eval()
    for steps in (4, 20, 64):
        assert decoder(encoder(torch.randn(1, 2, steps))).shape == (1, 2, steps)


def test_wrong_sizes_and_axes_are_named(config: BlockConfig) -> None:
    encoder = build_encoder(config, 3, 4, (2, 8, 8))
    with pytest.raises(InvalidValueError, match="3 x 64 x 64 is not a multiple of the patch size 2 x 8 x 8"):
        encoder(torch.zeros(1, 3, 3, 64, 64))
    with pytest.raises(InvalidValueError, match="64 x 64 is not a multiple of the patch size 2 x 8 x 8"):
        encoder(torch.zeros(1, 3, 64, 64))
    for bad in ((), (1, 2, 3, 4), (0,)):
        with pytest.raises(ValueError, match=r"^patch_size: "):
            patch_sides(bad)


def test_a_series_is_learnt(config: BlockConfig) -> None:
    model = nn.Sequential(build_encoder(config, 1, 8, (8,)), build_decoder(config, 8, 1, (8,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    times, draws = torch.linspace(0, 1, 32), torch.Generator().manual_seed(0)

    def batch() -> torch.Tensor:
        height, slope = torch.randn(2, 8, 1, 1, generator=draws)
        return height + slope * times

    for _ in range(60):
        values = batch()
        loss = (model(values) - values).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = batch()
    assert (model(held_out) - held_out).square().mean() < 0.2 * held_out.var()


def test_shuffles_are_those_of_torch_on_pictures() -> None:
    """So that what was trained with torch's own modules loads."""
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(Unshuffle((4, 4))(x), nn.PixelUnshuffle(4)(x))
    y = torch.randn(2, 12, 2, 3)
    assert torch.equal(Shuffle((2, 2))(y), nn.PixelShuffle(2)(y))
    clip = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(Shuffle((2, 3, 4))(Unshuffle((2, 3, 4))(clip)), clip)


def test_patches_by_hand_and_back() -> None:
    series = torch.arange(8.0).reshape(1, 2, 4)  # channels 0..3 and 4..7
    assert to_patches(series, (2,)).tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]]]
    clip = torch.randn(2, 3, 4, 6, 8)
    patches = to_patches(clip, (2, 3, 4))
    assert patches.shape == (2, 2, 2, 2, 2 * 3 * 4 * 3)
    assert torch.equal(patches[0, 1, 0, 1, :3], clip[0, :, 2, 0, 4])
    assert torch.equal(from_patches(patches, (2, 3, 4)), clip)


def test_positions_on_one_and_three_axes_by_hand() -> None:
    line = sincos_positions((REFERENCE_GRID,), 4)
    expected = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    assert line[3].tolist() == pytest.approx(expected, abs=1e-6)
    cube = sincos_positions((2, 3, REFERENCE_GRID), 16)  # 16 = 3 axes of 4, and 4 that stay 0
    cell = cube[1 * 3 * REFERENCE_GRID + 2 * REFERENCE_GRID + 5]
    time = 1.5 * REFERENCE_GRID / 2 - 0.5
    assert cell[:4].tolist() == pytest.approx(
        [math.sin(time), math.sin(time / 100), math.cos(time), math.cos(time / 100)]
    )
    assert cell[8].item() == pytest.approx(math.sin(5), abs=1e-6) and cell[12:].tolist() == [0] * 4
    assert len(cube.unique(dim=0)) == len(cube)


def test_a_short_axis_takes_its_steps_late() -> None:
    found = [stage.factors for stage in stages(BlockConfig(width=16, depth=1), (2, 8, 8))]
    assert found == [(1, 4, 4), (2, 2, 2)]
    assert [stage.factors for stage in stages(BlockConfig(width=16, depth=1), (1,))] == [(1,)]
