"""Where networks run: on the processor, or on a CUDA device."""

from __future__ import annotations

DEVICES = ("cpu", "cuda")


def device_problem(device: str) -> str | None:
    """What is wrong with asking for this one of DEVICES; None where it is there."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return 'device "cuda" is asked for, and there is none'
    return None
