"""A modular zoo of 4M tokenizers: every modality is an installed plugin."""

from __future__ import annotations

TYPE_CHECKING = False  # an import of typing takes long enough to be interrupted, before `zoo` can say so in one line
if TYPE_CHECKING:
    from typing import Any

    from tokenizers_zoo.contract.hookspecs import hookimpl
    from tokenizers_zoo.contract.registry import ModalityHandle, Zoo

    __version__: str

__all__ = ["ModalityHandle", "Zoo", "__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    """Load a public name at its first use, so that importing the package or a plugin stays cheap."""
    if name in ("Zoo", "ModalityHandle"):
        from tokenizers_zoo.contract import registry

        return getattr(registry, name)
    if name == "hookimpl":
        from tokenizers_zoo.contract.hookspecs import hookimpl

        return hookimpl
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("tokenizers-zoo")
        except PackageNotFoundError:  # a source tree that is not installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
