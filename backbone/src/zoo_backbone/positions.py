"""Where a token is: embeddings that are added to it, and turns of its queries and keys; one row for each position."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_backbone.embedding_layout import EmbeddingLayout

POSITION_SIZE = 2.0
"""Amplitude of the sin-cos positions. A target finds the inputs of its own position by them: at the usual 1.0 a small
model learns to do so much later."""
TURNED = 0.75
"""Share of a head's channels that turn, all axes together. The others compare tokens wherever they are."""
CYCLES = (0.25, 8.0)
"""Full turns from one edge of a grid to the other, of the channels that turn slowest and fastest."""


def position_table(layout: EmbeddingLayout, dim: int) -> Tensor:
    """Fixed sin-cos embeddings `positions dim`, of size POSITION_SIZE; zeros at rows of learned and stored ones."""
    table = torch.zeros(layout.num_positions, dim)
    for shape, rows in layout.positions_of("grid").items():
        table[rows.slice] = sincos_grid(shape, dim)
    for (count, computed_for), rows in layout.positions_of("line").items():
        table[rows.slice] = sincos_grid((count,), dim, (computed_for,))
    return POSITION_SIZE * table


def learned_rows(layout: EmbeddingLayout) -> Tensor:
    """int64 `positions`: for learned ones their row, from 1, in all learned tables one after the other; else 0."""
    result = torch.zeros(layout.num_positions, dtype=torch.int64)
    count = 1
    for rows in layout.positions_of("learned").values():
        result[rows.slice] = torch.arange(count, count + rows.count)
        count += rows.count
    return result


def sincos_grid(shape: tuple[int, ...], dim: int, steps: tuple[int, ...] | None = None) -> Tensor:
    """Sin-cos positions of a grid, `prod(shape) dim`, row-major: each axis has an equal share of the channels.

    Per axis of n steps: sines, then cosines, of the index times frequencies that fall geometrically from pi/2 to
    pi/(4n), periods of 4 to 8n steps. (arXiv 1706.03762, section 3.5, has periods up to 60,000, which leaves most
    channels of an axis of 8 or 14 steps all but constant, and attention by position hard to learn.) Channels that do
    not divide are left zero. With `steps` each n is from there: at one n, a shorter axis has the first rows of a
    longer one.
    """
    share = dim // len(shape) // 2
    fall = torch.arange(share, dtype=torch.float64) / max(share - 1, 1)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    angles = [
        axis.flatten().unsqueeze(1) * (math.pi / 2 * (2 * n) ** -fall)
        for axis, n in zip(axes, steps or shape, strict=True)
    ]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return F.pad(table, (0, dim - table.shape[1])).float()


def turn_table(layout: EmbeddingLayout, head_size: int) -> Tensor:
    """Turns of all position rows, `positions head_size`: cosines, then sines, of an angle for each pair of channels.

    Rotary positions (arXiv 2104.09864, section 3.2) with a share of the pairs for each axis of a grid. Angles are
    those of the place between the grid's edges, so that cells of two grids over one picture, fine or coarse, agree.
    Tokens of sequences, vectors and stored positions do not turn: a word's number says nothing of a place.
    """
    pairs = head_size // 2
    angles = torch.zeros(layout.num_positions, pairs)
    for shape, rows in layout.positions_of("grid").items():
        angles[rows.slice] = grid_angles(shape, pairs)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def grid_angles(shape: tuple[int, ...], pairs: int) -> Tensor:
    """Angles of a grid's cells in radians, `prod(shape) pairs`, row-major: as many pairs for each axis, the rest 0."""
    share = int(TURNED * pairs) // len(shape)
    slow, fast = CYCLES
    cycles = slow * (fast / slow) ** (torch.arange(share, dtype=torch.float64) / max(share - 1, 1))
    places = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in shape]
    axes = torch.meshgrid(*places, indexing="ij")
    angles = torch.cat([2 * math.pi * cycles * axis.flatten().unsqueeze(1) for axis in axes], dim=1)
    return F.pad(angles, (0, pairs - angles.shape[1])).float()


def unturned(turns: Tensor, count: int) -> Tensor:
    """`batch tokens head_size` with `count` tokens before them that do not turn."""
    still = torch.cat([torch.ones_like(turns[..., ::2]), torch.zeros_like(turns[..., ::2])], dim=-1)
    return torch.cat([still[:, :1].expand(-1, count, -1), turns], dim=1)


def turned(x: Tensor, turns: Tensor | None) -> Tensor:
    """Queries or keys `batch heads tokens head_size`, turned by `batch tokens head_size`; as they are where None.

    Pairs are a channel of the first half and the same of the second. The product of a query and a key then depends on
    the difference of their angles alone.
    """
    if turns is None:
        return x
    cos, sin = turns.unsqueeze(1).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
