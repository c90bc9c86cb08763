"""The MLP of Transformer blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class Mlp(nn.Module):
    """Linear, exact GELU, linear, with biases; `hidden` numbers in the middle."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.activation = nn.GELU()
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        """Same shape as `x`; without the residual sum."""
        return self.contract(self.activation(self.expand(x)))
