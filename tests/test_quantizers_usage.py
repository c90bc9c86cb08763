"""Codebook usage: defaults on a toy problem, revival of dead codes, and usage metrics."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from tokenizers_zoo.quantizers.config import KIND_DEFAULTS, QuantizerConfig
from tokenizers_zoo.quantizers.kinds import Adapter, ResidualFiniteScalar
from tokenizers_zoo.quantizers.quantizer import Quantizer, Residual, SideBySide
from tokenizers_zoo.quantizers.usage import CodebookUsage

DIM = 32
IN_STEPS = [kind for kind in KIND_DEFAULTS if "residual" in kind]
"""Kinds whose codes refine each other."""


class Toy(nn.Module):
    """An autoencoder of vectors with twelve degrees of freedom."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, DIM))
        self.quantizer = Quantizer(config, DIM)
        self.decoder = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, 32))

    def error(self, codes: torch.Tensor, values: torch.Tensor) -> float:
        return float((self.decoder(codes) - values).square().mean())


def toy_values(count: int, draws: torch.Generator) -> torch.Tensor:
    world = torch.Generator().manual_seed(0)
    first, second = torch.randn(12, 64, generator=world) * 0.28, torch.randn(64, 32, generator=world) / 8
    return torch.tanh(torch.randn(count, 12, generator=draws) @ first) @ second


@torch.enable_grad()
def trained(config: QuantizerConfig) -> Toy:
    torch.manual_seed(0)
    toy, draws, steps, learning_rate = Toy(config), torch.Generator().manual_seed(1), 150, 5e-3
    optimizer = torch.optim.AdamW(toy.parameters(), learning_rate, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, (step + 1) / 20) * (1 - step / steps)
        values = toy_values(256, draws)
        quantized = toy.quantizer(toy.encoder(values))
        loss = (toy.decoder(quantized.codes) - values).square().mean() + quantized.loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(toy.parameters(), 1.0)
        optimizer.step()
    return toy.eval()


@torch.no_grad()
def usage_of(toy: Toy) -> CodebookUsage:
    """Return codebook usage on held-out values."""
    quantizer = toy.quantizer
    usage = CodebookUsage(quantizer.codebook_size, quantizer.codes_per_position)
    values = toy_values(32 * quantizer.codebook_size, torch.Generator().manual_seed(2))
    usage.update(quantizer.encode(toy.encoder(values)))
    return usage


def toy_config(kind: str) -> QuantizerConfig:
    """Return a kind's defaults, with a codebook small enough to fill in seconds."""
    size = {"fsq": 240, "residual_fsq": 0}.get(kind, 128)
    return QuantizerConfig(kind=kind, codebook_size=size)  # type: ignore[arg-type]


@functools.cache
def toy_of(kind: str) -> Toy:
    """Return a cached toy trained with a kind's defaults; do not modify it."""
    return trained(toy_config(kind))


@pytest.mark.parametrize("kind", KIND_DEFAULTS)
def test_every_default_uses_its_codebook(kind: str) -> None:
    toy = toy_of(kind)
    usage = usage_of(toy)
    assert usage.usage >= 0.9
    assert (usage.counts > 0).mean(axis=1).min() >= 0.85
    assert usage.perplexity > 0.4 * toy.quantizer.codebook_size


def codes_of_first(adapter: Adapter, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sum of the first `count` residual codes."""
    if isinstance(adapter, SideBySide):
        pieces = tokens.chunk(len(adapter.parts), dim=2)
        return torch.cat([codes_of_first(*pair, count) for pair in zip(adapter.parts, pieces, strict=True)], dim=2)
    if isinstance(adapter, ResidualFiniteScalar):
        return adapter.fsq.get_codes_from_indices(tokens)[:count].sum(dim=0)
    assert isinstance(adapter, Residual)
    return torch.stack([adapter.steps[i].lookup(tokens[..., i]) for i in range(count)]).sum(dim=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", IN_STEPS)
def test_every_further_step_lowers_the_error_of_a_trained_model(kind: str) -> None:
    toy, values = toy_of(kind), toy_values(2000, torch.Generator().manual_seed(2))
    quantizer = toy.quantizer
    tokens = quantizer.encode(toy.encoder(values)[None])
    steps = quantizer.codes_per_position // (quantizer.config.groups or 1)
    codes_by_step = [codes_of_first(quantizer.adapter, tokens, count) for count in range(1, steps + 1)]
    errors = [toy.error(quantizer.project_out(codes)[0], values) for codes in codes_by_step]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == steps >= 2
    assert errors[-1] == pytest.approx(toy.error(quantizer.decode(tokens)[0], values), rel=1e-4)
    assert errors[1] < 0.97 * errors[0]


def test_dead_codes_are_revived_also_in_small_batches() -> None:
    """With more codes than latents in a batch, unused codes are revived and used codes are not replaced."""

    def usage_after(revive_below: float) -> float:
        torch.manual_seed(0)
        config = QuantizerConfig(
            kind="vq", codebook_size=128, codebook_dim=DIM, kmeans_iterations=0, revive_below=revive_below
        )
        quantizer, usage = Quantizer(config, DIM), CodebookUsage(128)
        clusters = torch.randn(32, DIM) * 3
        draws = torch.Generator().manual_seed(1)
        for _ in range(60):
            cluster_ids = torch.randint(0, 32, (64,), generator=draws)
            noise = torch.randn(64, DIM, generator=draws)
            quantizer((clusters[cluster_ids] + noise)[None])
        usage.update(quantizer.encode((clusters.repeat(64, 1) + torch.randn(2048, DIM, generator=draws))[None]))
        return usage.usage

    dead, revived = usage_after(0.0), usage_after(0.1)
    assert revived > 0.5 > 0.3 > dead


def test_codebook_usage_by_hand() -> None:
    usage = CodebookUsage(8)
    assert (usage.usage, usage.entropy_bits, usage.perplexity) == (0.0, 0.0, 1.0)
    usage.update(torch.tensor([[0, 0], [1, 1]]))
    assert (usage.usage, usage.entropy_bits) == (0.25, 1.0)
    assert usage.perplexity == pytest.approx(2.0)
    usage.update(np.array([1, 1, 7, 7]))  # counts 2, 4, 2: shares 1/4, 1/2, 1/4
    assert usage.usage == 0.375
    assert usage.entropy_bits == pytest.approx(1.5)
    assert usage.perplexity == pytest.approx(2**1.5)
