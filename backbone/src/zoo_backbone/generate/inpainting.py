"""Inpainting: regions of a modality to regenerate, and partial tokens, with -1 for missing tokens.

Partial tokens of grids and vectors are int64 `(batch, *shape)`, -1 at each cell to generate. Partial sequences are 1-D
int64 arrays in which -1 is a gap for any number of tokens: `[5, 9, -1]` is a beginning, `[-1, 5, 9, -1]` lacks both
ends. The model sees a gap as a sentinel, as in training.

Regions, the arguments of `--inpaint` and of a plan's table [inpaint], of grids and vectors:

    box:TOP,LEFT,BOTTOM,RIGHT    fractions of the picture; cells whose centre lies inside are generated
    cells:TOP,LEFT,BOTTOM,RIGHT  cells of the grid, ends excluded
    mask:FILE                    .npy or a picture of the grid's size, or a multiple of it: cells with a pixel that is
                                 not 0 (in a colour picture: not black) are generated
    not:REGION                   all other cells

A box may have two numbers per axis, for the last axes of a grid: all starts, then all ends. Regions of sequences:

    after  after:N               continue after all tokens, or after the first N
    tokens:0-3,8                 replace each listed run of tokens by any number of tokens
    gaps:N                       insert before every Nth token and at the end. N is the number of tokens of a unit, such
                                 as a field with its value
    not:tokens:0-3               replace all other runs
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenizers_zoo.contract.layouts import SequenceLayout
from tokenizers_zoo.contract.pictures import open_image
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.contract.validation import array_of
from tokenizers_zoo.errors import ConfigError, InvalidValueError, count_of, size_text
from tokenizers_zoo.records.limits import read_file
from zoo_backbone.generate.plans import is_count, ranges
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.packing import EncoderInputs, checked_batch

UNKNOWN = -1

Ids = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def partial_of(spec: ModalitySpec, tokens: Any, region: str) -> Any:
    """Return partial tokens: -1 in the region. All codes of a place of a grid go together.

    Raises ConfigError for a wrong, empty or complete region.
    """
    if spec.layout.causal:
        return [_partial_sequence(spec.name, row, region) for row in tokens]
    ids = torch.as_tensor(tokens).cpu()
    mask = torch.from_numpy(region_mask(spec.name, spec.grid_shape or ids.shape[1:], region))
    if mask.all() or not mask.any():
        reason = "covers all tokens; make it smaller" if mask.all() else "no token lies in it; make it larger"
        raise ConfigError(f"inpaint {spec.name}={region:.80}: {reason}")
    return torch.where(mask.reshape(*mask.shape, *[1] * (ids.ndim - 1 - mask.ndim)), UNKNOWN, ids)


def region_mask(name: str, shape: Sequence[int], region: str) -> Mask:
    """Return a bool array of the grid's `shape`, True in the region. Raises ConfigError."""
    if negations := re.match("(?:not:)+", region):
        mask = region_mask(name, shape, region[negations.end() :])
        return mask if negations.end() // len("not:") % 2 == 0 else ~mask
    kind, _, rest = region.partition(":")
    if kind == "mask":
        return _mask_of_file(name, shape, Path(rest))
    if kind not in ("box", "cells"):
        raise _region_error(name, region, "box:TOP,LEFT,BOTTOM,RIGHT, cells:..., mask:FILE or not:...")
    axes = list(shape)
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) % 2 or not 0 < len(numbers) <= 2 * len(axes):
        expected = f"starts, then ends, for up to {len(axes)} axes: {2 * min(len(axes), 2)} numbers"
        raise _region_error(name, region, expected)
    sizes = axes[-len(numbers) // 2 :]
    starts, ends = numbers[: len(sizes)], numbers[len(sizes) :]
    mask = np.ones(shape, dtype=bool)
    for axis, (size, start, end) in enumerate(zip(sizes, starts, ends, strict=True), len(axes) - len(sizes)):
        limit = 1.0 if kind == "box" else float(size)
        if not 0 <= start < end <= limit or (kind == "cells" and (start % 1 or end % 1)):
            numbers_of = "fractions of the picture" if kind == "box" else "whole numbers"
            raise _region_error(name, region, f"0 <= start < end <= {limit:g}, {numbers_of}")
        centre = (np.arange(size) + 0.5) / (size if kind == "box" else 1)
        inside = (start <= centre) & (centre < end)
        mask &= inside.reshape([size if dimension == axis else 1 for dimension in range(len(axes))])
    return mask


def _mask_of_file(name: str, shape: Sequence[int], path: Path) -> Mask:
    extension = path.suffix.removeprefix(".").lower()
    try:
        data = read_file(path)
        if extension == "npy":
            pixels = array_of(data)
        else:
            picture = open_image(data, extension)
            grey = len(picture.getbands()) == 1 and picture.mode != "P"
            # Not mode L, which rounds dark colours and fractions to 0.
            pixels = np.asarray(picture) if grey else np.asarray(picture.convert("RGB")).max(axis=2)
        if pixels.dtype.kind not in "biuf" or np.isnan(pixels).any():
            raise ValueError(f"expected numbers, and none of them NaN; got {pixels.dtype}")
    except (OSError, ValueError, InvalidValueError) as error:
        raise ConfigError(f"inpaint {name}: mask:{path}: cannot be read as .npy or a picture: {error}") from None
    grid = tuple(shape)
    factors = [size // cells for size, cells in zip(pixels.shape, grid, strict=False)]
    expected = tuple(factor * cells for factor, cells in zip(factors, grid, strict=False))
    if pixels.ndim != len(grid) or 0 in factors or expected != pixels.shape:
        allowed_sizes = f"the grid's {size_text(grid)}, or a multiple of it"
        raise ConfigError(f"inpaint {name}: mask:{path}: expected {allowed_sizes}; got {size_text(pixels.shape)}")
    parts = [number for pair in zip(grid, factors, strict=True) for number in pair]
    return (pixels != 0).reshape(parts).any(axis=tuple(range(1, 2 * len(grid), 2)))


def _partial_sequence(name: str, row: Ids, region: str) -> Ids:
    kind, _, rest = region.partition(":")
    if kind in ("after", "gaps"):
        if (kind == "gaps" or rest) and not (is_count(rest) and int(rest)):
            raise _region_error(name, region, "a number from 1 on")
        if kind == "after":
            return np.append(row[: int(rest)] if rest else row, UNKNOWN)
        return np.insert(row, [*range(0, len(row), int(rest)), len(row)], UNKNOWN)
    inverted = kind == "not" and rest.startswith("tokens:")
    if kind != "tokens" and not inverted:
        raise _region_error(name, region, "after, after:N, tokens:0-3,8 or gaps:N")
    selected = np.zeros(len(row), dtype=bool)
    for first, last in ranges(rest.removeprefix("tokens:"), f"inpaint {name}={region:.80}"):
        if last >= len(row):
            allowed = f"tokens from 0 to {len(row) - 1}" if len(row) else "another region"
            raise _region_error(name, region, f"{allowed}: a sample has {len(row)} tokens")
        selected[first : last + 1] = True
    return np.where(selected != inverted, UNKNOWN, row)


def _region_error(name: str, region: str, expected: str) -> ConfigError:
    return ConfigError(f"inpaint {name}={region:.80}: expected {expected}")


# --- partial tokens


def checked_partial(layout: EmbeddingLayout, name: str, tokens: Any, batch: int, is_target: bool = True) -> Any:
    """Return partial tokens as an int64 tensor `(batch, length)`, or for sequences as a list of 1-D int64 arrays.

    Neighbouring gaps of a sequence become one. Raises InvalidValueError if the tokens do not fit the modality, if a
    target has nothing left to generate, or if a sequence has more gaps or tokens than the model has sentinels or
    positions for.
    """
    spec, positions = layout.spec(name), layout.positions[name]
    count_reason = f"the batch has {batch}"
    rows: Any
    if not spec.layout.causal:
        grid = torch.as_tensor(tokens).cpu()
        checked_batch(spec, torch.where(grid == UNKNOWN, 0, grid), batch, count_reason)
        rows = grid.reshape(batch, -1)
    else:
        rows = [np.asarray(row) for row in tokens]
        checked_batch(spec, [row[row != UNKNOWN] for row in rows], batch, count_reason)
        rows = [row[~((row == UNKNOWN) & (np.roll(row, 1) == UNKNOWN) & (np.arange(len(row)) > 0))] for row in rows]
    for number, row in enumerate(rows):
        gaps = int((row == UNKNOWN).sum())
        if gaps == 0 and is_target:
            raise InvalidValueError(f"{name}: sample {number} is complete, so nothing is left to generate")
        if not isinstance(spec.layout, SequenceLayout):
            continue
        if gaps > spec.layout.num_sentinels:
            limit = f"the modality has sentinels for {spec.layout.num_sentinels}; choose fewer, longer regions"
            raise InvalidValueError(f"{name}: sample {number} has {count_of(gaps, 'gap')}, and {limit}")
        if len(row) > (room := positions.stop - positions.start):
            content = f"{count_of(len(row) - gaps, 'token')} with {count_of(gaps, 'gap')}"
            limit = f"the model has {room} positions for both; choose a larger region"
            raise InvalidValueError(f"{name}: sample {number} keeps {content}, and {limit}")
    return rows


def add_partial(inputs: EncoderInputs, spec: ModalitySpec, tokens: Any) -> None:
    """Add the known tokens to the inputs; sequences with a sentinel for each gap.

    A sequence without any token is left out, except in models with an `EmbeddingLayout.placeholder` for it.
    """
    if not isinstance(spec.layout, SequenceLayout):
        grid = tokens.to(inputs.device)
        # Equally many cells per sample, see `group_by_missing`.
        cells = (grid != UNKNOWN).nonzero()[:, 1].view(inputs.batch, -1)
        inputs.add(spec.name, grid.gather(1, cells), cells)
        return
    rows = []
    for row in tokens:
        gaps = row == UNKNOWN
        if gaps.all() and inputs.layout.placeholder(spec) is None:
            rows.append(row[:0])
            continue
        read: Ids = np.where(gaps, spec.layout.sentinel_start + np.cumsum(gaps) - 1, row)
        rows.append(np.append(read, spec.layout.end) if sees_end(inputs.layout, spec.name, row) else read)
    ids = pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True).to(inputs.device)
    lengths = torch.tensor([[len(row)] for row in rows], device=inputs.device)
    ranks = torch.arange(ids.shape[1], device=inputs.device).expand(inputs.batch, -1)
    inputs.add(spec.name, ids, ranks, ranks < lengths)


def sees_end(layout: EmbeddingLayout, name: str, row: Ids) -> bool:
    """Return whether the model sees that a partial sequence ends with its last token."""
    spec = layout.spec(name)
    reaches_end = not len(row) or row[-1] != UNKNOWN
    return layout.input_end(spec) is not None and len(row) < spec.layout.length and bool(reaches_end)


def with_gaps_filled(row: Ids, stream: Sequence[int], layout: SequenceLayout) -> Ids:
    """Fill the gaps of a partial sequence with a decoded stream: spans with a sentinel between them.

    Gaps that the stream does not reach stay empty.
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


def group_by_missing(partial: Mapping[str, Any], batch: int) -> list[list[int]]:
    """Group the samples by the number of missing cells of each grid, so that a group is decoded in step."""
    groups: dict[tuple[int, ...], list[int]] = {}
    grids = [tokens for tokens in partial.values() if isinstance(tokens, Tensor)]
    for number in range(batch):
        groups.setdefault(tuple(int((grid[number] == UNKNOWN).sum()) for grid in grids), []).append(number)
    return list(groups.values())
