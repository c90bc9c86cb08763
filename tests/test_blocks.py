"""Encoders and decoders on any number of axes: shapes, positions and layers by hand, learning, bad settings."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenizers_zoo.tokenizers.autoencoder.model import build_decoder, build_encoder
from tokenizers_zoo.tokenizers.nn.config import BlockConfig, MlpConfig
from tokenizers_zoo.tokenizers.nn.conv import ConvNextBlock, ResidualBlock, scale_factors, stages
from tokenizers_zoo.tokenizers.nn.layers import from_patches, shuffle, to_patches, unshuffle
from tokenizers_zoo.tokenizers.nn.vit import REFERENCE_GRID, Attention, Block, sincos_positions

VIT = BlockConfig(kind="vit", width=32, depth=2, heads=2)
CONFIGS: dict[str, BlockConfig | MlpConfig] = {
    "conv": BlockConfig(kind="conv", width=16, depth=3),
    "vit": VIT,
    "mlp": MlpConfig(width=16, depth=2, final_norm=True, latent_map=True),
}
PATCHES = [(4,), (6,), (1, 1), (2, 2), (7, 7), (8, 8), (14, 14), (16, 16), (1, 4), (2, 4, 4), (1, 8, 8), (4, 2, 6)]
SQUARE, SIDE = (8, 8), 16


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pair(kind: str, channels: int, dim: int, patch: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    config = CONFIGS[kind]
    return build_encoder(config, channels, dim, patch), build_decoder(config, dim, channels, patch)


@pytest.mark.parametrize("kind", ["conv", "vit"])
@pytest.mark.parametrize("patch", PATCHES)
def test_shapes_at_any_size_that_the_patch_divides(kind: str, patch: tuple[int, ...]) -> None:
    encoder, decoder = pair(kind, 3, 5, patch)
    for grid in ((3, 2, 1)[: len(patch)], (1, 4, 2)[: len(patch)]):
        sizes = [cells * side for cells, side in zip(grid, patch, strict=True)]
        latents = encoder(torch.randn(2, 3, *sizes))
        assert latents.shape == (2, 5, *grid) and decoder(latents).shape == (2, 3, *sizes)


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_patches_of_other_numbers_of_axes_are_named(kind: str) -> None:
    for bad in ((), (1, 2, 3, 4), (0,)):
        with pytest.raises(ValueError, match=r"^patch: "):
            build_encoder(CONFIGS[kind], 3, 4, bad)


CASES = [("conv", SQUARE), ("vit", SQUARE), ("conv", (8,)), ("vit", (8,)), ("mlp", ())]


@pytest.mark.parametrize(("kind", "patch"), CASES)
def test_samples_of_a_batch_do_not_mix_and_every_parameter_learns(kind: str, patch: tuple[int, ...]) -> None:
    model = nn.Sequential(*pair(kind, 3, 5, patch))
    values = torch.randn(3, 3, *[SIDE] * len(patch))
    alone = torch.cat([model(values[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(values), alone, atol=1e-5, rtol=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # layers that start at 0 block the gradient of the first step
        optimizer.zero_grad()
        (model(values) - values).square().mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_resolutions_of_convolutional_stages_by_hand() -> None:
    assert [scale_factors(side) for side in (8, 16, 14, 1)] == [[4, 2], [4, 2, 2], [2, 7], [1]]
    assert all(math.prod(scale_factors(side)) == side for side in range(1, 65))
    conv_stages = stages(BlockConfig(width=32, depth=3), (32, 32))
    assert conv_stages == [((4, 4), 32, 1), ((2, 2), 64, 1), ((2, 2), 128, 1), ((2, 2), 128, 3)]
    late = [factors for factors, _, _ in stages(BlockConfig(width=16, depth=1), (2, 8, 8))]
    assert late == [(1, 4, 4), (2, 2, 2)]
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(ResidualBlock(16)(x), x)  # starts as the identity


def test_shuffles_and_patches_are_exact_inverses() -> None:
    x, clip = torch.randn(2, 12, 8, 12), torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(unshuffle((4, 4))(x), nn.PixelUnshuffle(4)(x))
    assert torch.equal(shuffle((2, 2))(x), nn.PixelShuffle(2)(x))
    series = torch.arange(8.0).reshape(1, 2, 4)  # channels 0..3 and 4..7
    assert to_patches(series, (2,)).tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]]]
    patches = to_patches(clip, (2, 3, 4))
    assert patches.shape == (2, 2, 2, 2, 2 * 3 * 4 * 3)
    assert torch.equal(patches[0, 1, 0, 1, :3], clip[0, :, 2, 0, 4])
    assert torch.equal(from_patches(patches, (2, 3, 4)), clip)
    assert torch.equal(shuffle((2, 3, 4))(unshuffle((2, 3, 4))(clip)), clip)


@pytest.mark.parametrize("module", [shuffle((2, 2)), unshuffle((2, 2))])
def test_shuffles_can_be_copied_and_pickled(module: nn.Module) -> None:
    x = torch.randn(1, 4, 4, 4)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x), module(x))


def test_positions_by_hand() -> None:
    """On the reference grid coordinates are whole numbers; dim 8 on two axes: frequencies 1 and 1/100 per axis."""
    positions = sincos_positions((REFERENCE_GRID, REFERENCE_GRID), 8)
    expected = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    assert sincos_positions((REFERENCE_GRID,), 4)[3].tolist() == pytest.approx(expected, abs=1e-6)
    expected += [math.sin(5), math.sin(0.05), math.cos(5), math.cos(0.05)]
    assert positions[3 * REFERENCE_GRID + 5].tolist() == pytest.approx(expected, abs=1e-6)
    cube = sincos_positions((2, 3, REFERENCE_GRID), 16)  # 16 = 3 axes of 4, and 4 that stay 0
    cell, time = cube[1 * 3 * REFERENCE_GRID + 2 * REFERENCE_GRID + 5], 1.5 * REFERENCE_GRID / 2 - 0.5
    assert cell[:2].tolist() == pytest.approx([math.sin(time), math.sin(time / 100)])
    assert cell[8].item() == pytest.approx(math.sin(5), abs=1e-6) and cell[12:].tolist() == [0] * 4
    assert all(len(table.unique(dim=0)) == len(table) for table in (positions, cube))
    centre = sincos_positions((1, 1), 16)[0]  # the middle of the picture at any size
    for cells in (3, 7, 15):
        torch.testing.assert_close(sincos_positions((cells, cells), 16)[cells * cells // 2], centre)


@pytest.mark.parametrize(("patch", "grid"), [((4,), (6,)), ((4, 4), (4, 6)), ((2, 4, 4), (2, 3, 3))])
def test_stored_positions_are_interpolated_and_move_with_the_weights(
    patch: tuple[int, ...], grid: tuple[int, ...]
) -> None:
    encoder: Any = build_encoder(dataclasses.replace(VIT, positions=grid), 2, 5, patch).eval()
    assert torch.equal(encoder.transformer.positions[0].flatten(1).T, sincos_positions(grid, 32))
    twice = torch.randn(1, 2, *[side * cells * 2 for side, cells in zip(patch, grid, strict=True)])
    before = encoder(twice)
    assert before.shape == (1, 5, *(2 * cells for cells in grid))
    encoder.load_state_dict(encoder.state_dict() | {"transformer.positions": torch.zeros(1, 32, *grid)})
    assert not torch.allclose(before, encoder(twice))


@pytest.mark.parametrize("positions", [(), (4, 4)])
def test_residual_sums_stay_float32_under_autocast(positions: tuple[int, ...]) -> None:
    config = dataclasses.replace(VIT, positions=positions, post_mlp=True)
    encoder, dtypes = build_encoder(config, 3, 5, SQUARE), []
    for block in (module for module in encoder.modules() if isinstance(module, Block)):
        block.register_forward_hook(lambda block, inputs, result: dtypes.append(result.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        latents = encoder(torch.randn(2, 3, 32, 24))
        decoded = build_decoder(config, 5, 3, SQUARE)(latents)
    assert dtypes == [torch.float32] * 2
    assert latents.dtype == decoded.dtype == torch.bfloat16


def test_attention_against_the_formula() -> None:
    attention = Attention(8, 2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    query, key, value = attention.to_qkv(x).split(8, dim=2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (query[..., head] @ key[..., head].transpose(1, 2) / math.sqrt(4)).softmax(dim=2)
        heads.append(weights @ value[..., head])
    torch.testing.assert_close(attention(x), attention.to_out(torch.cat(heads, dim=2)))


def test_a_convnext_block_by_hand() -> None:
    decoder: Any = build_decoder(dataclasses.replace(VIT, out_blocks=2), 3, 4, SQUARE)
    assert [type(block) for block in decoder.out] == [ConvNextBlock] * 2
    block = ConvNextBlock(4)
    nn.init.ones_(block.gamma)
    x = torch.randn(1, 4, 9, 9)
    h = F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=3, groups=4).permute(0, 2, 3, 1)
    h = F.layer_norm(h, (4,), block.norm.weight, block.norm.bias, 1e-6)
    h = block.mlp.contract(F.gelu(block.mlp.expand(h)))
    assert torch.allclose(block(x), x + h.permute(0, 3, 1, 2), atol=1e-6)


def test_published_networks_have_the_published_sizes() -> None:
    """ViT-B has 12 blocks of 12 d^2 + 13 d parameters and a last norm of 2 d, besides embedding and head."""
    with torch.device("meta"):
        encoder = build_encoder(BlockConfig(kind="vit", width=768, depth=12, heads=12), 3, 32, (16, 16))
    transformer = 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert sum(p.numel() for p in encoder.parameters()) == transformer + (768 * 768 + 768) + (768 * 32 + 32)
    config = MlpConfig(width=8, depth=1, latent_map=True)
    widths = [[getattr(part, "out_features", 0) for part in build(config, 5, 3, ())] for build in BUILDERS]
    assert widths == [[8, 0, 8, 3], [8, 8, 0, 3]]  # the second linear map is next to the latents


BUILDERS: list[Any] = [build_encoder, build_decoder]


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("width", {"width": 40}), ("width", {"width": -16}), ("depth", {"depth": -1}), ("heads", {"heads": 4}),
        ("heads", {"kind": "vit", "width": 64, "heads": 3}), ("heads", {"kind": "vit", "heads": 0}),
        ("mlp_ratio", {"mlp_ratio": 4.0}), ("mlp_ratio", {"kind": "vit", "mlp_ratio": float("inf")}),
        ("post_mlp", {"kind": "conv", "post_mlp": True}), ("final_norm", {"kind": "conv", "final_norm": False}),
        ("out_blocks", {"kind": "vit", "out_blocks": -1}), ("positions", {"kind": "vit", "positions": (4, 0)}),
    ],
)  # fmt: skip
def test_bad_configurations_name_the_field(field: str, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}\b"):
        BlockConfig(**settings)  # type: ignore[arg-type]
