"""Sheets of pictures: inputs, predictions and truth side by side, for evaluations and for previews in training."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from tokenizers_zoo.contract.registry import ModalityHandle
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.errors import ConfigError, DataError, ReadError, ZooError, count_of
from tokenizers_zoo.records.io import replacing_file, short_name
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenStore, whole_samples
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.learn.checkpoint import layout_for
from zoo_backbone.learn.data import datasets_of
from zoo_backbone.measure.evaluation import GalleryRecord, GalleryRow
from zoo_backbone.measure.evaluation_data import pairs_of, title_of
from zoo_backbone.model.config import ModelConfig, Preview, TrainConfig
from zoo_backbone.model.fourm import FourM

Shown = Image.Image | str
Box = tuple[int, int, int, int]

CELL = 128
"""Side of a picture's cell, pixels."""
TEXT = 200
"""Width of a column of text, pixels."""
GAP = 4
LINE = 15
LINES, TITLE_LINES = 40, 3
"""Maximum lines of a text and of a column's title; longer ones end in an ellipsis."""
LONGEST_NAME = 150
"""Maximum bytes of a sheet's name without extension: file systems take 255, including temporary suffixes."""


FOLDER = "previews"
PAIRS = 2
"""Previews of a run that names none."""


def shown(values: ValueStore, handle: ModalityHandle, split: str, key: str) -> Shown:
    """Return a stored value as a picture or text; its key if it cannot be read."""
    try:
        return handle.render(values.read_key(handle, split, key))
    except ZooError:
        return key


def sheet_name(inputs: Sequence[str], target: str) -> str:
    """Return `a-and-b-to-c.png`, shortened if necessary."""
    stem = f"{'-and-'.join(inputs)}-to-{target}"
    return f"{short_name(stem, LONGEST_NAME)}.png"


