"""Combinations of quantizers for one latent, side by side or residual; and the adapter of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tokenizers_zoo.quantizers.adapter import Adapter, straight_through
from tokenizers_zoo.quantizers.codebooks import MemoryCodes, MovingAverage, SimpleVector
from tokenizers_zoo.quantizers.config import QuantizerConfig
from tokenizers_zoo.quantizers.scalar import Binary, FiniteScalar, ResidualFiniteScalar

if TYPE_CHECKING:
    from tokenizers_zoo.quantizers.adapter import Codes, Tokens


class SideBySide(Adapter):
    """Product codes (Jegou et al., IEEE TPAMI 33(1), 2011): each part of a latent has its own quantizer.

    Tokens are the parts' tokens in order; of residual parts, all tokens of the first part come first.
    """

    def __init__(self, parts: Sequence[Adapter]) -> None:
        super().__init__(sum(part.code_dim for part in parts), sum(part.num_codebooks for part in parts))
        self.parts = nn.ModuleList(parts)

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        results = [part.quantize(piece) for part, piece in self._pieces(latents)]
        codes, tokens, losses = zip(*results, strict=True)
        return torch.cat(codes, dim=2), _joined(tokens), torch.stack(losses).mean()

    def tokens(self, latents: Codes) -> Tokens:
        return _joined([part.tokens(piece) for part, piece in self._pieces(latents)])

    def lookup(self, tokens: Tokens) -> Codes:
        parts = _adapters(self.parts)
        columns = tokens.split([part.num_codebooks for part in parts], dim=2)
        codes = [
            part.lookup(column if part.num_codebooks > 1 else column[..., 0])
            for part, column in zip(parts, columns, strict=True)
        ]
        return torch.cat(codes, dim=2)

    def _pieces(self, latents: Codes) -> list[tuple[Adapter, Codes]]:
        parts = _adapters(self.parts)
        return list(zip(parts, latents.split([part.code_dim for part in parts], dim=2), strict=True))


class Residual(Adapter):
    """Residual codes (arXiv 2107.03312, algorithm 1): each step quantises the remaining error of the previous steps.

    The code is the sum of the steps' codes, so tokens go from coarse to fine.
    """

    def __init__(self, steps: Sequence[Adapter]) -> None:
        super().__init__(steps[0].code_dim, len(steps))
        self.steps = nn.ModuleList(steps)

    def quantize(self, latents: Codes) -> tuple[Codes, Tokens, Tensor]:
        rest, ids, losses = latents, [], []
        for step in _adapters(self.steps):
            codes, tokens, loss = step.quantize(rest)
            rest = rest - codes.detach()
            ids.append(tokens)
            losses.append(loss)
        # One straight-through gradient for the sum: one per step would multiply it by their number.
        return straight_through(latents, latents - rest), torch.stack(ids, dim=2), torch.stack(losses).mean()

    def tokens(self, latents: Codes) -> Tokens:
        rest, ids = latents, []
        for step in _adapters(self.steps):
            ids.append(step.tokens(rest))
            rest = rest - step.lookup(ids[-1])
        return torch.stack(ids, dim=2)

    def lookup(self, tokens: Tokens) -> Codes:
        columns = zip(_adapters(self.steps), tokens.unbind(dim=2), strict=True)
        return torch.stack([step.lookup(column) for step, column in columns]).sum(dim=0)


def _adapters(modules: nn.ModuleList) -> list[Adapter]:
    """Return the members, typed as adapters."""
    return cast("list[Adapter]", list(modules))


def _joined(tokens: Sequence[Tokens]) -> Tokens:
    """Join the tokens of several quantizers along the last axis."""
    return torch.cat([ids if ids.ndim == 3 else ids[..., None] for ids in tokens], dim=2)


def _product_vq(config: QuantizerConfig) -> Adapter:
    return SideBySide([MovingAverage(config) for _ in range(config.codes_per_position)])


def _residual_vq(config: QuantizerConfig) -> Adapter:
    return Residual([MovingAverage(config) for _ in range(config.codes_per_position)])


def _grouped_residual_vq(config: QuantizerConfig) -> Adapter:
    """Groups of residual codes (arXiv 2305.02765)."""
    assert config.groups is not None
    steps = config.codes_per_position // config.groups
    if steps == 1:  # nothing is left over for a second step
        return _product_vq(config)
    return SideBySide([Residual([MovingAverage(config) for _ in range(steps)]) for _ in range(config.groups)])


def _residual_simvq(config: QuantizerConfig) -> Adapter:
    """Halve the initial code size at each step, because codes larger than the residual would stay unused."""
    return Residual([SimpleVector(config, 0.5**step) for step in range(config.codes_per_position)])


ADAPTERS: dict[str, Callable[[QuantizerConfig], Adapter]] = {
    "fsq": FiniteScalar,
    "vq": MovingAverage,
    "lfq": Binary,
    "bsq": Binary,
    "simvq": SimpleVector,
    "product_vq": _product_vq,
    "memcodes": MemoryCodes,
    "residual_vq": _residual_vq,
    "grouped_residual_vq": _grouped_residual_vq,
    "residual_fsq": ResidualFiniteScalar,
    "residual_simvq": _residual_simvq,
}
"""The adapter of each kind.

A new kind needs its name in `QuantizerKind`, its fields in `KIND_DEFAULTS` (new fields also in `QuantizerConfig`,
`QuantizedTrainConfig`, and in `TRAINING_ONLY` if ids do not depend on them), an adapter, and a line here.
"""
