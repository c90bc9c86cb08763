"""Encoders and decoders between image-like tensors and grids of latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers_zoo.nn.config import BlockConfig, MlpConfig

if TYPE_CHECKING:
    from tokenizers_zoo.nn.build import build_decoder, build_encoder

__all__ = ["BlockConfig", "MlpConfig", "build_decoder", "build_encoder"]


def __getattr__(name: str) -> Any:
    """Load what needs torch only when it is asked for, so that configurations can be read without it."""
    if name in ("build_decoder", "build_encoder"):
        from tokenizers_zoo.nn import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
