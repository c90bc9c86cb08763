"""Pictures of the report: charts, the cells of gallery sheets, and colour legends."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.files.run_folder import locked
from tokenizers_zoo.records.io import replacing_file

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.figure import Figure

    from tokenizers_zoo.contract.handle import ModalityHandle

PICTURES = "pictures"
FREE_SIDE = 8
"""Pixels of a free axis of the value's shape when the colour legend is drawn."""
DECADES_OF_A_LOGARITHM = 2.0
"""A range of more decades than this gets a legend of 1, 2, 5, 10, ...; another evenly spaced numbers."""
LEGEND_NUMBERS = 8
NOISY = 300
"""Curves with more points are drawn as thin lines."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The folder of the page's PNG files, each picture of the page or a whole sheet of them."""

    folder: Path

    def add(self, name: str, png: bytes) -> str:
        """Write NAME.png, with a dash for each slash in it; gives the data URI for the page."""
        with replacing_file(self.folder / f"{name.replace('/', '-')}.png") as temporary:
            temporary.write_bytes(png)
        return data_uri(png)


@contextlib.contextmanager
def pictures_beside(page: Path) -> Iterator[Pictures]:
    """Lock the folder of a page's pictures, next to it.

    Raises ConfigError if `page` is a folder, and FolderError while another process writes pictures there.
    """
    if page.is_dir():
        raise ConfigError(f"{page}: a folder is where the page should be; give a file, such as {page / 'index.html'}")
    folder = page.parent / PICTURES
    with locked(folder):
        yield Pictures(folder=folder)


def data_uri(png: bytes) -> str:
    """Return a PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def png_of(picture: PIL.Image.Image | Figure) -> bytes:
    """Return a picture or chart as a PNG."""
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=150, bbox_inches="tight")  # with a legend beside the axes
    else:
        picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def cells_of(sheet: Path) -> list[list[str | None]]:
    """Return the images of a gallery's sheet as data URIs, a row per sample, with None for text cells.

    Raises CheckpointError if it is damaged.
    """
    from PIL import Image

    pillow_errors = Image.DecompressionBombError, Image.DecompressionBombWarning
    try:
        with Image.open(sheet, formats=("PNG",)) as image:
            rows = json.loads(getattr(image, "text", {})["cells"])
            for left, top, right, bottom in (box for row in rows for box in row if box is not None):
                if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
                    raise ValueError("a cell that is not in it")
            return [[box and data_uri(png_of(image.crop(box))) for box in row] for row in rows]
    except (LookupError, OSError, RecursionError, SyntaxError, TypeError, ValueError, *pillow_errors) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{sheet}: damaged: {reason}; delete it: the page goes without it, and what drew it draws it again"
        ) from None


def range_text(numbers: Sequence[int]) -> str:
    """`100`, or `90 to 100`."""
    smallest, largest = min(numbers), max(numbers)
    return str(smallest) if smallest == largest else f"{smallest} to {largest}"


def signed(number: float | None, form: str = ".2f") -> str:
    """Return a number with a real minus sign, and none for zero after rounding; a dash for None."""
    return "–" if number is None else format(number, form.replace(".", "z.")).replace("-", "\N{MINUS SIGN}")


def curve_chart(curves: Mapping[str, Sequence[tuple[int, float]]], quantity: str) -> bytes:
    """Draw curves over training steps, distinguished by colour and dashes; labels are in the order of the last values.

    A single point is a dot, and noisy curves lie below the others, which they would hide.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.5))
    axes = figure.add_subplot()
    styles = itertools.cycle(["-", "--", ":", "-."])
    lines = {}
    for name, points in curves.items():
        width, zorder = (0.6, 2) if len(points) > NOISY else (2.0, 3)
        marker = "o" if len(points) == 1 else ""
        (lines[name],) = axes.plot(
            *zip(*points, strict=True), next(styles), linewidth=width, marker=marker, zorder=zorder
        )
    axes.set_xlabel("training step")
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        order = sorted(curves, key=lambda name: -curves[name][-1][1])
        legend = axes.legend([lines[name] for name in order], order, fontsize=10, frameon=False, loc=(1.02, 0.0))
        for text in legend.get_texts():
            text.set_parse_math(False)  # they are names, of folders, too
    return png_of(figure)


def legend_of(handle: ModalityHandle) -> list[dict[str, str]]:
    """Return the colour legend of the modality's images, for classes, quantities with a unit, and unit vectors.

    A quantity is a one-channel map with a unit and a range greater than 1. Its unit is given once, at the end.
    """
    values = handle.spec.value
    low, high, channels = values.low, values.high, values.shape[:1] if len(values.shape) == 3 else ()
    bounded, quantity = low is not None and high is not None, False
    examples: dict[str, Any] = {}
    if values.kind == "array" and values.classes:
        examples = {name: number for number, name in enumerate(values.classes)}
    elif values.kind == "array" and bounded and channels == (1,) and values.unit and high - low > 1:  # type: ignore
        quantity, examples = True, {f"{number:g}": number for number in _round_numbers(low, high)}  # type: ignore
    elif values.kind == "array" and channels == (3,) and (low, high) == (-1, 1):
        vectors = np.kron(np.eye(3), [[1], [-1]]) + 0.0  # + 0.0 makes -0 to 0
        examples = {f"({', '.join(f'{x:g}' for x in vector)})": vector[:, None, None] for vector in vectors}
    shape = tuple(side if isinstance(side, int) else FREE_SIDE for side in values.shape)
    swatches: list[dict[str, str]] = []
    for label, example in examples.items():
        picture = handle.render(np.broadcast_to(example, shape).astype(values.dtype))
        if isinstance(picture, str):
            return []
        middle = picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))
        colour = "#{:02x}{:02x}{:02x}".format(*middle)  # type: ignore[misc]
        if quantity and swatches and colour == swatches[-1]["colour"]:
            # Beyond the ends of a scale all numbers have one colour.
            first = swatches[-1]["label"].removeprefix("≥ ")
            swatches[-1]["label"] = f"≤ {label}" if len(swatches) == 1 else f"≥ {first}"
        else:
            swatches.append({"colour": colour, "label": label})
    if quantity and swatches:
        swatches[-1]["label"] += f" {values.unit}"
    return swatches if len(swatches) > 1 else []


def _round_numbers(low: float, high: float) -> list[float]:
    """Round numbers between two bounds: 1, 2, 5, 10, ... over several decades, else evenly spaced."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if low > 0 and math.log10(high / low) > DECADES_OF_A_LOGARITHM:
        numbers = LogLocator(subs=(1.0, 2.0, 5.0), numticks=99).tick_values(low, high)
    else:
        numbers = MaxNLocator(LEGEND_NUMBERS, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(number) for number in numbers if low <= number <= high]