def write_sheet(path: Path, headers: Sequence[str], rows: Sequence[Sequence[Shown]], *, always: bool = False) -> bool:
    """Write the columns as one PNG, a row per sample; return False if all cells are text, unless `always`.

    Small pictures are enlarged by whole factors, so that their pixels stay visible. The PNG's text "cells" holds the
    place of each picture as JSON: per sample and column a box (left, top, right, bottom) or null.
    """
    pictured = [any(not isinstance(row[i], str) for row in rows) for i in range(len(headers))]
    if not (any(pictured) or always):
        return False
    widths = [CELL if picture else TEXT for picture in pictured]
    cells = [[_cell_image(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    heights = [max(CELL, *(cell.height for cell in row)) for row in cells]
    lefts = list(accumulate((width + GAP for width in widths), initial=0))
    titles = [_text_image(header, width - GAP, TITLE_LINES) for header, width in zip(headers, widths, strict=True)]
    top = max(title.height for title in titles) + GAP
    tops = list(accumulate((height + GAP for height in heights), initial=top))
    sheet = Image.new("RGB", (lefts.pop() - GAP, tops.pop() - GAP), "white")
    for title, left in zip(titles, lefts, strict=False):
        sheet.paste(title, (left, 1))
    cell_bounds: list[list[Box | None]] = [[None] * len(headers) for _ in rows]
    for number, (row, top) in enumerate(zip(cells, tops, strict=True)):
        for column, (cell, left) in enumerate(zip(row, lefts, strict=True)):
            if isinstance(rows[number][column], str):
                sheet.paste(cell, (left, top))
                continue
            x, y = left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2
            sheet.paste(cell, (x, y))
            cell_bounds[number][column] = (x, y, x + cell.width, y + cell.height)
    information = PngInfo()
    information.add_text("cells", json.dumps(cell_bounds))
    with replacing_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True, pnginfo=information)
    return True


def write_gallery(
    folder: Path, gallery: GalleryRecord, keys: Sequence[str], rows: Sequence[Sequence[Shown]]
) -> GalleryRecord:
    """Write the sheet of a gallery into a folder, a row per sample key, and return the gallery with its rows."""
    assert gallery.picture is not None
    is_pictured = write_sheet(folder / gallery.picture, gallery.columns, rows)
    texts = [tuple(cell if isinstance(cell, str) else None for cell in row) for row in rows]
    return replace(
        gallery,
        picture=gallery.picture if is_pictured else None,
        rows=tuple(GalleryRow(key=key, cells=cells) for key, cells in zip(keys, texts, strict=True)),
    )


def _cell_image(cell: Shown, width: int) -> Image.Image:
    """Return a picture that fits into a cell, or a text in lines of about `width` pixels."""
    if isinstance(cell, str):
        return _text_image(cell, width - GAP, LINES)
    picture = cell.convert("RGB")
    factor = -(-CELL // max(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return ImageOps.contain(picture, (CELL, CELL), Image.Resampling.LANCZOS) if max(picture.size) > CELL else picture


def _text_image(text: str, width: int, most_lines: int) -> Image.Image:
    """Return a picture of a text, in lines of at most `width` pixels that end after spaces or underscores."""
    font, lines = ImageFont.load_default(12), list[str]()
    for part in text.splitlines()[: most_lines + 1] or [""]:
        begin = len(lines)
        while (part and len(lines) <= most_lines) or len(lines) == begin:
            fit = bisect_right(range(1, width + 1), float(width), key=lambda count: font.getlength(part[:count]))
            end = fit if fit >= len(part) else max(part.rfind(" ", 0, fit + 1), part.rfind("_", 0, fit)) + 1 or fit
            lines.append(part[:end].rstrip())
            part = part[end:]
    if len(lines) > most_lines:
        lines[most_lines - 1 :] = [f"{lines[most_lines - 1][:-3]}…"]
    picture = Image.new("RGB", (width, LINE * len(lines) + 1), "white")
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        pen.text((0, LINE * number), line, fill="black", font=font)
    return picture


# --- previews during training


class Previews:
    """Draws RUN/previews/step-N/<inputs>-to-<target>.png; the truth is decoded from the true tokens.

    The samples come from the first token store that has all modalities of a preview. Without previews in the settings,
    the first default pairs are drawn. Raises ConfigError for modalities that the model cannot read or predict, and
    DataError if no held-out sample has all modalities; `inherited` previews are left out instead.
    """

    def __init__(
        self,
        handles: Mapping[str, ModalityHandle],
        tokens: Path,
        config: TrainConfig,
        *,
        model: ModelConfig | None = None,
        inherited: bool = False,
    ) -> None:
        self.handles, self.config = handles, config
        specs = [handle.spec for handle in handles.values()]
        layout = layout_for(model or ModelConfig(), specs)
        self.stores = datasets_of(tokens, config)
        self.tokens: dict[Preview, dict[str, Any]] = {}
        for preview in config.previews:
            readable = bool(preview.inputs) and set(preview.inputs) <= set(layout.readable)
            fits = readable and preview.target in layout.discrete and preview.target not in preview.inputs
            if fits and (sample_tokens := self._held_out(preview)):
                self.tokens[preview] = sample_tokens
            elif fits and not inherited:
                names = ", ".join((*preview.inputs, preview.target))
                raise DataError(f"previews: no held-out sample has all of {names}; leave that preview out")
            elif not inherited:
                possible = ", ".join(layout.readable), ", ".join(layout.discrete)
                expected = "inputs among {}, and a target that is no input, among {}".format(*possible)
                raise ConfigError.expected("previews", expected, title_of((preview.inputs, preview.target)))
        pairs = [] if self.tokens else pairs_of(specs, layout)
        for inputs, target in pairs:
            preview = Preview(inputs=inputs, target=target)
            if len(self.tokens) < PAIRS and (sample_tokens := self._held_out(preview)):
                self.tokens[preview] = sample_tokens
        if pairs and not self.tokens and not inherited:
            raise DataError(
                f"previews: no held-out sample in {', '.join(str(store.tokens) for store in self.stores)} has two "
                "modalities of this run; leave preview_every out, or tokenize a split test"
            )

    def _held_out(self, preview: Preview) -> dict[str, Any]:
        """Return tokens of the first held-out samples with all modalities of a preview, which the tokenizers can
        decode; nothing if there are none."""
        names = *preview.inputs, preview.target
        for store in self.stores:
            if store.modalities and not set(names) <= set(store.modalities):
                continue
            try:
                columns = [TokenStore(store.tokens).open(TEST, name) for name in names]
                for column in columns:
                    column.check_tokenizer(self.handles[column.modality])
            except ReadError:
                raise
            except ZooError:
                continue
            if rows := [row for _, row in islice(whole_samples(columns), self.config.preview_samples)]:
                return {column.modality: column.take(rows) for column in columns}
        return {}

    def __call__(self, model: FourM, folder: Path, step: int) -> dict[str, Path]:
        """Draw all previews; return the pictures' files by title."""
        return {title_of((p.inputs, p.target)): self._draw(model, folder, step, p) for p in self.tokens}

    def _draw(self, model: FourM, folder: Path, step: int, preview: Preview) -> Path:
        tokens, target = self.tokens[preview], preview.target
        inputs = {name: tokens[name] for name in preview.inputs}
        predicted = generate(model, inputs, [TargetPlan(name=target, temperature=0, steps=1)], self.config.seed)[target]
        columns: list[list[Shown]] = []
        for name, column in (*inputs.items(), (target, predicted), (target, tokens[target])):
            values = self.handles[name].decode_if_able(column)
            if values is None:  # no decoder: the number of vectors
                columns.append([count_of(len(row), "vector") for row in column])
            else:
                columns.append([self.handles[name].render(value) for value in values])
        headers = [*preview.inputs, f"predicted {target}", f"true {target}"]
        path = folder / FOLDER / f"step-{step:08}" / sheet_name(preview.inputs, target)
        write_sheet(path, headers, list(zip(*columns, strict=True)), always=True)
        return path
