"""LFQ and BSQ: the signs of a latent are its token; an entropy term keeps all tokens in use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import vector_quantize_pytorch as vqp
from torch import Tensor
from torch.nn import functional

from tokenizers_zoo.quantizers.adapter import DIVERSITY, Adapter, entropy, straight_through
from tokenizers_zoo.quantizers.config import QuantizerConfig
from tokenizers_zoo.quantizers.sync import mean_with_gradient

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
