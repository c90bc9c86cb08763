"""Muon: the matrices of the Transformer's blocks move along the orthogonal factor of their momentum.

Keller Jordan et al. 2024 (kellerjordan.github.io/posts/muon), scaled so that an entry moves as far as AdamW would move
it (arXiv 2502.16982, section 2.2), which lets both share a learning rate and a weight decay.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from zoo_backbone.transformer import FusedLinear

MOMENTUM = 0.9
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
ADAM_SIZE = 0.2
"""About the root mean square of the entries of an Adam update, in learning rates."""


def block_matrices(blocks: Iterable[nn.Module]) -> dict[Tensor, int]:
    """The weights of the linear layers in `blocks`, and of how many projections side by side each is made."""
    layers = [layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]
    return {layer.weight: layer.parts if isinstance(layer, FusedLinear) else 1 for layer in layers}


def orthogonal(matrices: Tensor) -> Tensor:
    """For each of `matrices rows columns` = U S V^T about U V^T: singular values between 0.7 and 1.2.

    Newton-Schulz iterations with a quintic polynomial, on the wide side, on a GPU in bfloat16, as published; zero
    matrices stay zero. What is given has the dtype of `matrices`.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """The optimizer of `matrices`: weights with the number of projections that each holds, one above the other.

    Each projection is a matrix of its own. Where weights are sharded, the momentum is too; each process orthogonalises
    whole matrices and keeps its rows.
    """

    def __init__(self, matrices: dict[Tensor, int], weight_decay: float) -> None:
        self.matrices = matrices
        self.weight_decay = weight_decay
        self.momentum = {weight: torch.zeros_like(weight, requires_grad=False) for weight in matrices}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move all matrices that have a gradient."""
        by_shape = defaultdict[tuple[int, ...], list[tuple[Tensor, int, Tensor]]](list)
        moved: dict[Tensor, list[Tensor]] = {}
        for weight, parts in self.matrices.items():
            if weight.grad is None:
                continue
            momentum = self.momentum[weight].lerp_(weight.grad, 1 - MOMENTUM)
            ahead = weight.grad.lerp(momentum, MOMENTUM)  # Nesterov's
            moved[weight] = list((ahead.full_tensor() if isinstance(ahead, DTensor) else ahead).chunk(parts))
            for part, matrix in enumerate(moved[weight]):
                by_shape[tuple(matrix.shape)].append((weight, part, matrix))
        for shape, found in by_shape.items():
            scale = ADAM_SIZE * math.sqrt(max(shape))
            for (weight, part, _), update in zip(found, orthogonal(torch.stack([m for *_, m in found])), strict=True):
                moved[weight][part] = update * scale
        for weight, updates in moved.items():
            update = torch.cat(updates)
            if isinstance(weight, DTensor):
                update = distribute_tensor(update, weight.device_mesh, weight.placements, src_data_rank=None)
            weight.mul_(1 - rate * self.weight_decay).sub_(update, alpha=rate)
