"""Quantizers without a codebook: FSQ and residual FSQ round numbers, LFQ and BSQ take their signs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import vector_quantize_pytorch as vqp
from torch import Tensor
from torch.nn import functional

from tokenizers_zoo.quantizers.adapter import DIVERSITY, Adapter, entropy, mean_with_gradient, straight_through
from tokenizers_zoo.quantizers.config import QuantizerConfig

if TYPE_CHECKING:
    from jaxtyping import Float

    from tokenizers_zoo.quantizers.adapter import Codes, Tokens


class Binary(Adapter):
    """LFQ (arXiv 2310.05737), or BSQ (arXiv 2406.07548), which first puts latents on the unit sphere.

    The signs of log2(codebook size) numbers are the token's bits, the first one highest. The losses are made here:
    the library's compare every latent with every code, and do not add up over processes.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.entropy_weight is not None and config.commitment_weight is not None
        bits = int(math.log2(config.codebook_size))
        super().__init__(bits)
        self.spherical = config.kind == "bsq"
        self.entropy_weight, self.commitment_weight = config.entropy_weight, config.commitment_weight
        self.magnitude = bits**-0.5 if self.spherical else 1.0
        self.lfq = vqp.LFQ(dim=bits, codebook_size=config.codebook_size, spherical=self.spherical).eval()

    def train(self, mode: bool = True) -> Binary:
        """Switch the mode; the library's part stays in eval mode, as the losses are made here."""
        super().train(mode)
        self.lfq.eval()
        return self

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        if self.spherical:
            latents = functional.normalize(latents, dim=-1)
        codes, tokens, _ = self.lfq(latents)
        commitment = functional.mse_loss(latents, codes)
        entropy = entropy_loss(latents.flatten(0, 1), self.magnitude)
        loss = self.commitment_weight * commitment + self.entropy_weight * entropy
        return straight_through(latents, codes), tokens.long(), loss

    def tokens(self, latents: Codes) -> Tokens:
        return self.lfq(latents)[1].long()

    def lookup(self, tokens: Tokens) -> Codes:
        return self.lfq.indices_to_codes(tokens)


def entropy_loss(latents: Float[Tensor, "n bits"], magnitude: float) -> Float[Tensor, ""]:
    """Mean entropy of each latent's soft code minus DIVERSITY x the entropy of their mean (arXiv 2310.05737, eq. 5).

    In nats. The soft code is softmax(2 x . c / magnitude ** 2) over the codes c of +-magnitude; with 100 for the
    1 / magnitude ** 2, as the papers have it, only latents within 0.01 of a border have a gradient. It is a product
    over the bits, so the first entropy is a sum over bits, and the mean over latents one matrix product of the codes'
    two halves: memory grows with latents x sqrt(codes) + codes.
    """
    logits = 4 / magnitude * latents
    bits = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=-1)
    per_latent = entropy(bits).sum(dim=-1).mean()
    middle = latents.shape[1] // 2
    high, low = _joint(bits[:, :middle]), _joint(bits[:, middle:])
    shares = mean_with_gradient(high.T @ low / len(latents))
    return per_latent - DIVERSITY * entropy(shares.flatten())


def _joint(bits: Float[Tensor, "n bits 2"]) -> Float[Tensor, "n 2**bits"]:
    """Probabilities of all values of independent bits, the first bit highest."""
    joint = bits.new_ones(len(bits), 1)
    for bit in bits.unbind(dim=1):
        joint = (joint[:, :, None] * bit[:, None, :]).flatten(1)
    return joint


SPREAD = 0.9
"""Standard deviation with which normally distributed numbers, after tanh, reach all levels about equally often."""


class FiniteScalar(Adapter):
    """FSQ (arXiv 2309.15505): each dimension is bounded by tanh and rounded; no codebook.

    The paper has no auxiliary loss. A small weight of `spread_loss` uses more codes at the same reconstruction quality,
    but a backbone was slightly worse on such tokens. It is therefore a setting (docs/results/tokenizers.md).
    """

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.levels is not None and config.spread_weight is not None
        super().__init__(len(config.levels))
        self.fsq = vqp.FSQ(levels=list(config.levels))
        self.spread_weight = config.spread_weight

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        codes, tokens = self.fsq(latents)
        if not self.spread_weight:
            return codes, tokens.long(), latents.new_zeros(())
        return codes, tokens.long(), self.spread_weight * spread_loss(latents.flatten(0, 1))

    def tokens(self, latents: Codes) -> Tokens:
        tokens: Tokens = self.fsq(latents)[1].long()
        return tokens

    def lookup(self, tokens: Tokens) -> Codes:
        return self.fsq.indices_to_codes(tokens)


class ResidualFiniteScalar(Adapter):
    """Residual FSQ: each step rounds the previous steps' error, on a grid finer by the number of levels.

    The steps follow residual VQ (arXiv 2107.03312, algorithm 1). The rounding is symmetric as in arXiv 2411.19842
    (section 3.2): the first step's codes are centred, also with an even number of levels. Fine steps remove the
    pressure that drives latents apart, so latents would collapse to a few codes of the first step (the problem of arXiv
    2508.15860). A loss term keeps them spread. We do not whiten latents with a running mean and covariance instead,
    because EMA weights do not match the statistics of the last batches.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.levels is not None and config.num_codebooks is not None and config.spread_weight is not None
        super().__init__(len(config.levels), config.num_codebooks)
        self.spread_weight = config.spread_weight
        self.fsq = vqp.ResidualFSQ(levels=list(config.levels), num_quantizers=config.num_codebooks)

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        # The library adds a straight-through gradient per step, which would multiply it by their number.
        bound = self.fsq.soft_clamp_input_value
        bounded = (latents / bound).tanh() * bound
        with torch.no_grad():
            tokens = self.tokens(latents)
            codes = self.lookup(tokens)
        return straight_through(bounded, codes), tokens, self.spread_weight * spread_loss(latents.flatten(0, 1))

    def tokens(self, latents: Codes) -> Tokens:
        return self.fsq(latents)[1].long()

    def lookup(self, tokens: Tokens) -> Codes:
        return self.fsq.get_output_from_indices(tokens)


def spread_loss(latents: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    """Return the distance of all processes' latents from mean 0, standard deviation SPREAD and no correlation.

    It is the sum of squared differences of the mean and of the covariance / SPREAD ** 2, per dimension.
    """
    mean = mean_with_gradient(latents.mean(dim=0))
    covariance = mean_with_gradient(latents.T @ latents / len(latents)) - torch.outer(mean, mean)
    apart = covariance / SPREAD**2 - torch.eye(latents.shape[1], device=latents.device)
    return (apart.square().sum() + mean.square().sum()) / latents.shape[1]
