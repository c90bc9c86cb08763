"""The quantizer that tokenizers use: projections around an adapter, in float32 whatever the surroundings."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.quantizers.adapters import ADAPTERS
from tokenizers_zoo.quantizers.config import QuantizerConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Quantized(NamedTuple):
    """What `Quantizer.forward` gives."""

    codes: Float[Tensor, "batch n dim"]
    """Quantised vectors, float32; in training their gradient passes straight through to the latents."""
    tokens: Int[Tensor, "batch n *codebooks"]
    """int64 ids in [0, codebook_size)."""
    loss: Float[Tensor, ""]
    """What to add to the reconstruction loss (commitment, entropy), weighted; 0 for fsq and in eval mode."""


class Quantizer(nn.Module):
    """Latents of `dim` numbers to tokens and codes.

    Everything runs in float32, also under autocast: bfloat16 latents near a border would otherwise change their token.
    In eval mode it is deterministic, changes no state, and `forward(x).codes` equals `decode(encode(x))` exactly.
    The weights do not say all: keep `config` beside them (the levels of fsq are in no tensor).
    """

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        self.adapter = ADAPTERS[config.kind](config)
        code_dim = self.adapter.code_dim
        self.project_in = nn.Linear(dim, code_dim) if code_dim != dim else nn.Identity()
        self.project_out = nn.Linear(code_dim, dim) if code_dim != dim else nn.Identity()

    @property
    def codebook_size(self) -> int:
        """Number of codes of one codebook; tokens are below it."""
        return self.config.codebook_size

    @property
    def num_codebooks(self) -> int:
        """Tokens per latent."""
        return self.adapter.num_codebooks

    def forward(self, latents: Float[Tensor, "batch n dim"]) -> Quantized:
        """Quantise; raises CheckpointError in eval mode where the codebook was never trained."""
        with torch.autocast(latents.device.type, enabled=False):
            projected = self.project_in(latents.float())
            if self.training:
                codes, tokens, loss = self.adapter.quantize(projected)
                return Quantized(self.project_out(codes), tokens, loss)
            tokens = self.adapter.tokens(projected)
            codes = self.project_out(self.adapter.lookup(tokens))
            return Quantized(codes, tokens, codes.new_zeros(()))

    @torch.no_grad()
    def encode(self, latents: Float[Tensor, "batch n dim"]) -> Int[Tensor, "batch n *codebooks"]:
        """Token ids of latents, as eval mode gives them whatever the mode; no state changes."""
        was_training = self.training
        self.eval()
        try:
            return self(latents).tokens
        finally:
            self.train(was_training)

    def decode(self, tokens: Int[Tensor, "batch n *codebooks"]) -> Float[Tensor, "batch n dim"]:
        """The codes of tokens. Raises InvalidValueError for an id outside [0, codebook_size)."""
        if tokens.numel() and not (tokens.min() >= 0 and tokens.max() < self.codebook_size):
            raise InvalidValueError(
                f"tokens: expected ids in [0, {self.codebook_size}), got {int(tokens.min())} to {int(tokens.max())}"
            )
        with torch.autocast(tokens.device.type, enabled=False):
            return self.project_out(self.adapter.lookup(tokens))


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer of `config` for latents of `dim` numbers; build it after `init_process_group` if there is one."""
    return Quantizer(config, dim)
