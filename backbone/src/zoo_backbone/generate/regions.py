"""Which tokens of a given modality are kept, in words: the arguments of `--keep` and of a plan's table [keep].

Grids and vectors, whose other cells are made:

    box:TOP,LEFT,BOTTOM,RIGHT    fractions of the picture; a cell is kept where its middle lies inside
    cells:TOP,LEFT,BOTTOM,RIGHT  cells of the grid, the last ones not included
    mask:FILE                    .npy or a picture: kept where it is not 0, or of a colour picture not black; of the
                                 grid's size, or a multiple of it: then all pixels of a cell have to be kept
    not:REGION                   all others

A box may have two numbers for each of the last axes of a grid, first where it starts, then where it ends. Sequences:

    start  start:N               all that is given, or its first N tokens, and the model goes on
    tokens:0-3,8                 these; each other run of tokens is made anew
    gaps:N                       all that is given, with a gap before every Nth token and at the end: N is the number of
                                 tokens of a unit, such as a field and its value
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


def kept_part(spec: ModalitySpec, tokens: Any, region: str) -> Any:
    """All tokens of a modality to partial ones (see partial.py): those outside the region are -1.

    A region of a grid is one of its places: all codes of a place go together. Raises ConfigError for a region that is
    not one, or of another size, InvalidValueError for tokens that do not fit.
    """
    if spec.continuous:
        raise ConfigError(f"keep {spec.name}: of a {spec.layout.kind} modality no part is kept; give all of it")
    found = accepted(spec, tokens, None, "")
    if isinstance(spec.layout, SequenceLayout):
        return [_kept_of_sequence(spec.name, row, region) for row in found]
    mask = torch.from_numpy(region_mask(spec.name, spec.places or fixed_shape(spec.layout), region))
    if not mask.any():
        raise ConfigError(f"keep {spec.name}={region}: no token lies in it, so that none is kept; make it larger")
    of_codes = mask.reshape(*mask.shape, *[1] * (found.ndim - 1 - mask.ndim))
    return torch.where(of_codes, found.cpu(), UNKNOWN)


def region_mask(name: str, shape: Sequence[int], region: str) -> Mask:
    """bool of the grid's `shape`, True where kept. Raises ConfigError."""
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
        raise ConfigError(f"keep {name}: mask:{path}: cannot be read: expected .npy or a picture") from None
    except (Image.DecompressionBombError, EOFError, OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"keep {name}: mask:{path}: cannot be read as .npy or a picture: {error}") from None
    grid = tuple(shape)
    factors = [size // cells for size, cells in zip(pixels.shape, grid, strict=False)]
    if pixels.ndim != len(grid) or tuple(f * n for f, n in zip(factors, grid, strict=False)) != pixels.shape or (
        0 in factors
    ):  # fmt: skip
        raise ConfigError(
            f"keep {name}: mask:{path}: expected the grid's {by(grid)}, or a multiple of it; got {by(pixels.shape)}"
        )
    parts = [number for pair in zip(grid, factors, strict=True) for number in pair]
    mask: Mask = (pixels != 0).reshape(parts).all(axis=tuple(range(1, 2 * len(grid), 2)))
    return mask


def _kept_of_sequence(name: str, row: np.ndarray[Any, Any], region: str) -> np.ndarray[Any, Any]:
    kind, _, rest = region.partition(":")
    gap = np.array([UNKNOWN])
    expected = "start, start:N, tokens:0-3,8 or gaps:N"
    if kind == "start":
        count = _count(name, region, rest) if rest else len(row)
        return np.concatenate([row[:count], gap])
    if kind == "gaps":
        size = _count(name, region, rest)
        parts = [row[first : first + size] for first in range(0, len(row), size)]
        return np.concatenate([gap, *(piece for part in parts for piece in (part, gap))])
    inverted = kind == "not" and rest.startswith("tokens:")
    if kind != "tokens" and not inverted:
        raise _wrong(name, region, expected)
    kept = np.zeros(len(row), dtype=bool)
    for first, last in ranges(rest.removeprefix("tokens:"), f"keep {name}={region}"):
        if last >= len(row):
            there = f"tokens from 0 to {len(row) - 1}" if len(row) else "another region"
            raise _wrong(name, region, f"{there}: one that is given has {len(row)} tokens")
        kept[first : last + 1] = True
    return np.where(kept != inverted, row, UNKNOWN)


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
    return ConfigError(f"keep {name}={region}: expected {expected}")
