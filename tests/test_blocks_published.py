"""What blocks and records gained for published models leaves older checkpoints as they were, to the bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_zoo.nn import BlockConfig, MlpConfig, build_decoder, build_encoder
from tokenizers_zoo.nn.conv import ConvNextBlock
from tokenizers_zoo.nn.mlp import Mlp, mlp_decoder, mlp_encoder
from tokenizers_zoo.nn.vit import sincos_positions
from tokenizers_zoo.quantizers import QuantizerConfig, build_quantizer
from tokenizers_zoo.quantizers.codebooks import directions

VIT = BlockConfig(kind="vit", width=32, depth=1, heads=2)


class OldBlock(nn.Module):
    """A residual block as both families of vectors have had it, with their names."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, expansion * width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


@pytest.mark.parametrize(("expansion", "final_norm"), [(4, True), (2, False)])
def test_mlps_of_older_checkpoints_load_and_compute_the_same(expansion: int, final_norm: bool) -> None:
    """Same random start, same names, same bits: vectors widen by 4 and end in a norm, objects by 2 and do not."""
    config = MlpConfig(width=8, depth=2, expansion=expansion, final_norm=final_norm)
    for build in (mlp_encoder, mlp_decoder):
        torch.manual_seed(0)
        blocks = [OldBlock(8, expansion) for _ in range(2)]
        norm = [nn.LayerNorm(8)] if final_norm else []
        old = nn.Sequential(nn.Linear(5, 8), *blocks, *norm, nn.Linear(8, 3))
        torch.manual_seed(0)
        new = build(config, 5, 3)
        assert list(new.state_dict()) == list(old.state_dict())
        x = torch.randn(4, 5)
        assert torch.equal(new(x), old(x))


def test_the_map_of_latents_is_beside_the_latents() -> None:
    config = MlpConfig(width=8, depth=1, latent_map=True)
    assert [getattr(part, "out_features", 0) for part in mlp_encoder(config, 5, 3)] == [8, 0, 8, 3]
    assert [getattr(part, "out_features", 0) for part in mlp_decoder(config, 3, 5)] == [8, 8, 0, 5]


# ---------------------------------------------------------------------- variants


def test_stored_positions_are_interpolated_on_any_axes() -> None:
    for patch, grid in (((4,), (6,)), ((4, 4), (4, 6)), ((2, 4, 4), (2, 3, 3))):
        config = dataclasses.replace(VIT, positions=grid)
        encoder: Any = build_encoder(config, 2, 5, patch).eval()
        positions = encoder.body.transformer.positions
        assert torch.equal(positions[0].flatten(1).T, sincos_positions(grid, 32))
        twice = [side * cells * 2 for side, cells in zip(patch, grid, strict=True)]
        assert encoder(torch.randn(1, 2, *twice)).shape == (1, 5, *(2 * cells for cells in grid))


def test_stored_positions_move_with_the_weights() -> None:
    config = dataclasses.replace(VIT, positions=(2, 2))
    encoder, x = build_encoder(config, 1, 3, 4).eval(), torch.randn(1, 1, 8, 8)
    before = encoder(x)
    encoder.load_state_dict(encoder.state_dict() | {"body.transformer.positions": torch.zeros(1, 32, 2, 2)})
    assert not torch.allclose(before, encoder(x))


def test_blocks_on_the_output_see_across_patches() -> None:
    decoder: Any = build_decoder(dataclasses.replace(VIT, out_blocks=2), 3, 4, 8).eval()
    assert len(decoder.body.out) == 2 and isinstance(decoder.body.out[0], ConvNextBlock)
    block = ConvNextBlock(4)
    nn.init.ones_(block.gamma)
    x = torch.randn(1, 4, 9, 9)
    h = F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=3, groups=4).permute(0, 2, 3, 1)
    h = F.layer_norm(h, (4,), block.norm.weight, block.norm.bias, 1e-6)
    h = block.mlp.contract(F.gelu(block.mlp.expand(h)))
    assert torch.allclose(block(x), x + h.permute(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "conv", "post_mlp": True}, "post_mlp: used by kind vit only"),
        ({"kind": "conv", "final_norm": False}, "final_norm: used by kind vit only"),
        ({"kind": "vit", "out_blocks": -1}, "out_blocks: expected at least 0"),
        ({"kind": "vit", "positions": (4, 0)}, "positions: expected one to three numbers"),
    ],
)
def test_variants_that_make_no_sense_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        BlockConfig(**given)  # type: ignore[arg-type]


def test_codes_of_length_one_stay_to_the_bit() -> None:
    """Tokens of codebooks trained here are decided by the same numbers as before directions were taken."""
    rows = F.normalize(torch.randn(500, 32), dim=1)
    assert torch.equal(directions(rows), rows)
    lengths = torch.linspace(0.5, 2, 500)[:, None]
    assert torch.allclose(directions(rows * lengths), rows, atol=1e-6)
    quantizer = build_quantizer(QuantizerConfig(kind="vq", codebook_size=64), 32)
    for _ in range(3):
        quantizer(torch.randn(256, 32))
    adapter: Any = quantizer.adapter
    book = adapter.vq.codebook
    assert torch.equal(directions(book), book)
