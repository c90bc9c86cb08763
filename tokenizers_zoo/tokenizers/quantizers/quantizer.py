"""The quantizer that tokenizers use: projections around an adapter, in float32 whatever the surroundings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerConfig
from tokenizers_zoo.tokenizers.quantizers.kinds import (
    Adapter,
    Binary,
    FiniteScalar,
    MemoryCodes,
    MovingAverage,
    ResidualFiniteScalar,
    SimpleVector,
    straight_through,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tokenizers_zoo.tokenizers.quantizers.kinds import Codes, Tokens


class SideBySide(Adapter):
    """Product codes (Jegou et al., IEEE TPAMI 33(1), 2011): each part of a latent has its own quantizer.

    Tokens are the parts' tokens in order; of residual parts, all tokens of the first part come first.
    """

    def __init__(self, parts: Sequence[Adapter]) -> None:
        super().__init__(sum(part.code_dim for part in parts), sum(part.num_codebooks for part in parts))
        self.parts: Any = nn.ModuleList(parts)

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        results = [part.quantize(piece) for part, piece in self._pieces(latents)]
        codes, tokens, losses = zip(*results, strict=True)
        return torch.cat(codes, dim=2), _joined(tokens), torch.stack(losses).mean()

    def tokens(self, latents: Codes) -> Tokens:
        return _joined([part.tokens(piece) for part, piece in self._pieces(latents)])

    def lookup(self, tokens: Tokens) -> Codes:
        columns = tokens.split([part.num_codebooks for part in self.parts], dim=2)
        pairs = zip(self.parts, columns, strict=True)
        return torch.cat([part.lookup(c if part.num_codebooks > 1 else c[..., 0]) for part, c in pairs], dim=2)

    def _pieces(self, latents: Codes) -> list[tuple[Adapter, Codes]]:
        return list(zip(self.parts, latents.split([part.code_dim for part in self.parts], dim=2), strict=True))


def _joined(tokens: Sequence[Tokens]) -> Tokens:
    """Join the tokens of several quantizers along the last axis."""
    return torch.cat([ids if ids.ndim == 3 else ids[..., None] for ids in tokens], dim=2)


class Residual(Adapter):
    """Residual codes (arXiv 2107.03312, algorithm 1): each step quantises the remaining error of the previous steps.

    The code is the sum of the steps' codes, so tokens go from coarse to fine.
    """

    def __init__(self, steps: Sequence[Adapter]) -> None:
        super().__init__(steps[0].code_dim, len(steps))
        self.steps: Any = nn.ModuleList(steps)

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        residual, ids, losses = latents, [], []
        for step in self.steps:
            codes, tokens, loss = step.quantize(residual)
            residual = residual - codes.detach()
            ids.append(tokens)
            losses.append(loss)
        # One straight-through gradient for the sum: one per step would multiply it by their number.
        return straight_through(latents, latents - residual), torch.stack(ids, dim=2), torch.stack(losses).mean()

    def tokens(self, latents: Codes) -> Tokens:
        residual, ids = latents, []
        for step in self.steps:
            ids.append(step.tokens(residual))
            residual = residual - step.lookup(ids[-1])
        return torch.stack(ids, dim=2)

    def lookup(self, tokens: Tokens) -> Codes:
        columns = zip(self.steps, tokens.unbind(dim=2), strict=True)
        return torch.stack([step.lookup(column) for step, column in columns]).sum(dim=0)


def _moving_averages(config: QuantizerConfig) -> Adapter:
    """Product codes, residual codes, or groups of residual codes (arXiv 2305.02765)."""
    groups = config.groups or (1 if config.kind == "residual_vq" else config.codes_per_position)
    steps = config.codes_per_position // groups
    parts = [[MovingAverage(config) for _ in range(steps)] for _ in range(groups)]
    if groups == 1:
        return Residual(parts[0])
    return SideBySide([Residual(part) if steps > 1 else part[0] for part in parts])


def _residual_simvq(config: QuantizerConfig) -> Adapter:
    """Halve the initial code size at each step, because codes larger than the residual would stay unused."""
    return Residual([SimpleVector(config, 0.5**step) for step in range(config.codes_per_position)])


ADAPTERS: dict[str, Callable[[QuantizerConfig], Adapter]] = {
    "fsq": FiniteScalar,
    "vq": MovingAverage,
    "lfq": Binary,
    "bsq": Binary,
    "simvq": SimpleVector,
    "product_vq": _moving_averages,
    "memcodes": MemoryCodes,
    "residual_vq": _moving_averages,
    "grouped_residual_vq": _moving_averages,
    "residual_fsq": ResidualFiniteScalar,
    "residual_simvq": _residual_simvq,
}
"""The adapter of each kind.

