"""All kinds of quantizers.

FSQ and residual FSQ round numbers, LFQ and BSQ take their signs. The tokens of VQ-EMA, SimVQ and memory codes are rows
of a learned table.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import vector_quantize_pytorch as vqp
from einops import rearrange
from loguru import logger
from torch import Tensor, nn
from torch.nn import functional

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Codes = Float[Tensor, "batch n code_dim"]
    Tokens = Int[Tensor, "batch n *codebooks"]

# It warns of a first batch with fewer latents than codes; duplicate codes are revived a few steps later.
logger.disable(vqp.__name__)

MAX_DISTANCES = 2**24
"""Latents x codes compared at once in eval mode: 64 MiB of float32."""
DIVERSITY = 3.0
"""Weight of the entropy of the mean distribution relative to the mean entropy per latent: gamma of arXiv 2406.07548,
eq. 5.

With 1, the papers' value, LFQ left 8 to 17 % of 1,024 codes unused on toy data; with 3 it left none.
"""
SPREAD = 0.9
"""Standard deviation with which normally distributed numbers, after tanh, reach all levels about equally often."""
FAINTEST = 40.0
"""Scores of memory codes are clamped to this many nats below the greatest score. A clamped code has a probability of
about 4e-18 and no gradient.

Smaller probabilities would change no result in float32, but numbers below 1e-38 are many times slower on a CPU.
"""
UNIT = 1e-6
"""Tolerance within which a code's length counts as 1; rounding leaves it within 2e-7."""


class Adapter(nn.Module):
    """A quantizer of vectors of `code_dim` numbers, always called in float32 and outside autocast."""

    def __init__(self, code_dim: int, num_codebooks: int = 1) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.num_codebooks = num_codebooks
        """Tokens per latent; with more than one, tokens are (batch, n, num_codebooks)."""

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        """Return codes with gradient, int64 tokens and a scalar loss in training mode; may update a codebook."""
        raise NotImplementedError

    def tokens(self, latents: Codes) -> Tokens:
        """Return int64 tokens in eval mode, without changing any state."""
        raise NotImplementedError

    def lookup(self, tokens: Tokens) -> Codes:
        """Return the codes of tokens."""
        raise NotImplementedError


def nearest(latents: Codes, codebook: Float[Tensor, "codes code_dim"]) -> Tokens:
    """Return the index of the nearest code of each latent, in bounded memory.

    |x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2): the greatest bracket is the least distance.
    """
    return best_scores(latents, codebook, codebook.square().sum(dim=1) / 2)


def best_scores(
    latents: Codes, keys: Float[Tensor, "codes code_dim"], penalties: Float[Tensor, "codes"] | float = 0.0
) -> Tokens:
    """Return the index of the key with the greatest x . key - penalty for each latent, in bounded memory."""
    rows = latents.flatten(0, 1)
    if torch.compiler.is_exporting():  # the number of chunks would depend on the batch
        return (rows @ keys.T - penalties).argmax(dim=1).view(latents.shape[:2])
    chunks = rows.split(max(1, MAX_DISTANCES // len(keys)))
    return torch.cat([(chunk @ keys.T - penalties).argmax(dim=1) for chunk in chunks]).view(latents.shape[:2])


def straight_through(latents: Codes, codes: Codes) -> Codes:
    """Return the codes with the straight-through gradient to the latents (arXiv 1308.3432)."""
    return latents + (codes - latents).detach()


def entropy(shares: Float[Tensor, "*others n"]) -> Float[Tensor, "*others"]:
    """Return the entropy over the last axis in nats. The clamp keeps the gradient finite if a share is 0."""
    return -(shares * shares.clamp_min(1e-20).log()).sum(dim=-1)


class Binary(Adapter):
    """LFQ (arXiv 2310.05737), or BSQ (arXiv 2406.07548), which first puts latents on the unit sphere.

    The signs of log2(codebook size) numbers are the token's bits, the first one highest. The losses are made here:
    the library's compare every latent with every code.
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
    shares = high.T @ low / len(latents)
    return per_latent - DIVERSITY * entropy(shares.flatten())


def _joint(bits: Float[Tensor, "n bits 2"]) -> Float[Tensor, "n 2**bits"]:
    """Probabilities of all values of independent bits, the first bit highest."""
    joint = bits.new_ones(len(bits), 1)
    for bit in bits.unbind(dim=1):
        joint = (joint[:, :, None] * bit[:, None, :]).flatten(1)
    return joint


class FiniteScalar(Adapter):
    """FSQ (arXiv 2309.15505): each dimension is bounded by tanh and rounded; no codebook.

    The paper has no auxiliary loss. A small weight of `spread_loss` uses more codes at the same reconstruction quality,
    but a backbone was slightly worse on such tokens. It is therefore a setting (docs/results/tokenizers.md).
    """

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.levels is not None and config.spread_weight is not None
        super().__init__(len(config.levels))
        with torch.device("cpu"):  # the library computes numbers, which "meta" does not have
            self.fsq = vqp.FSQ(levels=list(config.levels))
        self.spread_weight = config.spread_weight

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        codes, tokens = self.fsq(latents)
        if not self.spread_weight:
            return codes, tokens.long(), latents.new_zeros(())
        return codes, tokens.long(), self.spread_weight * spread_loss(latents.flatten(0, 1))

    def tokens(self, latents: Codes) -> Tokens:
        return self.fsq(latents)[1].long()

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
        with torch.device("cpu"):  # as in FiniteScalar
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
        # As the library's get_output_from_indices, which fixes the batch size under torch.export.
        steps = zip(self.fsq.codebooks, self.fsq.scales, tokens.unbind(dim=2), strict=True)
        return torch.stack([codebook[ids] * scale for codebook, scale, ids in steps]).sum(dim=0)


def spread_loss(latents: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    """Return the distance of latents from mean 0, standard deviation SPREAD and no correlation.

    It is the sum of squared differences of the mean and of the covariance / SPREAD ** 2, per dimension.
    """
    mean = latents.mean(dim=0)
    covariance = latents.T @ latents / len(latents) - torch.outer(mean, mean)
    deviations = covariance / SPREAD**2 - torch.eye(latents.shape[1], device=latents.device)
    return (deviations.square().sum() + mean.square().sum()) / latents.shape[1]


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

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        book = self.vq._codebook
        # The library wants a count of latents per batch; a fixed one would call most codes dead in small batches.
        mean_count = latents.shape[0] * latents.shape[1] / self.vq.codebook_size
        book.threshold_ema_dead_code = self.revive_below * mean_count
        book.reset_cluster_size = mean_count
        before = book.embed.clone() if self.cosine else None
        codes, tokens, loss = self.vq(latents)
        if before is not None:
            # The moving average of an unused code decays, and the code's length with it.
            faded = book.embed.norm(dim=-1, keepdim=True) < 1 - UNIT
            book.embed.copy_(torch.where(faded, functional.normalize(before, dim=-1), book.embed))
        return codes, tokens, loss

    def tokens(self, latents: Codes) -> Tokens:
        # The library would run k-means on whatever it meets first, also in eval mode.
        if not torch.compiler.is_exporting() and not self.vq._codebook.initted:
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
        return self.simvq(latents)

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
        spread = entropy(soft.mean(dim=1))
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
