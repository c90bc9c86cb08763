"""The interface of all quantizers on vectors, and the sums over processes that keep their codebooks equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Codes = Float[Tensor, "batch n code_dim"]
    Tokens = Int[Tensor, "batch n *codebooks"]


def world_size() -> int:
    """Return the number of training processes, queried at each call. The library caches it for the process's life."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def add_up(tensor: Tensor) -> None:
    """Replace `tensor` by its sum over the processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def mean_with_gradient(tensor: Tensor) -> Tensor:
    """Return the mean over the processes; gradients flow back to every process."""
    count = world_size()
    return dist_nn.all_reduce(tensor) / count if count > 1 else tensor


def take_first_process(module: nn.Module) -> None:
    """Broadcast the buffers of `module` (codebooks without gradients) from the first process."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def sample_over_processes(local: Float[Tensor, "1 n dim"], count: int) -> Float[Tensor, "1 count dim"]:
    """Draw `count` random vectors from all processes, the same vectors in each.

    The library's own version may read buffers before its asynchronous broadcasts have written them (gloo).
    """
    vectors = local[0]
    if len(vectors) >= count:
        chosen = torch.randperm(len(vectors), device=vectors.device)[:count]
    else:
        chosen = torch.randint(len(vectors), (count,), device=vectors.device)
    own = vectors[chosen].contiguous()
    offered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(offered, own)
    owner = torch.randint(world_size(), (count,), device=vectors.device)
    dist.broadcast(owner, src=0)
    return torch.stack(offered)[owner, torch.arange(count, device=vectors.device)][None]


MAX_DISTANCES = 2**24
"""Latents x codes compared at once in eval mode: 64 MiB of float32."""

DIVERSITY = 3.0
"""Weight of the entropy of the mean distribution relative to the mean entropy per latent: gamma of arXiv 2406.07548,
eq. 5.

With 1, the papers' value, LFQ left 8 to 17 % of 1,024 codes unused on toy data; with 3 it left none.
"""


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
    chunks = latents.flatten(0, 1).split(max(1, MAX_DISTANCES // len(keys)))
    return torch.cat([(chunk @ keys.T - penalties).argmax(dim=1) for chunk in chunks]).view(latents.shape[:2])


def straight_through(latents: Codes, codes: Codes) -> Codes:
    """Return the codes with the straight-through gradient to the latents (arXiv 1308.3432)."""
    return latents + (codes - latents).detach()


def entropy(shares: Float[Tensor, "*others n"]) -> Float[Tensor, "*others"]:
    """Return the entropy over the last axis in nats. The clamp keeps the gradient finite if a share is 0."""
    return -(shares * shares.clamp_min(1e-20).log()).sum(dim=-1)
