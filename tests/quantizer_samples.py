"""Helpers for the quantizer tests: latents, and a quantizer trained on latents."""

from __future__ import annotations

import torch

from tokenizers_zoo.quantizers.config import QuantizerConfig
from tokenizers_zoo.quantizers.quantizer import Quantizer

DIM = 24


def some_latents(seed: int = 0, batch: int = 4, n: int = 50) -> torch.Tensor:
    return torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(seed))


def trained(config: QuantizerConfig) -> Quantizer:
    """Return a quantizer after two training batches."""
    torch.manual_seed(0)
    quantizer = Quantizer(config, DIM)
    for seed in (1, 2):
        quantizer(some_latents(seed))
    return quantizer
