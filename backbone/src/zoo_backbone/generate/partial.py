"""Targets of which a part is given: the tokens that are kept, and -1 where something is to be made.

Grids and vectors: int64 `(batch, *shape)`, -1 at each cell to make. Sequences: 1-D int64 arrays in which -1 stands for
a gap that any number of tokens, or none, will fill: `[5, 9, -1]` is a beginning, `[-1, 5, 9, -1]` lacks both ends. The
model sees them as in training: a sequence's gaps are its sentinels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizers_zoo.errors import InvalidValueError, count_of
from tokenizers_zoo.spec import ModalitySpec, SequenceLayout, TokenLayout
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.generate.inputs import GrowingInputs, generated_text
from zoo_backbone.packing import accepted, shown_end

UNKNOWN = -1

Ids = np.ndarray[Any, Any]


def empty_partial(layout: TokenLayout, batch: int) -> Any:
    """Partial tokens of which nothing is known."""
    if isinstance(layout, SequenceLayout):
        return [np.array([UNKNOWN])] * batch
    return torch.full((batch, layout.length), UNKNOWN)


def checked_partial(tables: EmbeddingLayout, name: str, tokens: Any, batch: int, made: bool = True) -> Any:
    """Partial tokens: an int64 tensor `(batch, length)`, or for sequences a list of 1-D int64 arrays.

    Neighbouring gaps of a sequence become one. Raises InvalidValueError where the kept tokens do not fit the modality,
    nothing is left to make of a sample of what is `made`, a sequence has more gaps than the modality has sentinels, or
    what is kept and the gaps are more than the model has positions for.
    """
    spec = tables.spec(name)
    if not isinstance(spec.layout, SequenceLayout):
        grid = torch.as_tensor(tokens).cpu()
        accepted(spec, torch.where(grid == UNKNOWN, 0, grid), batch, generated_text(batch))
        flat = grid.reshape(batch, -1)
        full = (flat != UNKNOWN).all(1).nonzero().flatten().tolist()
        if full and made:
            raise InvalidValueError(f"{spec.name}: sample {full[0]} is complete, so nothing is left to generate")
        return flat
    rows = [np.asarray(row) for row in tokens]
    accepted(spec, [row[row != UNKNOWN] for row in rows], batch, generated_text(batch))
    rows = [row[~((row == UNKNOWN) & (np.roll(row, 1) == UNKNOWN) & (np.arange(len(row)) > 0))] for row in rows]
    for number, row in enumerate(rows):
        gaps = int((row == UNKNOWN).sum())
        if gaps == 0 and made:
            raise InvalidValueError(f"{spec.name}: sample {number} is complete, so nothing is left to generate")
        if gaps > spec.layout.num_sentinels:
            raise InvalidValueError(
                f"{spec.name}: sample {number} has {count_of(gaps, 'gap')}, and the modality has sentinels for "
                f"{spec.layout.num_sentinels}; keep fewer, longer parts"
            )
        if len(row) > (room := tables.positions[name].count):
            raise InvalidValueError(
                f"{spec.name}: sample {number} keeps {count_of(len(row) - gaps, 'token')} with {count_of(gaps, 'gap')}"
                f", and the model has {room} positions for both; keep less, or with fewer gaps"
            )
    return rows


def add_partial(inputs: GrowingInputs, spec: ModalitySpec, tokens: Any) -> None:
    """Let the kept tokens be inputs; of a sequence, with a sentinel for each gap.

    One that is nothing but a gap has none, except where the model marks such, see `ModelConfig.marked_inputs`.
    """
    if not isinstance(spec.layout, SequenceLayout):
        # As many cells for each sample, see `alike`.
        grid = tokens.to(inputs.device)
        cells = (grid != UNKNOWN).nonzero()[:, 1].view(inputs.batch, -1)
        inputs.add(spec.name, grid.gather(1, cells), cells)
        return
    marked = inputs.layout.marked_inputs
    rows = [_with_sentinels(row, spec.layout, sees_end(inputs.layout, spec.name, row), marked) for row in tokens]
    width = max(len(row) for row in rows)
    ids = torch.zeros(inputs.batch, width, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row)
    ranks = torch.arange(width, device=inputs.device).expand(inputs.batch, -1)
    lengths = torch.tensor([len(row) for row in rows], device=inputs.device).unsqueeze(1)
    inputs.add(spec.name, ids.to(inputs.device), ranks, ranks < lengths)


def sees_end(tables: EmbeddingLayout, name: str, row: Ids) -> bool:
    """Whether the model is shown that a partial sequence is kept to its end, see `ModelConfig.marked_inputs`."""
    spec = tables.spec(name)
    to_its_end = not len(row) or row[-1] != UNKNOWN
    return shown_end(tables, spec) is not None and len(row) < spec.layout.length and bool(to_its_end)


def _with_sentinels(row: Ids, layout: SequenceLayout, sees_end: bool, marked: bool) -> Ids:
    """The row as the model reads it: a sentinel in each gap; empty where it is nothing but a gap that is not marked."""
    gaps = row == UNKNOWN
    if gaps.all() and not marked:
        return row[:0]
    read: Ids = np.where(gaps, layout.sentinel_start + np.cumsum(gaps) - 1, row)
    return np.append(read, layout.end) if sees_end else read


def with_gaps_filled(row: Ids, stream: Sequence[int], layout: SequenceLayout) -> Ids:
    """A partial sequence with its gaps filled by what was decoded: spans with a sentinel between them.

    Gaps that the stream does not reach are left empty.
    """
    spans: list[list[int]] = [[]]
    for token in stream:
        if layout.sentinel_start <= token < layout.sentinel_start + layout.num_sentinels:
            spans.append([])
        else:
            spans[-1].append(token)
    remaining = iter(spans)
    parts = [next(remaining, []) if token == UNKNOWN else [token] for token in row.tolist()]
    return np.array([token for part in parts for token in part], dtype=np.int64)


def unknown_cells(kept: Tensor) -> Tensor:
    """The cells to make, `batch count`, of partial tokens with as many in each sample."""
    return (kept == UNKNOWN).nonzero()[:, 1].view(len(kept), -1)


def alike(kept: Mapping[str, Any], batch: int) -> list[list[int]]:
    """The samples in groups: those of a group lack as many cells of each grid, so that they are decoded in step."""
    groups: dict[tuple[int, ...], list[int]] = {}
    grids = [tokens for tokens in kept.values() if isinstance(tokens, Tensor)]
    for number in range(batch):
        groups.setdefault(tuple(int((grid[number] == UNKNOWN).sum()) for grid in grids), []).append(number)
    return list(groups.values())
