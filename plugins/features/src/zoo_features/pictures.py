"""Pictures as networks want them, and the arrays that their vectors become. Needs torch: import it inside functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tokenizers_zoo.pretrained import PretrainedError

if TYPE_CHECKING:
    from jaxtyping import Float

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of a network's training pictures: red, green, blue."""
CLIP: Colours = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""As CLIP was trained (arXiv 2103.00020; in its preprocessor_config.json), and ImageBind, too."""
IMAGENET: Colours = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""As DINOv2 was trained."""
COLOURS: dict[str, Colours] = {"clip": CLIP, "imagenet": IMAGENET}
"""By the names that the setting `colours` has for them."""


def normalised(
    rgb: np.ndarray[Any, Any], patches: tuple[int, int], side: int, colours: Colours, device: str
) -> Float[Tensor, "1 3 height width"]:
    """The whole picture (3, height, width) in [0, 1] resized (bicubic) to rows and columns of patches of `side` pixels,
    less the colours' mean, over their deviation.

    Nothing is cut off, so that the vectors of a map lie where the picture's pixels lie.
    """
    size = patches[0] * side, patches[1] * side
    pixels = torch.from_numpy(np.ascontiguousarray(rgb, dtype=np.float32))[None].to(device)
    if tuple(pixels.shape[-2:]) != size:
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    shift, scale = (torch.tensor(numbers, device=device)[:, None, None] for numbers in colours)
    return (pixels - shift) / scale


def as_map(vectors: Float[Tensor, "1 n dim"], size: tuple[int, int], channels: int, model: str) -> np.ndarray[Any, Any]:
    """Vectors, row by row, as float32 (channels, rows, columns). Raises PretrainedError where they are not so many."""
    check_dim(vectors, channels, model)
    if vectors.shape[1] != size[0] * size[1]:
        raise PretrainedError(f"{model}: gives {vectors.shape[1]} vectors, expected {size[0]} x {size[1]}")
    return rearrange(vectors[0], "(h w) d -> d h w", h=size[0]).float().cpu().contiguous().numpy()


def as_vector(vectors: Float[Tensor, "1 dim"], channels: int, model: str) -> np.ndarray[Any, Any]:
    """One vector as float32 (channels,). Raises PretrainedError for another length."""
    check_dim(vectors, channels, model)
    return vectors[0].float().cpu().contiguous().numpy()


def check_dim(vectors: Tensor, channels: int, model: str) -> None:
    """Raise PretrainedError where vectors do not have `channels` numbers."""
    if vectors.shape[-1] != channels:
        raise PretrainedError(
            f"{model}: gives vectors of {vectors.shape[-1]} numbers, expected {channels}; take a network of that size"
        )
