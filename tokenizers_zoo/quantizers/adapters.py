"""One small adapter per quantizer class of vector-quantize-pytorch, all with the same three methods.

The classes differ in return arity, index dtype and layout; an adapter hides that. To add a kind (residual, grouped,
product codes, ...): its fields in `KIND_DEFAULTS`, an adapter here, a line in `ADAPTERS`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import vector_quantize_pytorch as vqp
from torch import Tensor, nn

from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.quantizers.config import QuantizerConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Codes = Float[Tensor, "batch n code_dim"]
    Tokens = Int[Tensor, "batch n *codebooks"]

MAX_DISTANCES = 2**24
"""Latents x codes compared at once in eval mode: 64 MiB of float32."""


class Adapter(nn.Module):
    """A quantizer of vectors of `code_dim` numbers, always called in float32 and outside autocast."""

    num_codebooks: int = 1
    """Tokens per latent; with more than one, tokens are (batch, n, num_codebooks)."""

    def __init__(self, code_dim: int) -> None:
        super().__init__()
        self.code_dim = code_dim

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        """For training: codes with a gradient to the latents, int64 tokens and a scalar loss; may update a codebook."""
        raise NotImplementedError

    def tokens(self, latents: Codes) -> Tokens:
        """For eval mode: int64 tokens, nothing else computed or changed."""
        raise NotImplementedError

    def lookup(self, tokens: Tokens) -> Codes:
        """The codes of tokens."""
        raise NotImplementedError


def world_size() -> int:
    """Processes that train together, asked anew each time: the library caches its answer for the process's life."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def nearest(latents: Codes, codebook: Float[Tensor, "codes code_dim"]) -> Tokens:
    """The code nearest to each latent, in bounded memory.

    |x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2): the greatest bracket is the least distance.
    """
    half_norms = codebook.square().sum(dim=1) / 2
    chunks = latents.flatten(0, 1).split(max(1, MAX_DISTANCES // len(codebook)))
    return torch.cat([(chunk @ codebook.T - half_norms).argmax(dim=1) for chunk in chunks]).view(latents.shape[:2])


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


class MovingAverage(Adapter):
    """VQ whose codebook follows its latents by moving averages (arXiv 1711.00937, appendix A.1).

    Keep it outside activation checkpointing, which would run the update twice, and build it after the process group.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.codebook_dim is not None and config.kmeans_iterations is not None
        assert config.revive_below is not None
        super().__init__(config.codebook_dim)
        self.revive_below = config.revive_below
        self.vq = vqp.VectorQuantize(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            use_cosine_sim=config.distance == "cosine",
            decay=config.decay,
            kmeans_init=config.kmeans_iterations > 0,
            kmeans_iters=config.kmeans_iterations,
            threshold_ema_dead_code=config.revive_below,
            commitment_weight=config.commitment_weight,
            rotation_trick=False,
            sync_codebook=world_size() > 1,
        )

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        # The library wants a count of latents per batch; a fixed one would call most codes dead in small batches.
        mean_count = latents.shape[0] * latents.shape[1] * world_size() / self.vq.codebook_size
        self.vq._codebook.threshold_ema_dead_code = self.revive_below * mean_count
        self.vq._codebook.reset_cluster_size = mean_count
        codes, tokens, loss = self.vq(latents)
        return codes, tokens, loss

    def tokens(self, latents: Codes) -> Tokens:
        # The library would run k-means on whatever it meets first, also in eval mode.
        if not self.vq._codebook.initted:
            raise CheckpointError("quantizer: its codebook was never trained; train it, or load a checkpoint first")
        return nearest(self.vq._codebook.transform_input(latents), self.vq.codebook)

    def lookup(self, tokens: Tokens) -> Codes:
        return self.vq.get_codes_from_indices(tokens)


class LookupFree(Adapter):
    """LFQ (arXiv 2310.05737): the signs of log2(codebook size) numbers are the token's bits.

    The entropy loss compares every latent with every code, so memory in training grows with the codebook.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        bits = int(math.log2(config.codebook_size))
        super().__init__(bits)
        self.lfq = vqp.LFQ(
            dim=bits,
            codebook_size=config.codebook_size,
            entropy_loss_weight=config.entropy_weight,
            commitment_loss_weight=config.commitment_weight,
        )

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        # The library divides the batch's probabilities by the number of processes without having summed them.
        if world_size() > 1:
            raise ConfigError("quantizer: kind lfq trains in one process only; use fsq, vq or simvq with several")
        codes, tokens, loss = self.lfq(latents)
        return codes, tokens.long(), loss

    def tokens(self, latents: Codes) -> Tokens:
        return self.lfq(latents)[1].long()

    def lookup(self, tokens: Tokens) -> Codes:
        return self.lfq.indices_to_codes(tokens)


class SimpleVector(Adapter):
    """SimVQ (arXiv 2411.02038): the codebook is a learned linear map of fixed random vectors, so all codes move."""

    def __init__(self, config: QuantizerConfig) -> None:
        assert config.codebook_dim is not None
        super().__init__(config.codebook_dim)
        self.simvq = vqp.SimVQ(
            dim=config.codebook_dim, codebook_size=config.codebook_size, commitment_weight=config.commitment_weight
        )

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        codes, tokens, loss = self.simvq(latents)
        return codes, tokens, loss

    def tokens(self, latents: Codes) -> Tokens:
        return nearest(latents, self.simvq.codebook)

    def lookup(self, tokens: Tokens) -> Codes:
        return self.simvq.code_transform(self.simvq.frozen_codebook[tokens])


ADAPTERS: dict[str, type[FiniteScalar | MovingAverage | LookupFree | SimpleVector]] = {
    "fsq": FiniteScalar,
    "vq": MovingAverage,
    "lfq": LookupFree,
    "simvq": SimpleVector,
}
