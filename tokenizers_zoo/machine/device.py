"""The device that networks run on: names, and the best one of this machine."""

from __future__ import annotations

from tokenizers_zoo.errors import ConfigError

DEVICES = ("cpu", "cuda", "mps")
"""Kinds of devices that networks run on."""
AUTO = "auto"
"""The best device of this machine."""


def device_error(device: str) -> str | None:
    """Return the problem if a device, such as "cpu" or "cuda:1", is not available, else None."""
    kind, colon, number = device.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal()):
        return f"device {device!r}: expected {AUTO}, {', '.join(DEVICES)}, or a number with it, as in cuda:1"
    if kind == "cpu":
        return None
    import torch

    available = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    if available and number:
        available = int(number) < (torch.cuda.device_count() if kind == "cuda" else 1)
    return None if available else f'device "{device}" is asked for, and there is none'


def resolve_device(device: str) -> str:
    """Return the device itself; for "auto" the first of cuda, mps and cpu that is there. Raises ConfigError."""
    if device == AUTO:
        return next(kind for kind in ("cuda", "mps", "cpu") if not device_error(kind))
    if error := device_error(device):
        raise ConfigError(error)
    return device
