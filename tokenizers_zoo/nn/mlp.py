"""The MLP of Transformer blocks, and encoders and decoders of vectors that are made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tokenizers_zoo.nn.config import MlpConfig

if TYPE_CHECKING:
    from jaxtyping import Float


class Mlp(nn.Module):
    """Linear, exact GELU (or another activation), linear, with biases; `hidden` numbers in the middle."""

    def __init__(self, dim: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.activation = activation()
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        """Same shape as `x`; without the residual sum."""
        return self.contract(self.activation(self.expand(x)))


class InvertedBottleneck(nn.Module):
    """Norm, linear to a multiple of the width, GELU, linear back, a residual sum (arXiv 2306.13575, section 3.2)."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, expansion * width)

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        """Same shape as `x`."""
        return x + self.mlp(self.norm(x))


def mlp_encoder(config: MlpConfig, in_dim: int, out_dim: int) -> nn.Sequential:
    """Vectors to latents: (*shape, in_dim) to (*shape, out_dim)."""
    first, body, last = _layers(config, in_dim, out_dim)
    return nn.Sequential(first, *body, *_latent_map(config), last)


def mlp_decoder(config: MlpConfig, in_dim: int, out_dim: int) -> nn.Sequential:
    """Codes to vectors: (*shape, in_dim) to (*shape, out_dim)."""
    first, body, last = _layers(config, in_dim, out_dim)
    return nn.Sequential(first, *_latent_map(config), *body, last)


def _layers(config: MlpConfig, in_dim: int, out_dim: int) -> tuple[nn.Linear, list[nn.Module], nn.Linear]:
    """What all have: a linear map to the width, the blocks with their norm, and a linear map from the width."""
    body: list[nn.Module] = [InvertedBottleneck(config.width, config.expansion) for _ in range(config.depth)]
    first = nn.Linear(in_dim, config.width)
    norm = [nn.LayerNorm(config.width)] if config.final_norm else []
    return first, [*body, *norm], nn.Linear(config.width, out_dim)


def _latent_map(config: MlpConfig) -> list[nn.Linear]:
    return [nn.Linear(config.width, config.width)] if config.latent_map else []
