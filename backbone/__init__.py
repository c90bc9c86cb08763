"""The shared 4M backbone: one encoder-decoder Transformer over the tokens of whatever modalities are registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbone.model import FourM

__all__ = ["FourM"]


def __getattr__(name: str) -> Any:
    """Import the model, and torch with it, only when it is asked for."""
    if name == "FourM":
        from backbone.model import FourM

        return FourM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
