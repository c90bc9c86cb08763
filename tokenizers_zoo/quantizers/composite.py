"""Several quantizers for one latent: side by side on its parts, or one after the other on what is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tokenizers_zoo.quantizers.adapter import Adapter, straight_through

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
    """Residual codes (arXiv 2107.03312, algorithm 1): each step quantises what the ones before left over.

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
    """The members, with the type that they were given with."""
    return cast("list[Adapter]", list(modules))


def _joined(tokens: Sequence[Tokens]) -> Tokens:
    """The tokens of several quantizers along one last axis."""
    return torch.cat([ids if ids.ndim == 3 else ids[..., None] for ids in tokens], dim=2)
