"""Pictures of what was given, what was made of it in several draws, and the truth, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.checkpoint import replacing_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

CELL = 128
GAP = 4
HEADER = 14


def text_of(shown: Image | str) -> str | None:
    """A cell's text; None for pictures."""
    return shown if isinstance(shown, str) else None


def write_sheet(path: Path, headers: Sequence[str], rows: Sequence[Sequence[Image | str]]) -> bool:
    """Write the columns that are pictures as one PNG, a row per sample; False where there are none.

    Small pictures are enlarged by whole factors, so that their pixels stay visible.
    """
    from PIL import Image as images
    from PIL import ImageDraw as drawing

    columns = [i for i in range(len(headers)) if not all(isinstance(row[i], str) for row in rows)]
    if not columns:
        return False
    size = (len(columns) * (CELL + GAP) - GAP, HEADER + len(rows) * (CELL + GAP) - GAP)
    sheet = images.new("RGB", size, "white")
    pen = drawing.Draw(sheet)
    for place, column in enumerate(columns):
        left = place * (CELL + GAP)
        pen.text((left, 1), _shortened(headers[column], pen), fill="black")
        for number, row in enumerate(rows):
            shown = row[column]
            if not isinstance(shown, str):
                sheet.paste(_fitted(shown), (left, HEADER + number * (CELL + GAP)))
    with replacing_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return True


def _fitted(picture: Image) -> Image:
    """The picture in a white square of `CELL`."""
    from PIL import Image as images

    picture = picture.convert("RGB")
    longest = max(picture.size)
    factor = CELL // longest if longest <= CELL else CELL / longest
    width, height = (max(1, round(side * factor)) for side in picture.size)
    resampling = images.Resampling.NEAREST if factor >= 1 else images.Resampling.LANCZOS
    cell = images.new("RGB", (CELL, CELL), "white")
    cell.paste(picture.resize((width, height), resampling), ((CELL - width) // 2, (CELL - height) // 2))
    return cell


def _shortened(text: str, pen: ImageDraw) -> str:
    """The text cut to the width of a cell."""
    while text and pen.textlength(text) > CELL:
        text = text[:-1]
    return text
