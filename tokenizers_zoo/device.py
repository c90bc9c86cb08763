"""The devices that networks run on."""

from __future__ import annotations

DEVICES = ("cpu", "cuda")


def device_problem(device: str) -> str | None:
    """Return the problem if a device of DEVICES is not available, else None."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return 'device "cuda" is asked for, and there is none'
    return None
