"""The shared 4M backbone: one encoder-decoder Transformer over the tokens of whatever modalities are registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_backbone.encoder import FourMEncoder
    from zoo_backbone.model import FourM

__all__ = ["FourM", "FourMEncoder"]


def __getattr__(name: str) -> Any:
    """Import the models, and with them torch, on first access."""
    if name in __all__:
        from zoo_backbone import encoder, model

        return getattr(model if name == "FourM" else encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
