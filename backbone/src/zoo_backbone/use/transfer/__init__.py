"""Transfer of a trained encoder to a task with labels: heads, tuning, probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_backbone.use.transfer.probe import Probe, load

__all__ = ["Probe", "load"]


def __getattr__(name: str) -> Any:
    """Import probes, and torch with them, on first use."""
    if name in __all__:
        from zoo_backbone.use.transfer import probe

        return getattr(probe, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
