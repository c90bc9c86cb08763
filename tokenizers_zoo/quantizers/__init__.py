"""Quantizers: latents to tokens and back, one interface over vector-quantize-pytorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers_zoo.quantizers.config import FSQ_LEVELS, QuantizerConfig
from tokenizers_zoo.quantizers.usage import CodebookUsage

if TYPE_CHECKING:
    from tokenizers_zoo.quantizers.quantizer import Quantized, Quantizer, build_quantizer

__all__ = ["FSQ_LEVELS", "CodebookUsage", "Quantized", "Quantizer", "QuantizerConfig", "build_quantizer"]


def __getattr__(name: str) -> Any:
    """Load what needs torch only when it is asked for, so that specs can be computed without it."""
    if name in ("Quantized", "Quantizer", "build_quantizer"):
        from tokenizers_zoo.quantizers import quantizer

        return getattr(quantizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
