"""VQ-EMA, SimVQ and memory codes: tokens are rows of a table that is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import vector_quantize_pytorch as vqp
from einops import rearrange
from loguru import logger
from torch import Tensor, nn
from torch.nn import functional

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.quantizers.adapter import (
    DIVERSITY,
    Adapter,
    add_up,
    best_scores,
    entropy,
    mean_with_gradient,
    nearest,
    sample_over_processes,
    straight_through,
    world_size,
)
from tokenizers_zoo.quantizers.config import QuantizerConfig

# It warns of a first batch of fewer latents than codes; what then is double is revived a few steps later.
logger.disable(vqp.__name__)

if TYPE_CHECKING:
    from jaxtyping import Float

    from tokenizers_zoo.quantizers.adapter import Codes, Tokens


FAINTEST = 40.0
"""Scores of memory codes are clamped to this many nats below the greatest score. A clamped code has a probability of
about 4e-18 and no gradient.

Smaller probabilities would change no result in float32, but numbers below 1e-38 are many times slower on a CPU.
"""
UNIT = 1e-6
"""Tolerance within which a code's length counts as 1; rounding leaves it within 2e-7."""


def directions(codebook: Float[Tensor, "codes dim"]) -> Float[Tensor, "codes dim"]:
    """Normalise codes to length 1. Codes of length 1 are unchanged to the bit, so their tokens are, too."""
    lengths = codebook.norm(dim=1, keepdim=True)
    return torch.where((lengths - 1).abs() <= UNIT, codebook, functional.normalize(codebook, dim=1))


