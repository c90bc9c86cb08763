"""Helpers for the quantizer tests: latents, and a quantizer trained on latents."""

from __future__ import annotations

import torch

from tokenizers_zoo.quantizers import Quantizer, QuantizerConfig, build_quantizer

DIM = 24


def some_latents(seed: int = 0, batch: int = 4, n: int = 50) -> torch.Tensor:
    return torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(seed))


def trained(config: QuantizerConfig) -> Quantizer:
    """Return a quantizer after two training batches."""
    torch.manual_seed(0)
    quantizer = build_quantizer(config, DIM)
    for seed in (1, 2):
        quantizer(some_latents(seed))
    return quantizer
