"""The shared 4M backbone: one encoder-decoder Transformer over the tokens of whatever modalities are registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_backbone.encoder import FourMEncoder
    from zoo_backbone.model import FourM

__all__ = ["FourM", "FourMEncoder"]


def __getattr__(name: str) -> Any:
    """Import the model, and with it torch, on first access."""
    if name == "FourM":
        from zoo_backbone.model import FourM

        return FourM
    if name == "FourMEncoder":
        from zoo_backbone.encoder import FourMEncoder

        return FourMEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
