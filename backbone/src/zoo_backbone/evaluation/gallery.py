"""Pictures of what was given, what was made of it in several draws, and the truth, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.io import replacing_file, short_name
from tokenizers_zoo.registry import ModalityHandle

Shown = Image.Image | str
Box = tuple[int, int, int, int]

CELL = 128
"""Side of a picture's cell, pixels."""
TEXT = 200
"""Width of a column of text, pixels."""
GAP = 4
HEADER = 18
LINE = 15
LINES = 40
"""Lines of a text at most; longer ones end in an ellipsis."""
LONGEST_NAME = 150
"""Bytes of a sheet's name, without its extension, at most: disks take 255 with what is added while it is written."""


def shown(values: ValueStore, handle: ModalityHandle, split: str, key: str) -> Shown:
    """A stored sample's modality as a picture or text; its key where the value is not there."""
    try:
        return handle.render(values.read_key(handle, split, key))
    except ZooError:
        return key


def text_of(cell: Shown) -> str | None:
    """A cell's text; None for pictures."""
    return cell if isinstance(cell, str) else None


def sheet_name(given: Sequence[str], target: str) -> str:
    """`a-and-b-to-c.png`, shortened where it is too long for a file."""
    stem = f"{'-and-'.join(given)}-to-{target}"
    return f"{short_name(stem, LONGEST_NAME)}.png"


def write_sheet(path: Path, headers: Sequence[str], rows: Sequence[Sequence[Shown]]) -> bool:
    """Write the columns as one PNG, a row per sample; False where all of them are text, which needs no picture.

    Small pictures are enlarged by whole factors where that fills a cell, so that their pixels stay visible. The PNG's
    text "cells" says, as JSON, where each picture lies: a row per sample, a box (left, top, right, bottom) or null
    per column.
    """
    pictured = [any(not isinstance(row[i], str) for row in rows) for i in range(len(headers))]
    if not any(pictured):
        return False
    sheet, places = _drawn(headers, rows, [CELL if picture else TEXT for picture in pictured])
    information = PngInfo()
    information.add_text("cells", json.dumps(places))
    with replacing_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True, pnginfo=information)
    return True


def _drawn(
    headers: Sequence[str], rows: Sequence[Sequence[Shown]], widths: Sequence[int]
) -> tuple[Image.Image, list[list[Box | None]]]:
    """The sheet, and where its pictures are."""
    pen = _pen(Image.new("RGB", (1, 1)))
    texts = [
        [
            _wrapped(cell, width - 2 * GAP, pen) if isinstance(cell, str) else []
            for cell, width in zip(row, widths, strict=True)
        ]
        for row in rows
    ]
    heights = [max(CELL, *(LINE * len(lines) for lines in row)) for row in texts]
    lefts = list(accumulate((width + GAP for width in widths), initial=0))
    tops = list(accumulate((height + GAP for height in heights), initial=HEADER))
    sheet = Image.new("RGB", (lefts.pop() - GAP, tops.pop() - GAP), "white")
    pen = _pen(sheet)
    for header, left, width in zip(headers, lefts, widths, strict=True):
        pen.text((left, 1), _cut(header, width, pen), fill="black")
    places: list[list[Box | None]] = [[None] * len(headers) for _ in rows]
    for number, (row, top) in enumerate(zip(rows, tops, strict=True)):
        for column, (cell, left) in enumerate(zip(row, lefts, strict=True)):
            if isinstance(cell, str):
                for below, line in enumerate(texts[number][column]):
                    pen.text((left, top + LINE * below), line, fill="black")
            else:
                picture, (x, y) = _fitted(cell)
                sheet.paste(picture, (left + x, top + y))
                places[number][column] = (left + x, top + y, left + x + picture.width, top + y + picture.height)
    return sheet, places


def _pen(sheet: Image.Image) -> ImageDraw.ImageDraw:
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(12)
    return pen


def _fitted(picture: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """The picture at the size that fills a cell best, and where in the cell it goes."""
    picture = picture.convert("RGB")
    longest = max(picture.size)
    whole = -(-CELL // longest)
    if whole > 1:
        picture = picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
    if max(picture.size) > CELL:
        factor = CELL / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2)


def _wrapped(text: str, width: int, pen: ImageDraw.ImageDraw) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words where possible."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if line and pen.textlength(longer) > width:
                lines.append(line)
                longer = word
            line = _cut(longer, width, pen)
            if len(lines) >= LINES:
                return [*lines[: LINES - 1], "…"]
        lines.append(line)
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], "…"]


def _cut(text: str, width: int, pen: ImageDraw.ImageDraw) -> str:
    """The text, or as much of it as `width` pixels hold with an ellipsis."""
    start = text[:width]  # few letters are as narrow as a pixel
    if start == text and pen.textlength(text) <= width:
        return text
    while start and pen.textlength(f"{start}…") > width:
        start = start[:-1]
    return f"{start}…"
