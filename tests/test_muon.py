"""Muon: the orthogonal factor against an SVD, update steps, fused projections, and resuming."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from backbone_samples import SMALL, TRAINING, all_layouts, killed_after, outcome, run, write_splits
from torch import nn

from zoo_backbone.model import FourM
from zoo_backbone.optim import MOMENTUM, Muon, Optimizer, block_matrices, orthogonal
from zoo_backbone.transformer import FusedLinear

CONFIG = dataclasses.replace(TRAINING, optimizer="muon")


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 40), (2, 40, 8), (1, 5, 1)])
def test_the_orthogonal_factor(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices)
    assert found.dtype == torch.float32
    sizes = torch.linalg.svdvals(found)
    assert sizes.min() > 0.6 and sizes.max() < 1.25
    # The singular vectors are unchanged, so U' X V is diagonal.
    inner = u.mT @ found @ v.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-3)
    assert torch.equal(orthogonal(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_a_step_by_hand() -> None:
    weight = nn.Parameter(torch.full((2, 3), 5.0))
    muon = Muon({weight: 1}, weight_decay=0.1)
    gradients = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    momentum, expected = torch.zeros(2, 3), weight.detach().clone()
    for gradient in gradients:
        weight.grad = gradient.clone()
        muon.step(0.5)
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        ahead = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        expected = expected * (1 - 0.5 * 0.1) - 0.5 * 0.2 * 3**0.5 * orthogonal(ahead[None])[0]
        torch.testing.assert_close(weight.detach(), expected)
    weight.grad = None
    muon.step(0.5)
    torch.testing.assert_close(weight.detach(), expected)


def test_projections_side_by_side_move_as_if_they_were_separate() -> None:
    torch.manual_seed(0)
    fused, apart = FusedLinear(6, 4, 2, bias=True), [nn.Linear(6, 4), nn.Linear(6, 4)]
    with torch.no_grad():
        fused.weight.copy_(torch.cat([layer.weight for layer in apart]))
    gradients = torch.randn(2, 4, 6) * torch.tensor([1.0, 100.0])[:, None, None]
    fused.weight.grad = gradients.flatten(0, 1)
    for layer, gradient in zip(apart, gradients, strict=True):
        layer.weight.grad = gradient
    assert block_matrices([fused]) == {fused.weight: 2}
    for module in (fused, *apart):
        Muon(block_matrices([module]), 0.0).step(0.1)
    torch.testing.assert_close(fused.weight, torch.cat([layer.weight for layer in apart]))


def test_an_entry_moves_as_far_as_adam_would_move_it() -> None:
    weight = nn.Parameter(torch.zeros(64, 96))
    muon = Muon({weight: 1}, 0.0)
    weight.grad = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    muon.step(1.0)
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.2, rel=0.15)


def test_it_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model = FourM.seeded(SMALL, all_layouts(), 0)
    optimizer = Optimizer(model, CONFIG)
    mine = {name for name, p in model.named_parameters() if p in optimizer.muon.matrices}
    blocks = {n for n, p in model.named_parameters() if n.startswith(("encoder.", "decoder.")) and p.dim() == 2}
    assert mine == blocks and len(mine) > 8
    assert not {p for group in optimizer.dense.param_groups for p in group["params"]} & set(optimizer.muon.matrices)
    assert not Optimizer(model, TRAINING).muon.matrices


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    store = write_splits(tmp_path / "tokens")
    whole = run(tmp_path / "whole", store, optimizer="muon")
    with killed_after(7):
        run(tmp_path / "killed", store, optimizer="muon")
    run(tmp_path / "killed", store, optimizer="muon")
    assert outcome(tmp_path / "killed") == outcome(whole)
    adam = run(tmp_path / "adam", store)
    assert outcome(adam)["model.safetensors"] != outcome(whole)["model.safetensors"]
