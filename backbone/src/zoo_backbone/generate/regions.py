"""Regions to inpaint, in words: the arguments of `--inpaint` and of a plan's table [inpaint].

Grids and vectors:

    box:TOP,LEFT,BOTTOM,RIGHT    fractions of the picture; cells whose centre lies inside are generated
    cells:TOP,LEFT,BOTTOM,RIGHT  cells of the grid, ends excluded
    mask:FILE                    .npy or a picture of the grid's size, or a multiple of it: cells with a pixel that is
                                 not 0 (in a colour picture: not black) are generated
    not:REGION                   all other cells

A box may have two numbers for each of the last axes of a grid: all starts, then all ends. Sequences:

    after  after:N               continue after all tokens, or after the first N
    tokens:0-3,8                 replace each of these runs of tokens, by any number of tokens
    gaps:N                       insert before every Nth token and at the end. N is the number of tokens of a unit, such
                                 as a field with its value
    not:tokens:0-3               replace all other runs
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from tokenizers_zoo.errors import ConfigError, by
from tokenizers_zoo.families.spatial.values import FORMATS
from tokenizers_zoo.spec import ModalitySpec, SequenceLayout
from tokenizers_zoo.validation import array_of, fixed_shape
from zoo_backbone.generate.partial import UNKNOWN
from zoo_backbone.packing import accepted

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def partial_of(spec: ModalitySpec, tokens: Any, region: str) -> Any:
    """Return partial tokens (see partial.py): those in the region are -1.

    All codes of a place of a grid go together. Raises ConfigError for a wrong region, or one that selects nothing or
    everything, and InvalidValueError for tokens that do not fit the modality.
    """
    if spec.continuous:
        raise ConfigError(f"inpaint {spec.name}: a {spec.layout.kind} modality cannot be inpainted; leave it out")
    found = accepted(spec, tokens, None, "")
    if isinstance(spec.layout, SequenceLayout):
        return [_partial_sequence(spec.name, row, region) for row in found]
    mask = torch.from_numpy(region_mask(spec.name, spec.places or fixed_shape(spec.layout), region))
    if not mask.any():
        raise ConfigError(f"inpaint {spec.name}={region}: no token lies in it; make it larger")
    if mask.all():
        raise ConfigError(f"inpaint {spec.name}={region}: covers all tokens; make it smaller, or leave out the input")
    of_codes = mask.reshape(*mask.shape, *[1] * (found.ndim - 1 - mask.ndim))
    return torch.where(of_codes, UNKNOWN, found.cpu())


def region_mask(name: str, shape: Sequence[int], region: str) -> Mask:
    """Return a bool array of the grid's `shape`, True in the region. Raises ConfigError."""
    kind, _, rest = region.partition(":")
    if kind == "not":
        return ~region_mask(name, shape, rest)
    if kind == "mask":
        return _mask_of_file(name, shape, Path(rest))
    if kind not in ("box", "cells"):
        raise _wrong(name, region, "box:TOP,LEFT,BOTTOM,RIGHT, cells:..., mask:FILE or not:...")
    axes = list(shape)
    numbers = _numbers(rest)
    if len(numbers) % 2 or not 0 < len(numbers) <= 2 * len(axes):
        raise _wrong(name, region, f"starts, then ends, for up to {len(axes)} axes: {2 * min(len(axes), 2)} numbers")
    sizes = axes[-len(numbers) // 2 :]
    starts, ends = numbers[: len(sizes)], numbers[len(sizes) :]
    mask = np.ones(shape, dtype=bool)
    for axis, (size, start, end) in enumerate(zip(sizes, starts, ends, strict=True), len(axes) - len(sizes)):
        most = 1.0 if kind == "box" else float(size)
        if not 0 <= start < end <= most or (kind == "cells" and (start % 1 or end % 1)):
            raise _wrong(
                name,
                region,
                f"0 <= start < end <= {most:g}, {'fractions of the picture' if kind == 'box' else 'whole numbers'}",
            )
        middle = (np.arange(size) + 0.5) / (size if kind == "box" else 1)
        inside = (start <= middle) & (middle < end)
        mask &= inside.reshape([size if other == axis else 1 for other in range(len(axes))])
    return mask


def _mask_of_file(name: str, shape: Sequence[int], path: Path) -> Mask:
    try:
        data = path.read_bytes()
        if path.suffix == ".npy":
            pixels = array_of(data)
        else:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            grey = len(picture.getbands()) == 1 and picture.mode != "P"
            # Not as mode L, which rounds dark colours and fractions to 0.
            pixels = np.asarray(picture if grey else picture.convert("RGB"))
            pixels = pixels if grey else pixels.max(axis=2)
        if pixels.dtype.kind not in "biuf" or np.isnan(pixels).any():
            raise ValueError(f"expected numbers, and none of them NaN; got {pixels.dtype}")
    except UnidentifiedImageError:
        raise ConfigError(f"inpaint {name}: mask:{path}: cannot be read: expected .npy or a picture") from None
    except (Image.DecompressionBombError, EOFError, OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"inpaint {name}: mask:{path}: cannot be read as .npy or a picture: {error}") from None
    grid = tuple(shape)
    factors = [size // cells for size, cells in zip(pixels.shape, grid, strict=False)]
    if pixels.ndim != len(grid) or tuple(f * n for f, n in zip(factors, grid, strict=False)) != pixels.shape or (
        0 in factors
    ):  # fmt: skip
        raise ConfigError(
            f"inpaint {name}: mask:{path}: expected the grid's {by(grid)}, or a multiple of it; got {by(pixels.shape)}"
        )
    parts = [number for pair in zip(grid, factors, strict=True) for number in pair]
    mask: Mask = (pixels != 0).reshape(parts).any(axis=tuple(range(1, 2 * len(grid), 2)))
    return mask


def _partial_sequence(name: str, row: np.ndarray[Any, Any], region: str) -> np.ndarray[Any, Any]:
    kind, _, rest = region.partition(":")
    gap = np.array([UNKNOWN])
    expected = "after, after:N, tokens:0-3,8 or gaps:N"
    if kind == "after":
        count = _count(name, region, rest) if rest else len(row)
        return np.concatenate([row[:count], gap])
    if kind == "gaps":
        size = _count(name, region, rest)
        parts = [row[first : first + size] for first in range(0, len(row), size)]
        return np.concatenate([gap, *(piece for part in parts for piece in (part, gap))])
    inverted = kind == "not" and rest.startswith("tokens:")
    if kind != "tokens" and not inverted:
        raise _wrong(name, region, expected)
    chosen = np.zeros(len(row), dtype=bool)
    for first, last in ranges(rest.removeprefix("tokens:"), f"inpaint {name}={region}"):
        if last >= len(row):
            there = f"tokens from 0 to {len(row) - 1}" if len(row) else "another region"
            raise _wrong(name, region, f"{there}: a sample has {len(row)} tokens")
        chosen[first : last + 1] = True
    return np.where(chosen != inverted, UNKNOWN, row)


def ranges(text: str, where: str) -> list[tuple[int, int]]:
    """`0-3,8` to pairs of first and last. Raises ConfigError."""
    found = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise ConfigError(f"{where}: expected numbers and ranges such as 0-3,8; got {part!r}")
        found.append((int(first), int(last or first)))
    return found


def _count(name: str, region: str, text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise _wrong(name, region, "a number from 1 on")
    return int(text)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def _wrong(name: str, region: str, expected: str) -> ConfigError:
    return ConfigError(f"inpaint {name}={region}: expected {expected}")
