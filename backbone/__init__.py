"""The shared 4M backbone: one encoder-decoder Transformer over the tokens of whatever modalities are registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbone.features import FourMEncoder
    from backbone.model import FourM

__all__ = ["FourM", "FourMEncoder"]


def __getattr__(name: str) -> Any:
    """Import the model, and torch with it, only when it is asked for."""
    if name == "FourM":
        from backbone.model import FourM

        return FourM
    if name == "FourMEncoder":
        from backbone.features import FourMEncoder

        return FourMEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
