"""FSQ and residual FSQ: bounded numbers are rounded; there is no codebook that could collapse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import vector_quantize_pytorch as vqp
from torch import Tensor

from tokenizers_zoo.quantizers.adapter import Adapter, straight_through
from tokenizers_zoo.quantizers.config import QuantizerConfig
from tokenizers_zoo.quantizers.sync import add_up

if TYPE_CHECKING:
    from tokenizers_zoo.quantizers.adapter import Codes, Tokens

SPREAD = 0.9
"""Deviation at which normally distributed numbers, bounded by tanh, fall on all levels about equally often."""
STATISTICS_DECAY = 0.9
"""Share of the old mean and covariance that a training batch keeps; at 0.99 they trail behind a fast encoder."""


class FiniteScalar(Adapter):
    """FSQ (arXiv 2309.15505): each dimension is bounded by tanh and rounded; no codebook, no loss."""

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.levels is not None
        super().__init__(len(config.levels))
        self.fsq = vqp.FSQ(levels=list(config.levels))

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        codes, tokens = self.fsq(latents)
        return codes, tokens.long(), latents.new_zeros(())

    def tokens(self, latents: Codes) -> Tokens:
        return self.quantize(latents)[1]

    def lookup(self, tokens: Tokens) -> Codes:
        return self.fsq.indices_to_codes(tokens)


class ResidualFiniteScalar(Adapter):
    """Residual FSQ: each step rounds what the ones before left over, on a grid finer by the number of levels.

    The steps are those of residual VQ (arXiv 2107.03312, algorithm 1), the rounding is symmetric as in arXiv
    2411.19842 (section 3.2): with an even number of levels, too, the first step's codes are centred.
    Fine steps take away what would drive latents apart, so that they shrink to a few codes of the first step (the
    problem of arXiv 2508.15860). Here they are whitened by a running mean and covariance, without gradient through
    them: numbers of one spread that do not go together fall on all combinations of levels.
    """

    mean: Tensor
    covariance: Tensor
    whitening: Tensor
    started: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.levels is not None and config.num_codebooks is not None
        super().__init__(len(config.levels), config.num_codebooks)
        self.fsq = vqp.ResidualFSQ(levels=list(config.levels), num_quantizers=config.num_codebooks)
        self.register_buffer("mean", torch.zeros(self.code_dim))
        self.register_buffer("covariance", torch.eye(self.code_dim))
        self.register_buffer("whitening", torch.eye(self.code_dim))
        self.register_buffer("started", torch.tensor(False))

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        if not self.started:
            self._follow(latents, 1.0)
            self.started.fill_(True)
        # The library adds a straight-through gradient per step, which would multiply it by their number.
        bound = self.fsq.soft_clamp_input_value
        bounded = (self._whitened(latents) / bound).tanh() * bound
        with torch.no_grad():
            tokens = self.tokens(latents)
            codes = self.lookup(tokens)
        self._follow(latents, 1 - STATISTICS_DECAY)
        return straight_through(bounded, codes), tokens, latents.new_zeros(())

    def tokens(self, latents: Codes) -> Tokens:
        return self.fsq(self._whitened(latents))[1].long()

    def lookup(self, tokens: Tokens) -> Codes:
        return self.fsq.get_output_from_indices(tokens)

    def _whitened(self, latents: Codes) -> Codes:
        # A product of its own: autograd keeps it, and the matrix changes in place before the backward pass.
        return (latents - self.mean) @ (SPREAD * self.whitening)

    @torch.no_grad()
    def _follow(self, latents: Codes, weight: float) -> None:
        """Move mean and covariance towards those of the batch of all processes."""
        rows = latents.flatten(0, 1)
        count, total, products = rows.new_tensor(float(len(rows))), rows.sum(dim=0), rows.T @ rows
        for tensor in (count, total, products):
            add_up(tensor)
        mean = total / count
        self.mean.lerp_(mean, weight)
        self.covariance.lerp_(products / count - torch.outer(mean, mean), weight)
        # Of covariance = L L^T, L^-1 whitens. What is added keeps a direction without spread from being blown up.
        eye = torch.eye(self.code_dim, device=rows.device)
        floor = 1e-4 * self.covariance.diagonal() + 1e-8
        root = torch.linalg.cholesky(self.covariance + floor * eye)
        self.whitening.copy_(torch.linalg.solve_triangular(root, eye, upper=False).T)