A new kind needs its name in `QuantizerKind`, its fields in `KIND_DEFAULTS` (new fields also in `QuantizerConfig`,
`QuantizedTrainConfig`, and in `TRAINING_ONLY` if ids do not depend on them), an adapter, and a line here.
"""


class Quantized(NamedTuple):
    """The result of `Quantizer.forward`."""

    codes: Float[Tensor, "batch *grid dim"]
    """Quantised vectors, float32; in training their gradient passes straight through to the latents."""
    tokens: Int[Tensor, "batch *grid_codes"]
    """int64 ids in [0, codebook_size): (batch, *grid), with a last axis of codes if a latent has several."""
    loss: Float[Tensor, ""]
    """Weighted commitment, entropy and spread losses, to add to the reconstruction loss; 0 in eval mode."""


class Quantizer(nn.Module):
    """Map latents of `dim` numbers, on a grid of any number of axes, to tokens and codes.

    Everything runs in float32, also under autocast: bfloat16 latents near a border would otherwise change their token.
    In eval mode it is deterministic, changes no state, and `forward(x).codes` equals `decode(encode(x))` exactly.

    The weights do not determine the meaning of ids (no tensor holds the levels of fsq): keep the configuration with
    them, as checkpoints do.
    """

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.codebook_size = config.codebook_size
        """Number of codes of one codebook; tokens are below it."""
        self.codes_per_position = config.codes_per_position
        """Tokens per latent: the last axis of tokens, absent for one token per latent."""
        self.adapter = ADAPTERS[config.kind](config)
        code_dim = self.adapter.code_dim
        self.project_in = nn.Linear(dim, code_dim) if code_dim != dim else nn.Identity()
        self.project_out = nn.Linear(code_dim, dim) if code_dim != dim else nn.Identity()

    def forward(self, latents: Float[Tensor, "batch *grid dim"]) -> Quantized:
        """Quantise. Raises CheckpointError in eval mode if the codebook was never trained."""
        grid_shape = latents.shape[:-1]
        with torch.autocast(latents.device.type, enabled=False):
            flat = self.project_in(latents.float().reshape(1, -1, self.dim))  # one long row: some kernels loop over it
            if self.training:
                codes, tokens, loss = self.adapter.quantize(flat)
            else:
                tokens = self.adapter.tokens(flat)
                codes, loss = self.adapter.lookup(tokens), flat.new_zeros(())
            codes = self.project_out(codes).view(*grid_shape, self.dim)
            return Quantized(codes, tokens.view(*grid_shape, *tokens.shape[2:]), loss)

    @torch.no_grad()
    def encode(self, latents: Float[Tensor, "batch *grid dim"]) -> Int[Tensor, "batch *grid_codes"]:
        """Return the token ids of latents as in eval mode, whatever the mode; no state changes."""
        was_training = self.training
        self.eval()
        try:
            return self(latents).tokens
        finally:
            self.train(was_training)

    def decode(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Float[Tensor, "batch *grid dim"]:
        """Return the codes of tokens. Raises InvalidValueError for ids outside [0, codebook_size) or a wrong shape."""
        count = self.codes_per_position
        if count > 1 and (tokens.ndim < 2 or tokens.shape[-1] != count):
            raise InvalidValueError(f"tokens: expected {count} per latent (the last axis), got {tuple(tokens.shape)}")
        tracing = torch.compiler.is_exporting()
        if not tracing and tokens.numel() and not (tokens.min() >= 0 and tokens.max() < self.codebook_size):
            raise InvalidValueError(
                f"tokens: expected ids in [0, {self.codebook_size}), got {int(tokens.min())} to {int(tokens.max())}"
            )
        grid_shape = tokens.shape if count == 1 else tokens.shape[:-1]
        flat = tokens.reshape(1, -1, *tokens.shape[len(grid_shape) :])
        with torch.autocast(tokens.device.type, enabled=False):
            return self.project_out(self.adapter.lookup(flat)).view(*grid_shape, self.dim)
