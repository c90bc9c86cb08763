"""Quantizers: latents to tokens and back, one interface over vector-quantize-pytorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers_zoo.quantizers.config import FSQ_LEVELS, QuantizerConfig
from tokenizers_zoo.quantizers.usage import CodebookUsage, RecentUsage, reachable_usage

if TYPE_CHECKING:
    from tokenizers_zoo.quantizers.quantizer import (
        Quantized,
        Quantizer,
        build_quantizer,
        collapse_warning,
        restore_quantizer,
    )

__all__ = [
    "FSQ_LEVELS",
    "CodebookUsage",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "RecentUsage",
    "build_quantizer",
    "collapse_warning",
    "reachable_usage",
    "restore_quantizer",
]
_NEEDS_TORCH = ("Quantized", "Quantizer", "build_quantizer", "collapse_warning", "restore_quantizer")


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is used, so that specs can be computed without torch."""
    if name in _NEEDS_TORCH:
        from tokenizers_zoo.quantizers import quantizer

        return getattr(quantizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
