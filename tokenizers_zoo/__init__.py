"""A modular zoo of 4M tokenizers: every modality is an installed plugin."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.hookspecs import hookimpl

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

__all__ = ["ModalityHandle", "Zoo", "__version__", "hookimpl"]

try:
    __version__ = version("tokenizers-zoo")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Load the registry at the first use, so that importing a plugin stays cheap."""
    if name in ("Zoo", "ModalityHandle"):
        from tokenizers_zoo import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
