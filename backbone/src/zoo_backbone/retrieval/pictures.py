"""Pictures of what was found: the query, then the closest samples, the right one framed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from zoo_backbone.evaluation.gallery import CELL, Shown, write_sheet

FRAME = 6
"""Width of the frame, pixels of a cell."""
RIGHT = "#1a9641"
MARK = "[right] "
"""Before a text that is the right one."""


def framed(cell: Shown) -> Shown:
    """A cell marked as the right one: pictures with a frame within their borders."""
    if isinstance(cell, str):
        return MARK + cell
    picture = cell.convert("RGB")
    factor = max(1, CELL // max(picture.size))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    width = FRAME * max(1, round(max(picture.size) / CELL))
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=RIGHT, width=width)
    return picture


def write_hits(
    path: Path, headers: Sequence[str], queries: Sequence[Sequence[Shown]], hits: Sequence[Sequence[Shown]]
) -> bool:
    """Write a sheet, a row per query: what was asked with, then its hits; rows with fewer are filled with nothing.

    False where all of it is text, which needs no picture. `headers` are those of what was asked with.
    """
    most = max(len(row) for row in hits)
    columns = [*headers, *(f"{number}" for number in range(1, most + 1))]
    rows = [[*asked, *found, *[""] * (most - len(found))] for asked, found in zip(queries, hits, strict=True)]
    return write_sheet(path, columns, rows)