class MovingAverage(Adapter):
    """VQ with an EMA codebook (arXiv 1711.00937, appendix A.1).

    The codebook is initialised by k-means, and dead codes are replaced (arXiv 2107.03312, section III-C). Keep it
    outside activation checkpointing, which would run the update twice. The cosine distance compares directions, but a
    token's code is the stored row. Rows trained here have length 1; rows of imported codebooks may not.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.codebook_dim is not None and config.kmeans_iterations is not None
        assert config.revive_below is not None
        super().__init__(config.codebook_dim)
        self.revive_below = config.revive_below
        self.cosine = config.distance == "cosine"
        self.vq = vqp.VectorQuantize(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            use_cosine_sim=self.cosine,
            decay=config.decay,
            kmeans_init=config.kmeans_iterations > 0,
            kmeans_iters=config.kmeans_iterations,
            threshold_ema_dead_code=config.revive_below,
            commitment_weight=config.commitment_weight,
            rotation_trick=False,
            sync_codebook=False,
        )
        # The library decides when it is built whether it has to sum over processes; these ask at each call.
        book = self.vq._codebook
        book.all_reduce_fn = book.kmeans_all_reduce_fn = add_up
        self._sample_alone = book.sample_fn

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        book = self.vq._codebook
        # The library wants a count of latents per batch; a fixed one would call most codes dead in small batches.
        count = latents.new_tensor(latents.shape[0] * latents.shape[1])
        add_up(count)
        mean_count = float(count) / self.vq.codebook_size
        book.threshold_ema_dead_code = self.revive_below * mean_count
        book.reset_cluster_size = mean_count
        book.sample_fn = book.replace_sample_fn = sample_over_processes if world_size() > 1 else self._sample_alone
        before = book.embed.clone() if self.cosine else None
        codes, tokens, loss = self.vq(latents)
        if before is not None:
            # The moving average of an unused code decays, and the code's length with it.
            faded = book.embed.norm(dim=-1, keepdim=True) < 1 - UNIT
            book.embed.copy_(torch.where(faded, functional.normalize(before, dim=-1), book.embed))
        return codes, tokens, loss

    def tokens(self, latents: Codes) -> Tokens:
        # The library would run k-means on whatever it meets first, also in eval mode.
        if not self.vq._codebook.initted:
            raise CheckpointError("quantizer: its codebook was never trained; train it, or load a checkpoint first")
        latents = self.vq._codebook.transform_input(latents)
        if not self.cosine:
            return nearest(latents, self.vq.codebook)
        # A row of zeros, as k-means leaves where latents are few, has no direction: its cosine is 0, as in training.
        rows = directions(self.vq.codebook)
        penalties = rows.square().sum(dim=1) / 2
        return best_scores(latents, rows, torch.where(penalties < 0.25, 0.5, penalties))

    def lookup(self, tokens: Tokens) -> Codes:
        return self.vq.get_codes_from_indices(tokens)


class SimpleVector(Adapter):
    """SimVQ (arXiv 2411.02038): the codebook is a learned linear map of fixed random vectors, so all codes move."""

    def __init__(self, config: QuantizerConfig, scale: float = 1.0) -> None:
        assert config.codebook_dim is not None
        super().__init__(config.codebook_dim)
        self.simvq = vqp.SimVQ(
            dim=config.codebook_dim, codebook_size=config.codebook_size, commitment_weight=config.commitment_weight
        )
        with torch.no_grad():
            self.simvq.code_transform.weight.mul_(scale)

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        codes, tokens, loss = self.simvq(latents)
        return codes, tokens, loss

    def tokens(self, latents: Codes) -> Tokens:
        return nearest(latents, self.simvq.codebook)

    def lookup(self, tokens: Tokens) -> Codes:
        return self.simvq.code_transform(self.simvq.frozen_codebook[tokens])


class MemoryCodes(Adapter):
    """Memory codes of several heads (arXiv 2106.04283): a hard attention of each head to its own codes.

    Head i owns numbers [i d, (i + 1) d) of a latent. Its keys are codes[i] @ to_k[i], its values codes[i] @ to_v[i];
    the token is the key with the greatest dot product, the code its value. The paper samples the code in training
    (Gumbel softmax). We take the argmax with the gradient of the softmax, and an entropy term as in LFQ. This keeps
    several times as many codes in use.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.codebook_dim is not None and config.num_codebooks is not None
        assert config.entropy_weight is not None
        heads, dim = config.num_codebooks, config.codebook_dim
        super().__init__(heads * dim, heads)
        self.entropy_weight = config.entropy_weight
        self.codes = nn.Parameter(torch.randn(heads, config.codebook_size, dim))
        self.to_k = nn.Parameter(torch.randn(heads, dim, dim) * dim**-0.5)
        self.to_v = nn.Parameter(torch.randn(heads, dim, dim) * dim**-0.5)

    @property
    def keys(self) -> Float[Tensor, "heads codes d"]:
        """Vectors that latents are compared with."""
        return self.codes @ self.to_k

    @property
    def values(self) -> Float[Tensor, "heads codes d"]:
        """The code vector of each token."""
        return self.codes @ self.to_v

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        queries = rearrange(latents, "b n (h d) -> h (b n) d", h=self.num_codebooks)
        scores = queries @ self.keys.mT * queries.shape[2] ** -0.5
        soft = torch.maximum(scores, scores.detach().amax(dim=2, keepdim=True) - FAINTEST).softmax(dim=2)
        tokens = soft.argmax(dim=2)
        hard = functional.one_hot(tokens, soft.shape[2]).to(soft.dtype)
        codes = straight_through(soft, hard) @ self.values
        spread = entropy(mean_with_gradient(soft.mean(dim=1)))
        loss = self.entropy_weight * (entropy(soft).mean() - DIVERSITY * spread.mean())
        return (
            rearrange(codes, "h (b n) d -> b n (h d)", b=len(latents)),
            rearrange(tokens, "h (b n) -> b n h", b=len(latents)),
            loss,
        )

    def tokens(self, latents: Codes) -> Tokens:
        parts = latents.chunk(self.num_codebooks, dim=2)
        return torch.stack([best_scores(*pair) for pair in zip(parts, self.keys, strict=True)], dim=2)

    def lookup(self, tokens: Tokens) -> Codes:
        rows = [values[column] for values, column in zip(self.values, tokens.unbind(dim=2), strict=True)]
        return torch.cat(rows, dim=2)
