"""One small adapter per quantizer class of vector-quantize-pytorch, all with the same two methods.

The classes differ in return arity, index dtype and layout; an adapter hides that. To add a kind (residual, grouped, product
codes, ...): its fields in `KIND_DEFAULTS`, an adapter here, a line in `ADAPTERS`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import vector_quantize_pytorch as vqp
from torch import Tensor, nn

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.quantizers.config import QuantizerConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Codes = Float[Tensor, "batch n code_dim"]
    Tokens = Int[Tensor, "batch n *codebooks"]


class Adapter(nn.Module):
    """A quantizer of vectors of `code_dim` numbers, always called in float32 and outside autocast."""

    num_codebooks: int = 1
    """Tokens per latent; with more than one, tokens are (batch, n, num_codebooks)."""

    def __init__(self, code_dim: int) -> None:
        super().__init__()
        self.code_dim = code_dim

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        """Codes (with a gradient to the latents in training), int64 tokens and a scalar loss."""
        raise NotImplementedError

    def lookup(self, tokens: Tokens) -> Codes:
        """The codes of tokens."""
        raise NotImplementedError


class FiniteScalar(Adapter):
    """FSQ (arXiv 2309.15505): each dimension is bounded by tanh and rounded; no codebook, no loss."""

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        assert config.levels is not None
        super().__init__(len(config.levels))
        self.fsq = vqp.FSQ(levels=list(config.levels))

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        codes, tokens = self.fsq(latents)
        return codes, tokens.long(), latents.new_zeros(())

    def lookup(self, tokens: Tokens) -> Codes:
        return self.fsq.indices_to_codes(tokens)


class MovingAverage(Adapter):
    """VQ whose codebook follows its latents by moving averages (arXiv 1711.00937, appendix A.1).

    Keep it outside activation checkpointing, which would run the update twice, and build it after the process group.
    """

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        assert config.codebook_dim is not None and config.kmeans_iterations is not None
        super().__init__(config.codebook_dim)
        # Asked here because the library caches its own answer for the life of the process.
        several_processes = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
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
            sync_codebook=several_processes,
        )

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        # The library would run k-means on whatever it meets first, also in eval mode.
        if not self.training and not self.vq._codebook.initted:
            raise CheckpointError("quantizer: its codebook has never been trained; train it, or load a checkpoint first")
        codes, tokens, loss = self.vq(latents)
        return codes, tokens, loss

    def lookup(self, tokens: Tokens) -> Codes:
        return self.vq.get_codes_from_indices(tokens)


class LookupFree(Adapter):
    """LFQ (arXiv 2310.05737): the signs of log2(codebook size) numbers are the token's bits."""

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        bits = int(math.log2(config.codebook_size))
        super().__init__(bits)
        self.lfq = vqp.LFQ(
            dim=bits,
            codebook_size=config.codebook_size,
            entropy_loss_weight=config.entropy_weight,
            commitment_loss_weight=config.commitment_weight,
        )

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        codes, tokens, loss = self.lfq(latents)
        return codes, tokens.long(), loss

    def lookup(self, tokens: Tokens) -> Codes:
        return self.lfq.indices_to_codes(tokens)


class SimpleVector(Adapter):
    """SimVQ (arXiv 2411.02038): the codebook is one learned linear map of fixed random vectors, so all codes move together."""

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        assert config.codebook_dim is not None
        super().__init__(config.codebook_dim)
        self.simvq = vqp.SimVQ(
            dim=config.codebook_dim, codebook_size=config.codebook_size, commitment_weight=config.commitment_weight
        )

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        codes, tokens, loss = self.simvq(latents)
        return codes, tokens, loss

    def lookup(self, tokens: Tokens) -> Codes:
        return self.simvq.indices_to_codes(tokens)


ADAPTERS: dict[str, type[FiniteScalar | MovingAverage | LookupFree | SimpleVector]] = {
    "fsq": FiniteScalar,
    "vq": MovingAverage,
    "lfq": LookupFree,
    "simvq": SimpleVector,
}
