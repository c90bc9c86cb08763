"""What the quantizers' tests share: latents, and a quantizer that has met some."""

from __future__ import annotations

import torch

from tokenizers_zoo.quantizers import Quantizer, QuantizerConfig, build_quantizer

DIM = 24


def some_latents(seed: int = 0, batch: int = 4, n: int = 50) -> torch.Tensor:
    return torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(seed))


def trained(config: QuantizerConfig) -> Quantizer:
    """A quantizer that has met two batches in training."""
    torch.manual_seed(0)
    quantizer = build_quantizer(config, DIM)
    for seed in (1, 2):
        quantizer(some_latents(seed))
    return quantizer
