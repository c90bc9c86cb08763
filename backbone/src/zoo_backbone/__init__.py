"""The shared 4M backbone: one encoder-decoder Transformer over the tokens of whatever modalities are registered."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_backbone.learn.encoder import FourMEncoder
    from zoo_backbone.model.fourm import FourM
    from zoo_backbone.use.any_to_any import AnyToAny
    from zoo_backbone.use.features import FourMFeatures

__all__ = ["AnyToAny", "FourM", "FourMEncoder", "FourMFeatures"]
_MODULES = {
    "AnyToAny": "use.any_to_any",
    "FourM": "model.fourm",
    "FourMEncoder": "learn.encoder",
    "FourMFeatures": "use.features",
}


def __getattr__(name: str) -> Any:
    """Import the classes, and with them torch, on first access."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"zoo_backbone.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
