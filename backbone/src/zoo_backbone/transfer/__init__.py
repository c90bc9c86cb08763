"""Transfer of a trained backbone's encoder to a task with labels: heads, tuning, scores, probes on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_backbone.transfer.probe import Probe
    from zoo_backbone.transfer.saving import load

__all__ = ["Probe", "load"]


def __getattr__(name: str) -> Any:
    """Import the models, and torch with them, only when they are asked for."""
    if name == "load":
        from zoo_backbone.transfer.saving import load

        return load
    if name == "Probe":
        from zoo_backbone.transfer.probe import Probe

        return Probe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
