"""What heads read of the encoder: one vector a sample, maps of its grids, or all tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tokenizers_zoo.errors import ConfigError
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.encoder import FourMEncoder, flat_grid
from zoo_backbone.packing import spans_of

Reads = Literal["vector", "map", "tokens"]


class Head(nn.Module):
    """What is put on the features that it `reads`.

    A "vector" is `batch dim`, a "map" `batch dim rows columns`, "tokens" are `batch tokens dim` with a bool mask
    `batch tokens` of those that a sample has (None: all).
    """

    reads: ClassVar[Reads]

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """The outputs that the kind of answer decodes."""
        raise NotImplementedError

    def taught(self, features: Tensor, mask: Tensor | None, targets: Tensor) -> Tensor:
        """The outputs that are compared with the targets."""
        result: Tensor = self(features, mask)
        return result


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The given modalities whose tokens lie on one grid of two axes, and its rows and columns."""

    names: tuple[str, ...]
    shape: tuple[int, int]

    @classmethod
    def of(cls, layout: EmbeddingLayout, given: Sequence[str]) -> Grid:
        """The grid of the first given modality that has one, and those that share it. Raises ConfigError."""
        shapes = {name: shape for name in given if (shape := flat_grid(layout.spec(name)))}
        if not shapes:
            raise ConfigError(
                f"--given {','.join(given)}: a map is read from a grid of two axes, and none of these has one"
            )
        rows, columns = next(iter(shapes.values()))
        names = tuple(name for name, shape in shapes.items() if shape == (rows, columns))
        return cls(names=names, shape=(rows, columns))


def read(
    encoder: FourMEncoder, tokens: Mapping[str, Tensor], used: Mapping[str, Tensor], reads: Reads, grid: Grid | None
) -> tuple[Tensor, Tensor | None]:
    """Features as a head reads them, and their mask, where it needs one."""
    if reads == "vector":
        return encoder(tokens, used), None
    features, mask = encoder.forward_features(tokens, used)
    if reads == "tokens":
        return features, mask if used else None
    assert grid is not None
    spans = spans_of(tokens)
    maps = [rearrange(features[:, spans[name]], "b (h w) d -> b d h w", h=grid.shape[0]) for name in grid.names]
    return torch.cat(maps, 1), None


def unpadded(features: Tensor, mask: Tensor | None) -> list[Tensor]:
    """A batch's features, sample by sample, without tokens that a sample has not."""
    if mask is None:
        return list(features)
    return [row[kept] for row, kept in zip(features, mask, strict=True)]


def padded_features(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Samples' features as a batch again, and its mask where their lengths differ."""
    lengths = torch.tensor([len(row) for row in rows])
    if len(set(lengths.tolist())) == 1:
        return torch.stack(list(rows)), None
    batch = pad_sequence(list(rows), batch_first=True)
    return batch, torch.arange(batch.shape[1]) < lengths.unsqueeze(1)
