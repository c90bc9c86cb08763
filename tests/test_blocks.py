"""Encoders and decoders: shapes at any size, positions by hand, locality, learning."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.nn import BlockConfig, build_decoder, build_encoder
from tokenizers_zoo.nn.conv import ResidualBlock, scale_factors, stages
from tokenizers_zoo.nn.vit import REFERENCE_GRID, Attention, Block, sincos_positions

CONFIGS = {
    "conv": BlockConfig(kind="conv", width=16, depth=3),
    "vit": BlockConfig(kind="vit", width=32, depth=2, heads=2),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> BlockConfig:
    torch.manual_seed(0)
    return CONFIGS[request.param]


@pytest.mark.parametrize("patch", [1, 2, 4, 6, 7, 8, 12, 14, 16])
def test_shapes_for_any_patch(config: BlockConfig, patch: int) -> None:
    encoder, decoder = build_encoder(config, 3, 5, patch), build_decoder(config, 5, 2, patch)
    pixels = torch.randn(2, 3, 2 * patch, 3 * patch)
    latents = encoder(pixels)
    assert latents.shape == (2, 5, 2, 3)
    assert decoder(latents).shape == (2, 2, 2 * patch, 3 * patch)


def test_one_model_runs_at_any_size_that_the_patch_divides(config: BlockConfig) -> None:
    encoder, decoder = build_encoder(config, 1, 4, 8).eval(), build_decoder(config, 4, 1, 8).eval()
    for height, width in ((64, 64), (32, 32), (128, 128), (8, 40)):
        assert decoder(encoder(torch.randn(1, 1, height, width))).shape == (1, 1, height, width)


def test_a_size_that_the_patch_does_not_divide_is_named(config: BlockConfig) -> None:
    encoder = build_encoder(config, 3, 4, 8)
    with pytest.raises(InvalidValueError, match=r"64 x 60 .* patch size 8"):
        encoder(torch.zeros(1, 3, 64, 60))
    with pytest.raises(InvalidValueError, match="expected 3 channels, got 1"):
        encoder(torch.zeros(1, 1, 64, 64))


def test_samples_of_a_batch_do_not_mix(config: BlockConfig) -> None:
    encoder, decoder = build_encoder(config, 3, 5, 8), build_decoder(config, 5, 3, 8)
    pixels = torch.randn(3, 3, 16, 24)
    together = decoder(encoder(pixels))
    alone = torch.cat([decoder(encoder(pixels[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_every_parameter_learns(config: BlockConfig) -> None:
    """After one step has moved the layers that start at 0, all parameters have a gradient."""
    model = nn.Sequential(build_encoder(config, 3, 5, 8), build_decoder(config, 5, 3, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pixels = torch.randn(2, 3, 16, 16)
    for _ in range(2):
        optimizer.zero_grad()
        (model(pixels) - pixels).square().mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_few_steps_learn_smooth_pictures(config: BlockConfig) -> None:
    model = nn.Sequential(build_encoder(config, 3, 16, 8), build_decoder(config, 16, 3, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ramp = torch.linspace(-1, 1, 32)
    draws = torch.Generator().manual_seed(0)

    def batch() -> torch.Tensor:
        a, b, c = torch.randn(3, 8, 3, 1, 1, generator=draws)
        return a * ramp[:, None] + b * ramp + c

    for _ in range(100):
        pixels = batch()
        loss = (model(pixels) - pixels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = batch()
    assert (model(held_out) - held_out).square().mean() < 0.2 * held_out.var()


def test_conv_resolutions() -> None:
    assert scale_factors(8) == [4, 2]
    assert scale_factors(16) == [4, 2, 2]
    assert scale_factors(14) == [2, 7]
    assert scale_factors(1) == [1]
    found = stages(BlockConfig(width=32, depth=3), (32, 32))
    assert found == [((4, 4), 32, 1), ((2, 2), 64, 1), ((2, 2), 128, 1), ((2, 2), 128, 3)]
    assert all(math.prod(scale_factors(patch)) == patch for patch in range(1, 65))


def test_a_residual_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(ResidualBlock(16)(x), x)


def test_positions_by_hand() -> None:
    """On the reference grid coordinates are whole numbers; dim 8: frequencies 1 and 1/100 per axis."""
    positions = sincos_positions((REFERENCE_GRID, REFERENCE_GRID), 8)
    row, column = 3, 5
    expected = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    expected += [math.sin(5), math.sin(0.05), math.cos(5), math.cos(0.05)]
    assert positions[row * REFERENCE_GRID + column].tolist() == pytest.approx(expected, abs=1e-6)
    assert len(positions.unique(dim=0)) == REFERENCE_GRID**2


def test_positions_cover_the_same_range_at_any_size() -> None:
    """A cell of a 1 x 1 grid is the centre of the picture, as are the middle cells of finer odd grids."""
    centre = sincos_positions((1, 1), 16)[0]
    for cells in (3, 7, 15):
        torch.testing.assert_close(sincos_positions((cells, cells), 16)[cells * cells // 2], centre)


@pytest.mark.parametrize("positions", [None, (4, 4)])
def test_the_sums_of_all_blocks_stay_float32_under_autocast(positions: tuple[int, int] | None) -> None:
    config = dataclasses.replace(CONFIGS["vit"], positions=positions, post_mlp=True)
    encoder, seen = build_encoder(config, 3, 5, 8), []
    for block in (module for module in encoder.modules() if isinstance(module, Block)):
        block.register_forward_hook(lambda block, given, result: seen.append(result.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        latents = encoder(torch.randn(2, 3, 32, 24))
        decoded = build_decoder(config, 5, 3, 8)(latents)
    assert seen == [torch.float32] * 2
    assert latents.dtype == decoded.dtype == torch.bfloat16


def test_attention_against_the_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    query, key, value = attention.to_qkv(x).split(8, dim=2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (query[..., head] @ key[..., head].transpose(1, 2) / math.sqrt(4)).softmax(dim=2)
        heads.append(weights @ value[..., head])
    torch.testing.assert_close(attention(x), attention.to_out(torch.cat(heads, dim=2)))


def test_vit_base_has_the_parameters_of_vit_base() -> None:
    """12 blocks of 12 d^2 + 13 d parameters, a last norm of 2 d; the patch embedding and the head beside them."""
    with torch.device("meta"):
        encoder = build_encoder(BlockConfig(kind="vit", width=768, depth=12, heads=12), 3, 32, 16)
    transformer = 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert sum(p.numel() for p in encoder.parameters()) == transformer + (768 * 768 + 768) + (768 * 32 + 32)


def test_defaults_are_resolved_and_survive_json() -> None:
    for kind in ("conv", "vit"):
        config = BlockConfig(kind=kind)  # type: ignore[arg-type]
        assert config.width > 0 and config.depth > 0
        assert from_mapping(BlockConfig, dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("kind", {"kind": "mamba"}),
        ("width", {"width": 40}),
        ("width", {"width": -16}),
        ("depth", {"depth": -1}),
        ("heads", {"heads": 4}),
        ("heads", {"kind": "vit", "width": 64, "heads": 3}),
        ("heads", {"kind": "vit", "heads": 0}),
        ("mlp_ratio", {"mlp_ratio": 4.0}),
        ("mlp_ratio", {"kind": "vit", "mlp_ratio": 0.0}),
        ("mlp_ratio", {"kind": "vit", "mlp_ratio": float("inf")}),
    ],
)
def test_bad_configurations_name_the_field(field: str, given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        BlockConfig(**given)  # type: ignore[arg-type]


def test_configuration_needs_no_torch() -> None:
    program = "import sys; from tokenizers_zoo.nn import BlockConfig as B; B(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
